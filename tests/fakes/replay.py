# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Carries a plan out on paper, and looks at every state on the way with rules of its own.

It shares no code with the planner: what fits is reckoned anew, and what would be left without a
place if a node died by trying everything.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

from cxm.balance.model import Move, Node, Plan, Role, Snapshot, Vm

Where = dict[str, str | None]


def states(snapshot: Snapshot, plan: Plan) -> Iterator[tuple[Where, Sequence[Move]]]:
    """Every state of a plan: where VMs are, and what is on its way. All orders of a step's ends."""
    where: Where = {vm.name: vm.node for vm in snapshot.vms}
    yield dict(where), ()
    for step in plan.steps:
        for count in range(len(step) + 1):
            for done in combinations(step, count):
                yield (
                    where | {move.vm.name: move.target for move in done},
                    [move for move in step if move not in done],
                )
        for move in step:
            assert where[move.vm.name] == move.source != move.target, "it is not where it should be"
            where[move.vm.name] = move.target
        yield dict(where), ()


def on(snapshot: Snapshot, where: Mapping[str, str | None], node: str) -> list[Vm]:
    """The VMs of a node."""
    return [vm for vm in snapshot.vms if where[vm.name] == node]


def broken(snapshot: Snapshot, where: Where, moving: Sequence[Move]) -> set[str]:
    """What is wrong in a state: a node too full, VMs together that must be apart, and so on."""
    found = set()
    for node in snapshot.nodes:
        coming = [move.vm for move in moving if move.target == node.name]
        there = [*on(snapshot, where, node.name), *coming]
        if sum(vm.memory for vm in there) > node.memory:
            found.add(f"memory of {node.name}")
        if sum(vm.cpu for vm in there) > node.cpu:
            found.add(f"CPU of {node.name}")
        if snapshot.settings.max_vms and len(there) > snapshot.settings.max_vms:
            found.add(f"number on {node.name}")
        for one, other in combinations(there, 2):
            if set(one.apart) & set(other.apart):
                found.add(f"{min(one.name, other.name)} with {max(one.name, other.name)}")
        found |= {
            f"{vm.name} on {node.name}"
            for vm in there
            if vm.nodes is not None and node.name not in vm.nodes
        }
    return found


def lost(snapshot: Snapshot, where: Where, dead: str) -> int:
    """The least memory that has no place if a node dies, of all ways to place what it has."""
    nodes = [each for each in snapshot.nodes if each.role is Role.BOTH and each.name != dead]
    names = {node.name for node in snapshot.nodes if node.role is not Role.GONE}
    homeless = [vm for vm in snapshot.vms if where[vm.name] not in names]
    room = [_room(snapshot, where, node) for node in nodes]
    needs = sorted(
        [(vm, True) for vm in on(snapshot, where, dead)] + [(vm, False) for vm in homeless],
        key=lambda each: -each[0].memory,
    )
    return _least(needs, room)


def _room(snapshot: Snapshot, where: Where, node: Node) -> tuple[int, int]:
    there = on(snapshot, where, node.name)
    return (
        node.memory - sum(vm.memory for vm in there),
        node.cpu - sum(vm.cpu for vm in there),
    )


def _least(needs: Sequence[tuple[Vm, bool]], room: list[tuple[int, int]]) -> int:
    if not needs:
        return 0
    (vm, counts), *others = needs
    least = None
    for at, (memory, cpu) in enumerate(room):
        if memory >= vm.memory and cpu >= vm.cpu and room[at] not in room[:at]:
            room[at] = (memory - vm.memory, cpu - vm.cpu)
            found = _least(others, room)
            room[at] = (memory, cpu)
            least = found if least is None else min(least, found)
            if least == 0:
                return 0
    left = _least(others, room) + (vm.memory if counts else 0)
    return left if least is None else min(least, left)
