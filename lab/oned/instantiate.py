# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns how oned turns a user's template into a VM: disks, targets, addresses, context."""

import re
import uuid
from collections.abc import Iterator, Mapping
from typing import Final

from cxm.errors import NotFoundError, UsageError
from lab.oned.model import Datastore, Image, VirtualNetwork, Vm, volatile
from lab.oned.profiles import Profile
from lab.oned.templates import Template, Vector, single, take, vectors

_KNOWN: Final = (
    "CPU", "CONTEXT", "DISK", "FEATURES", "GRAPHICS", "INPUT", "MEMORY", "NIC", "OS", "RAW", "VCPU",
)  # fmt: skip
_FIRST_VNC_PORT: Final = 5900
_REQUIREMENTS: Final = ("REQUIREMENTS", "SCHED_REQUIREMENTS")  # the first up to 3.8
_OS, _CDROM = 0, 1
# The one form of requirements that the stand-in's scheduler knows.
_NAMED_HOST: Final = re.compile(r'NAME *= *"([^"]*)"')
_OF_NIC: Final = re.compile(r"\$NIC\[([A-Z0-9_]+)[^\]]*\]")


class Catalogue:
    """The images and networks that templates may name."""

    def __init__(
        self,
        images: Mapping[int, Image],
        stores: Mapping[int, Datastore],
        networks: Mapping[int, VirtualNetwork],
    ) -> None:
        self._images = images
        self._stores = stores
        self._networks = networks

    def image(self, disk: Vector) -> Image:
        """The image that a disk names by id or name."""
        for image in self._images.values():
            if disk.get("IMAGE_ID") == str(image.id) or disk.get("IMAGE") == image.name:
                return image
        raise NotFoundError(f"no image for DISK {disk}")

    def store(self, image: Image) -> Datastore:
        return self._stores[image.datastore]

    def network(self, nic: Vector) -> VirtualNetwork:
        """The network that a network interface names by id or name."""
        for network in self._networks.values():
            if nic.get("NETWORK_ID") == str(network.id) or nic.get("NETWORK") == network.name:
                return network
        raise NotFoundError(f"no network for NIC {nic}")


def make(number: int, template: Template, catalogue: Catalogue, profile: Profile) -> Vm:
    """A VM from a user's template; its images are not yet marked as used."""
    name = single(template, "NAME", f"one-{number}")
    known, user = take(template, _KNOWN)
    if profile.splits_user_template:
        user = [row for row in user if row[0] != "NAME"]
    disks = [_disk(index, row, catalogue, profile) for index, row in _indexed(known, "DISK")]
    nics = [_nic(number, index, row, catalogue, profile) for index, row in _indexed(known, "NIC")]
    context = next(iter(vectors(known, "CONTEXT")), None)
    if context is not None:
        context = _context(context, name, nics, profile)
        context["DISK_ID"] = str(len(disks))
    _assign_targets(disks, context, catalogue, profile)
    made: Template = [row for row in known if row[0] not in ("DISK", "NIC", "CONTEXT")]
    made = [_finish(row, number, profile) for row in made]
    if profile.version >= (5, 0) and not vectors(made, "OS"):
        made.append(("OS", {"UUID": str(uuid.uuid4())}))
    made += [("DISK", disk) for disk in disks] + [("NIC", nic) for nic in nics]
    if context is not None:
        made.append(("CONTEXT", context))
    made.append(("VMID", str(number)))
    return Vm(number, name, made, user)


def allows(vm: Vm, host: str) -> bool:
    """Whether a VM's requirements allow a host, as far as they name one."""
    texts = [single([*vm.template, *vm.user_template], name) for name in _REQUIREMENTS]
    found = _NAMED_HOST.search(" ".join(texts))
    return found is None or found[1] == host


def _indexed(template: Template, name: str) -> Iterator[tuple[int, Vector]]:
    return enumerate(dict(row) for row in vectors(template, name))


def _finish(
    row: tuple[str, str | Vector], number: int, profile: Profile
) -> tuple[str, str | Vector]:
    name, value = row
    if name == "GRAPHICS" and isinstance(value, dict):
        value = {"PORT": str(_FIRST_VNC_PORT + number)} | value
    if name == "OS" and isinstance(value, dict) and profile.version >= (5, 0):
        value = {"UUID": str(uuid.uuid4())} | value
    return name, value


