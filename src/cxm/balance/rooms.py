# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what fits where: the one notion of it, for plans, evacuations, starts and N+1. Pure.

Nodes and what is placed on them are numbers here, from 0 on.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

_GROWS: Final = 1.02


@dataclass(frozen=True, slots=True)
class Item:
    """Something to place: a VM, or VMs that stay together."""

    memory: int
    cpu: int
    groups: tuple[int, ...] = ()  # no two of a group on one node
    size: int = 1  # VMs
    parts: tuple[tuple[int, int], ...] = ()  # memory and CPU of each, where they are more than one

    @property
    def alone(self) -> tuple[tuple[int, int], ...]:
        """Memory and CPU of each VM: together is a wish, which costs none of them its place."""
        return self.parts or ((self.memory, self.cpu),)


@dataclass(frozen=True, slots=True)
class Space:
    """What a node has; it may take no more than it has already."""

    memory: int
    cpu: int
    takes: bool = True


Need = tuple[int, int, int]  # memory, CPU, number
_ORDERS: Final[tuple[Callable[[Need], tuple[int, ...]], ...]] = (
    lambda need: (-need[0], need[2]),
    lambda need: (-need[1], -need[0], need[2]),
    # Where not all find a place anyway, those that take little CPU leave it to more of them.
    lambda need: (-need[0], need[1], need[2]),
)


def pack(needs: Iterable[Need], rooms: Iterable[Need]) -> tuple[dict[int, int], list[int]]:
    """Where things would go, and which have no place; those that find none are given by size.

    The one with the most memory goes first, each where it is tightest; if not all find a place so,
    the one with the most CPU goes first, and so on; the order that leaves least counts. What this
    finds a place for does fit; the reverse is not always so. Both are (memory, CPU, number); the
    lower number goes first among equals.
    """
    needed, free = list(needs), sorted((memory, number, cpu) for memory, cpu, number in rooms)
    found: tuple[dict[int, int], list[int]] | None = None
    lost = 0
    for order in _ORDERS:
        placed, left = _packed(sorted(needed, key=order), list(free))
        missing = sum(need[0] for need in needed if need[2] not in placed)
        if found is None or missing < lost:
            found, lost = (placed, left), missing
        if not left:
            break
    return found or ({}, [])


def _packed(
    needs: Iterable[Need], free: list[tuple[int, int, int]]
) -> tuple[dict[int, int], list[int]]:
    placed, left = {}, []
    for need, cpu, number in needs:
        for at in range(bisect_left(free, (need,)), len(free)):
            memory, room, has = free[at]
            if has >= cpu:
                del free[at]
                insort(free, (memory - need, room, has - cpu))
                placed[number] = room
                break
        else:
            left.append(number)
    return placed, left


def _largest(everything: Iterable[Iterable[tuple[int, int]]]) -> tuple[int, int]:
    """The most memory and the most CPU that any VM needs."""
    memory = cpu = 0
    for parts in everything:
        for one, other in parts:
            memory, cpu = max(memory, one), max(cpu, other)
    return memory, cpu


