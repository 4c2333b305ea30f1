# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns carrying out a plan: its moves, step by step, until one fails or the cluster changes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

from cxm import together
from cxm.balance.model import Move, Plan, Snapshot
from cxm.cli.world import World
from cxm.cluster import balancing, relocate
from cxm.cluster.amounts import count
from cxm.cluster.model import Cluster, NodeState, Vm
from cxm.errors import CommandError, CxmError, RefusedError
from cxm.node.verbs import Call

_SAID: Final = 3  # of all that has changed

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
    *,
    forbids: Forbids = nothing_forbids,
    begun: set[str] | None = None,
) -> None:
    """Have the VMs move, step by step; ``begun`` comes to name those whose turn it was.

    Raises RefusedError when the cluster is not as it was planned for any more, and CommandError
    when a move failed; then nothing more is begun.
    """
    known = balancing.by_name(cluster)
    where = {vm.name: vm.node for vm in snapshot.vms}
    states = {member.name: member.state for member in cluster.nodes}
    done = 0
    for number, step in enumerate(made.steps, start=1):
        if why := forbids([known[move.vm.name] for move in step]):
            raise RefusedError(f"{why}, so the plan ends after {count(done, 'move')}")
        _as_planned(world, where, states, done)
        if begun is not None:
            begun.update(move.vm.name for move in step)
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
    world: World, where: Mapping[str, str | None], states: Mapping[str, NodeState], done: int
) -> None:
    """Raise RefusedError unless all VMs are where the plan has them, no others, and nodes as then.

    What came meanwhile takes room that the plan has given away, wherever it is.
    """
    now = world.cluster()
    changed = [*_other_places(now, where), *_other_states(now, states)]
    if not now.quorate:
        changed.insert(0, "it has no quorum")
    if changed:
        more = f" and {len(changed) - _SAID} more" if len(changed) > _SAID else ""
        raise RefusedError(
            f"the cluster changed meanwhile ({', '.join(changed[:_SAID])}{more}), so the plan ends "
            f"after {count(done, 'move')}",
            hint="'cxm loadbalance' plans anew",
        )


def _other_places(now: Cluster, where: Mapping[str, str | None]) -> Iterator[str]:
    """What VMs are elsewhere than expected."""
    there = {name: vm for name, vm in balancing.by_name(now).items() if balancing.takes_part(vm)}
    for name in sorted(where.keys() | there.keys()):
        vm = there.get(name)
        if vm is None:
            yield f"{name} does not run"
        elif name not in where or (vm.node or None) != where[name] or len(vm.nodes) > 1:
            nodes = " and ".join(vm.nodes)
            yield f"{name} is on {nodes}" if nodes else f"{name} is nowhere"


def _other_states(now: Cluster, states: Mapping[str, NodeState]) -> Iterator[str]:
    """What nodes are something else than they were."""
    found = {member.name: member.state for member in now.nodes}
    for name in sorted(states.keys() | found.keys()):
        if found.get(name) is not states.get(name):
            yield f"{name} is {found.get(name, 'no node any more')}"


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
