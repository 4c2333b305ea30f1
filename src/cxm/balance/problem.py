# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns a cluster in numbers: what the search and the ordering of moves calculate with. Pure.

What is minimised is the imbalance, plus what is to be copied for it. The imbalance is the variance
of the nodes' utilisation, each node with the weight of its capacity, CPU and memory added up: so a
move changes it by what it changes on two nodes, whatever else the cluster has. A move costs as much
as is gained when a VM with the same share of CPU and memory goes between two nodes whose
utilisation differs by ``Settings.worth``; small VMs cost as if they had some memory more, for a
migration is more than copying.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from cxm.balance.model import Balance, Node, Role, Snapshot, Vm
from cxm.balance.rooms import Item, Rooms, Space
from cxm.errors import DataError

OVERHEAD_MIB: Final = 1024  # of a move, beside the VM's memory
FORBIDDEN: Final = 1000.0  # what it costs to be where one must not be; more than all else together
_RESTART: Final = 10  # so many times more than a move does a restart cost


@dataclass(frozen=True, slots=True)
class Unit:
    """What moves as one: a VM, or all those that must be together."""

    vms: tuple[int, ...]
    item: Item
    load: float  # CPU that it uses
    start: int
    movable: bool
    nodes: frozenset[int] | None  # where it can be
    price: float  # what it costs to be elsewhere than all of it began, or wants to be
    rebates: dict[int, float]  # which part of that is not to be paid, by node

    def cost(self, node: int) -> float:
        """What it costs to have it there."""
        return self.price - self.rebates.get(node, 0.0)


@dataclass(frozen=True, slots=True)
class Problem:
    """A cluster in numbers. Nodes that take no part are not in it; names are in order."""

    nodes: tuple[Node, ...]
    vms: tuple[Vm, ...]  # those that are on one of the nodes
    units: tuple[Unit, ...]
    spaces: tuple[Space, ...]
    homeless: tuple[Item, ...]
    begin: tuple[int, ...]  # where each VM is
    may: tuple[bool, ...]  # which VMs can move
    prices: tuple[float, ...]  # of a move, by VM
    loads: tuple[float, ...]  # CPU that each VM uses
    items: tuple[Item, ...]  # each VM as something to place
    # The part of a node in the variance, by its load squared: 1 / (its capacity x the cluster's).
    cpu_part: tuple[float, ...]
    memory_part: tuple[float, ...]
    limit: int
    apart: tuple[str, ...]  # the names of the groups

    def rooms(self) -> Rooms:
        """All VMs where they are."""
        made = Rooms(self.spaces, self.items, self.limit, self.homeless)
        for vm, node in enumerate(self.begin):
            made.put(vm, node)
        made.remember()
        return made

    def wrong(self, where: Sequence[int]) -> list[int]:
        """The units that are where they must not be when each VM is there."""
        there: dict[tuple[int, int], int] = {}
        for vm, item in enumerate(self.items):
            for group in item.groups:
                key = (group, where[vm])
                there[key] = there.get(key, 0) + 1
        return [
            number
            for number, unit in enumerate(self.units)
            if len({where[vm] for vm in unit.vms}) > 1
            or not self._suits(unit, where[unit.vms[0]])
            or any(there[group, where[unit.vms[0]]] > 1 for group in unit.item.groups)
        ]

    def _suits(self, unit: Unit, node: int) -> bool:
        return self.nodes[node].role is not Role.SOURCE and (
            unit.nodes is None or node in unit.nodes
        )

    def unit_rooms(self) -> Rooms:
        """All units where they begin."""
        made = Rooms(self.spaces, [unit.item for unit in self.units], self.limit, self.homeless)
        for number, unit in enumerate(self.units):
            made.put(number, unit.start)
        made.remember()
        return made

    def balance(self, where: Sequence[int]) -> Balance:
        """How uneven the nodes are when each VM is there."""
        cpu = [0.0] * len(self.nodes)
        memory = [0.0] * len(self.nodes)
        for vm, node in enumerate(where):
            cpu[node] += self.loads[vm]
            memory[node] += self.items[vm].memory
        return Balance(
            _deviation(cpu, [each.cpu for each in self.nodes], self.cpu_part),
            _deviation(memory, [each.memory for each in self.nodes], self.memory_part),
        )


