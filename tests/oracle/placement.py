# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""The best placement of a small cluster, proven by OR-tools: what the planner is measured with."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from ortools.sat.python import cp_model

from cxm.balance.problem import FORBIDDEN, Problem, Unit
from cxm.balance.rooms import Rooms

Places = dict[tuple[int, int], cp_model.IntVar]
_UNIT_MIB = 256  # all memory is a multiple of it
_SCALE = 1e12
_FORBIDDEN = round(FORBIDDEN * _SCALE)


@dataclass(frozen=True, slots=True)
class Optimum:
    """The least value of the objective that any valid placement has, and whether it is proven."""

    value: float
    proven: bool
    where: tuple[int, ...] = ()


def objective(problem: Problem, where: tuple[int, ...] | list[int]) -> float:
    """What is minimised, of the placement of VMs that need not stay together."""
    value = 0.0
    for node in range(len(problem.nodes)):
        here = [vm for vm, at in enumerate(where) if at == node]
        value += problem.cpu_part[node] * sum(problem.loads[vm] for vm in here) ** 2
        value += problem.memory_part[node] * sum(problem.items[vm].memory for vm in here) ** 2
    mean = _constant(problem)
    wrong = FORBIDDEN * len(problem.wrong(where))
    return value - mean + wrong + sum(_cost(unit, where[unit.vms[0]]) for unit in problem.units)


def _cost(unit: Unit, node: int) -> float:
    """What is to be copied, without what is forbidden."""
    cost = unit.cost(node)
    return cost - FORBIDDEN if cost > FORBIDDEN / 2 else cost


def _must_go(problem: Problem, unit: Unit) -> bool:
    allowed = unit.nodes is None or unit.start in unit.nodes
    return not problem.spaces[unit.start].takes or not allowed


def _constant(problem: Problem) -> float:
    """The square of the mean utilisation, which no placement changes: all VMs are on the nodes."""
    found = 0.0
    for parts, used in (
        (problem.cpu_part, sum(problem.loads)),
        (problem.memory_part, float(sum(each.memory for each in problem.items))),
    ):
        # 1 / (own capacity x all): its inverse is the one times the other.
        counted = [1 / part for part in parts if part > 0]
        whole = sum(counted) ** 0.5
        found += (used / whole) ** 2 if whole else 0.0
    return found


def optimum(problem: Problem, max_moves: int, *, seconds: float = 60) -> Optimum:
    """The best valid placement; N+1 is to be no worse than it is at the beginning."""
    model = cp_model.CpModel()
    vms, nodes = range(len(problem.vms)), range(len(problem.nodes))
    at = {(vm, node): model.new_bool_var("") for vm in vms for node in nodes}
    for unit in problem.units:
        (vm,) = unit.vms
        model.add_exactly_one(at[vm, node] for node in nodes)
        for node in nodes:
            can = problem.spaces[node].takes and (unit.nodes is None or node in unit.nodes)
            if node != unit.start and not (can and unit.movable):
                model.add(at[vm, node] == 0)
    _capacity(problem, model, at)
    rooms = problem.rooms()
    for dead in nodes:
        _survives(problem, model, at, dead, rooms.shortage(dead))
    if max_moves:
        stay = [at[vm, problem.begin[vm]] for vm in vms]
        model.add(sum(stay) >= len(stay) - max_moves)
    model.minimize(sum(_terms(problem, model, at)))
    for (vm, node), chosen in at.items():
        model.add_hint(chosen, int(problem.begin[vm] == node))
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = seconds
    solver.parameters.num_workers = 1
    status = solver.solve(model)
    where = tuple(next(node for node in nodes if solver.value(at[vm, node])) for vm in vms)
    return Optimum(objective(problem, where), status == cp_model.OPTIMAL, where)


