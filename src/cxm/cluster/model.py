# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the picture of the cluster that ``cxm`` shows. Pure; runs nothing.

Memory is MiB and is what a VM takes of a node, page tables included; CPU is percent of one
processor; times are seconds since 1970.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final
from xml.etree.ElementTree import Element

from cxm.cluster import balancer, constraints
from cxm.cluster import cib as documents
from cxm.cluster import nodes as documents_of_nodes
from cxm.cluster.balancer import Balancer
from cxm.cluster.cib import Damaged, Resource
from cxm.cluster.constraints import Constraints
from cxm.cluster.nodes import Device, Facts
from cxm.cluster.pacemaker import Failure, Fencing, Node, Placed, Status
from cxm.errors import NotFoundError, UsageError
from cxm.node.guests import Life


class NodeState(StrEnum):
    """What a node is good for."""

    ONLINE = "online"
    STANDBY = "standby"  # it gives its VMs away and takes none
    MAINTENANCE = "maintenance"  # what runs there is left alone
    PENDING = "joining"
    UNCLEAN = "UNCLEAN"  # nobody knows what it does: it must be fenced first
    OFFLINE = "offline"


# States in which a node is a healthy member that takes no VMs, and those of every healthy one.
RESTING: Final = (NodeState.STANDBY, NodeState.MAINTENANCE)
UP: Final = (NodeState.ONLINE, *RESTING)


class VmState(StrEnum):
    """What a VM does."""

    RUNNING = "running"
    STARTING = "starting"
    STOPPING = "stopping"
    MIGRATING = "migrating"
    BLOCKED = "BLOCKED"  # something failed and nobody knows what it does: a human must look
    FAILED = "FAILED"  # it failed, and is being recovered or waits to be
    UNKNOWN = "UNKNOWN"  # it was on a node of which nobody knows what it does
    DOWN = "DOWN"  # it should run, and does not
    OFF = "off"  # its guest switched it off
    STOPPED = "stopped"


_PAIR: Final = 2
LOCKS: Final = "cxm-lockspace"  # the last of the services that a VM needs on its node
WATCH: Final = "cxm-watch"  # looks after VMs that nobody waits for
# A state that an operator should know of at once.
WRONG: Final = (VmState.BLOCKED, VmState.FAILED, VmState.UNKNOWN, VmState.DOWN)
_BY_ROLE: Final = {
    "Started": VmState.RUNNING,
    "Starting": VmState.STARTING,
    "Stopping": VmState.STOPPING,
    "Migrating": VmState.MIGRATING,
}
_BY_PENDING: Final = {
    "Starting": VmState.STARTING,
    "Stopping": VmState.STOPPING,
    "Migrating": VmState.MIGRATING,
}


@dataclass(frozen=True, slots=True)
class Vm:
    """A VM: what is wanted of it, and where it is."""

    resource: Resource
    state: VmState
    nodes: tuple[str, ...] = ()  # two while it moves
    managed: bool = True  # Pacemaker looks after it

    @property
    def name(self) -> str:
        return self.resource.name

    @property
    def node(self) -> str:
        """Where it is; empty where it is nowhere."""
        return self.nodes[0] if self.nodes else ""

    @property
    def label(self) -> str:
        """What a person calls it: its name and its number."""
        return f"{self.name} (VM {self.resource.vm})"


@dataclass(frozen=True, slots=True)
class Member:
    """A node, and how full it is."""

    name: str
    state: NodeState
    dc: bool
    memory: int
    memory_used: int
    cpu: int
    cpu_used: int
    vms: int
    facts: Facts
    devices: tuple[str, ...] = ()  # what fences it
    device_works: bool = True  # one of them does, as its monitor says
    has_locks: bool = True  # without them no VM can start on it
    is_online: bool = True  # as Pacemaker says; one that is UNCLEAN may be
    first_level: frozenset[str] = frozenset()  # those of its devices that come before others

    @property
    def memory_free(self) -> int:
        return self.memory - self.memory_used

    @property
    def device(self) -> str:
        """What fences it, for people; empty where nothing does."""
        return ", ".join(self.devices)

    @property
    def tried(self) -> str:
        """What a test of its fencing uses, for people: the first level, else one of them."""
        first = [each for each in self.devices if each in self.first_level]
        return ", ".join(first) or " or ".join(self.devices)

    @property
    def untried(self) -> str:
        """What it does not use, for people; empty where that is not known."""
        after = [each for each in self.devices if each not in self.first_level]
        return ", ".join(after) if len(after) < len(self.devices) else ""

    @property
    def takes_vms(self) -> bool:
        return self.state is NodeState.ONLINE


