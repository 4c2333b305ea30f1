# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what the stand-in for oned remembers: hosts, datastores, images, networks, VMs."""

import time
from dataclasses import dataclass, field

from cxm.errors import NotFoundError
from lab.oned.templates import Template, Vector

OWNER = "oneadmin"


@dataclass(slots=True)
class Host:
    """A host and what its probes said last."""

    id: int
    name: str
    im_mad: str
    vm_mad: str
    vn_mad: str = "dummy"  # up to 4.14
    state: str = "INIT"
    facts: Template = field(default_factory=list)
    last_seen: float = 0.0
    lost: set[int] = field(default_factory=set)  # VMs missing in the last report
    reason: str = ""  # of state ERROR

    def number(self, name: str) -> int:
        """A whole number among the facts; 0 when it is not there."""
        for key, value in reversed(self.facts):
            if key == name and isinstance(value, str):
                return int(float(value or 0))
        return 0


@dataclass(slots=True)
class Datastore:
    """A datastore; ``type`` is 0 for images, 1 for the system, 2 for files."""

    id: int
    name: str
    type: int
    ds_mad: str
    tm_mad: str
    template: Template
    total_mib: int = 0
    free_mib: int = 0
    used_mib: int = 0

    @property
    def shared(self) -> bool:
        return ("SHARED", "YES") in self.template


@dataclass(slots=True)
class Image:
    """An image; its file is ``source``."""

    id: int
    name: str
    type: int  # 0 OS, 1 CDROM, 2 DATABLOCK
    persistent: bool
    path: str
    source: str
    size_mib: int
    datastore: int
    template: Template
    fstype: str = ""
    format: str = ""
    fs: str = ""
    state: str = "LOCKED"
    vms: set[int] = field(default_factory=set)
    regtime: int = field(default_factory=lambda: int(time.time()))


@dataclass(slots=True)
class VirtualNetwork:
    """A virtual network and the addresses that VMs hold."""

    id: int
    name: str
    bridge: str
    vn_mad: str
    addresses: list[str]
    leases: dict[str, int] = field(default_factory=dict)  # address -> VM
    last: str = ""  # oned goes round, it does not take the lowest free one

    def lease(self, vm: int) -> str:
        """An address for a VM."""
        last = self.addresses.index(self.last) + 1 if self.last else 0
        for address in [*self.addresses[last:], *self.addresses[:last]]:
            if address not in self.leases:
                self.leases[address], self.last = vm, address
                return address
        raise NotFoundError(f"network {self.name} has no free address")

    def release(self, vm: int) -> None:
        self.leases = {address: holder for address, holder in self.leases.items() if holder != vm}


@dataclass(slots=True)
class History:
    """One stay of a VM on a host."""

    sequence: int
    host: Host
    system: Datastore
    started: int
    ended: int = 0
    action: str = ""  # what ended it: stop, undeploy, ...


@dataclass(slots=True)
class Vm:
    """A VM: its template is what oned made of the user's one."""

    id: int
    name: str
    template: Template
    user_template: Template
    state: str = "PENDING"
    deploy_id: str = ""
    histories: list[History] = field(default_factory=list)
    monitoring: dict[str, str] = field(default_factory=dict)
    last_poll: int = 0
    started: int = field(default_factory=lambda: int(time.time()))
    ended: int = 0
    state_since: float = field(default_factory=time.monotonic)
    log: list[str] = field(default_factory=list)

    @property
    def history(self) -> History:
        """The last history record."""
        if not self.histories:
            raise NotFoundError(f"VM {self.id} has no history record yet")
        return self.histories[-1]

    @property
    def disks(self) -> list[Vector]:
        return [
            value for name, value in self.template if name == "DISK" and isinstance(value, dict)
        ]

    @property
    def nics(self) -> list[Vector]:
        return [value for name, value in self.template if name == "NIC" and isinstance(value, dict)]

    @property
    def context(self) -> Vector | None:
        for name, value in self.template:
            if name == "CONTEXT" and isinstance(value, dict):
                return value
        return None

    def say(self, text: str, severity: str = "I") -> None:
        """Write a line of the VM's log, as oned does."""
        stamp = time.strftime("%a %b %e %H:%M:%S %Y")
        self.log.append(f"{stamp} [Z0][{severity}]: {text}")

    def set_error(self, text: str) -> None:
        """What a user sees as the reason of the last failure."""
        stamp = time.strftime("%a %b %e %H:%M:%S %Y")
        self.user_template = [row for row in self.user_template if row[0] != "ERROR"]
        self.user_template.append(("ERROR", f"{stamp}: {text}"))

    @property
    def error(self) -> str:
        for name, value in self.user_template:
            if name == "ERROR" and isinstance(value, str):
                return value
        return ""


def volatile(disk: Vector) -> bool:
    """Whether a disk belongs to no image."""
    return disk.get("TYPE", "").upper() in ("FS", "SWAP")
