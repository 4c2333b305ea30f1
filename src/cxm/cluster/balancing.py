# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the cluster as the planner is told it (:mod:`cxm.balance`). Pure."""

from collections import Counter
from collections.abc import Mapping
from typing import Final

from cxm.balance import model
from cxm.balance.model import Role, Settings, Snapshot
from cxm.cluster.model import Cluster, NodeState, Vm, VmState
from cxm.config import NodeConfig

_ROLES: Final = {
    NodeState.ONLINE: Role.BOTH,
    NodeState.STANDBY: Role.SOURCE,
    NodeState.MAINTENANCE: Role.NEITHER,
}


def by_name(cluster: Cluster) -> dict[str, Vm]:
    """The VMs by what a plan calls them: their names, or their resources where two share one."""
    often = Counter(vm.name for vm in cluster.vms)
    return {vm.name if often[vm.name] == 1 else vm.resource.id: vm for vm in cluster.vms}


def limits(config: NodeConfig) -> Settings:
    """What a node's settings say of plans."""
    return Settings(
        max_vms=config.lb_max_vm_per_node,
        max_moves=config.lb_max_migration,
        min_gain=float(config.lb_min_gain),
    )


def snapshot(cluster: Cluster, used: Mapping[str, float], config: NodeConfig) -> Snapshot:
    """The cluster for the planner; ``used`` is CPU in percent of one processor, by resource.

    A VM that is starting, moving or in trouble is left alone, as is everything on a node of which
    Pacemaker empties already: it is counted where it is.
    """
    nodes = tuple(
        model.Node(each.name, each.memory, each.cpu, _role(each.state)) for each in cluster.nodes
    )
    names = {each.name for each in nodes}
    vms = tuple(
        model.Vm(
            name,
            vm.resource.memory_mib,
            vm.resource.cpu,
            vm.node if vm.node in names else None,
            used=used.get(vm.resource.id),
            movable=vm.state is VmState.RUNNING and len(vm.nodes) == 1,
            live=vm.resource.migratable,
        )
        for name, vm in by_name(cluster).items()
        if vm.nodes or vm.resource.started
    )
    return Snapshot(nodes, vms, limits(config))


def _role(state: NodeState) -> Role:
    """What a plan may do with a node; one in standby is emptied by Pacemaker, not by a plan."""
    found = _ROLES.get(state, Role.GONE)
    return Role.NEITHER if found is Role.SOURCE else found
