# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what balancing unasked remembers, when it must wait, and the switch of the automatic mode.

Rounds in a row are counted in a file of the node: one that knows of none begins to count. Which VMs
have moved, and rest, is in the CIB as well: a balancer that goes on elsewhere must know it.
"""

from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import replace
from typing import Final
from xml.etree.ElementTree import Element

from cxm import wholefile
from cxm.balance import steady
from cxm.balance.model import Plan, Snapshot
from cxm.cli import views
from cxm.cli.world import World
from cxm.cluster import balancer, balancing, pacemaker
from cxm.cluster import cib as documents
from cxm.cluster.alarms import alarms
from cxm.cluster.amounts import count
from cxm.cluster.model import Cluster, NodeState, VmState

_MEMORY: Final = "/run/cxm/balance.json"
# What Pacemaker is at work on, or is about to be.
_BUSY: Final = (VmState.STARTING, VmState.STOPPING, VmState.MIGRATING, VmState.UNKNOWN)

# --- the switch -----------------------------------------------------------------------------------


def order(world: World, what: str) -> int:
    """``--auto on``, ``off`` or ``status``."""
    if what != "status":
        on = what == "on"

        def edit(cib: Element) -> None:
            balancer.switch(cib, on=on)

        pacemaker.change(world.runner, edit, what=f"the cluster balances itself: {what}")
    cluster, cib = world.look()
    own, why = cluster.balancer, ""
    if own is not None and own.on:
        why = disturbance(cluster, cib)
    if what == "on":
        told = "on; 'cxm loadbalance --auto status' and 'cxm timeline' tell what it does"
    elif what == "off":
        told = "off; what is moving at this moment arrives, and nothing else begins"
    else:
        told = balancer.told(own, world.now())
    told += f"; it waits: {why}" if why and what == "status" else ""
    value = views.balancer_json(own) or {"on": False, "node": None, "last": None}
    world.end(f"the cluster balances itself: {told}", value | {"waits": why or None})
    return 0


# --- when it must wait ----------------------------------------------------------------------------


def disturbance(cluster: Cluster, cib: Element) -> str:
    """Why nothing may be moved unasked at this moment; empty where it may.

    While something is wrong, Pacemaker or a person is at it.
    """
    for alarm in alarms(cluster):
        if alarm.wrong:
            return alarm.text
    if any(each.status == "pending" for each in cluster.fencing):
        return "a fencing is in progress"
    for member in cluster.nodes:
        if member.state is NodeState.PENDING:
            return f"{member.name} is joining"
    for vm in cluster.vms:
        if vm.state in _BUSY or len(vm.nodes) > 1:
            return f"VM {vm.label} is {vm.state.lower()}"
    for rule in documents.rules(cib):
        return f"an order about {rule.resource} is at work"
    return ""


# --- what is remembered ---------------------------------------------------------------------------


def remembered(world: World, cluster: Cluster, cib: Element) -> steady.Memory:
    """What this node and the CIB know of earlier rounds, by the names of plans."""
    memory = _of_this_node(world)
    names = {vm.resource.id: name for name, vm in balancing.by_name(cluster).items()}
    moved = dict(memory.moved)
    for rid, at in balancer.moved(cib).items():
        if rid in names:
            moved[names[rid]] = max(at, moved.get(names[rid], at))
    return replace(memory, moved=moved)


def _of_this_node(world: World) -> steady.Memory:
    with suppress(OSError), open(world.path(_MEMORY), encoding="utf-8") as file:
        return steady.from_text(file.read())
    return steady.Memory()


def remember(world: World, memory: steady.Memory) -> None:
    """Keep it on this node, for the next round."""
    wholefile.write(world.path(_MEMORY), steady.to_text(memory), directory_mode=0o755)


def consider(
    world: World, cluster: Cluster, cib: Element, snapshot: Snapshot, began: float, *, keep: bool
) -> Plan:
    """The plan of a round that nobody has asked for; ``keep`` remembers it for the next one.

    What comes of it counts from when the round ``began``: to ask what VMs use takes time. Before a
    plan has moves, which VMs they are is in the CIB.
    """
    known = remembered(world, cluster, cib)
    made, after = steady.consider(snapshot, known, began)
    if keep:
        if made.moves and cluster.balancer is not None:
            by_name = balancing.by_name(cluster)
            ids = {name: vm.resource.id for name, vm in by_name.items()}
            times = {ids[name]: at for name, at in after.moved.items() if name in ids}

            def edit(root: Element) -> None:
                balancer.note_moved(root, times)

            what = f"{count(len(made.moves), 'VM')} will have moved unasked, and rest then"
            pacemaker.change(world.runner, edit, what=what)
        remember(world, after)
    return made


def end(
    world: World,
    cluster: Cluster,
    made: Plan,
    begun: Collection[str],
    *,
    what: str,
    tell: Callable[[Element], None] = lambda _cib: None,
) -> None:
    """The end of a round that had moves: the VMs whose turn never came need no rest.

    ``tell`` writes more into the CIB in the same change, and ``what`` is said of it.
    """
    never = {move.vm.name for move in made.moves} - set(begun)
    memory = _of_this_node(world)
    rest = {name: at for name, at in memory.moved.items() if name not in never}
    remember(world, replace(memory, moved=rest))
    if cluster.balancer is None:
        return
    by_name = balancing.by_name(cluster)

    def edit(root: Element) -> None:
        balancer.forget_moved(root, {by_name[name].resource.id for name in never})
        tell(root)

    pacemaker.change(world.runner, edit, what=what)
