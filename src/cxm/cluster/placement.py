# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what fits where: which VMs would have no place if a node were gone. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass

from cxm.cluster.model import Cluster, Member, NodeState, Vm, VmState


@dataclass(slots=True)
class _Room:
    name: str
    memory: int
    cpu: int


def place(vms: Iterable[Vm], rooms: Iterable[Member]) -> tuple[list[tuple[Vm, str]], list[Vm]]:
    """Where VMs would go, and which have no place: the largest first, each where it fits tightest.

    What this finds room for does fit. Pacemaker, which takes VMs in an order of its own, may do
    worse when it is tight.
    """
    free = [_Room(each.name, each.memory_free, each.cpu - each.cpu_used) for each in rooms]
    placed, left = [], []
    for vm in sorted(vms, key=lambda each: (-each.resource.memory_mib, each.resource.id)):
        need = vm.resource
        fits = [room for room in free if room.memory >= need.memory_mib and room.cpu >= need.cpu]
        if not fits:
            left.append(vm)
            continue
        best = min(fits, key=lambda room: (room.memory - need.memory_mib, room.name))
        best.memory -= need.memory_mib
        best.cpu -= need.cpu
        placed.append((vm, best.name))
    return placed, left


def without(cluster: Cluster, node: str) -> tuple[list[tuple[Vm, str]], list[Vm]]:
    """Where the VMs of a node would go if it were gone, and which would stay down.

    VMs that are down already take the room that they need, but are nobody's loss.
    """
    rooms = [member for member in cluster.nodes if member.name != node and member.takes_vms]
    homeless = [vm for vm in cluster.vms if vm.state is VmState.DOWN and not vm.nodes]
    gone = [vm for vm in cluster.on(node) if vm.resource.started]
    placed, left = place([*gone, *homeless], rooms)
    return placed, [vm for vm in left if node in vm.nodes]


def losses(cluster: Cluster) -> dict[str, list[Vm]]:
    """Which VMs would stay down, by the node that died; only nodes whose death costs some."""
    found = {}
    for member in cluster.nodes:
        if member.state in (NodeState.OFFLINE, NodeState.UNCLEAN):
            continue
        left = without(cluster, member.name)[1]
        if left:
            found[member.name] = left
    return found
