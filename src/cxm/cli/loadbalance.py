# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the subcommand ``loadbalance``: which VMs should be elsewhere, and having them go there."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import Final

from cxm.balance import schema, steady
from cxm.balance.model import Move, Plan, Snapshot
from cxm.balance.planner import plan
from cxm.cli import balanceviews, metrics
from cxm.cli.world import World
from cxm.cluster import balancing, relocate
from cxm.cluster.amounts import count
from cxm.cluster.model import Cluster, Vm
from cxm.errors import CommandError, CxmError, RefusedError, UsageError
from cxm.node.verbs import Call

_STDIN: Final = "-"
_MEMORY: Final = "/run/cxm/balance.json"  # of rounds that nobody asks for
_STUCK: Final = 1


def loadbalance(world: World, *, from_: str | None, dry_run: bool, yes: bool, unasked: bool) -> int:
    """The subcommand; exits 1 where something should be otherwise and cannot be."""
    if from_ is not None:
        snapshot = schema.parse(_read(from_), from_)
        return _shown(world, snapshot, plan(snapshot))
    cluster, cib = world.look()
    if not cluster.quorate:
        raise RefusedError("the cluster is not quorate: nothing can be moved")
    used = metrics.used(world, cluster, cib)
    snapshot = balancing.snapshot(cluster, used, world.machine().config)
    made = _wary(world, snapshot, keep=not dry_run) if unasked else plan(snapshot)
    if dry_run or not made.moves:
        return _shown(world, snapshot, made)
    world.say(balanceviews.plan(snapshot, made, world.looks()))
    if not (yes or unasked):
        world.confirm(f"{count(len(made.moves), 'VM')} will move while they run.", "balance")
    _carry_out(world, cluster, snapshot, made)
    world.end(f"done: {balanceviews.summary(made)}", schema.to_json(made))
    return _STUCK if made.stuck else 0


def _wary(world: World, snapshot: Snapshot, *, keep: bool) -> Plan:
    """The plan of a round that nobody has asked for, and what is remembered for the next one."""
    path = world.path(_MEMORY)
    memory = steady.Memory()
    with suppress(OSError), open(path, encoding="utf-8") as file:
        memory = steady.from_text(file.read())
    made, after = steady.consider(snapshot, memory, world.now())
    if keep:
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        with open(f"{path}.new", "w", encoding="utf-8") as file:
            file.write(steady.to_text(after))
        os.replace(file.name, path)
    return made


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


# --- carrying it out ------------------------------------------------------------------------------


def _carry_out(world: World, cluster: Cluster, snapshot: Snapshot, made: Plan) -> None:
    """Have the VMs move, step by step.

    Raises RefusedError when the cluster is not as it was planned for any more, and CommandError
    when a move failed; then nothing more is begun.
    """
    known = balancing.by_name(cluster)
    where = {vm.name: vm.node for vm in snapshot.vms}
    done = 0
    for number, step in enumerate(made.steps, start=1):
        _as_planned(world, where, step, done)
        for move in step:
            world.say(
                f"  {number}/{len(made.steps)}  {move.vm.name}: {move.source} to {move.target}"
            )
        failed = _together(world, step, known)
        done += len(step) - len(failed)
        if failed:
            raise CommandError(
                f"{'; '.join(failed)}; {count(done, 'VM')} of {len(made.moves)} moved before",
                hint="'cxm loadbalance' plans anew from where they are",
            )
        where |= {move.vm.name: move.target for move in step}


def _as_planned(
    world: World, where: dict[str, str | None], step: tuple[Move, ...], done: int
) -> None:
    """Raise RefusedError unless all VMs are where the plan has them, and their targets take VMs."""
    now = world.cluster()
    there = balancing.by_name(now)
    moved = [
        name
        for name, node in where.items()
        if (vm := there.get(name)) is None or (vm.node or None) != node or len(vm.nodes) > 1
    ]
    takes = {member.name for member in now.nodes if member.takes_vms}
    gone = sorted({move.target for move in step} - takes)
    if not now.quorate or moved or gone:
        what = ", ".join([*sorted(moved)[:3], *gone]) or "its quorum"
        raise RefusedError(
            f"the cluster changed meanwhile ({what}), so the plan ends after {count(done, 'move')}",
            hint="'cxm loadbalance' plans anew",
        )


def _together(world: World, step: tuple[Move, ...], known: dict[str, Vm]) -> list[str]:
    """Make the moves of a step at the same time; returns what went wrong."""
    machine = replace(world.machine(), hostname=world.here())

    def one(move: Move) -> str:
        resource = known[move.vm.name].resource
        try:
            call = Call(machine, resource.cloud)
            relocate.migrate(call, vm=resource.vm, node=move.target, by_opennebula=False)
        except CxmError as error:
            return error.sentence()
        return ""

    with ThreadPoolExecutor(len(step)) as pool:
        return [text for text in pool.map(one, step) if text]