def _deviation(used: Sequence[float], capacity: Sequence[int], parts: Sequence[float]) -> float:
    """The standard deviation of the utilisation in points; nodes without a part do not count."""
    counted = [at for at, part in enumerate(parts) if part > 0]
    whole = sum(capacity[at] for at in counted)
    if not whole:
        return 0.0
    mean = sum(used[at] for at in counted) / whole
    spread = sum(capacity[at] * (used[at] / capacity[at] - mean) ** 2 for at in counted) / whole
    return 100.0 * math.sqrt(spread)


def _parts(nodes: Sequence[Node], capacity: Sequence[int]) -> tuple[float, ...]:
    counts = [
        node.role is Role.BOTH and each > 0 for node, each in zip(nodes, capacity, strict=True)
    ]
    whole = sum(each for each, does in zip(capacity, counts, strict=True) if does)
    return tuple(
        1 / (each * whole) if does else 0.0 for each, does in zip(capacity, counts, strict=True)
    )


def _used(vms: Sequence[Vm]) -> tuple[float, ...]:
    """What each VM uses; of one of which it is unknown, what others with its needs do."""
    known = [vm for vm in vms if vm.used is not None]
    needs = sum(vm.cpu for vm in known)
    ratio = sum(vm.used or 0.0 for vm in known) / needs if needs else 1.0
    return tuple(vm.cpu * ratio if vm.used is None else vm.used for vm in vms)


def compile_(snapshot: Snapshot) -> Problem:
    """The cluster in numbers; raises DataError for one that cannot be."""
    check(snapshot)
    nodes = tuple(
        sorted(
            (each for each in snapshot.nodes if each.role is not Role.GONE),
            key=lambda each: each.name,
        )
    )
    at = {node.name: number for number, node in enumerate(nodes)}
    everything = sorted(snapshot.vms, key=lambda each: each.name)
    vms = tuple(vm for vm in everything if vm.node in at)
    names = sorted({group for vm in vms for group in vm.apart})
    groups = {name: number for number, name in enumerate(names)}
    items = tuple(
        Item(vm.memory, vm.cpu, tuple(groups[each] for each in dict.fromkeys(vm.apart)))
        for vm in vms
    )
    memory_part = _parts(nodes, [node.memory for node in nodes])
    whole = sum(node.memory for node in nodes if node.role is Role.BOTH)
    factor = 2 * snapshot.settings.worth / 100 / max(1, whole)
    prices = tuple(factor * (vm.memory + OVERHEAD_MIB) * (1 if vm.live else _RESTART) for vm in vms)
    loads = _used(vms)
    begin = tuple(at[vm.node or ""] for vm in vms)
    restart = snapshot.settings.restart
    rows = [
        _Row(*each, may=_may_move(each[0], nodes[each[2]], restart=restart))
        for each in zip(vms, items, begin, prices, loads, strict=True)
    ]
    units = tuple(_unit(bundle, rows, at) for bundle in _bundles(vms))
    return Problem(
        nodes,
        vms,
        tuple(_must_part(unit, nodes) for unit in units),
        tuple(Space(node.memory, node.cpu, node.role is Role.BOTH) for node in nodes),
        tuple(Item(vm.memory, vm.cpu) for vm in everything if vm.node not in at),
        begin,
        tuple(row.may for row in rows),
        prices,
        loads,
        items,
        _parts(nodes, [node.cpu for node in nodes]),
        memory_part,
        snapshot.settings.max_vms,
        tuple(names),
    )


