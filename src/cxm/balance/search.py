# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the search for a better place of each unit: steepest descent, exchanges, kicks. Pure.

A change of one unit's node changes the objective by what it changes on two nodes, and a lower
bound of that for all targets at once is two products: so nearly all of the moves that are no good
cost next to nothing.
"""

from collections.abc import Callable, Iterable
from heapq import heapify, heappop, heappush
from typing import Final

from cxm.balance.problem import FORBIDDEN, Problem

_TINY: Final = 1e-12
_TARGETS: Final = 6  # of each kind of best targets, in the first pass


class Search:
    """A placement of all units that is made better step by step; each one it stops at is valid."""

    def __init__(self, problem: Problem, max_moves: int = 0) -> None:
        units = problem.units
        self.problem = problem
        self.rooms = problem.unit_rooms()
        self.where = [unit.start for unit in units]
        self.max_moves = max_moves
        self.moved = 0  # VMs that are not where they were
        self.order = [0] * len(units)  # when each unit came to where it is
        self._clock = 0
        self.load = [unit.load for unit in units]
        self.need = [unit.item.memory for unit in units]
        self._cpu = [unit.item.cpu for unit in units]
        self._size = [unit.item.size for unit in units]
        self._price = [unit.price for unit in units]
        self._rebates = [unit.rebates for unit in units]
        self.free = [unit.movable for unit in units]
        self._bound = [unit.nodes is not None or bool(unit.item.groups) for unit in units]
        self.part = (problem.cpu_part, problem.memory_part)
        self._targets = [at for at, space in enumerate(problem.spaces) if space.takes]
        self.strict = True
        # The slope of the objective by each node's load: what the next bit of it would add.
        self.slope = [self._slopes(0), self._slopes(1)]

    def _slopes(self, kind: int) -> list[float]:
        part, slopes = self.part[kind], [0.0] * len(self.problem.spaces)
        loads = self.load if kind == 0 else self.need
        for unit, node in enumerate(self.where):
            slopes[node] += 2 * part[node] * loads[unit]
        return slopes

    # --- one change -----------------------------------------------------------------------------

    def _displaced(self, unit: int, node: int) -> int:
        """How many VMs have moved when a unit is there."""
        begin = self.problem.begin
        return sum(begin[vm] != node for vm in self.problem.units[unit].vms)

    def shift(self, unit: int, target: int) -> None:
        """Move a unit, whatever comes of it."""
        source = self.where[unit]
        self.moved += self._displaced(unit, target) - self._displaced(unit, source)
        self.rooms.move(unit, source, target)
        self.where[unit] = target
        for slope, part, load in (
            (self.slope[0], self.part[0], self.load[unit]),
            (self.slope[1], self.part[1], self.need[unit]),
        ):
            slope[source] -= 2 * part[source] * load
            slope[target] += 2 * part[target] * load

    def apply(self, changes: Iterable[tuple[int, int]]) -> bool:
        """Move units; False, and nothing has changed, where N+1 or the limit forbids it."""
        undo = []
        for unit, target in changes:
            undo.append((unit, self.where[unit]))
            self.shift(unit, target)
        over = self.max_moves and self.moved > self.max_moves
        if not over and (not self.strict or self.rooms.safe()):
            self._clock += 1
            for unit, _source in undo:
                self.order[unit] = self._clock
            return True
        for unit, source in reversed(undo):
            self.shift(unit, source)
        return False

    def may(self, unit: int, target: int) -> bool:
        """Whether a unit can be there, but for N+1."""
        allowed = self.problem.units[unit].nodes
        return (allowed is None or target in allowed) and self.rooms.fits(unit, target)

    def cost(self, unit: int) -> float:
        """What it costs to have a unit where it is."""
        source = self.where[unit]
        crowded = FORBIDDEN if self._bound[unit] and self.rooms.crowded(unit, source) else 0.0
        return self._price[unit] - self._rebates[unit].get(source, 0.0) + crowded

    def gain(self, unit: int, target: int) -> float:
        """What the objective loses when a unit goes there."""
        source = self.where[unit]
        found = self.cost(unit)
        found -= self._price[unit] - self._rebates[unit].get(target, 0.0)
        for slope, part, load in (
            (self.slope[0], self.part[0], self.load[unit]),
            (self.slope[1], self.part[1], self.need[unit]),
        ):
            found += (slope[source] - slope[target]) * load
            found -= (part[source] + part[target]) * load * load
        return found

    # --- descent --------------------------------------------------------------------------------

    def _near(self) -> list[int]:
        """The targets that are the best ones for units of one kind or another."""
        first, second = self.slope
        both = sorted(self._targets, key=lambda node: first[node] + second[node])[:_TARGETS]
        both += sorted(self._targets, key=first.__getitem__)[:_TARGETS]
        both += sorted(self._targets, key=second.__getitem__)[:_TARGETS]
        return list(dict.fromkeys(both))

    def best_from(
        self, source: int, targets: list[int], refused: set[tuple[int, int]]
    ) -> tuple[float, int, int]:
        """The best move of a unit away from a node: its gain, the unit, the target."""
        first, second = self.slope
        low0 = min((first[node] for node in targets), default=0.0)
        low1 = min((second[node] for node in targets), default=0.0)
        slope0, slope1 = first[source], second[source]
        part0, part1 = self.part[0], self.part[1]
        own0, own1 = part0[source], part1[source]
        memory, cpu = self.rooms.memory, self.rooms.cpu
        is_capped = bool(self.max_moves) and self.moved >= self.max_moves
        starts = self.problem.units
        best, which, to = _TINY, -1, -1
        for unit in self.rooms.on[source]:
            if not self.free[unit] or (is_capped and self.where[unit] == starts[unit].start):
                continue
            load, need = self.load[unit], self.need[unit]
            rebates = self._rebates[unit]
            left = (slope0 - own0 * load) * load + (slope1 - own1 * need) * need
            left -= rebates.get(source, 0.0)
            # No target is better than one that would be the best in both; but for those that the
            # unit wants to be on.
            if self._bound[unit] and self.rooms.crowded(unit, source):
                left += FORBIDDEN
            if len(rebates) < 2 and left - low0 * load - low1 * need <= best:  # noqa: PLR2004
                continue
            room = self._cpu[unit]
            for node in targets:
                found = left - (first[node] + part0[node] * load) * load
                found -= (second[node] + part1[node] * need) * need
                if node in rebates:
                    found += rebates[node]
                if (
                    found > best
                    and node != source
                    and memory[node] >= need
                    and cpu[node] >= room
                    and (unit, node) not in refused
                    and self._admits(unit, node)
                ):
                    best, which, to = found, unit, node
        return best, which, to

    def _admits(self, unit: int, node: int) -> bool:
        limit = self.rooms.limit
        if self._bound[unit]:
            return self.may(unit, node)
        return not limit or self.rooms.number[node] + self._size[unit] <= limit

    def value(self) -> float:
        """The objective, but for what no placement changes."""
        found = sum(
            slope * slope / (4 * part)
            for kind in (0, 1)
            for slope, part in zip(self.slope[kind], self.part[kind], strict=True)
            if part > 0
        )
        return found + sum(self.cost(unit) for unit in range(len(self.where)))

    def descend(self, *, without: int = -1) -> None:
        """Make the best single moves, ``without`` those of a unit, until none is worth it."""
        refused = {(without, node) for node in self._targets}
        self._pass(self._near, refused)
        while self._pass(lambda: self._targets, refused):
            pass

    def _pass(self, targets: Callable[[], list[int]], refused: set[tuple[int, int]]) -> bool:
        """Moves in the order of their gain; what is gained elsewhere by one is not looked at."""
        nodes = len(self.problem.spaces)
        version = [0] * nodes
        heap = []
        near = targets()
        for node in range(nodes):
            best, unit, to = self.best_from(node, near, refused)
            if unit >= 0:
                heap.append((-best, node, unit, to, 0, version[to]))
        heapify(heap)
        changed = False
        while heap:
            _gain, node, unit, to, mine, theirs = heappop(heap)
            if (mine, theirs) == (version[node], version[to]):
                if self.apply([(unit, to)]):
                    changed = True
                    version[node] += 1
                    version[to] += 1
                    near = targets()
                    again = [node, to]
                else:
                    refused.add((unit, to))
                    again = [node]
            else:
                again = [node] if mine == version[node] else []
            for each in again:
                best, unit, to = self.best_from(each, near, refused)
                if unit >= 0:
                    heappush(heap, (-best, each, unit, to, version[each], version[to]))
        return changed