@dataclass(frozen=True, slots=True)
class Cluster:
    """All of it at one moment."""

    nodes: tuple[Member, ...]
    vms: tuple[Vm, ...]
    quorate: bool
    fencing_enabled: bool
    counts_memory: bool  # whether Pacemaker looks at memory when it places a VM
    failures: tuple[Failure, ...] = ()
    fencing: tuple[Fencing, ...] = ()
    devices: tuple[Device, ...] = ()
    is_watched: bool = True  # somebody looks after VMs that nobody waits for
    balancer: Balancer | None = None
    constraints: Constraints = Constraints()
    damaged: tuple[Damaged, ...] = ()  # VMs that are none of ``vms``: the CIB cannot be read

    @property
    def awaited(self) -> str:
        """The node of a pair that this one waits for since it started; empty where it does not.

        A pair that has lost a node stays quorate: two_node, wait_for_all.
        """
        is_pair = len(self.nodes) == _PAIR
        return self.away[0] if is_pair and not self.quorate and len(self.away) == 1 else ""

    @property
    def away(self) -> list[str]:
        """The nodes that are no healthy members."""
        return [member.name for member in self.nodes if member.state not in UP]

    @property
    def short_of(self) -> int:
        """How many nodes more a majority needs; 0 where there is one, or why not is not known."""
        here = len(self.nodes) - len(self.away)
        is_known = not self.quorate and here > 0
        return max(0, len(self.nodes) // 2 + 1 - here) if is_known else 0

    def on(self, node: str) -> list[Vm]:
        """The VMs of a node."""
        return [vm for vm in self.vms if node in vm.nodes]

    def damaged_on(self, node: str) -> list[Damaged]:
        """The VMs of a node of which only that is known."""
        return [each for each in self.damaged if node in each.nodes]

    def node(self, name: str) -> Member:
        """A node by its name; raises NotFoundError that names those there are."""
        for member in self.nodes:
            if member.name == name:
                return member
        known = ", ".join(member.name for member in self.nodes)
        raise NotFoundError(f"the cluster has no node '{name}'", hint=f"it has {known}")


def _node_state(node: Node) -> NodeState:
    if node.unclean:
        return NodeState.UNCLEAN
    if not node.online:
        return NodeState.OFFLINE
    if node.pending:
        return NodeState.PENDING
    if node.maintenance:
        return NodeState.MAINTENANCE
    return NodeState.STANDBY if node.standby else NodeState.ONLINE


def _seen(placed: Placed) -> VmState | None:
    """What Pacemaker sees of a VM; None for nothing."""
    if placed.blocked:
        return VmState.BLOCKED
    if placed.pending in _BY_PENDING:
        return _BY_PENDING[placed.pending]
    if placed.failed:
        return VmState.FAILED
    return _BY_ROLE.get(placed.role) if placed.nodes else None


def vm_state(resource: Resource, placed: Placed | None) -> VmState:
    """What a VM does, of what is wanted and what Pacemaker sees."""
    seen = None if placed is None else _seen(placed)
    if placed is not None and seen is VmState.STOPPING and len(placed.nodes) > 1:
        return VmState.MIGRATING  # the end of a move: what is left where it came from is stopped
    if seen is not None:
        return seen
    if resource.started:
        return VmState.DOWN
    return VmState.OFF if resource.life is Life.OFF else VmState.STOPPED


def build(status: Status, cib: Element) -> Cluster:
    """The cluster, of what Pacemaker says and what its CIB holds."""
    dark = {node.name for node in status.nodes if node.unclean}
    vms = []
    found, unread = documents.readable(cib)
    damaged = [replace(each, nodes=_where(status.resources.get(each.id))) for each in unread]
    for resource in found:
        placed = status.resources.get(resource.id)
        where = _where(placed)
        state = VmState.UNKNOWN if where and set(where) <= dark else vm_state(resource, placed)
        vms.append(Vm(resource, state, where, placed is None or placed.managed))
    known = documents_of_nodes.facts(cib)
    devices = tuple(documents_of_nodes.devices(cib))
    members = tuple(
        _member(
            node,
            known.get(node.name, Facts(node.name)),
            [
                *(vm.resource for vm in vms if node.name in vm.nodes),
                *(each for each in damaged if node.name in each.nodes),
            ],
            devices,
            status,
            first_level=documents_of_nodes.first_level(cib, node.name),
        )
        for node in sorted(status.nodes, key=lambda each: each.name)
    )
    strategy = documents_of_nodes.option(cib, "placement-strategy")
    watch = status.resources.get(WATCH)
    return Cluster(
        members,
        tuple(vms),
        status.quorate,
        status.fencing_enabled,
        strategy in documents_of_nodes.COUNTING,
        status.failures,
        status.fencing,
        devices,
        watch is not None and bool(watch.nodes),
        balancer.of(cib, status),
        constraints.read(
            cib,
            {vm.resource.id: vm.name for vm in vms},
            [node.name for node in status.nodes],
        ),
        tuple(damaged),
    )


def _where(placed: Placed | None) -> tuple[str, ...]:
    return () if placed is None else tuple(dict.fromkeys(placed.nodes))


def _member(
    node: Node,
    known: Facts,
    here: Sequence[Resource | Damaged],
    devices: tuple[Device, ...],
    status: Status,
    *,
    first_level: frozenset[str],
) -> Member:
    names = tuple(each.id for each in devices if each.fences(node.name))
    locks = status.resources.get(LOCKS)
    return Member(
        node.name,
        _node_state(node),
        node.dc,
        known.number("memory"),
        sum(each.memory_mib for each in here),
        known.number("cpu"),
        sum(each.cpu for each in here),
        len(here),
        known,
        names,
        not names or any(status.works(name) for name in names),
        locks is None or node.name in locks.nodes,
        node.online,
        first_level,
    )


# --- who is meant ---------------------------------------------------------------------------------


def find_vms(cluster: Cluster, text: str) -> list[Vm]:
    """The VMs whose name or number has this in it."""
    wanted = text.lower()
    return [
        vm
        for vm in cluster.vms
        if wanted in vm.name.lower() or text == str(vm.resource.vm) or text == _full(vm)
    ]


def _full(vm: Vm) -> str:
    return f"{vm.resource.cloud}/{vm.resource.vm}"


def find_vm(cluster: Cluster, text: str) -> Vm:
    """The VM of exactly this name, number or ``cloud/number``.

    Raises NotFoundError, and UsageError when two are meant: a name may look like a number, and two
    clouds may share a cluster. Raises DataError for one that is damaged in the CIB.
    """
    for exact in (
        [vm for vm in cluster.vms if _full(vm) == text],
        [vm for vm in cluster.vms if text in (vm.name, str(vm.resource.vm))],
    ):
        if len(exact) == 1:
            return exact[0]
        if exact:
            which = ", ".join(f"{_full(vm)} is {vm.name}" for vm in exact)
            raise UsageError(f"'{text}' is more than one VM", hint=f"say CLOUD/NUMBER: {which}")
    for each in cluster.damaged:
        if text in (each.name, str(each.vm), f"{each.cloud}/{each.vm}"):
            raise each.error
    near = [vm.name for vm in find_vms(cluster, text)]
    hint = f"did you mean {', '.join(near)}?" if near else "'cxm list' shows all"
    raise NotFoundError(f"the cluster has no VM '{text}'", hint=hint)
