# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the subcommand ``eject``: emptying a node of its VMs, and giving it back."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final
from xml.etree.ElementTree import Element

from cxm import pace
from cxm.cli.world import World
from cxm.cluster import balancing, destination, nodes, pacemaker
from cxm.cluster.amounts import count
from cxm.cluster.model import RESTING, Cluster, NodeState, Vm, VmState
from cxm.cluster.placement import without
from cxm.config import NodeConfig
from cxm.errors import CommandError, LockTimeoutError, RefusedError

_POLL_S: Final = 2.0
_MOVES: Final = ("migrate", "move")  # of Pacemaker: while it runs, or stopped and started
_SETTLED: Final = (VmState.RUNNING, VmState.OFF, VmState.STOPPED)


def check(world: World, node: str, *, restart: bool) -> Cluster:
    """The cluster, in which all VMs of a node can go elsewhere, as they should.

    Raises RefusedError where they cannot. Pacemaker is asked, in simulation: it does not pack
    VMs, and it would stop one for which it finds no place.
    """
    cluster, cib = world.look()
    cluster.node(node)
    if not cluster.quorate:
        raise RefusedError("the cluster is not quorate: nothing can be moved")
    for each in cluster.damaged_on(node):
        raise RefusedError(
            f"whether {each.label} can leave {node} is not known: {each.error.message}",
            hint=each.error.hint,
        )
    plan, left = without(cluster, node)
    if left:
        names = ", ".join(f"{vm.name} ({vm.resource.memory_mib} MiB)" for vm in left)
        raise RefusedError(
            f"there is no place elsewhere for {names}",
            hint=_room_for_all(cluster, node, world.machine().config, restart=restart),
        )
    nodes.set_attribute(cib, node, nodes.STANDBY, "on")
    stopped = pacemaker.stopped_after(world.runner, cib)
    first = [(vm, target) for vm, target in plan if vm.resource.id in stopped]
    if first:
        orders = ", ".join(f"'cxm migrate {vm.name} {target}'" for vm, target in first)
        raise RefusedError(
            f"Pacemaker would find no place for {', '.join(vm.name for vm, _target in first)}",
            hint=f"there is one when these go first: {orders}",
        )
    bound = [vm.name for vm in cluster.on(node) if not vm.resource.migratable]
    if bound and not restart:
        raise RefusedError(
            f"these VMs cannot move while they run: {', '.join(bound)}",
            # Whoever empties a node for something else (fence --test) has no such option.
            hint=f"'cxm eject {node} --restart' first: it stops them there and starts them "
            "elsewhere",
        )
    _suits(world, cib, cluster.on(node), node)
    return cluster


def _room_for_all(cluster: Cluster, node: str, config: NodeConfig, *, restart: bool) -> str:
    """What to do where the VMs of a node do not fit into what is free of the others."""
    made = balancing.evacuation(cluster, node, config, restart=restart)
    first = [move for move in made.moves if move.source != node]
    if made.stuck or not first or any(move.detour or move.cold for move in made.moves):
        return "switch VMs off, add a node, or migrate some by hand; nothing was changed"
    orders = ", ".join(f"'cxm migrate {move.vm.name} {move.target}'" for move in made.moves)
    return f"there is when others make room, in this order: {orders}; nothing was changed"


def _suits(world: World, cib: Element, vms: list[Vm], node: str) -> None:
    """Raise RefusedError unless each VM can go where Pacemaker sends it, as this CIB has it."""
    if not vms:
        return  # a new node, whose fencing is proven before cxm-setup node gives it settings
    machine = replace(world.machine(), hostname=world.here())
    targets = {
        deed.resource: deed.node
        for deed in pacemaker.foresee(world.runner, cib)
        if deed.action in _MOVES
    }
    for vm in vms:
        known, target = vm.resource, targets.get(vm.resource.id)
        if target is None:
            continue
        try:
            destination.check(machine, cib, known, node, target, alive=known.migratable)
        except RefusedError as error:
            raise RefusedError(
                f"Pacemaker would send {vm.label} to {target}, but {error.message}",
                hint=f"{error.hint}; or 'cxm migrate {vm.name} NODE' first, to one that suits it",
            ) from error