def _disk(index: int, disk: Vector, catalogue: Catalogue, profile: Profile) -> Vector:
    disk["DISK_ID"] = str(index)
    prefix = "sd" if profile.version >= (6, 0) else "hd"
    if volatile(disk):
        disk.setdefault("DEV_PREFIX", prefix)
        if profile.version >= (5, 0) and disk["TYPE"].upper() == "FS":
            disk.setdefault("FORMAT", "raw")
        if profile.image_format:
            disk["DRIVER"] = disk.setdefault("FORMAT", "raw")
        return disk
    image = catalogue.image(disk)
    store = catalogue.store(image)
    cdrom = image.type == _CDROM
    linked = image.persistent or (cdrom and not profile.clones_cdrom)
    for key in ("DEV_PREFIX", "TARGET", "DRIVER", "FSTYPE", "LV_SIZE"):
        inherited = key in ("DEV_PREFIX", "TARGET", "DRIVER") or profile.version >= (4, 4)
        value = single(image.template, key)
        if value and inherited:
            disk.setdefault(key, value)
    if not (cdrom and profile.version >= (5, 0)):
        disk.setdefault("DEV_PREFIX", prefix)
    disk |= {
        "IMAGE": image.name,
        "IMAGE_ID": str(image.id),
        "SOURCE": image.source,
        "CLONE": "NO" if linked else "YES",
        "SAVE": "YES" if image.persistent else "NO",
        "READONLY": "YES" if cdrom else "NO",
        "DATASTORE": store.name,
        "DATASTORE_ID": str(store.id),
        "TM_MAD": store.tm_mad,
        "TYPE": "CDROM" if cdrom else "FILE",
    }
    if image.persistent:
        disk["PERSISTENT"] = "YES"
    if profile.image_format:
        disk["DRIVER"] = disk["FORMAT"] = image.format
    if profile.keeps_disk_size:
        disk["ORIGINAL_SIZE"] = str(image.size_mib)
        disk.setdefault("SIZE", str(image.size_mib))
        disk |= {"CLONE_TARGET": "SYSTEM", "LN_TARGET": "SYSTEM", "CLUSTER_ID": "0"}
    return disk


def _nic(number: int, index: int, nic: Vector, catalogue: Catalogue, profile: Profile) -> Vector:
    if not nic.get("NETWORK") and not nic.get("NETWORK_ID"):
        return nic
    network = catalogue.network(nic)
    address = nic.get("IP") or network.lease(number)
    network.leases[address] = number
    parts = [int(part) for part in address.split(".")]
    nic |= {
        "NETWORK": network.name,
        "NETWORK_ID": str(network.id),
        "BRIDGE": network.bridge,
        "IP": address,
        "MAC": "02:00:" + ":".join(f"{part:02x}" for part in parts),
    }
    if profile.version < (5, 0):
        nic["VLAN"] = "NO"
    else:
        nic |= {
            "NIC_ID": str(index),
            "VN_MAD": network.vn_mad,
            "TARGET": f"one-{number}-{index}",
            "SECURITY_GROUPS": "0",
        }
        if profile.version >= (6, 0):
            nic["NAME"] = f"NIC{index}"
    return nic


def _context(context: Vector, name: str, nics: list[Vector], profile: Profile) -> Vector:
    first = nics[0] if nics else {}

    def fill(value: str) -> str:
        value = value.replace("$NAME", name)
        return _OF_NIC.sub(lambda match: first.get(match[1], ""), value)

    made = {key: fill(value) for key, value in context.items()}
    if profile.version >= (4, 4) and made.get("NETWORK", "").upper() == "YES":
        for index, nic in enumerate(nics):
            made |= {
                f"ETH{index}_MAC": nic.get("MAC", ""),
                f"ETH{index}_IP": nic.get("IP", ""),
                f"ETH{index}_MASK": "",
                f"ETH{index}_GATEWAY": "",
            }
    return made


def _assign_targets(
    disks: list[Vector], context: Vector | None, catalogue: Catalogue, profile: Profile
) -> None:
    """Device names: the first system disk, the CD-ROMs and the context, then all others."""
    default = "sd" if profile.version >= (6, 0) else "hd"
    system: list[Vector] = []
    cdroms: list[Vector] = []
    others: list[Vector] = []
    for disk in disks:
        kind = None if volatile(disk) else catalogue.image(disk).type
        if kind == _OS and not system:
            system.append(disk)
        else:
            (cdroms if kind == _CDROM else others).append(disk)
    # Up to 4.14 the context comes before the other CD-ROMs.
    middle = [] if context is None else [context]
    order = [*system, *((middle + cdroms) if profile.version < (5, 0) else (cdroms + middle))]
    used = {disk["TARGET"] for disk in [*disks, *middle] if disk.get("TARGET")}
    if len(used) != sum(1 for disk in [*disks, *middle] if disk.get("TARGET")):
        raise UsageError("Two disks have defined the same target")
    prefix = next((disk["DEV_PREFIX"] for disk in disks if disk.get("DEV_PREFIX")), default)
    for disk in [*order, *others]:
        if not disk.get("TARGET"):
            own = disk.get("DEV_PREFIX") or (default if disk is context else prefix)
            names = (f"{own}{letter}" for letter in "abcdefghijklmnopqrstuvwxyz")
            disk["TARGET"] = next(name for name in names if name not in used)
            used.add(disk["TARGET"])
