# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the reading of a deployment file of oned's Xen driver (``TYPE="xen"``, 3.6 to 7.4). Pure.

The file is xl.cfg as oned writes it, followed by what the template's RAW holds. It is read as data
and becomes a :class:`~cxm.xen.guest.GuestSpec`: nothing of its text reaches Xen.
"""

import os
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from cxm.config import GuestType
from cxm.errors import UsageError
from cxm.names import VmId
from cxm.xen import cfgtext, options
from cxm.xen.guest import Disk, GuestSpec, Nic, Vnc
from cxm.xen.options import Value
from cxm.xen.words import bootloader, guest_type

_SOURCE: Final = "the deployment file"
_OWN_NAME: Final = re.compile(r"one-(0|[1-9][0-9]*)")
# Before the path stands whatever oned takes for the driver: phy: raw: tap:aio: (3.x: no colon).
_DISK: Final = re.compile(
    r"[^/]*(?P<dir>/.*)/disk\.(?P<disk>0|[1-9][0-9]{0,3})"
    r",(?P<target>[^,:]*)(?P<kind>:cdrom|:disk)?,(?P<mode>[rw])"
)


def _text(key: str, value: Value) -> str:
    if isinstance(value, tuple):
        raise UsageError(f"{key} is a list")
    return str(value)


def _list(key: str, value: Value) -> tuple[str, ...]:
    if not isinstance(value, tuple):
        raise UsageError(f"{key} is not a list")
    return value


def _number(key: str, value: Value) -> int:
    text = _text(key, value)
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise UsageError(f"{key} '{text}' is not a number")
    return int(text)


def _disk(entry: str, directory: str) -> Disk:
    match = _DISK.fullmatch(entry.strip())
    if not match or os.path.normpath(match["dir"]) != directory:
        raise UsageError(
            f"the disk '{entry}' is not one of this VM's ({directory}/disk.N)",
            hint="disks are given by DISK in the template",
        )
    cdrom = match["kind"] == ":cdrom"
    readonly = cdrom or match["mode"] == "r"
    return Disk(match["disk"], match["target"], readonly=readonly, cdrom=cdrom)


def _pairs(what: str, entry: str, keys: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in entry.split(","):
        key, equals, value = part.strip().partition("=")
        if not part.strip():
            continue
        if not equals or key not in keys:
            raise UsageError(
                f"{what} '{entry}' holds '{part.strip()}', which is not one of its keys"
            )
        found[key] = value
    return found


def _nic(entry: str) -> Nic:
    given = _pairs("the NIC", entry, ("model", "mac", "ip", "bridge"))
    return Nic(
        mac=given.get("mac", ""),
        bridge=given.get("bridge", ""),
        model=given.get("model", ""),
        ip=given.get("ip", ""),
    )


_VNC_KEYS: Final = ("vnclisten", "vncdisplay", "vncpasswd", "keymap")


def _vnc(given: Mapping[str, str]) -> Vnc:
    display = given.get("vncdisplay", "")
    return Vnc(
        listen=given.get("vnclisten", ""),
        display=_number("vncdisplay", display) if display else None,
        password=given.get("vncpasswd", ""),
        keymap=given.get("keymap", ""),
    )


# What OpenNebula counts, places and allows: RAW comes after it, and whoever may write that has no
# say in these (as in the versions whose request is XML).
_ONCE: Final = (
    "memory_mib", "vcpus", "cpu_weight", "kernel", "ramdisk", "bootloader", "disks", "nics",
)  # fmt: skip


class _Reader:
    """Collects what the statements say; the last one of a key holds, as for xl, but for some."""

    def __init__(self, directory: str) -> None:
        self.spec: dict[str, Any] = {}
        self.options: dict[str, Value] = {}
        self.screen: dict[str, str] = {}
        self._directory = directory
        self._rows: Mapping[str, Callable[[str, Value], None]] = {
            "name": lambda _key, _value: None,
            "memory": lambda key, value: self._put("memory_mib", _number(key, value)),
            "vcpus": lambda key, value: self._put("vcpus", _number(key, value)),
            "cpu_weight": lambda key, value: self._put("cpu_weight", _number(key, value)),
            "kernel": lambda key, value: self._put("kernel", _text(key, value)),
            "ramdisk": lambda key, value: self._put("ramdisk", _text(key, value)),
            "root": lambda key, value: self._put("root", _text(key, value)),
            "extra": lambda key, value: self._put("cmdline", _text(key, value)),
            "bootloader": lambda key, value: self._put("bootloader", bootloader(_text(key, value))),
            "boot": lambda key, value: self._put("boot", _text(key, value)),
            "builder": self._builder,
            "type": lambda key, value: self._put("guest_type", guest_type(_text(key, value))),
            "disk": self._disks,
            "vif": lambda key, value: self._put("nics", tuple(map(_nic, _list(key, value)))),
            "vfb": self._vfb,
            "vnc": self._screen,
            "vncunused": lambda _key, _value: None,
        } | dict.fromkeys(_VNC_KEYS, self._screen)

    def _put(self, name: str, value: Any) -> None:
        if name in _ONCE and name in self.spec:
            what = "what the template says already, or a quote of it has ended too early"
            raise UsageError(f"it states {what}", hint="take it out of RAW")
        self.spec[name] = value

    def _builder(self, key: str, value: Value) -> None:
        # oned writes it when the template names neither kernel nor boot loader: no wish for HVM.
        if _text(key, value) not in ("hvm", "linux", "generic"):
            raise UsageError(f"the builder '{value}' is unknown")

    def _disks(self, key: str, value: Value) -> None:
        disks = [_disk(entry, self._directory) for entry in _list(key, value)]
        self._put("disks", tuple(disks))

    def _vfb(self, key: str, value: Value) -> None:
        for entry in _list(key, value):
            given = _pairs("the screen", entry, ("type", "vncunused", *_VNC_KEYS))
            if given.pop("type", "vnc") != "vnc":
                raise UsageError(f"the screen '{entry}' is not VNC")
            self.screen |= given | {"vnc": "1"}

    def _screen(self, key: str, value: Value) -> None:
        self.screen[key] = _text(key, value)

    def take(self, row: cfgtext.Statement) -> None:
        try:
            if row.key in self._rows:
                self._rows[row.key](row.key, row.value)
            else:
                self.options[row.key] = options.check(row.key, row.value)
        except UsageError as error:
            message = f"{_SOURCE}, line {row.line}: {error.message}"
            raise UsageError(message, hint=error.hint) from error


def read(text: str, *, vm: VmId, directory: str, default_type: GuestType) -> GuestSpec:
    """The guest that a deployment file of the VM describes; ``directory`` is the VM's own.

    The result has no name: oned's ``one-<id>`` is not the one that the domain will have. Its type
    is the default one unless the template's RAW names another.
    """
    config = cfgtext.parse(text, _SOURCE)
    named = _OWN_NAME.fullmatch(str(config.get("name") or f"one-{vm}"))
    if named and named[1] != str(vm):
        raise UsageError(f"{_SOURCE} is of VM {named[1]}, not of VM {vm}")
    reader = _Reader(os.path.normpath(directory))
    reader.spec["guest_type"] = default_type
    for row in config.statements:
        reader.take(row)
    if "memory_mib" not in reader.spec:
        raise UsageError(f"{_SOURCE} names no memory")
    credits_ = config.remarks.get("CPU_CREDITS", "")
    if re.fullmatch(r"[1-9][0-9]{0,8}", credits_):
        reader.spec.setdefault("cpu_weight", min(int(credits_), 65535))
    if reader.screen.get("vnc") == "1":
        reader.spec["vnc"] = _vnc(reader.screen)
    return GuestSpec(**reader.spec, options=reader.options)
