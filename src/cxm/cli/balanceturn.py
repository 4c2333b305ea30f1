# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns a round of the cluster's own balancer, on the node where Pacemaker has it.

It moves nothing while anything else goes on in the cluster, or is wrong with it, and looks again
before each step: at the switch, at itself being the one, at orders on every node. A round that is
killed leaves what an order leaves that is killed (:mod:`cxm.cluster.watch`).
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Final
from xml.etree.ElementTree import Element

from cxm import log
from cxm.balance.model import Plan, Snapshot
from cxm.cli import autobalance, balanceviews, metrics, moves
from cxm.cli.main import bounded
from cxm.cli.world import World
from cxm.cluster import balancer, balancing, history
from cxm.cluster.model import UP, Cluster, Vm
from cxm.errors import CxmError, RefusedError

_log = logging.getLogger(__name__)

# Rounds that follow each other faster are none: Pacemaker looks more often when it is asked to.
_SOONEST_S: Final = 120.0
# A plan is not carried on for ever: what VMs use has changed meanwhile.
_LONGEST_S: Final = 1800.0
_PROBE_S: Final = 30.0


def turn(world: World) -> int:
    """One round; its exit code."""
    world.require_member()
    cluster, cib = world.look()
    memory, now = autobalance.remembered(world, cluster, cib), world.now()
    if why := _not_here(world, cluster) or autobalance.disturbance(cluster, cib):
        _log.debug("nothing is looked at: %s", why)
        autobalance.remember(world, replace(memory, wanted=0))
        return 0
    if memory.seen is not None and abs(now - memory.seen) < _SOONEST_S:
        return 0
    used = metrics.used(world, cluster, cib)
    snapshot = balancing.snapshot(cluster, used, world.machine().config)
    made = autobalance.consider(world, cluster, cib, snapshot, now, keep=True)
    if not made.moves:
        _log.debug("%s", made.reason)
        return 0
    _log.info("the cluster is evened out: %s", made.reason)
    return _carry_out(world, cluster, snapshot, made)


def _carry_out(world: World, cluster: Cluster, snapshot: Snapshot, made: Plan) -> int:
    began, code = world.monotonic(), 0
    begun: set[str] = set()

    def forbids(vms: Sequence[Vm]) -> str:
        if world.monotonic() - began > _LONGEST_S:
            return "this has taken half an hour, and there will be another round"
        now, cib = world.look()
        why = _not_here(world, now) or autobalance.disturbance(now, cib)
        return why or _ordered(world, now, cib, vms)

    try:
        moves.carry_out(world, cluster, snapshot, made, forbids=forbids, begun=begun)
        told = balanceviews.summary(made)
    except RefusedError as error:
        told = error.message
    except CxmError as error:
        told, code = error.message, error.code
        _log.warning("%s", error.sentence())

    def tell(root: Element) -> None:
        balancer.note_last(root, world.now(), told, bad=code != 0)

    autobalance.end(world, cluster, made, begun, what=f"the round has ended: {told}", tell=tell)
    return code


def _not_here(world: World, cluster: Cluster) -> str:
    """Why this node is not the one that balances; empty where it is."""
    own = cluster.balancer
    if own is None or not own.on:
        return "the automatic mode is switched off"
    return "" if own.node == world.here() else f"the balancer is on {own.node or 'no node'} now"


def _ordered(world: World, cluster: Cluster, cib: Element, vms: Sequence[Vm]) -> str:
    """Whether an order about one of the VMs is at work on any node, or may be; else empty."""
    here, machine = world.here(), world.machine()
    known = [(vm, vm.resource.cloud, vm.resource.vm) for vm in vms]
    for vm, cloud, number in known:
        if machine.order_busy(cloud, number):
            return f"an order about VM {vm.label} is at work"
    others = [each.name for each in cluster.nodes if each.state in UP and each.name != here]
    answers = world.ask(
        cib,
        others,
        lambda other: [
            vm
            for vm, cloud, number in known
            if other.ask("ordered", cloud, number, timeout_s=_PROBE_S)["ordered"]
        ],
    )
    for node, said in answers.items():
        if isinstance(said, CxmError):
            return f"{node} does not say whether an order is at work: {said.message}"
        for vm in said:
            return f"an order about VM {vm.label} is at work on {node}"
    return ""


def main(world: World | None = None) -> int:
    """The entry point of ``cxm-balance``; what nobody foresaw is a sentence in the log too."""
    os.umask(0o022)
    log.to_syslog(ident=history.BALANCER, debug=False)
    return bounded(lambda: turn(world or World()), "cxm-balance")
