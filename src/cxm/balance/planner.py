# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the plan: which VMs move, in which order, and why. Pure; the same input, the same plan."""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from cxm.balance import exchange
from cxm.balance.model import Balance, Move, Plan, Role, Settings, Snapshot, gain
from cxm.balance.problem import Problem, compile_
from cxm.balance.search import Search
from cxm.balance.sequence import Hop, in_order, in_steps, worthwhile
from cxm.cluster.amounts import count, mib

_FEW: Final = 60  # up to so many moves other orders are tried
_ORDERS: Final = 6
_TINY: Final = 1e-12


def plan(snapshot: Snapshot) -> Plan:
    """The moves that are worth it, or none; raises DataError for a damaged description.

    What must not be is put right as far as that is possible, whatever it gains. N+1 is kept, unless
    a node must be emptied and there is no other way.
    """
    problem = compile_(snapshot)
    settings = snapshot.settings
    search = Search(problem, settings.max_moves)
    exchange.improve(search, lambda: _way(search)[1])
    if exchange.leaving(search):
        exchange.relieve(search)
    hops, _gained = _way(search)
    where = _end(problem, hops)
    before, after = problem.balance(problem.begin), problem.balance(where)
    forced = _forced(problem, problem.begin) > _forced(problem, where)
    if hops and not forced and gain(before, after) < settings.min_gain:
        reason = _too_little(before, after, hops, settings)
        stuck = _stuck(problem, problem.begin)
        return Plan((), before, before, reason, stuck, _stays(problem))
    steps = in_steps(problem, hops, max(1, settings.parallel), strict=search.strict)
    moves = tuple(tuple(_move(problem, hop) for hop in step) for step in steps)
    made = Plan(moves, before, after, "", _stuck(problem, where), _stays(problem))
    return replace(made, reason=_reason(problem, made, settings, search, forced=forced))


def _way(search: Search) -> tuple[list[Hop], float]:
    """The moves to what was found, as far as they are worth it, and what they gain, below 0.

    Those that were found first come first. Where that is not the whole way, or has a detour, other
    orders are tried.
    """
    problem = search.problem
    units = sorted(range(len(problem.units)), key=lambda each: (search.order[each], each))
    wishes = [
        (vm, search.where[unit])
        for unit in units
        for vm in problem.units[unit].vms
        if problem.may[vm] and problem.begin[vm] != search.where[unit]
    ]
    best, gained = _tried(search, wishes)
    if len(wishes) > _FEW or (len(best) == len(wishes) and not any(hop.detour for hop in best)):
        return best, gained
    chance = random.Random(0)  # noqa: S311 - it hides nothing
    for _turn in range(_ORDERS):
        chance.shuffle(wishes)
        hops, value = _tried(search, wishes)
        if value < gained - _TINY:
            best, gained = hops, value
    return best, gained


def _tried(search: Search, wishes: Sequence[tuple[int, int]]) -> tuple[list[Hop], float]:
    hops = in_order(search.problem, wishes, strict=search.strict)
    gained, count = worthwhile(search.problem, hops, search.max_moves)
    return hops[:count], gained


def _end(problem: Problem, hops: Sequence[Hop]) -> list[int]:
    where = list(problem.begin)
    for hop in hops:
        where[hop.vm] = hop.target
    return where


def _move(problem: Problem, hop: Hop) -> Move:
    names = problem.nodes
    return Move(
        problem.vms[hop.vm], names[hop.source].name, names[hop.target].name, detour=hop.detour
    )


# --- in words -----------------------------------------------------------------------------------


def _forced(problem: Problem, where: Sequence[int]) -> int:
    return len(problem.wrong(where))


def _stuck(problem: Problem, where: Sequence[int]) -> tuple[str, ...]:
    return tuple(_why(problem, number, where) for number in problem.wrong(where))


def _stays(problem: Problem) -> tuple[str, ...]:
    """Who is left where it is for a reason of its own, by reason."""
    found: dict[str, list[str]] = {}
    for vm in problem.vms:
        if vm.stays:
            found.setdefault(vm.stays, []).append(vm.name)
    return tuple(
        f"{', '.join(names)} {'stays' if len(names) == 1 else 'stay'}: {why}"
        for why, names in found.items()
    )


def _why(problem: Problem, number: int, where: Sequence[int]) -> str:
    """What is wrong with where a unit is, and why it stays."""
    unit = problem.units[number]
    vms = [problem.vms[vm] for vm in unit.vms]
    names = " and ".join(str(vm) for vm in vms)
    node = problem.nodes[where[unit.vms[0]]]
    if len({where[vm] for vm in unit.vms}) > 1:
        must = f"{names} must be together"
    elif node.role is Role.SOURCE:
        must = f"{names} must leave {node.name}"
    elif unit.nodes is not None and where[unit.vms[0]] not in unit.nodes:
        must = f"{names} must not be on {node.name}"
    else:
        must = f"{names} must not be on {node.name} with {_others(problem, number, where)}"
    fixed = [vm for vm in vms if vm.stays or not vm.movable]
    bound = [vm for vm in vms if not vm.live]
    if fixed:
        why = f": {fixed[0].stays}" if fixed[0].stays else ""
        return f"{must}, but {fixed[0].name} may not be moved{why}"
    if not unit.movable and bound:
        return f"{must}, but {bound[0].name} cannot move while it runs"
    if not unit.movable:
        return f"{must}, but nothing may leave {node.name} now"
    return f"{must}, but no other node has room for {'it' if len(vms) == 1 else 'them'}"


def _others(problem: Problem, number: int, where: Sequence[int]) -> str:
    """Who of a group is on the same node."""
    unit = problem.units[number]
    groups = set(unit.item.groups)
    node = where[unit.vms[0]]
    names = [
        problem.vms[vm].name
        for vm, item in enumerate(problem.items)
        if where[vm] == node and vm not in unit.vms and groups & set(item.groups)
    ]
    return " and ".join(names) or "others"


def said(balance: Balance) -> str:
    """An imbalance in words."""
    return f"CPU {balance.cpu:.1f} and memory {balance.memory:.1f} points"


def _too_little(before: Balance, after: Balance, hops: Sequence[Hop], settings: Settings) -> str:
    return (
        f"{count(len(hops), 'move')} would take away {max(0.0, gain(before, after)):.1f} % of the "
        f"imbalance, which is less than LB_MIN_GAIN ({settings.min_gain:g} %): {said(before)}"
    )


def _reason(
    problem: Problem, made: Plan, settings: Settings, search: Search, *, forced: bool
) -> str:
    moves = made.moves
    if not moves:
        return f"no move is worth what it costs; the nodes differ by {said(made.before)}"
    parts = []
    if forced:
        put_right = _forced(problem, problem.begin) - len(made.stuck)
        parts.append(f"what must not be is put right for {count(put_right, 'VM')}")
    part = gain(made.before, made.after)
    if part > 0:
        parts.append(
            f"{part:.0f} % of the imbalance goes ({said(made.before)} become {said(made.after)})"
        )
    text = f"{count(len(moves), 'move')} of {mib(sum(each.vm.memory for each in moves))}: "
    text += " and ".join(parts)
    if settings.max_moves and len(moves) >= settings.max_moves:
        text += f"; LB_MAX_MIGRATION ({settings.max_moves}) ends it there"
    if not search.strict:
        text += "; not all VMs will fit if another node dies"
    return text
