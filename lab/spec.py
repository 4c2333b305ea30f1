# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what a lab consists of: its hosts, their sizes, its three networks and every address."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from cxm.errors import UsageError

BMC_USER = "lab"
BMC_PASSWORD = "lab"  # noqa: S105 - reachable only inside the lab's own network
BRIDGE = "xenbr0"  # the guests' bridge on every node
ONEADMIN_ID = 9869
PREFIX_BITS = 24
GUEST_ADDRESSES = "10.77.1.100-10.77.1.199"


@dataclass(frozen=True, slots=True)
class Network:
    """One of the lab's networks: a bridge outside the nodes, a network card in each of them."""

    name: str
    subnet: str
    card: str  # the card's name inside a node
    number: int  # makes MAC addresses and PCI slots

    def address(self, host_number: int) -> str:
        return f"{self.subnet}.{host_number}"

    def mac(self, host_number: int) -> str:
        return f"52:54:00:77:{self.number:02x}:{host_number:02x}"


LAN = Network("lan", "10.77.1", "lan0", 1)
CLUSTER = Network("cluster", "10.77.2", "cluster0", 2)
BMC = Network("bmc", "10.77.3", "bmc0", 3)
NETWORKS = (LAN, CLUSTER, BMC)

FRONTEND_NUMBER = 1
FRONTEND_ADDRESS = LAN.address(FRONTEND_NUMBER)
OUTSIDE_NUMBER = 2  # whence the lab itself looks, whatever the frontend can reach
OUTSIDE_ADDRESS = LAN.address(OUTSIDE_NUMBER)
_BMC_OFFSET = 100


@dataclass(frozen=True, slots=True)
class HostSpec:
    """One Xen node and its hardware."""

    name: str
    number: int
    memory_mib: int
    dom0_mib: int
    san: bool
    data_gib: int  # a local data disk with a volume group; 0 for none
    cpus: int = 1

    @property
    def address(self) -> str:
        return LAN.address(self.number)

    @property
    def cluster_address(self) -> str:
        return CLUSTER.address(self.number)

    @property
    def bmc_address(self) -> str:
        return BMC.address(self.number + _BMC_OFFSET)

    def tap(self, network: Network) -> str:
        """The name of this host's end on a bridge (at most 15 characters)."""
        return f"{self.name}-{network.number}"


HOSTS = (
    HostSpec("node1", 11, memory_mib=1408, dom0_mib=768, san=True, data_gib=0),
    HostSpec("node2", 12, memory_mib=1408, dom0_mib=768, san=True, data_gib=0),
    HostSpec("solo1", 21, memory_mib=1152, dom0_mib=384, san=False, data_gib=40),
)
_CPUS_ALONE = 2
SAN_GIB = 40
SAN_SERIAL = "CXMSAN0"
DATA_SERIAL = "CXMDATA0"


@dataclass(frozen=True, slots=True)
class LabSpec:
    """The hosts of one lab and what they have in common."""

    hosts: tuple[HostSpec, ...]
    vg_name: str = "LVM_XEN"
    san_gib: int = SAN_GIB

    def host(self, name: str) -> HostSpec:
        """The host called ``name``."""
        for host in self.hosts:
            if host.name == name:
                return host
        known = " ".join(host.name for host in self.hosts)
        raise UsageError(f"this lab has no host '{name}'", hint=f"its hosts are: {known}")

    def fingerprint(self) -> str:
        """Changes whenever a snapshot of a lab like this could not be used for it."""
        text = json.dumps([asdict(self), [asdict(net) for net in NETWORKS]], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, object]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> "LabSpec":
        hosts = data["hosts"]
        if not isinstance(hosts, list | tuple):
            raise TypeError("hosts")
        return cls(
            hosts=tuple(HostSpec(**host) for host in hosts),
            vg_name=str(data["vg_name"]),
            san_gib=int(str(data["san_gib"])),
        )


def make_spec(names: Sequence[str] = (), memory_mib: Mapping[str, int] | None = None) -> LabSpec:
    """The lab of the hosts called ``names`` (all when empty), with changed memory sizes.

    A host that is alone gets two processors: emulation uses one core of this machine for each.
    """
    everything = LabSpec(HOSTS, vg_name=os.environ.get("CXM_LAB_VG", "LVM_XEN"))
    wanted = [everything.host(name) for name in names] or list(HOSTS)
    memory = dict(memory_mib or {})
    for name in memory:
        everything.host(name)
    chosen = sorted(set(wanted), key=lambda host: host.number)
    cpus = _CPUS_ALONE if len(chosen) == 1 else 1
    hosts = (
        replace(host, memory_mib=memory.get(host.name, host.memory_mib), cpus=cpus)
        for host in chosen
    )
    return replace(everything, hosts=tuple(hosts))