def back(world: World, node: str) -> bool:
    """Let a node take VMs again; False when it did."""
    what = f"node {node} may have VMs again"
    return world.set_attribute(node, nodes.STANDBY, None, what=what)


def _progress(vm: Vm) -> str:
    where = " to ".join(vm.nodes) or "no node"
    return f"  {vm.label}: {vm.state.value} on {where}"


def _why(vm: Vm, before: Mapping[str, str]) -> str:
    """A VM that is stuck, and why, where its agent has written that since."""
    reason = vm.resource.reason
    return vm.label if reason == before[vm.resource.id] else f"{vm.label}: {reason}"


def wait_until_empty(world: World, node: str, moved: list[Vm], timeout_s: float) -> None:
    """Tell how VMs leave a node until the last one runs elsewhere.

    Raises CommandError when one is stuck, LockTimeoutError when the time is over.
    """
    told: dict[str, str] = {}
    reasons = {vm.resource.id: vm.resource.reason for vm in moved}
    deadline = world.monotonic() + timeout_s
    while True:
        begun = world.monotonic()
        now = world.cluster()
        vms = [vm for vm in now.vms if vm.resource.id in reasons]
        for vm in vms:
            if told.get(vm.resource.id) != _progress(vm):
                told[vm.resource.id] = _progress(vm)
                world.say(_progress(vm))
        stuck = [_why(vm, reasons) for vm in vms if vm.state is VmState.BLOCKED]
        if stuck:
            raise CommandError(
                f"stuck on {node}: {', '.join(stuck)}",
                hint=f"'cxm infos' says why; 'cxm eject --back {node}' gives the node back",
            )
        if all(node not in vm.nodes and vm.state in _SETTLED for vm in vms):
            return
        if world.monotonic() >= deadline:
            names = ", ".join(
                vm.label for vm in vms if node in vm.nodes or vm.state not in _SETTLED
            )
            raise LockTimeoutError(
                f"after {timeout_s:.0f} s, these have not left {node} or do not run: {names}",
                hint=f"it goes on; 'cxm eject --back {node}' calls it off",
            )
        world.sleep(pace.pause(world.monotonic() - begun, least_s=_POLL_S))


def evacuate(world: World, node: str, *, restart: bool, timeout_s: float) -> bool:
    """Empty a node and wait for that; False when somebody else had ordered so before."""
    cluster = check(world, node, restart=restart)
    moved = cluster.on(node)
    what = f"all VMs are to leave node {node} (standby)"
    ours = world.set_attribute(node, nodes.STANDBY, "on", what=what)
    if moved:
        world.say(f"{count(len(moved), 'VM')} of {node} to move:")
    try:
        wait_until_empty(world, node, moved, timeout_s)
    except KeyboardInterrupt:
        world.say(f"{node} goes on giving its VMs away; 'cxm eject --back {node}' calls it off")
        raise
    return ours


def eject(world: World, *, node: str | None, back_: bool, restart: bool, timeout_s: float) -> int:
    """The subcommand."""
    name = node or world.here()
    member = world.cluster().node(name)
    if back_:
        changed = back(world, name)
        left = world.cluster().node(name)
        if left.state in RESTING:  # somebody else's order, or one until its next boot
            raise RefusedError(
                f"{name} takes no VMs yet: it is in {left.state} by another order",
                hint=f"{nodes.give_back(left.facts)} ends that",
            )
        said = f"{name} takes VMs {'again' if changed else 'already'}"
        world.end(said, {"node": name, "takes_vms": True, "changed": changed})
        return 0
    if member.state is NodeState.OFFLINE:
        raise RefusedError(f"{name} is offline: there is nothing to move")
    ours = evacuate(world, name, restart=restart, timeout_s=timeout_s)
    world.end(
        f"{name} is empty and takes no VMs until 'cxm eject --back {name}'",
        {"node": name, "takes_vms": False, "changed": ours},
    )
    return 0
