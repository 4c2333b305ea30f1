# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what of the cluster fits where, as :mod:`cxm.balance.rooms` reckons it. Pure."""

from collections.abc import Iterable

from cxm.balance.rooms import pack
from cxm.cluster.model import Cluster, Member, NodeState, Vm, VmState


def place(vms: Iterable[Vm], rooms: Iterable[Member]) -> tuple[list[tuple[Vm, str]], list[Vm]]:
    """Where VMs would go, and which have no place.

    What this finds room for does fit. Pacemaker, which takes VMs in an order of its own, may do
    worse when it is tight.
    """
    nodes = sorted(rooms, key=lambda each: each.name)
    wanted = sorted(vms, key=lambda each: (-each.resource.memory_mib, each.resource.id))
    placed, left = pack(
        ((vm.resource.memory_mib, vm.resource.cpu, number) for number, vm in enumerate(wanted)),
        ((node.memory_free, node.cpu - node.cpu_used, number) for number, node in enumerate(nodes)),
    )
    homes = [(vm, nodes[placed[at]].name) for at, vm in enumerate(wanted) if at in placed]
    return homes, [wanted[at] for at in sorted(left)]


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
