# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what single moves do not find: exchanges, room for what must go, kicks out of dead ends.

Pure; chance is seeded, so the same input has the same result.
"""

import random
from collections.abc import Callable
from typing import Final

from cxm.balance.model import Role
from cxm.balance.problem import FORBIDDEN
from cxm.balance.search import Search

_TINY: Final = 1e-12
_PAIR_WORK: Final = 40_000  # exchanges that are tried in one round, at most
_KICK_WORK: Final = 12_000  # what kicks may cost, in units times nodes
_MOST_KICKS: Final = 250
_TRADES: Final = 0.4  # of the changes of a kick are exchanges
_SEED: Final = 1
_FEW_MOVES: Final = 20  # up to such a limit of moves each is looked at again


def improve(search: Search, judge: Callable[[], float]) -> None:
    """Make a placement better until nothing that is tried helps.

    ``judge`` tells what comes of a placement when it is carried out: some cannot be reached, and
    some only by a detour.
    """
    begin, home = search.value(), (list(search.where), list(search.order))
    _settle(search)
    size = len(search.where) * len(search.problem.spaces)
    kicks = min(_MOST_KICKS, _KICK_WORK // max(1, size))
    if kicks:
        _kick(search, kicks, begin, home, judge)


def _settle(search: Search) -> None:
    search.descend()
    while make_room(search) or exchange(search) or _replace(search):
        search.descend()


def _replace(search: Search) -> bool:
    """Where no more moves are allowed, make another one in the place of one that gains less."""
    if not 0 < search.max_moves <= min(_FEW_MOVES, search.moved):
        return False
    units = search.problem.units
    before = search.value()
    for unit, node in enumerate(list(search.where)):
        if node == units[unit].start or not search.may(unit, units[unit].start):
            continue
        kept = (list(search.where), list(search.order))
        if search.apply([(unit, units[unit].start)]):
            search.descend(without=unit)
            if search.value() < before - _TINY:
                return True
            _restore(search, *kept)
    return False


# --- exchanges ----------------------------------------------------------------------------------


def _promise(search: Search, one: int, other: int) -> float:
    """What two nodes could gain if any part of their load could go from one to the other."""
    found = 0.0
    for kind in (0, 1):
        slope, part = search.slope[kind], search.part[kind]
        both = part[one] + part[other]
        if both > 0:
            found += (slope[one] - slope[other]) ** 2 / (4 * both)
    return found


def exchange(search: Search) -> bool:
    """Make the best exchange of each pair of nodes that promises most; False if none helps."""
    nodes = [at for at, space in enumerate(search.problem.spaces) if space.takes]
    pairs = sorted(
        (
            (_promise(search, one, other), one, other)
            for at, one in enumerate(nodes)
            for other in nodes[at + 1 :]
        ),
        key=lambda each: (-each[0], each[1:]),
    )
    changed, work = False, 0
    for promise, one, other in pairs:
        if promise <= _TINY or work > _PAIR_WORK:
            break
        work += len(search.rooms.on[one]) * len(search.rooms.on[other])
        changed |= _exchange(search, one, other)
    return changed


def _rows(search: Search, node: int, other: int) -> list[tuple[int, float, float, int, float]]:
    """The units of a node: each with its loads, CPU, and what is saved when it is at the other."""
    units = search.problem.units
    return [
        (
            unit,
            search.load[unit],
            search.need[unit],
            units[unit].item.cpu,
            search.cost(unit) - units[unit].cost(other),
        )
        for unit in search.rooms.on[node]
        if search.free[unit] and _lets(search, unit, other)
    ]


def _lets(search: Search, unit: int, node: int) -> bool:
    allowed = search.problem.units[unit].nodes
    return allowed is None or node in allowed


def _exchange(search: Search, one: int, other: int) -> bool:
    """The best exchange of two units between two nodes, if one is worth it."""
    first, second = search.slope
    down0, down1 = first[one] - first[other], second[one] - second[other]
    both0 = search.part[0][one] + search.part[0][other]
    both1 = search.part[1][one] + search.part[1][other]
    rooms = search.rooms
    found = []
    theirs = _rows(search, other, one)
    for unit, load, need, cpu, saved in _rows(search, one, other):
        for their, its_load, its_need, its_cpu, its_saved in theirs:
            gone0, gone1 = load - its_load, need - its_need
            gain = saved + its_saved
            gain += (down0 - both0 * gone0) * gone0 + (down1 - both1 * gone1) * gone1
            if (
                gain > _TINY
                and -rooms.memory[one] <= gone1 <= rooms.memory[other]
                and -rooms.cpu[one] <= cpu - its_cpu <= rooms.cpu[other]
            ):
                found.append((-gain, unit, their))
    for _gain, unit, their in sorted(found)[:8]:
        if _can_trade(search, unit, their) and search.apply([(unit, other), (their, one)]):
            return True
    return False


def _can_trade(search: Search, unit: int, their: int) -> bool:
    """Whether each can be where the other is, when that one is gone."""
    one, other = search.where[unit], search.where[their]
    rooms = search.rooms
    rooms.take(unit, one)
    rooms.take(their, other)
    fine = rooms.fits(unit, other) and rooms.fits(their, one)
    rooms.put(unit, one)
    rooms.put(their, other)
    return fine


# --- room for those that must go ----------------------------------------------------------------


def must_go(search: Search) -> list[int]:
    """The units that are where they must not be, the largest first."""
    found = [unit for unit in range(len(search.where)) if search.cost(unit) > FORBIDDEN / 2]
    return sorted(found, key=lambda each: (-search.need[each], each))


def make_room(search: Search) -> bool:
    """Let a unit that has no place push others further; False if that helps none."""
    return any(_push(search, unit) for unit in must_go(search) if search.free[unit])


def _push(search: Search, unit: int) -> bool:
    """Have others leave a node, the fewest that do, so that a unit can go there."""
    rooms, item = search.rooms, search.problem.units[unit].item
    nodes = [at for at, space in enumerate(search.problem.spaces) if space.takes]
    for node in sorted(nodes, key=lambda each: (-rooms.memory[each], each)):
        if node == search.where[unit] or not _lets(search, unit, node):
            continue
        changes: list[tuple[int, int]] = []
        back: list[tuple[int, int, int]] = []
        for their in sorted(rooms.on[node], key=lambda each: (-search.need[each], each)):
            if rooms.fits(unit, node):
                break
            short = item.memory - rooms.memory[node]
            helps = search.need[their] >= short or short <= 0 or len(rooms.on[node]) < 2  # noqa: PLR2004
            if not search.free[their] or not helps:
                continue
            to = _elsewhere(search, their, node, search.where[unit])
            if to >= 0:
                rooms.move(their, node, to)
                back.append((their, to, node))
                changes.append((their, to))
        fine = rooms.fits(unit, node)
        for their, to, _node in reversed(back):
            rooms.move(their, to, node)
        if fine and search.apply([*changes, (unit, node)]):
            return True
    return False


def _elsewhere(search: Search, unit: int, node: int, never: int) -> int:
    """Where else a unit can go, the best for the objective; -1 for nowhere."""
    found = [
        (-search.gain(unit, to), to)
        for to, space in enumerate(search.problem.spaces)
        if space.takes and to not in (node, never) and search.may(unit, to)
    ]
    return min(found)[1] if found else -1


# --- kicks --------------------------------------------------------------------------------------


def _kick(
    search: Search,
    kicks: int,
    begin: float,
    home: tuple[list[int], list[int]],
    judge: Callable[[], float],
) -> None:
    """Leave the best placement for one nearby and go down again, many times; the best is kept.

    Every other time N+1 is looked at only in the end: the way is no part of the result. Where what
    is found cannot be reached, it is the way that is looked for: from ``home``, by single moves.
    """
    chance = random.Random(_SEED)  # noqa: S311 - it hides nothing
    best, kept = judge(), (list(search.where), list(search.order))
    movable = [unit for unit, free in enumerate(search.free) if free]
    nodes = [at for at, space in enumerate(search.problem.spaces) if space.takes]
    if not movable or len(nodes) < 2:  # noqa: PLR2004
        return
    for turn in range(kicks):
        lost = turn % 2 == 1 and search.value() - begin < best - _TINY
        search.strict = lost or turn % 2 == 0
        if lost:
            _restore(search, *home)
        elif search.max_moves:
            _return(search, chance)
        for _each in range(chance.choice((1, 2, 2, 3))):
            unit = chance.choice(movable)
            if not lost and chance.random() < _TRADES:
                _trade(search, unit, chance.choice(movable))
            else:
                _send(search, unit, chance.choice(nodes))
        if lost:
            search.descend()
        else:
            _settle(search)
        search.strict = True
        # No way to a placement makes it better than it is.
        hopeful = search.value() - begin < best - _TINY and search.rooms.safe()
        value = judge() if hopeful else 0.0
        if value < best - _TINY:
            best, kept = value, (list(search.where), list(search.order))
        else:
            _restore(search, *kept)


def _send(search: Search, unit: int, node: int) -> None:
    if node != search.where[unit] and search.may(unit, node):
        search.apply([(unit, node)])


def _trade(search: Search, unit: int, their: int) -> None:
    one, other = search.where[unit], search.where[their]
    lets = _lets(search, unit, other) and _lets(search, their, one)
    if one != other and lets and _can_trade(search, unit, their):
        search.apply([(unit, other), (their, one)])


def _return(search: Search, chance: random.Random) -> None:
    """Have some units that have moved be where they began, so that others may move."""
    units = search.problem.units
    moved = [unit for unit, node in enumerate(search.where) if node != units[unit].start]
    for unit in chance.sample(moved, chance.randint(0, len(moved))):
        if search.may(unit, units[unit].start):
            search.apply([(unit, units[unit].start)])


def _restore(search: Search, where: list[int], order: list[int]) -> None:
    for unit, node in enumerate(where):
        if search.where[unit] != node:
            search.shift(unit, node)
    search.order[:] = order


def leaving(search: Search) -> list[int]:
    """The units that are still on a node that must be emptied, and could go."""
    nodes = search.problem.nodes
    return [
        unit
        for unit in must_go(search)
        if search.free[unit] and nodes[search.where[unit]].role is Role.SOURCE
    ]


def relieve(search: Search) -> None:
    """Empty the nodes that must be emptied, and nothing else: N+1 does not hold it up any more."""
    search.strict = False
    for unit in leaving(search):
        found = [
            (-search.gain(unit, to), to)
            for to, space in enumerate(search.problem.spaces)
            if space.takes and search.may(unit, to)
        ]
        if not found or not search.apply([(unit, min(found)[1])]):
            _push(search, unit)
