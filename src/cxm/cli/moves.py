# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns carrying out a plan: its moves, step by step, until one fails or the cluster changes."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from cxm import together
from cxm.balance.model import Move, Plan, Snapshot
from cxm.cli.world import World
from cxm.cluster import balancing, relocate
from cxm.cluster.amounts import count
from cxm.cluster.model import Cluster, Vm
from cxm.errors import CommandError, CxmError, RefusedError
from cxm.node.verbs import Call

# Says before each step why it must not begin; empty where it may.
Forbids = Callable[[Sequence[Vm]], str]


def nothing_forbids(_vms: Sequence[Vm]) -> str:
    """Of who gives the order by hand."""
    return ""


def carry_out(
    world: World,
    cluster: Cluster,
    snapshot: Snapshot,
    made: Plan,
    forbids: Forbids = nothing_forbids,
) -> None:
    """Have the VMs move, step by step.

    Raises RefusedError when the cluster is not as it was planned for any more, and CommandError
    when a move failed; then nothing more is begun.
    """
    known = balancing.by_name(cluster)
    where = {vm.name: vm.node for vm in snapshot.vms}
    done = 0
    for number, step in enumerate(made.steps, start=1):
        if why := forbids([known[move.vm.name] for move in step]):
            raise RefusedError(f"{why}, so the plan ends after {count(done, 'move')}")
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
    targets = {move.vm.name: move.target for move in step}

    def one(name: str) -> None:
        resource = known[name].resource
        call = Call(machine, resource.cloud)
        relocate.migrate(call, vm=resource.vm, node=targets[name], by_opennebula=False)

    answers = together.ask(targets, one, at_once=len(targets))
    return [each.sentence() for each in answers.values() if isinstance(each, CxmError)]
