# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what a guest is, as a driver asks a node for it: the ``guest`` of the verb domain-start.

Whatever is in a :class:`GuestSpec` has been checked: the node builds one from the request again
and trusts no caller. Device paths are not part of it: a disk is a number, and the node knows its
volume. Pure.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import Any, Final

from cxm import names
from cxm.config import GuestType
from cxm.errors import UsageError
from cxm.names import DomainName
from cxm.xen.options import Value, check

_MAX_MEMORY_MIB: Final = 16 << 20
_MAX_VCPUS: Final = 512
_MAX_WEIGHT: Final = 65535
_MAX_DISPLAY: Final = 59635  # port 65535

# The names under which Linux knows a Xen disk. Xen has no name for KVM's vda.
_TARGET: Final = re.compile(r"(?:xvd[a-z]{1,2}|hd[a-p]|sd[a-p])(?:[1-9][0-9]?)?")
_MAC: Final = re.compile(r"[0-9a-fA-F]{2}(?::[0-9a-fA-F]{2}){5}")
_BRIDGE: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,14}")
_MODEL: Final = re.compile(r"[A-Za-z0-9_-]{0,20}")
_ADDRESS: Final = re.compile(r"[0-9a-fA-F.:]{0,45}(?:/[0-9]{1,3})?")
# libxl hands what holds a colon to qemu as it is, which knows "unix:FILE": it would remove FILE.
_LISTEN: Final = re.compile(r"[0-9a-zA-Z.-]{0,64}|[0-9a-fA-F.:]{2,45}")
_KEYMAP: Final = re.compile(r"(?:[a-z]{2}(?:-[a-z]{2})?)?")
_BOOT: Final = re.compile(r"[acdn]{0,4}")
_ROOT: Final = re.compile(r"(?:[A-Za-z0-9/][A-Za-z0-9/_.:=+-]{0,200})?")
_PATH: Final = re.compile(r"/[^\x00-\x1f\x7f]{1,400}")
_PLAIN: Final = re.compile(r"[^\x00-\x1f\x7f]{0,2000}")
# xl splits these values at commas.
_PASSWORD: Final = re.compile(r"[^\x00-\x1f\x7f,]{0,64}")


class Bootloader(StrEnum):
    """What boots a guest that brings no kernel of its own in the request."""

    NONE = ""  # grub for Xen, as guest: it reads the guest's disk inside of the guest
    PYGRUB = "pygrub"  # reads the guest's disk on the host


def _matches(what: str, value: str, form: re.Pattern[str], hint: str | None = None) -> None:
    if not form.fullmatch(value):
        raise UsageError(f"{what} {value!r} is not one that Xen could use", hint=hint)


