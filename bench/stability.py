# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns a day of a cluster on paper: how often VMs move, and how even it is, by who balances it."""

import gzip
import os
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from bench import figures
from cxm.balance import steady
from cxm.balance.model import Node, Settings, Snapshot, Vm
from cxm.balance.planner import plan
from cxm.balance.problem import compile_

# CPU use of real VMs over a day, which is not ours to hand on; without it one is made up.
_TRACES: Final = "CXM_TRACES"  # names the file, gzip: a VM a line, percent, every five minutes
_GIB: Final = 1024
_EVERY_S: Final = 300.0
_DAY: Final = 288
_NODES: Final = 16
_WINDOW: Final = 12  # samples of five minutes whose mean is looked at
_MADE_UP: Final = 1052
FREE, OURS = "free, last hour", "cxm"

Traces = Sequence[Sequence[float]]
# Where VMs go at a moment, by what they used up to then.
Balancer = Callable[[Snapshot, int, Traces], dict[str, str]]


def traces() -> tuple[str, Traces]:
    """What is said of them, and the CPU use of VMs in percent, every five minutes of a day."""
    if path := os.environ.get(_TRACES):
        with gzip.open(path, "rt", encoding="ascii") as file:
            read = [[float(x) for x in line.split(",")] for line in file]
            return f"{len(read):,} VMs of {os.path.basename(path)}", read
    return f"{_MADE_UP:,} VMs made up: {_TRACES} names no traces", [
        made_up(seed) for seed in range(_MADE_UP)
    ]


def made_up(seed: int) -> list[float]:
    """A VM's day: its level drifts, some change it at once, and all have noise and bursts."""
    chance = random.Random(f"trace {seed}")  # noqa: S311 - a benchmark's
    level, noise = 60 * chance.betavariate(0.8, 4), chance.uniform(0.1, 0.5)
    found = []
    for _sample in range(_DAY):
        level = max(0.5, min(95.0, level + chance.gauss(0, 0.6)))
        if chance.random() < 0.002:  # noqa: PLR2004 - every second day
            level = 90 * chance.betavariate(0.8, 3)
        burst = chance.uniform(10, 40) if chance.random() < 0.03 else 0.0  # noqa: PLR2004
        found.append(max(0.0, min(100.0, level * (1 + chance.gauss(0, noise)) + burst)))
    return found


def cluster(number: int) -> Snapshot:
    """So many VMs on sixteen nodes, as they were placed by their memory alone."""
    chance = random.Random("stability")  # noqa: S311 - a benchmark's
    memory = [chance.choice((1, 2, 2, 4, 4, 8)) * _GIB for _vm in range(number)]
    cpus = [chance.choice((1, 1, 2, 4)) for _vm in range(number)]
    room = int(sum(memory) / _NODES / 0.65)
    nodes = tuple(
        Node(f"node{at:02}", room, int(sum(cpus) / _NODES * 0.5) * 100) for at in range(_NODES)
    )
    vms = tuple(
        Vm(f"vm{at:04}", memory[at], cpus[at] * 10, nodes[at % _NODES].name) for at in range(number)
    )
    return Snapshot(nodes, vms)


@dataclass(frozen=True, slots=True)
class Day:
    """What came of a day with a balancer."""

    moves: float  # per VM
    imbalance: float  # points, the mean of all samples
    cpu: float

    def to_json(self) -> dict[str, Any]:
        return {
            "migrations_per_vm_and_day": round(self.moves, 3),
            "imbalance": round(self.imbalance, 3),
            "cpu_imbalance": round(self.cpu, 3),
        }


def used(snapshot: Snapshot, values: Traces, begin: int, end: int) -> Snapshot:
    """The cluster with what its VMs used in the mean of some samples."""
    vms = tuple(
        replace(vm, used=statistics.fmean(values[at][begin:end]) * vm.cpu / 10)
        for at, vm in enumerate(snapshot.vms)
    )
    return replace(snapshot, vms=vms)


def placed(snapshot: Snapshot, where: dict[str, str]) -> Snapshot:
    """The cluster with its VMs there."""
    return replace(snapshot, vms=tuple(replace(vm, node=where[vm.name]) for vm in snapshot.vms))


def day(values: Traces, begin: Snapshot, balancer: Balancer) -> Day:
    """Let a balancer have its way for a day: each decision is judged by the sample after it."""
    snapshot, moves = begin, 0
    imbalance, cpu = [], []
    for now in range(_WINDOW, _DAY):
        where = balancer(snapshot, now, values)
        moves += sum(where[vm.name] != vm.node for vm in snapshot.vms)
        snapshot = placed(snapshot, where)
        seen = compile_(used(snapshot, values, now, now + 1))
        balance = seen.balance(seen.begin)
        imbalance.append(balance.imbalance)
        cpu.append(balance.cpu)
    return Day(moves / len(snapshot.vms), statistics.fmean(imbalance), statistics.fmean(cpu))


def never(snapshot: Snapshot, _now: int, _values: Traces) -> dict[str, str]:
    """Nothing moves."""
    return {vm.name: vm.node or "" for vm in snapshot.vms}


def free(span: int) -> Balancer:
    """Whatever makes it evener by the mean of the last samples is done, whatever it costs."""

    def balance(snapshot: Snapshot, now: int, values: Traces) -> dict[str, str]:
        seen = replace(
            used(snapshot, values, now - span, now), settings=Settings(min_gain=0.0, worth=0.0)
        )
        return {name: node or "" for name, node in plan(seen).end(seen).items()}

    return balance


def automatic() -> Balancer:
    """Cxm's own, as it runs unasked."""
    memory = steady.Memory()

    def balance(snapshot: Snapshot, now: int, values: Traces) -> dict[str, str]:
        nonlocal memory
        seen = used(snapshot, values, now - _WINDOW, now)
        made, memory = steady.consider(seen, memory, now * _EVERY_S)
        return {name: node or "" for name, node in made.end(seen).items()}

    return balance


@dataclass(frozen=True, slots=True)
class Report:
    """The days beside each other."""

    source: str
    days: dict[str, Day]

    def text(self) -> str:
        """A table."""
        freely = self.days[FREE].imbalance
        rows = [
            (
                name,
                f"{each.moves:.2f}",
                f"{each.imbalance:.2f}",
                f"{each.cpu:.2f}",
                f"{100 * (each.imbalance / freely - 1):+.0f} %",
            )
            for name, each in self.days.items()
        ]
        heads = ("balancer", "moves per VM and day", "imbalance", "of CPU", "beside the free one")
        return f"{self.source}, {_NODES} nodes, every 5 minutes\n" + figures.table(heads, rows)

    def to_json(self) -> dict[str, Any]:
        return {"traces": self.source} | {name: day.to_json() for name, day in self.days.items()}


def measure() -> Report:
    """The same day with each balancer, from the same even beginning."""
    source, values = traces()
    begin = cluster(len(values))
    even = free(_WINDOW)(begin, _WINDOW, values)
    begin = placed(begin, even)
    ways: dict[str, Balancer] = {
        "never": never,
        "free, last sample": free(1),
        FREE: free(_WINDOW),
        OURS: automatic(),
    }
    return Report(source, {name: day(values, begin, way) for name, way in ways.items()})
