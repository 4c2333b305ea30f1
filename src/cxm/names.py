# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns every derived name: volumes, their tags, domains and their UUIDs. Pure; runs nothing.

One function makes each name and one takes it apart, so that VM 4 is never mistaken for VM 42 and
disk 1 never for disk 10.
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NewType

from cxm.errors import DataError, UsageError

VmId = NewType("VmId", int)
CloudId = NewType("CloudId", str)
LvName = NewType("LvName", str)
DomainName = NewType("DomainName", str)

# A volume of a VM is one of its disks, by number, or its saved memory.
CHECKPOINT: Final = "checkpoint"

_HOST: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9.:_-]{0,252}")
_PREFIX: Final = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9_.+-]{0,40}")
_CLOUD: Final = re.compile(r"[a-z0-9]{8,32}")
_DOMAIN: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_MAX_VM: Final = 0xFFFFFFFF
_UUID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class State(StrEnum):
    """Where a volume is in its life; kept in one of its tags."""

    FILLING = "filling"
    READY = "ready"
    DELETE_REQUESTED = "delete-requested"


def vm_id(text: str) -> VmId:
    """A VM's id from its decimal text; raises UsageError for anything else."""
    if not re.fullmatch(r"0|[1-9][0-9]{0,9}", text) or int(text) > _MAX_VM:
        message = f"'{text}' is not the id of a VM"
        raise UsageError(message)
    return VmId(int(text))


def cloud_id(text: str) -> CloudId:
    """A cloud's id; raises UsageError unless it is 8 to 32 lower-case letters and digits."""
    if not _CLOUD.fullmatch(text):
        message = f"'{text}' is not a cloud id (8 to 32 lower-case letters and digits)"
        raise UsageError(message)
    return CloudId(text)


def volume_kind(text: str) -> str:
    """A disk number or ``checkpoint``; raises UsageError for anything else."""
    if text != CHECKPOINT and not re.fullmatch(r"0|[1-9][0-9]{0,3}", text):
        message = f"'{text}' is neither a disk number nor '{CHECKPOINT}'"
        raise UsageError(message)
    return text


def host_name(text: str) -> str:
    """The checked name or address of a host; raises UsageError."""
    if not _HOST.fullmatch(text):
        message = f"'{text}' is not the name or address of a host"
        raise UsageError(message)
    return text


def lv_prefix(text: str) -> str:
    """The checked value of LV_PREFIX."""
    if not _PREFIX.fullmatch(text):
        message = f"'{text}' cannot begin the name of a logical volume"
        raise UsageError(message)
    return text


def lv_name(prefix: str, vm: VmId, kind: str) -> LvName:
    """The name of a VM's volume: ``lv-one-42-0``, ``lv-one-42-checkpoint``."""
    return LvName(f"{lv_prefix(prefix)}-{vm}-{volume_kind(kind)}")


def domain_name(name: str) -> DomainName:
    """The checked name of a domain; raises UsageError where Xen or a shell could misread it."""
    if not _DOMAIN.fullmatch(name):
        message = (
            f"'{name}' cannot name a domain: it takes letters, digits, '.', '_' and '-', "
            "and begins with none of '-' and '.'"
        )
        raise UsageError(message, hint="change VM_FQDN_TEMPLATE or the name of the VM or its owner")
    return DomainName(name)


def expand_fqdn(template: str, *, user: str, name: str, vm: VmId) -> DomainName:
    """The domain's name by VM_FQDN_TEMPLATE: %U the owner, %V the VM's name, %I its id.

    As in the original, %V keeps only ASCII letters and digits. %U keeps '.', '_' and '-' too.
    Raises UsageError when a part that the template uses has nothing left, or the whole begins
    with a dash.
    """
    parts = {
        "%U": ("owner", user, re.sub(r"[^A-Za-z0-9._-]", "", user)),
        "%V": ("name", name, re.sub(r"[^A-Za-z0-9]", "", name)),
        "%I": ("id", str(vm), str(vm)),
    }
    for key, (what, given, kept) in parts.items():
        if key in template and not kept:
            message = (
                f"VM {vm}: its {what} '{given}' has no letter or digit "
                f"that {key} of VM_FQDN_TEMPLATE could use"
            )
            raise UsageError(
                message, hint=f"rename it, or use %I in place of {key} in the frontend's cxmrc"
            )
    text = re.sub(r"%[UVI]", lambda match: parts[match.group()][2], template)
    try:
        return domain_name(text)
    except UsageError as error:
        message = f"VM {vm}: {error.message}"
        raise UsageError(message, hint=error.hint) from error


def _cloud_bytes(cloud: CloudId) -> bytes:
    import hashlib  # noqa: PLC0415 - OpenSSL is a tenth of an action's start-up; few need it

    digest = bytearray(hashlib.sha256(b"cxm:" + cloud.encode()).digest()[:12])
    digest[6] = 0x80 | digest[6] & 0x0F  # version 8: made by the rules of the application
    digest[8] = 0x80 | digest[8] & 0x3F  # variant of RFC 9562
    return bytes(digest)


def domain_uuid(cloud: CloudId, vm: VmId) -> str:
    """The UUID of a VM's domain: it carries the cloud and the VM, so identity needs no files."""
    text = (_cloud_bytes(cloud) + int(vm).to_bytes(4, "big")).hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def vm_of_uuid(cloud: CloudId, uuid: str) -> VmId | None:
    """The VM that a domain's UUID names, or None for a domain that is not of this cloud."""
    if not _UUID.fullmatch(uuid.lower()):
        return None
    raw = bytes.fromhex(uuid.replace("-", ""))
    return VmId(int.from_bytes(raw[12:], "big")) if raw[:12] == _cloud_bytes(cloud) else None


@dataclass(frozen=True, slots=True)
class Tags:
    """What a volume says about itself in its LVM tags."""

    cloud: CloudId
    vm: VmId
    kind: str
    state: State
    name: str = ""  # the domain's name as it was when the volume was made; for people and for 3.x

    def encode(self) -> list[str]:
        """As LVM tags."""
        pairs = {
            "cxm.cloud": self.cloud,
            "cxm.vm": str(self.vm),
            "cxm.disk": self.kind,
            "cxm.state": self.state.value,
        } | ({"cxm.name": self.name} if self.name else {})
        return [f"{key}={value}" for key, value in pairs.items()]


def decode_tags(tags: list[str]) -> Tags | None:
    """The meaning of a volume's LVM tags; None for a volume that cxm did not make.

    Raises DataError when the tags are cxm's but contradict each other or lack one.
    """
    pairs: dict[str, str] = {}
    for tag in tags:
        key, found, value = tag.partition("=")
        if not found or not key.startswith("cxm."):
            continue
        if key in pairs:
            message = f"the tags '{key}={pairs[key]}' and '{tag}' contradict each other"
            raise DataError(message)
        pairs[key] = value
    if not pairs:
        return None
    try:
        return Tags(
            cloud=cloud_id(pairs["cxm.cloud"]),
            vm=vm_id(pairs["cxm.vm"]),
            kind=volume_kind(pairs["cxm.disk"]),
            state=State(pairs["cxm.state"]),
            name=pairs.get("cxm.name", ""),
        )
    except (KeyError, ValueError, UsageError) as error:
        message = f"the tags {', '.join(sorted(tags))} are incomplete or damaged"
        raise DataError(message) from error