@dataclass(slots=True)
class Rooms:
    """Who is where and what is left; changed by ``put`` and ``take`` only.

    N+1 is kept in the sense that no death of a node would leave more memory without a place than
    it would have at the beginning: usually none.
    """

    spaces: Sequence[Space]
    items: Sequence[Item]
    limit: int  # VMs on a node; 0 is none
    homeless: Sequence[Item] = ()  # what is nowhere, and takes its room when something dies
    memory: list[int] = field(default_factory=list)
    cpu: list[int] = field(default_factory=list)
    number: list[int] = field(default_factory=list)
    on: list[dict[int, None]] = field(default_factory=list)
    _groups: list[dict[int, int]] = field(default_factory=list)
    _allowed: list[int] = field(default_factory=list)  # memory without a place, by who dies
    _margin: list[float] = field(default_factory=list)
    _most: tuple[float, float] = (0.0, 0.0)
    _largest: tuple[int, int] = (0, 0)
    _alone: list[tuple[tuple[int, int], ...]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.memory = [each.memory for each in self.spaces]
        self.cpu = [each.cpu for each in self.spaces]
        self.number = [0 for _each in self.spaces]
        self.on = [{} for _each in self.spaces]
        self._groups = [{} for _each in self.spaces]
        self._alone = [each.alone for each in self.items]
        self._largest = _largest([*self._alone, *(each.alone for each in self.homeless)])

    def put(self, item: int, node: int) -> None:
        """Count something on a node."""
        what = self.items[item]
        self.memory[node] -= what.memory
        self.cpu[node] -= what.cpu
        self.number[node] += what.size
        self.on[node][item] = None
        for group in what.groups:
            self._groups[node][group] = self._groups[node].get(group, 0) + 1
        self._measure(node)

    def take(self, item: int, node: int) -> None:
        """Count something on a node no more."""
        what = self.items[item]
        self.memory[node] += what.memory
        self.cpu[node] += what.cpu
        self.number[node] -= what.size
        del self.on[node][item]
        for group in what.groups:
            self._groups[node][group] -= 1
        self._measure(node)

    def move(self, item: int, source: int, target: int) -> None:
        """Count something on another node."""
        self.take(item, source)
        self.put(item, target)

    def clashes(self, item: int, node: int) -> bool:
        """Whether something is there already that it must keep away from."""
        groups = self._groups[node]
        return any(groups.get(group, 0) > 0 for group in self.items[item].groups)

    def crowded(self, item: int, node: int) -> bool:
        """Whether something on a node is there with what it must keep away from."""
        groups = self._groups[node]
        return any(groups.get(group, 0) > 1 for group in self.items[item].groups)

    def fits(self, item: int, node: int) -> bool:
        """Whether a node can take something more."""
        what = self.items[item]
        return (
            self.spaces[node].takes
            and self.memory[node] >= what.memory
            and self.cpu[node] >= what.cpu
            and (not self.limit or self.number[node] + what.size <= self.limit)
            and not (what.groups and self.clashes(item, node))
        )

    # --- N+1 --------------------------------------------------------------------------------------

    def remember(self) -> None:
        """From now on, what is without a place if a node dies shall be no more than now."""
        self._allowed = []
        self._allowed = [self.shortage(node) for node in range(len(self.spaces))]

    def safe(self) -> bool:
        """Whether N+1 is as good as it was."""
        if self._plenty():
            return True
        return all(
            self.shortage(node) <= allowed
            for node, allowed in enumerate(self._allowed)
            if not self._enough(node)
        )

    def shortage(self, node: int) -> int:
        """How much memory would be without a place if a node died."""
        if self._plenty() or self._enough(node):
            return 0
        vms = [part for each in sorted(self.on[node]) for part in self._alone[each]]
        needs = [(memory, cpu, at) for at, (memory, cpu) in enumerate(vms)]
        needs += [(each.memory, each.cpu, len(vms) + at) for at, each in enumerate(self.homeless)]
        free = [
            (self.memory[other], self.cpu[other], other)
            for other, space in enumerate(self.spaces)
            if other != node and space.takes
        ]
        return sum(vms[each][0] for each in pack(needs, free)[1] if each < len(vms))

    def _needed(self, node: int) -> tuple[int, int]:
        """What the VMs of a node need, with those that are nowhere."""
        space = self.spaces[node]
        lost = sum(each.memory for each in self.homeless)
        idle = sum(each.cpu for each in self.homeless)
        return space.memory - self.memory[node] + lost, space.cpu - self.cpu[node] + idle

    def _measure(self, node: int) -> None:
        """Bring up to date how much more than the largest VM a node could take.

        It is told in parts of what the fullest node has. A VM finds no place only where each other
        node has less memory left than it needs, or less CPU: then each has taken up such a part of
        the memory or of the CPU that is to be placed. So whatever the order is in which they are
        placed, all find one where these parts add up to two.
        """
        if not self._margin:
            return
        memory, cpu = self._needed(node)
        if memory > self._most[0] or cpu > self._most[1]:
            self._most = (
                max(self._most[0], memory * _GROWS),
                max(self._most[1], cpu * _GROWS),
            )
            self._margin = [self._part(each) for each in range(len(self.spaces))]
        else:
            self._margin[node] = self._part(node)

    def _part(self, node: int) -> float:
        return self._share(node, self._largest, self._most)

    def _share(self, node: int, largest: tuple[int, int], most: tuple[float, float]) -> float:
        if not self.spaces[node].takes:
            return 0.0
        memory, cpu = self.memory[node] - largest[0], self.cpu[node] - largest[1]
        if memory <= 0 or cpu < 0:
            return 0.0
        return min(memory / max(most[0], 1.0), cpu / max(most[1], 1.0))

    def _plenty(self) -> bool:
        """Whether there is so much room that nobody need look which node it is that dies."""
        if not self._margin:
            needed = [self._needed(node) for node in range(len(self.spaces))]
            self._most = (
                max((each[0] for each in needed), default=0) * _GROWS,
                max((each[1] for each in needed), default=0) * _GROWS,
            )
            self._margin = [self._part(each) for each in range(len(self.spaces))]
        return sum(self._margin) - max(self._margin, default=0.0) >= 2  # noqa: PLR2004

    def _enough(self, node: int) -> bool:
        """The same for the death of one node, by its own VMs."""
        there = [self._alone[each] for each in self.on[node]]
        if not there:
            return True
        largest = _largest([*there, *(each.alone for each in self.homeless)])
        most = self._needed(node)
        parts = (
            self._share(other, largest, most) for other in range(len(self.spaces)) if other != node
        )
        return sum(parts) >= 2  # noqa: PLR2004