def _terms(problem: Problem, model: cp_model.CpModel, at: Places) -> Iterator[cp_model.LinearExpr]:
    """What is minimised, piece by piece."""
    cpu = [round(each) for each in problem.loads]
    memory = [each.memory // _UNIT_MIB for each in problem.items]
    for node in range(len(problem.nodes)):
        for part, needs in (
            (problem.cpu_part[node], cpu),
            (problem.memory_part[node] * _UNIT_MIB**2, memory),
        ):
            load = model.new_int_var(0, sum(needs), "")
            model.add(load == sum(need * at[vm, node] for vm, need in enumerate(needs)))
            square = model.new_int_var(0, sum(needs) ** 2, "")
            model.add_multiplication_equality(square, [load, load])
            yield round(part * _SCALE) * square
    for unit in problem.units:
        for node in range(len(problem.nodes)):
            yield round(_cost(unit, node) * _SCALE) * at[unit.vms[0], node]
        if _must_go(problem, unit):
            yield _FORBIDDEN * at[unit.vms[0], unit.start]
    for clash in _clashes(problem, model, at):
        yield _FORBIDDEN * clash


def _capacity(problem: Problem, model: cp_model.CpModel, at: Places) -> None:
    vms = range(len(problem.vms))
    for node, space in enumerate(problem.spaces):
        for has, needs in (
            (space.memory, [each.memory for each in problem.items]),
            (space.cpu, [each.cpu for each in problem.items]),
        ):
            model.add(sum(need * at[vm, node] for vm, need in enumerate(needs)) <= has)
        if problem.limit:
            # A node that has more already keeps them.
            limit = max(problem.limit, problem.begin.count(node))
            model.add(sum(at[vm, node] for vm in vms) <= limit)


def _clashes(problem: Problem, model: cp_model.CpModel, at: Places) -> Iterator[cp_model.IntVar]:
    """What is true when two VMs that must be apart are still together: no others may become so."""
    for one, item in enumerate(problem.items):
        for other in range(one):
            if not set(item.groups) & set(problem.items[other].groups):
                continue
            for node in range(len(problem.nodes)):
                clash = model.new_bool_var("")
                model.add(at[one, node] + at[other, node] <= 1 + clash)
                if not problem.begin[one] == problem.begin[other] == node:
                    model.add(clash == 0)
                yield clash


def _survives(
    problem: Problem, model: cp_model.CpModel, at: Places, dead: int, lost_mib: int
) -> None:
    """The VMs of a node find a place elsewhere, in some packing, but for so much memory."""
    vms = range(len(problem.vms))
    others = [node for node, space in enumerate(problem.spaces) if node != dead and space.takes]
    then = {(vm, node): model.new_bool_var("") for vm in vms for node in others}
    for vm in vms:
        model.add(sum(then[vm, node] for node in others) <= at[vm, dead])
    model.add(
        sum(
            problem.items[vm].memory * (at[vm, dead] - sum(then[vm, node] for node in others))
            for vm in vms
        )
        <= lost_mib
    )
    for node in others:
        for has, needs in (
            (problem.spaces[node].memory, [each.memory for each in problem.items]),
            (problem.spaces[node].cpu, [each.cpu for each in problem.items]),
        ):
            model.add(
                sum(need * (at[vm, node] + then[vm, node]) for vm, need in enumerate(needs)) <= has
            )


def carried_out(
    problem: Problem, max_moves: int, most: float, *, states: int = 150_000
) -> float | None:
    """The least value of the objective after moves one after the other, each state of them valid.

    Every state there is is looked at, but for those that cost more than ``most`` to get to; what
    went aside on the way has its price. None where they are too many.
    """
    rooms, now = problem.rooms(), list(problem.begin)
    best = objective(problem, problem.begin)
    paid = {(problem.begin, 0): 0.0}
    waiting = [(0.0, 0, problem.begin)]
    while waiting:
        cost, hops, state = heappop(waiting)
        if cost > paid[state, hops if max_moves else 0]:
            continue
        away = sum(
            price
            for price, node, begin in zip(problem.prices, state, problem.begin, strict=True)
            if node != begin
        )
        best = min(best, objective(problem, state) + cost - away)
        if max_moves and hops == max_moves:
            continue
        for vm, node in enumerate(state):
            if now[vm] != node:
                rooms.move(vm, now[vm], node)
                now[vm] = node
        for vm, node in _moves(problem, rooms, state):
            after = (*state[:vm], node, *state[vm + 1 :])
            key = (after, hops + 1 if max_moves else 0)
            then = cost + problem.prices[vm]
            if then < min(most, paid.get(key, most)):
                rooms.move(vm, state[vm], node)
                if rooms.safe():
                    paid[key] = then
                    heappush(waiting, (then, hops + 1, after))
                rooms.move(vm, node, state[vm])
        if len(paid) > states:
            return None
    return best


def _moves(problem: Problem, rooms: Rooms, state: Sequence[int]) -> Iterator[tuple[int, int]]:
    """All moves of one VM that are possible now, but for N+1."""
    for unit in problem.units:
        if unit.movable:
            for vm in unit.vms:
                for node in range(len(problem.nodes)):
                    allowed = unit.nodes is None or node in unit.nodes
                    if allowed and node != state[vm] and rooms.fits(vm, node):
                        yield vm, node
