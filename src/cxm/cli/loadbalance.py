# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the subcommand ``loadbalance``: which VMs should be elsewhere, and having them go there."""

import sys
from typing import Final

from cxm.balance import schema
from cxm.balance.model import Plan, Snapshot
from cxm.balance.planner import plan
from cxm.cli import autobalance, balanceviews, metrics, moves
from cxm.cli.world import World
from cxm.cluster import balancing
from cxm.cluster.amounts import count
from cxm.errors import RefusedError, UsageError

_STDIN: Final = "-"
_STUCK: Final = 1


def loadbalance(
    world: World, *, from_: str | None, dry_run: bool, yes: bool, unasked: bool, auto: str | None
) -> int:
    """The subcommand; exits 1 where something should be otherwise and cannot be."""
    if auto is not None:
        if from_ is not None or dry_run or unasked:
            raise UsageError("--auto switches the automatic mode, and plans nothing")
        return autobalance.order(world, auto)
    if from_ is not None:
        snapshot = schema.parse(_read(from_), from_)
        return _shown(world, snapshot, plan(snapshot))
    began = world.now()
    cluster, cib = world.look()
    if not cluster.quorate:
        raise RefusedError("the cluster is not quorate: nothing can be moved")
    for each in cluster.damaged:
        raise RefusedError(
            f"what {each.label} needs is not known, so nothing is planned: {each.error.message}",
            hint=each.error.hint,
        )
    used = metrics.used(world, cluster, cib)
    snapshot = balancing.snapshot(cluster, used, world.machine().config)
    if unasked:
        made = autobalance.consider(world, cluster, cib, snapshot, began, keep=not dry_run)
    else:
        made = plan(snapshot)
    if dry_run or not made.moves:
        return _shown(world, snapshot, made)
    world.say(balanceviews.plan(snapshot, made, world.looks()))
    if not (yes or unasked):
        world.confirm(f"{count(len(made.moves), 'VM')} will move while they run.", "balance")
    begun: set[str] = set()
    try:
        moves.carry_out(world, cluster, snapshot, made, begun=begun)
    finally:
        if unasked:
            what = f"{count(len(begun), 'VM')} of {len(made.moves)} began to move unasked"
            autobalance.end(world, cluster, made, begun, what=what)
    world.end(f"done: {balanceviews.summary(made)}", schema.to_json(made))
    return _STUCK if made.stuck else 0


def _read(path: str) -> str:
    """The text of a file, of the standard input for ``-``; raises UsageError."""
    try:
        if path == _STDIN:
            return sys.stdin.read()
        with open(path, encoding="utf-8") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error


def _shown(world: World, snapshot: Snapshot, made: Plan) -> int:
    if world.as_json:
        world.show_json(schema.to_json(made))
    else:
        world.show(balanceviews.plan(snapshot, made, world.looks()))
    return _STUCK if made.stuck else 0