def check(snapshot: Snapshot) -> None:
    """Raise DataError for a description that contradicts itself."""
    names = [node.name for node in snapshot.nodes]
    known = set(names)
    if len(known) < len(names):
        double = next(name for name in names if names.count(name) > 1)
        raise DataError(f"there are two nodes called '{double}'")
    seen: set[str] = set()
    for vm in snapshot.vms:
        if vm.name in seen:
            raise DataError(f"there are two VMs called '{vm.name}'")
        seen.add(vm.name)
        named = {vm.node, *vm.prefers, *(vm.nodes or ())} - known - {None}
        if named:
            raise DataError(f"VM {vm.name} names '{min(map(str, named))}', which is no node")
    for bundle in _bundles(snapshot.vms):
        members = [snapshot.vms[each] for each in bundle]
        groups = [group for vm in members for group in dict.fromkeys(vm.apart)]
        for group in groups:
            if groups.count(group) > 1:
                both = " and ".join(vm.name for vm in members if group in vm.apart)
                raise DataError(f"{both} must be together, and apart for '{group}'")


def _bundles(vms: Sequence[Vm]) -> list[tuple[int, ...]]:
    """Which VMs move as one: who shares a group with one of a bundle is in it too."""
    leader = list(range(len(vms)))

    def find(vm: int) -> int:
        while leader[vm] != vm:
            vm = leader[vm]
        return vm

    first: dict[str, int] = {}
    for number, vm in enumerate(vms):
        for group in vm.together:
            other = find(first.setdefault(group, number))
            leader[max(other, find(number))] = min(other, find(number))
    found: dict[int, list[int]] = {}
    for number in range(len(vms)):
        found.setdefault(find(number), []).append(number)
    return [tuple(each) for each in found.values()]


def _may_move(vm: Vm, node: Node, *, restart: bool) -> bool:
    free = vm.movable and not vm.stays and (vm.live or restart)
    return free and node.role is not Role.NEITHER


@dataclass(frozen=True, slots=True)
class _Row:
    """All about a VM."""

    vm: Vm
    item: Item
    begin: int
    price: float
    load: float
    may: bool


def _unit(bundle: tuple[int, ...], rows: Sequence[_Row], at: dict[str, int]) -> Unit:
    members = [rows[each] for each in bundle]
    where: frozenset[int] | None = None
    rebates: dict[int, float] = {}
    price = 0.0
    for each in members:
        liked = [at[name] for name in each.vm.prefers if name in at]
        price += each.price * (2 if liked else 1)
        for node in (each.begin, *liked):
            rebates[node] = rebates.get(node, 0.0) + each.price
        if each.vm.nodes is not None:
            allowed = frozenset(at[name] for name in each.vm.nodes if name in at)
            where = allowed if where is None else where & allowed
    # Those that are not together yet come to the one that cannot move, else to the most memory.
    fixed = {each.begin for each in members if not each.may}
    held = dict.fromkeys((each.begin for each in members), 0)
    for each in members:
        held[each.begin] += each.item.memory
    start = min(fixed or held, key=lambda node: (-held[node], node))
    item = Item(
        sum(each.item.memory for each in members),
        sum(each.item.cpu for each in members),
        tuple(dict.fromkeys(group for each in members for group in each.item.groups)),
        len(bundle),
        tuple((each.item.memory, each.item.cpu) for each in members) if len(bundle) > 1 else (),
    )
    load = sum(each.load for each in members)
    return Unit(bundle, item, load, start, not fixed, where, price, rebates)


def _must_part(unit: Unit, nodes: Sequence[Node]) -> Unit:
    """A unit, which pays for where it is if it must go from there."""
    role = nodes[unit.start].role
    if role is not Role.SOURCE and (unit.nodes is None or unit.start in unit.nodes):
        return unit
    rebates = unit.rebates | {unit.start: unit.rebates.get(unit.start, 0.0) - FORBIDDEN}
    return replace(unit, rebates=rebates)
