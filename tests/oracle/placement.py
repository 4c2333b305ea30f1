# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""The best placement of a small cluster, proven by OR-tools: what the planner is measured with.

What fits, and what N+1 is, is reckoned anew here: by trying everything.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from heapq import heappop, heappush
from itertools import compress

from ortools.sat.python import cp_model

from cxm.balance.model import Role
from cxm.balance.problem import FORBIDDEN, Problem, Unit

Places = dict[tuple[int, int], cp_model.IntVar]
Sizes = tuple[tuple[int, int], ...]  # memory and CPU, each
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
    """What is minimised; VMs that must be together, and are not, cost more than all else."""
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
    return problem.nodes[unit.start].role is Role.SOURCE or not allowed


def _constant(problem: Problem) -> float:
    """The square of the mean utilisation, which no placement changes: all VMs are on the nodes.

    But for those of nodes that rest, which stay there and do not count.
    """
    found = 0.0
    count = [problem.nodes[node].role is not Role.NEITHER for node in problem.begin]
    memory = [float(each.memory) for each in problem.items]
    for parts, used in (
        (problem.cpu_part, sum(compress(problem.loads, count))),
        (problem.memory_part, sum(compress(memory, count))),
    ):
        # 1 / (own capacity x all): its inverse is the one times the other.
        counted = [1 / part for part in parts if part > 0]
        whole = sum(counted) ** 0.5
        found += (used / whole) ** 2 if whole else 0.0
    return found


def optimum(problem: Problem, max_moves: int, *, seconds: float = 60) -> Optimum:
    """The best valid placement; N+1 is to be no worse than it is at the beginning.

    VMs that must be together are so at the beginning.
    """
    model = cp_model.CpModel()
    vms, nodes = range(len(problem.vms)), range(len(problem.nodes))
    at = {(vm, node): model.new_bool_var("") for vm in vms for node in nodes}
    for unit in problem.units:
        first = unit.vms[0]
        model.add_exactly_one(at[first, node] for node in nodes)
        for node in nodes:
            can = problem.spaces[node].takes and (unit.nodes is None or node in unit.nodes)
            if node != unit.start and not (can and unit.movable):
                model.add(at[first, node] == 0)
            for vm in unit.vms[1:]:
                model.add(at[vm, node] == at[first, node])
    _capacity(problem, model, at)
    for dead in nodes:
        _survives(problem, model, at, dead, _lost(problem, problem.begin, dead))
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
    allowed = [_lost(problem, problem.begin, dead) for dead in range(len(problem.nodes))]
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
        for vm, node in _moves(problem, state):
            after = (*state[:vm], node, *state[vm + 1 :])
            key = (after, hops + 1 if max_moves else 0)
            then = cost + problem.prices[vm]
            if then < min(most, paid.get(key, most)) and all(
                _lost(problem, after, dead) <= least for dead, least in enumerate(allowed)
            ):
                paid[key] = then
                heappush(waiting, (then, hops + 1, after))
        if len(paid) > states:
            return None
    return best


def _moves(problem: Problem, state: Sequence[int]) -> Iterator[tuple[int, int]]:
    """All moves of one VM that are possible now, but for N+1."""
    free = _free(problem, state)
    there: list[list[int]] = [[] for _node in problem.nodes]
    for vm, node in enumerate(state):
        there[node].append(vm)
    for unit in problem.units:
        for vm in unit.vms if unit.movable else ():
            item = problem.items[vm]
            for node, (memory, cpu) in enumerate(free):
                if (
                    node != state[vm]
                    and problem.nodes[node].role is Role.BOTH
                    and (unit.nodes is None or node in unit.nodes)
                    and memory >= item.memory
                    and cpu >= item.cpu
                    and not (problem.limit and len(there[node]) >= problem.limit)
                    and not any(
                        set(item.groups) & set(problem.items[each].groups) for each in there[node]
                    )
                ):
                    yield vm, node


# --- N+1 ------------------------------------------------------------------------------------------


def _free(problem: Problem, where: Sequence[int]) -> list[tuple[int, int]]:
    """What each node has left."""
    free = [[node.memory, node.cpu] for node in problem.nodes]
    for vm, node in enumerate(where):
        free[node][0] -= problem.items[vm].memory
        free[node][1] -= problem.items[vm].cpu
    return [(memory, cpu) for memory, cpu in free]


def _lost(problem: Problem, where: Sequence[int], dead: int) -> int:
    """The least memory that has no place if a node dies, of all ways to place what it has.

    What is nowhere already may give way: it is lost without that, too.
    """
    needs = [
        (each.memory, each.cpu) for each, at in zip(problem.items, where, strict=True) if at == dead
    ]
    free = [
        each
        for node, each in enumerate(_free(problem, where))
        if node != dead and problem.nodes[node].role is Role.BOTH
    ]
    return _least(tuple(sorted(needs, reverse=True)), tuple(sorted(free)))


@lru_cache(maxsize=1 << 18)
def _least(needs: Sizes, free: Sizes) -> int:
    if not needs:
        return 0
    (memory, cpu), others = needs[0], needs[1:]
    best = memory + _least(others, free)
    for at, (has, room) in enumerate(free):
        if best and has >= memory and room >= cpu and free[at] not in free[:at]:
            left = (*free[:at], (has - memory, room - cpu), *free[at + 1 :])
            best = min(best, _least(others, tuple(sorted(left))))
    return best
