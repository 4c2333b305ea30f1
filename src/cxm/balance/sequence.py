# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the way from one placement to another: moves in an order that can be carried out. Pure.

While a VM moves its memory is taken on both nodes. Every state between two moves keeps what must be
kept, and so does every state in which some moves of a step are done and others are not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cxm.balance.problem import FORBIDDEN, Problem
from cxm.balance.rooms import Rooms

_WINDOW: Final = 6  # so many times the moves of a step are looked at to fill it
_TINY: Final = 1e-12


@dataclass(frozen=True, slots=True)
class Hop:
    """A VM goes from a node to another."""

    vm: int
    source: int
    target: int
    detour: bool = False


def in_order(problem: Problem, wishes: Sequence[tuple[int, int]], *, strict: bool) -> list[Hop]:
    """Moves to where VMs are wished, each possible when its turn comes; (VM, node), best first.

    A VM that stands in the way of others goes aside first. What cannot be done is left out.
    """
    rooms = problem.rooms()
    where = list(problem.begin)
    pending = [(vm, node) for vm, node in wishes if where[vm] != node]
    hops: list[Hop] = []
    aside: set[int] = set()
    while pending:
        left = []
        for vm, node in pending:
            if rooms.fits(vm, node) and _moved(rooms, vm, where[vm], node, strict=strict):
                hops.append(Hop(vm, where[vm], node))
                where[vm] = node
            else:
                left.append((vm, node))
        if len(left) == len(pending):
            hop = _aside(problem, rooms, where, left, aside, strict=strict)
            if hop is None:
                break
            hops.append(hop)
            aside.add(hop.vm)
            where[hop.vm] = hop.target
        pending = left
    return hops


def _moved(rooms: Rooms, vm: int, source: int, target: int, *, strict: bool) -> bool:
    rooms.move(vm, source, target)
    if not strict or rooms.safe():
        return True
    rooms.move(vm, target, source)
    return False


def _aside(
    problem: Problem,
    rooms: Rooms,
    where: list[int],
    pending: list[tuple[int, int]],
    aside: set[int],
    *,
    strict: bool,
) -> Hop | None:
    """Send the smallest VM aside whose going lets another one come; it has moved then."""
    units = {vm: unit for unit in problem.units for vm in unit.vms}
    for vm, wished in sorted(pending, key=lambda each: (problem.items[each[0]].memory, each)):
        source = where[vm]
        waiting = [other for other, node in pending if node == source and other != vm]
        if vm in aside or not waiting:
            continue
        allowed = units[vm].nodes
        for node in sorted(range(len(problem.nodes)), key=lambda each: (-rooms.memory[each], each)):
            if (
                node in (source, wished)
                or (allowed is not None and node not in allowed)
                or not rooms.fits(vm, node)
                or not _moved(rooms, vm, source, node, strict=strict)
            ):
                continue
            if any(rooms.fits(other, source) for other in waiting):
                return Hop(vm, source, node, detour=True)
            rooms.move(vm, node, source)
    return None


# --- how far to go ------------------------------------------------------------------------------


def worthwhile(problem: Problem, hops: Sequence[Hop], most: int) -> tuple[float, int]:
    """What the objective becomes less or equal by, 0 or below, and after how many of the moves."""
    where = list(problem.begin)
    load0 = [0.0] * len(problem.nodes)
    load1 = [0.0] * len(problem.nodes)
    for vm, node in enumerate(where):
        load0[node] += problem.loads[vm]
        load1[node] += problem.items[vm].memory
    units = {vm: number for number, unit in enumerate(problem.units) for vm in unit.vms}
    owed = [_owed(problem, number, where) for number in range(len(problem.units))]
    bad = len(problem.wrong(where))
    value = best = 0.0
    count = 0
    for done, hop in enumerate(hops, start=1):
        if most and done > most:
            break
        for loads, part, load in (
            (load0, problem.cpu_part, problem.loads[hop.vm]),
            (load1, problem.memory_part, float(problem.items[hop.vm].memory)),
        ):
            source, target = hop.source, hop.target
            value += part[source] * ((loads[source] - load) ** 2 - loads[source] ** 2)
            value += part[target] * ((loads[target] + load) ** 2 - loads[target] ** 2)
            loads[source] -= load
            loads[target] += load
        where[hop.vm] = hop.target
        unit = units[hop.vm]
        owes = _owed(problem, unit, where)
        value += owes - owed[unit] + (problem.prices[hop.vm] if hop.detour else 0.0)
        owed[unit] = owes
        if bad or len(problem.units[unit].vms) > 1:
            was, bad = bad, len(problem.wrong(where))
            value += FORBIDDEN * (bad - was)
        if value < best - _TINY:
            best, count = value, done
    return best, count


def _owed(problem: Problem, number: int, where: Sequence[int]) -> float:
    """What it costs to have the VMs of a unit where they are."""
    unit = problem.units[number]
    if len({where[vm] for vm in unit.vms}) == 1:
        cost = unit.cost(where[unit.vms[0]])
        return cost - FORBIDDEN if cost > FORBIDDEN / 2 else cost
    begin = problem.begin
    return sum(problem.prices[vm] for vm in unit.vms if where[vm] != begin[vm])


# --- side by side -------------------------------------------------------------------------------


def in_steps(
    problem: Problem, hops: Sequence[Hop], parallel: int, *, strict: bool
) -> list[list[Hop]]:
    """The moves in steps, in each of which they are made at the same time.

    A node takes part in one move of a step. A move is brought forward only if none that it
    overtakes has to do with its nodes, and N+1 is kept also when those follow it.
    """
    rooms = problem.rooms()
    left = list(hops)
    steps = []
    while left:
        step = [left[0]]
        rooms.put(left[0].vm, left[0].target)
        busy = {left[0].source, left[0].target}
        passed: list[int] = []
        window = parallel * _WINDOW
        for at in range(1, min(len(left), window)):
            if len(step) >= parallel:
                passed.extend(range(at, min(len(left), window)))
                break
            hop = left[at]
            if not busy & {hop.source, hop.target} and rooms.fits(hop.vm, hop.target):
                rooms.put(hop.vm, hop.target)
                overtaken = [left[other] for other in passed]
                if not strict or (rooms.safe() and _can_follow(rooms, [*step, hop], overtaken)):
                    step.append(hop)
                    busy |= {hop.source, hop.target}
                    continue
                rooms.take(hop.vm, hop.target)
            passed.append(at)
            busy |= {hop.source, hop.target}
        for hop in step:
            rooms.take(hop.vm, hop.source)
        left = [left[at] for at in passed] + left[max(window, 1) :]
        steps.append(step)
    return steps


def _can_follow(rooms: Rooms, step: Sequence[Hop], overtaken: Sequence[Hop]) -> bool:
    """Whether moves can be made one after the other when those of a step are done.

    Each has room, as it had before: no node is theirs and the step's. N+1 is of all nodes.
    """
    if not overtaken:
        return True
    for hop in step:
        rooms.take(hop.vm, hop.source)
    fine, made = True, 0
    while fine and made < len(overtaken):
        hop = overtaken[made]
        rooms.move(hop.vm, hop.source, hop.target)
        made += 1
        fine = rooms.safe()
    for hop in reversed(overtaken[:made]):
        rooms.move(hop.vm, hop.target, hop.source)
    for hop in step:
        rooms.put(hop.vm, hop.source)
    return fine
