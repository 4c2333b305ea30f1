# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the cluster as the planner is told it (:mod:`cxm.balance`). Pure."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from cxm.balance import model
from cxm.balance.model import Plan, Role, Settings, Snapshot
from cxm.balance.planner import plan
from cxm.balance.start import choose
from cxm.cluster.cpus import lacking
from cxm.cluster.model import Cluster, NodeState, Vm, VmState
from cxm.cluster.nodes import CPU
from cxm.config import NodeConfig

_ROLES: Final = {
    NodeState.ONLINE: Role.BOTH,
    NodeState.STANDBY: Role.SOURCE,
    NodeState.MAINTENANCE: Role.NEITHER,
}

_ONLY_MUST: Final = 1000.0  # worth of a move, in points, that evening out never has


def by_name(cluster: Cluster) -> dict[str, Vm]:
    """The VMs by what a plan calls them: their names, or their resources where two share one."""
    often = Counter(vm.name for vm in cluster.vms)
    return {vm.name if often[vm.name] == 1 else vm.resource.id: vm for vm in cluster.vms}


def takes_part(vm: Vm) -> bool:
    """Whether a plan reckons with a VM: it is somewhere, or should be."""
    return bool(vm.nodes) or vm.resource.started


def limits(config: NodeConfig) -> Settings:
    """What a node's settings say of plans."""
    return Settings(
        max_vms=config.lb_max_vm_per_node,
        max_moves=config.lb_max_migration,
        min_gain=float(config.lb_min_gain),
    )


def evacuation(cluster: Cluster, node: str, config: NodeConfig, *, restart: bool) -> Plan:
    """What has to move so that a node becomes empty, in order, and nothing else."""
    seen = snapshot(cluster, {}, config, leaving=node)
    nodes = tuple(
        replace(each, role=Role.SOURCE) if each.name == node else each for each in seen.nodes
    )
    only = replace(seen.settings, worth=_ONLY_MUST, max_moves=0, max_vms=0, restart=restart)
    return plan(replace(seen, nodes=nodes, settings=only))


def best_start(cluster: Cluster, vm: Vm, config: NodeConfig) -> str | None:
    """Where a VM starts best: where it was ordered to last if that has room; None for nowhere."""
    seen = snapshot(cluster, {}, config)
    known = vm.resource
    name = next(name for name, each in by_name(cluster).items() if each.resource.id == known.id)
    wanted = _placed(replace(vm, nodes=()), known.id, bounds(cluster)[known.id])
    others = replace(seen, vms=tuple(each for each in seen.vms if each.name != name))
    first = known.preferred or None
    found = choose(others, wanted, first)
    # What is only wished is no reason not to start; what must be, Pacemaker is asked.
    return found or choose(others, replace(wanted, nodes=None, apart=()), first)


@dataclass(frozen=True, slots=True)
class Bound:
    """What a plan must keep of a VM's own, beside its size."""

    nodes: tuple[str, ...] | None  # None: any
    prefers: tuple[str, ...]
    apart: tuple[str, ...]
    together: tuple[str, ...]
    stays: str  # why it must stay where it is; empty: it need not


def bounds(cluster: Cluster, *, leaving: str = "") -> dict[str, Bound]:
    """What constraints, processors and Pacemaker say of VMs, by their resources.

    A node that takes no VMs is no better place, and neither is one that all are ``leaving``.
    """
    takes = [each.name for each in cluster.nodes if each.takes_vms and each.name != leaving]
    processors = {each.name: _like(cluster, each.name) for each in cluster.nodes}
    found = {}
    for vm in cluster.vms:
        said = cluster.constraints.of(vm.resource.id)
        suit = processors.get(vm.node)
        allowed = said.nodes(takes, vm.node)
        nodes = None if set(takes) <= set(allowed) else allowed
        if suit is not None:
            nodes = suit if nodes is None else tuple(name for name in nodes if name in suit)
        stays = said.stays
        if not stays and vm.node in takes and vm.node not in allowed:
            where = f"on {' or '.join(allowed)}" if allowed else "nowhere"
            stays = f"Pacemaker wants it {where}, and finds no place for it there"
        stays = stays if is_managed(cluster, vm) else "not managed by Pacemaker"
        found[vm.resource.id] = Bound(nodes, said.prefers(takes), said.apart, said.together, stays)
    return found


def is_managed(cluster: Cluster, vm: Vm) -> bool:
    """Whether Pacemaker looks after a VM; of a node in maintenance that is said of the node."""
    resting = {each.name for each in cluster.nodes if each.state is NodeState.MAINTENANCE}
    return vm.managed or bool(resting & set(vm.nodes))


def snapshot(
    cluster: Cluster, used: Mapping[str, float], config: NodeConfig, *, leaving: str = ""
) -> Snapshot:
    """The cluster for the planner; ``used`` is CPU in percent of one processor, by resource.

    A VM that is starting, moving or in trouble is left alone, as is everything on a node of which
    Pacemaker empties already: it is counted where it is. ``leaving`` is a node that will take none.
    """
    nodes = tuple(
        model.Node(each.name, each.memory, each.cpu, _role(each.state)) for each in cluster.nodes
    )
    names = {each.name for each in nodes}
    bound = bounds(cluster, leaving=leaving)
    vms = tuple(
        replace(
            _placed(vm, name, bound[vm.resource.id]),
            node=vm.node if vm.node in names else None,
            used=used.get(vm.resource.id),
        )
        for name, vm in by_name(cluster).items()
        if takes_part(vm)
    )
    return Snapshot(nodes, vms, limits(config))


def _placed(vm: Vm, name: str, bound: Bound) -> model.Vm:
    """A VM for the planner, nowhere yet."""
    return model.Vm(
        name,
        vm.resource.memory_mib,
        vm.resource.cpu,
        None,
        movable=vm.state is VmState.RUNNING and len(vm.nodes) == 1,
        live=vm.resource.migratable,
        apart=bound.apart,
        together=bound.together,
        nodes=bound.nodes,
        prefers=bound.prefers,
        stays=bound.stays,
    )


def _like(cluster: Cluster, source: str) -> tuple[str, ...] | None:
    """The nodes whose processors have all that a guest of a node may use; None for all of them."""
    own = cluster.node(source).facts.attributes.get(CPU, "")
    fine = tuple(
        each.name
        for each in cluster.nodes
        if not (own and (other := each.facts.attributes.get(CPU, "")) and lacking(other, own))
    )
    return None if len(fine) == len(cluster.nodes) else fine


def _role(state: NodeState) -> Role:
    """What a plan may do with a node; one in standby is emptied by Pacemaker, not by a plan."""
    found = _ROLES.get(state, Role.GONE)
    return Role.NEITHER if found is Role.SOURCE else found