def _within(what: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise UsageError(f"{what} {value!r} is not a whole number from {low} to {high}")


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk of a guest: which of the VM's volumes, and the name the guest sees it under."""

    disk: str
    target: str
    readonly: bool = False
    cdrom: bool = False

    def __post_init__(self) -> None:
        if names.volume_kind(self.disk) == names.CHECKPOINT:
            raise UsageError("the checkpoint is not a disk of the guest")
        _matches(
            f"disk {self.disk}: the target",
            self.target,
            _TARGET,
            "set TARGET to xvda, xvdb and so on, or DEV_PREFIX to xvd",
        )


@dataclass(frozen=True, slots=True)
class Nic:
    """A network interface of a guest; empty: Xen's default."""

    mac: str = ""
    bridge: str = ""
    model: str = ""
    ip: str = ""
    rate_kib_s: int | None = None  # what the guest may send
    openvswitch: bool = False

    def __post_init__(self) -> None:
        if self.mac:
            _matches("the MAC address", self.mac, _MAC)
        if self.bridge:
            _matches("the bridge", self.bridge, _BRIDGE)
        _matches("the NIC model", self.model, _MODEL)
        _matches("the IP address", self.ip, _ADDRESS)
        if self.rate_kib_s is not None:
            _within("the rate of a NIC", self.rate_kib_s, 1, 1 << 30)


@dataclass(frozen=True, slots=True)
class Vnc:
    """The guest's screen by VNC."""

    listen: str = ""
    display: int | None = None  # the port is 5900 + display; None: the first free one
    password: str = field(default="", repr=False)
    keymap: str = ""

    def __post_init__(self) -> None:
        _matches("the address that VNC listens on", self.listen, _LISTEN)
        if self.display is not None:
            _within("the VNC display", self.display, 0, _MAX_DISPLAY)
        if not _PASSWORD.fullmatch(self.password):
            raise UsageError("the VNC password holds a comma or a control character")
        _matches("the keymap", self.keymap, _KEYMAP)


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestSpec:
    """A guest, complete but for the decisions of its node (its name, when empty; its type)."""

    name: str = ""  # empty: the node takes the one on the VM's volumes
    memory_mib: int
    vcpus: int = 1
    cpu_weight: int | None = None  # Xen's; 256 for one CPU
    guest_type: GuestType = GuestType.AUTO
    kernel: str = ""
    ramdisk: str = ""
    root: str = ""
    cmdline: str = ""
    bootloader: Bootloader = Bootloader.NONE
    boot: str = ""  # order for HVM: a floppy, c disk, d CD, n network
    disks: tuple[Disk, ...] = ()
    nics: tuple[Nic, ...] = ()
    vnc: Vnc | None = None
    options: Mapping[str, Value] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name:
            names.domain_name(self.name)
        _within("the memory in MiB", self.memory_mib, 1, _MAX_MEMORY_MIB)
        _within("the number of CPUs", self.vcpus, 1, _MAX_VCPUS)
        if self.cpu_weight is not None:
            _within("the CPU weight", self.cpu_weight, 1, _MAX_WEIGHT)
        for what, path in (("the kernel", self.kernel), ("the ramdisk", self.ramdisk)):
            if path:
                _matches(what, path, _PATH, "it is the absolute path of a file on the node")
        if self.ramdisk and not self.kernel:
            raise UsageError("a ramdisk without a kernel cannot be booted", hint="set OS/KERNEL")
        _matches("the root device", self.root, _ROOT)
        _matches("the kernel's command line", self.cmdline, _PLAIN)
        _matches("the boot order", self.boot, _BOOT)
        for what, used in (
            ("disk", [disk.disk for disk in self.disks]),
            ("target", [disk.target for disk in self.disks]),
            ("MAC address", [nic.mac.lower() for nic in self.nics if nic.mac]),
        ):
            twice = sorted({word for word in used if used.count(word) > 1})
            if twice:
                raise UsageError(f"the {what} {twice[0]} is there twice")
        for key, value in self.options.items():
            check(key, value)

    def named(self, name: DomainName) -> "GuestSpec":
        """The same guest under a name."""
        return replace(self, name=name)

    def to_json(self) -> dict[str, Any]:
        """As values for JSON."""
        return {row.name: _plain(getattr(self, row.name)) for row in fields(self)}


def _plain(value: Any) -> Any:
    if isinstance(value, Disk | Nic | Vnc):
        return {row.name: getattr(value, row.name) for row in fields(value)}
    if isinstance(value, StrEnum):
        return value.value
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    return value


def _typed(what: str, value: Any, *types: type) -> Any:
    right = isinstance(value, types) and (bool in types or not isinstance(value, bool))
    if not right:
        raise UsageError(f"{what}: {value!r} has the wrong type")
    return value


_TYPES: Final[Mapping[type[Any], Mapping[str, tuple[type, ...]]]] = {
    Disk: {"disk": (str,), "target": (str,), "readonly": (bool,), "cdrom": (bool,)},
    Nic: {
        "mac": (str,),
        "bridge": (str,),
        "model": (str,),
        "ip": (str,),
        "rate_kib_s": (int, type(None)),
        "openvswitch": (bool,),
    },
    Vnc: {"listen": (str,), "display": (int, type(None)), "password": (str,), "keymap": (str,)},
    GuestSpec: {
        "name": (str,),
        "memory_mib": (int,),
        "vcpus": (int,),
        "cpu_weight": (int, type(None)),
        "guest_type": (str,),
        "kernel": (str,),
        "ramdisk": (str,),
        "root": (str,),
        "cmdline": (str,),
        "bootloader": (str,),
        "boot": (str,),
        "disks": (list,),
        "nics": (list,),
        "vnc": (dict, type(None)),
        "options": (dict,),
    },
}


def _checked(cls: type[Any], value: Any) -> dict[str, Any]:
    rows = _TYPES[cls]
    what = cls.__name__.lower()
    given: dict[str, Any] = _typed(what, value, dict)
    wrong = sorted(set(given) ^ set(rows))
    if wrong:
        state = "unknown" if wrong[0] in given else "missing"
        raise UsageError(f"guest: '{wrong[0]}' of {what} is {state}")
    return {key: _typed(f"guest: {key}", given[key], *types) for key, types in rows.items()}


def _enum(cls: type[StrEnum], value: str) -> Any:
    try:
        return cls(value)
    except ValueError:
        raise UsageError(f"'{value}' is none of {', '.join(map(repr, map(str, cls)))}") from None


def _option(value: Any) -> Value:
    if isinstance(value, list):
        return tuple(_typed("guest: an option", part, str) for part in value)
    plain: Value = _typed("guest: an option", value, str, int)
    return plain


def from_json(value: Any) -> GuestSpec:
    """A guest from the values of a request; raises UsageError for anything that is not right."""
    given = _checked(GuestSpec, value)
    given["guest_type"] = _enum(GuestType, given["guest_type"])
    given["bootloader"] = _enum(Bootloader, given["bootloader"])
    given["disks"] = tuple(Disk(**_checked(Disk, disk)) for disk in given["disks"])
    given["nics"] = tuple(Nic(**_checked(Nic, nic)) for nic in given["nics"])
    if given["vnc"] is not None:
        given["vnc"] = Vnc(**_checked(Vnc, given["vnc"]))
    given["options"] = {str(key): _option(part) for key, part in given["options"].items()}
    return GuestSpec(**given)
