# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the stored configuration of a domain: writing it from a guest, and reading it back. Pure.

Disks are named ``phy:/dev/VG/LV``, never by a link in OpenNebula's directory: the domain must start
when that directory is gone. What a guest leaves behind when it ends is preserved, so that somebody
can see how it ended (docs/design/0004-guest-life.md).
"""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from cxm.config import GuestType
from cxm.errors import DataError, UsageError
from cxm.names import CloudId, DomainName, VmId, domain_name, domain_uuid
from cxm.xen import cfgtext
from cxm.xen.choice import Choice
from cxm.xen.guest import Bootloader, Disk, GuestSpec, Nic, Vnc
from cxm.xen.options import Value

_UUID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")

_IDE: Final = frozenset("abcd")  # the disks that a PC of qemu has, hda to hdd
_AHCI: Final = frozenset("abcdef")  # those with hdtype=ahci


@dataclass(frozen=True, slots=True)
class Stored:
    """What a stored configuration tells about its domain."""

    name: DomainName
    uuid: str
    memory_mib: int
    volumes: tuple[str, ...]  # the last parts of its disks' paths


def _target(disk: Disk, guest_type: GuestType) -> str:
    """The name that Xen gives a disk.

    OpenNebula's default is hda or sda. An HVM guest has four of the former. To the others Linux
    shows both as xvda, and Xen knows no hde: what the guest sees is what Xen is told.
    """
    name, letter = disk.target[:2], disk.target[2]
    if guest_type is GuestType.HVM:
        if name == "hd" and letter not in _IDE:
            raise UsageError(
                f"disk {disk.disk}: an HVM guest has no {disk.target}, only hda to hdd",
                hint="set DEV_PREFIX to xvd",
            )
        return disk.target
    return f"xvd{disk.target[2:]}" if name in ("hd", "sd") else disk.target


def _letters(target: str) -> str:
    """What tells whole disks apart, without prefix and partition: of hda, sdb1 and xvdaa."""
    return target[3 if target.startswith("xvd") else 2 :].rstrip("0123456789")


def _clash(one: str, other: str, guest_type: GuestType) -> bool:
    """Whether two names are one, or of a disk and a part of it.

    Linux with Xen's drivers takes hda, sda and xvda for one, and qemu, which emulates an HVM
    guest's disks by IDE, hda, xvda and xvda1.
    """
    if _letters(one) != _letters(other):
        return False
    whole = not (one[-1].isdecimal() and other[-1].isdecimal())
    return whole or one == other or guest_type is GuestType.HVM


def _suits(disk: Disk, target: str, guest_type: GuestType) -> bool:
    """Whether an HVM guest can have that disk by this name; the others can in any case.

    Its CDs are on the IDE bus, or AHCI's. What cannot be written, and is none, is not: there libxl
    refuses it.
    """
    if guest_type is not GuestType.HVM or not disk.readonly:
        return True
    is_scsi, letters = target.startswith("sd"), _letters(target)
    if disk.cdrom:
        return letters in _IDE and not is_scsi
    return is_scsi or letters not in _AHCI


def _others(disk: Disk, guest_type: GuestType) -> list[str]:
    """The names that a disk which cannot be written may get in place of its own, best first."""
    if guest_type is not GuestType.HVM:
        return [f"xvd{letter}" for letter in "edcbafghijklmnopqrstuvwxyz"]
    if disk.cdrom:
        return [f"hd{letter}" for letter in "dcba"]
    return [f"xvd{letter}" for letter in "ghijklmnopqrstuvwxyz"]


def _targets(spec: GuestSpec, guest_type: GuestType) -> dict[str, str]:
    """The name of each disk.

    The context has oned's default prefix, whatever the others have. Where that makes its name
    another's, it gets a free one: a guest finds it by its label.
    """
    wanted = {disk.disk: _target(disk, guest_type) for disk in spec.disks}
    found: dict[str, str] = {}

    def owner(target: str) -> str | None:
        return next((disk for disk, had in found.items() if _clash(had, target, guest_type)), None)

    for disk in sorted(spec.disks, key=lambda disk: disk.readonly):
        target = wanted[disk.disk]
        if disk.readonly and (owner(target) or not _suits(disk, target, guest_type)):
            free = (each for each in _others(disk, guest_type) if owner(each) is None)
            target = next(free, target)
            if not _suits(disk, target, guest_type):
                raise UsageError(
                    f"disk {disk.disk}: an HVM guest has CDs as hda to hdd only, and all four are "
                    "taken",
                    hint="set TARGET of a disk of the VM to xvde or later",
                )
        if (other := owner(target)) is not None:
            raise UsageError(
                f"disks {other} and {disk.disk} are both {target} to the guest",
                hint="set DEV_PREFIX or TARGET to xvd for all of them",
            )
        found[disk.disk] = target
    return found


def _disks(spec: GuestSpec, devices: Mapping[str, str], guest_type: GuestType) -> Iterator[str]:
    targets = _targets(spec, guest_type)
    for disk in spec.disks:
        # Only an HVM guest sees a CD drive; for the others a CD is a disk that cannot be written.
        cdrom = ":cdrom" if disk.cdrom and guest_type is GuestType.HVM else ""
        mode = "r" if disk.readonly else "w"
        yield f"phy:{devices[disk.disk]},{targets[disk.disk]}{cdrom},{mode}"


def _nic(nic: Nic, guest_type: GuestType) -> str:
    pairs = [
        ("mac", nic.mac.lower()),
        ("bridge", nic.bridge),
        ("ip", nic.ip),
        ("script", "vif-openvswitch" if nic.openvswitch else ""),
        # A model is what an emulated card looks like; the others have none.
        ("model", nic.model if guest_type is GuestType.HVM else ""),
        ("rate", "" if nic.rate_kib_s is None else f"{nic.rate_kib_s}KB/s"),
    ]
    return ",".join(f"{key}={value}" for key, value in pairs if value)


def _vnc(vnc: Vnc, guest_type: GuestType) -> Iterator[str]:
    pairs: list[tuple[str, str]] = [("vnclisten", vnc.listen)] if vnc.listen else []
    if vnc.display is not None:
        pairs += [("vncunused", "0"), ("vncdisplay", str(vnc.display))]
    pairs += [("vncpasswd", vnc.password)] if vnc.password else []
    pairs += [("keymap", vnc.keymap)] if vnc.keymap else []
    if guest_type is GuestType.HVM:
        yield cfgtext.write("vnc", 1)
        for key, value in pairs:
            number = key in ("vncunused", "vncdisplay")
            yield cfgtext.write(key, int(value) if number else value)
    else:
        text = ",".join(f"{key}={value}" for key, value in [("type", "vnc"), *pairs])
        yield cfgtext.write("vfb", (text,))


def _boot(spec: GuestSpec, choice: Choice, ramdisk: str) -> Iterator[str]:
    if choice.kernel:
        yield cfgtext.write("kernel", choice.kernel)
        for key, value in (("ramdisk", ramdisk), ("root", spec.root), ("extra", spec.cmdline)):
            if value:
                yield cfgtext.write(key, value)
    elif spec.bootloader is not Bootloader.NONE:
        yield cfgtext.write("bootloader", spec.bootloader.value)
    if choice.guest_type is GuestType.HVM and spec.boot:
        yield cfgtext.write("boot", spec.boot)


def render(
    spec: GuestSpec,
    *,
    cloud: CloudId,
    vm: VmId,
    choice: Choice,
    ramdisk: str,
    devices: Mapping[str, str],
) -> str:
    """The text of the configuration; ``devices`` gives the device of each disk by its number."""
    name = domain_name(spec.name)
    lines = [
        "# Written by cxm at every start of the VM: changes made here are lost.",
        f"#O VM_ID = {vm}",
        f"# guest type: {choice.reason}",
        cfgtext.write("name", name),
        cfgtext.write("uuid", domain_uuid(cloud, vm)),
        cfgtext.write("type", choice.guest_type.value),
        *_boot(spec, choice, ramdisk),
        cfgtext.write("memory", spec.memory_mib),
        cfgtext.write("vcpus", spec.vcpus),
    ]
    if spec.cpu_weight is not None:
        lines.append(cfgtext.write("cpu_weight", spec.cpu_weight))
    lines.append(cfgtext.write("disk", tuple(_disks(spec, devices, choice.guest_type))))
    lines.append(cfgtext.write("vif", tuple(_nic(nic, choice.guest_type) for nic in spec.nics)))
    if spec.vnc is not None:
        lines += _vnc(spec.vnc, choice.guest_type)
    lines += [cfgtext.write(key, value) for key, value in sorted(spec.options.items())]
    lines += [
        cfgtext.write("on_poweroff", "preserve"),
        cfgtext.write("on_crash", "preserve"),
        cfgtext.write("on_watchdog", "preserve"),
        cfgtext.write("on_reboot", "restart"),
    ]
    return "\n".join(lines) + "\n"


def _word(value: Value | None) -> str:
    return value if isinstance(value, str) else ""


def read(text: str, source: str) -> Stored:
    """What a stored configuration says; raises DataError when it is not one of cxm's."""
    try:
        config = cfgtext.parse(text, source)
        name = domain_name(_word(config.get("name")))
    except UsageError as error:
        raise DataError(f"{source} is not a configuration of cxm: {error.message}") from error
    uuid = _word(config.get("uuid")).lower()
    if not _UUID.fullmatch(uuid):
        raise DataError(f"{source} is not a configuration of cxm: it names no UUID")
    memory = config.get("memory")
    disks = config.get("disk")
    volumes = tuple(
        os.path.basename(disk.split(",")[0]) for disk in (disks if isinstance(disks, tuple) else ())
    )
    return Stored(name, uuid, memory if isinstance(memory, int) else 0, volumes)
