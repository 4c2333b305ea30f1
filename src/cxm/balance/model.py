# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what the planner is given and what it gives back. Pure.

Memory is MiB, as a VM takes it of a node; CPU is percent of one processor.
"""

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from cxm.cluster.amounts import mib


class Role(StrEnum):
    """What the planner may do with a node."""

    BOTH = "online"  # its VMs may go and others may come
    SOURCE = "leaving"  # its VMs must go
    NEITHER = "resting"  # nothing comes or goes
    GONE = "offline"  # it takes no part: what it had is nowhere


@dataclass(frozen=True, slots=True)
class Node:
    """A node and what it can carry."""

    name: str
    memory: int
    cpu: int
    role: Role = Role.BOTH


@dataclass(frozen=True, slots=True)
class Vm:
    """A VM that should run. ``node`` is where it is, None where it is nowhere.

    ``used`` is the CPU that it used over a window, None where nobody knows. Of the VMs that share
    a name in ``apart`` no two may be on one node; those that share one in ``together`` must be.
    ``stays`` is why it may not be moved, where there is more to say than that.
    """

    name: str
    memory: int
    cpu: int  # that a node must have left for it
    node: str | None
    used: float | None = None
    movable: bool = True
    live: bool = True  # it can move while it runs
    apart: tuple[str, ...] = ()
    together: tuple[str, ...] = ()
    nodes: tuple[str, ...] | None = None  # where it can be; None: anywhere
    prefers: tuple[str, ...] = ()  # each as good as the others
    stays: str = ""

    def __str__(self) -> str:
        return f"{self.name} ({mib(self.memory)})"


@dataclass(frozen=True, slots=True)
class Settings:
    """What bounds a plan. A limit of 0 is none.

    ``min_gain`` is the part of the imbalance, in percent, that a plan must take away. ``worth``
    is what a move must be worth, in points of utilisation: between two nodes that differ by less,
    a VM whose share of the CPU is that of the memory stays where it is.
    """

    max_vms: int = 0  # on a node
    max_moves: int = 0
    min_gain: float = 5.0
    worth: float = 2.0
    parallel: int = 2  # moves at the same time; a node takes part in one of them
    restart: bool = False  # a VM that cannot move while it runs may be stopped and started again


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A cluster at one moment."""

    nodes: tuple[Node, ...]
    vms: tuple[Vm, ...]
    settings: Settings = field(default_factory=Settings)


@dataclass(frozen=True, slots=True)
class Move:
    """A VM goes from a node to another."""

    vm: Vm
    source: str
    target: str
    detour: bool = False  # it only makes room: the VM goes on from there

    @property
    def cold(self) -> bool:
        """It is stopped and started again."""
        return not self.vm.live


@dataclass(frozen=True, slots=True)
class Balance:
    """How uneven a cluster is.

    Both are standard deviations of the nodes' utilisation, each node with the weight of its
    capacity, in points of percent.
    """

    cpu: float
    memory: float

    @property
    def imbalance(self) -> float:
        """Both in one figure, in points."""
        return math.hypot(self.cpu, self.memory)


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do, in order: the moves of a step are made at the same time, then the next one's.

    ``stuck`` tells, a sentence each, what should be otherwise and cannot be; ``stays``, who was
    left where it is for a reason of its own.
    """

    steps: tuple[tuple[Move, ...], ...]
    before: Balance
    after: Balance
    reason: str
    stuck: tuple[str, ...] = ()
    stays: tuple[str, ...] = ()

    @property
    def moves(self) -> list[Move]:
        """All moves in order."""
        return [move for step in self.steps for move in step]

    @property
    def copied(self) -> int:
        """Memory that goes over the network."""
        return sum(move.vm.memory for move in self.moves if not move.cold)

    def end(self, snapshot: Snapshot) -> dict[str, str | None]:
        """Where each VM is in the end."""
        where = {vm.name: vm.node for vm in snapshot.vms}
        return where | {move.vm.name: move.target for move in self.moves}


_HUNDRED: Final = 100.0


def gain(before: Balance, after: Balance) -> float:
    """Which part of the imbalance is gone, in percent."""
    if before.imbalance <= 0:
        return 0.0
    return _HUNDRED * (1 - after.imbalance / before.imbalance)
