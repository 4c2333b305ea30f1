# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""``make bench ONLY=balance``: planners beside each other on the same clusters; needs no lab."""

import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from bench import clusters, figures, rivals, stability
from bench.rivals import Found
from cxm.balance.model import Balance, Settings, Snapshot
from cxm.balance.planner import plan
from cxm.balance.problem import compile_

SIZES: Final = ((10, 200), (20, 400), (16, 1000), (50, 1500), (100, 5000))
_LARGER: Final = (200, 10_000)  # for the growth only
_BUDGET_S: Final = 300.0  # for hbal
_ORIGINAL_S: Final = 60.0
# What is to be reached, in CPU seconds and by which power of the number of VMs they grow.
_WITHIN_S: Final = {(16, 1000): 0.2, (100, 5000): 1.0}
_LINEAR: Final = 1.3
_MANY: Final = 1000  # below, most of the time are the kicks that small clusters get
_MOVES: Final = 0.5  # of a VM in a day
_EVEN: Final = 1.1  # imbalance, beside who may move freely
OURS, SAME, HBAL, ORIGINAL = "cxm", "cxm, hbal's moves", "hbal", "original"
# hbal has no word for nodes of different sizes when it looks at CPU use, so they are equal.


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a planner made of a cluster."""

    cpu_s: float
    moves: int | None = None  # None: it gave up
    copied_gib: float = 0.0
    after: Balance | None = None
    why: str = ""

    def to_json(self) -> dict[str, Any]:
        if self.after is None or self.moves is None:
            return {"cpu_s": round(self.cpu_s, 3), "gave_up": self.why}
        return {
            "cpu_s": round(self.cpu_s, 3),
            "moves": self.moves,
            "copied_gib": round(self.copied_gib, 1),
            "imbalance": round(self.after.imbalance, 4),
            "cpu": round(self.after.cpu, 4),
            "memory": round(self.after.memory, 4),
        }


_GAVE_UP: Final = Outcome(0.0)


@dataclass(frozen=True, slots=True)
class Row:
    """A cluster, and what each planner made of it in one run."""

    nodes: int
    vms: int
    before: Balance
    outcomes: Mapping[str, Outcome]


@dataclass(frozen=True, slots=True)
class Target:
    """Something to be reached, and whether it is; None where nobody can say."""

    what: str
    found: str
    is_met: bool | None

    def text(self) -> str:
        """A line."""
        word = {True: "reached", False: "MISSED", None: "not known"}[self.is_met]
        return f"{word:<10} {self.what}: {self.found}"

    def to_json(self) -> dict[str, Any]:
        return {"target": self.what, "found": self.found, "reached": self.is_met}


def judged(snapshot: Snapshot, found: Found) -> Outcome:
    """A planner's moves by what comes of them; a VM that moves twice is copied twice."""
    if found.moves is None:
        return Outcome(found.cpu_s, why=found.why)
    problem = compile_(snapshot)
    nodes = {node.name: at for at, node in enumerate(problem.nodes)}
    vms = {vm.name: at for at, vm in enumerate(problem.vms)}
    where = list(problem.begin)
    copied = 0
    for vm, node in found.moves:
        where[vms[vm]] = nodes[node]
        copied += problem.vms[vms[vm]].memory
    return Outcome(found.cpu_s, len(found.moves), copied / 1024, problem.balance(where))


def ours(snapshot: Snapshot, settings: Settings) -> Outcome:
    """Our plan, with the CPU time of making it."""
    begun = time.process_time()
    made = plan(replace(snapshot, settings=settings))
    spent = time.process_time() - begun
    return judged(snapshot, Found([(move.vm.name, move.target) for move in made.moves], spent))


def row(nodes: int, vms: int, seed: int, *, with_hbal: str | None) -> Row:
    """All planners on one cluster."""
    snapshot = clusters.cluster(nodes, vms, seed)
    problem = compile_(snapshot)
    outcomes = {OURS: ours(snapshot, Settings())}
    if with_hbal:
        theirs = judged(snapshot, rivals.hbal(with_hbal, snapshot, _BUDGET_S))
        outcomes[HBAL] = theirs
        if theirs.moves:
            limits = Settings(worth=0.0, max_moves=theirs.moves, min_gain=0.0)
            outcomes[SAME] = ours(snapshot, limits)
    outcomes[ORIGINAL] = judged(snapshot, rivals.original(snapshot, _ORIGINAL_S))
    return Row(nodes, vms, problem.balance(problem.begin), outcomes)


@dataclass(frozen=True, slots=True)
class Report:
    """The clusters, the growth, and the day."""

    rows: Sequence[Row]
    growth: Sequence[tuple[int, int, float]]  # nodes, VMs, CPU seconds
    day: stability.Report
    hbal: str | None

    def text(self) -> str:
        """Tables and bars."""
        heads = ("nodes x VMs", "planner", "CPU s", "moves", "GiB", "CPU +-", "memory +-", "both")
        lines: list[tuple[str, ...]] = []
        for each in self.rows:
            size = f"{each.nodes} x {each.vms}"
            lines.append((size, "(before)", "", "", "", *_points(each.before)))
            lines += [(size, name, *_cells(found)) for name, found in each.outcomes.items()]
        parts = [figures.table(heads, lines, left=2)]
        if not self.hbal:
            there = "Debian's ganeti-htools-3.0, which 'tools/setup --bench' installs"
            parts.append(f"hbal is not there ({there}): not compared")
        bars = [
            (f"{nodes} x {vms}", spent, f"{spent:.3f} s, {1e6 * spent / vms:.0f} us a VM")
            for nodes, vms, spent in self.growth
        ]
        few, power = self.exponent()
        parts.append(f"CPU time of cxm's plan, from {few} VMs on growing as VMs^{power:.2f}")
        parts += [figures.chart(bars), self.day.text()]
        parts.append("\n".join(target.text() for target in self.targets()))
        return "\n\n".join(parts)

    def exponent(self) -> tuple[int, float]:
        """From how many VMs on, and with which power of their number, the time grows."""
        large = [each for each in self.growth if each[1] >= _MANY]
        (_n, few, short), (_m, many, long) = (large or self.growth)[0], self.growth[-1]
        return few, math.log(long / short) / math.log(many / few)

    def targets(self) -> list[Target]:
        """What is to be reached."""
        found = []
        for nodes, vms, spent in self.growth:
            if (most := _WITHIN_S.get((nodes, vms))) is not None:
                what = f"{nodes} x {vms} in {most} s of one core"
                found.append(Target(what, f"{spent:.3f} s", spent <= most))
        few, power = self.exponent()
        what = f"growth close to linear, at most VMs^{_LINEAR}"
        found.append(Target(what, f"VMs^{power:.2f} from {few} VMs on", power <= _LINEAR))
        return [*found, self._beside_hbal(), *_of_a_day(self.day)]

    def _beside_hbal(self) -> Target:
        what = "no more uneven than after hbal's plan, with no more moves, wherever hbal ends"
        ended = [each for each in self.rows if each.outcomes.get(HBAL, _GAVE_UP).moves]
        if not ended:
            return Target(what, "hbal has ended nowhere" if self.hbal else "it is not there", None)
        worse = [each for each in ended if not _is_no_worse(each)]
        sizes = ", ".join(f"{each.nodes} x {each.vms}" for each in worse or ended)
        return Target(what, f"not with {sizes}" if worse else sizes, not worse)

    def to_json(self) -> dict[str, Any]:
        return {
            "clusters": [
                {
                    "nodes": each.nodes,
                    "vms": each.vms,
                    "before": round(each.before.imbalance, 4),
                    "planners": {name: found.to_json() for name, found in each.outcomes.items()},
                }
                for each in self.rows
            ],
            "growth": [
                {"nodes": nodes, "vms": vms, "cpu_s": round(spent, 4)}
                for nodes, vms, spent in self.growth
            ],
            "exponent": round(self.exponent()[1], 3),
            "day": self.day.to_json(),
            "targets": [target.to_json() for target in self.targets()],
        }


def _is_no_worse(row: Row) -> bool:
    ours, theirs = row.outcomes[SAME], row.outcomes[HBAL]
    if ours.after is None or theirs.after is None:
        return False
    return (ours.moves or 0) <= (theirs.moves or 0) and (
        ours.after.imbalance <= theirs.after.imbalance
    )


def _of_a_day(report: stability.Report) -> Iterator[Target]:
    ours, freely = report.days.get(stability.OURS), report.days.get(stability.FREE)
    if ours is None or freely is None:
        return
    found = f"{ours.moves:.2f}"
    yield Target(f"under {_MOVES} migrations per VM and day", found, ours.moves < _MOVES)
    beside = ours.imbalance / freely.imbalance
    what = f"imbalance within {100 * (_EVEN - 1):.0f} % of who may move freely"
    yield Target(what, f"{100 * (beside - 1):+.0f} %", beside <= _EVEN)


def _points(balance: Balance) -> tuple[str, str, str]:
    return f"{balance.cpu:.2f}", f"{balance.memory:.2f}", f"{balance.imbalance:.2f}"


def _cells(found: Outcome) -> tuple[str, ...]:
    if found.after is None:
        return (f"{found.cpu_s:.2f}", "gave up", "", "", "", "")
    return (
        f"{found.cpu_s:.2f}",
        str(found.moves),
        f"{found.copied_gib:.0f}",
        *_points(found.after),
    )


def growth(rounds: int) -> list[tuple[int, int, float]]:
    """The CPU time of our plan by size: the median of some clusters each."""
    found = []
    for nodes, vms in (*SIZES, _LARGER):
        seeds = range(1, rounds + 1)
        spent = [ours(clusters.cluster(nodes, vms, seed), Settings()).cpu_s for seed in seeds]
        found.append((nodes, vms, figures.series(spent).median))
    return sorted(found, key=lambda each: each[1])


def measure(rounds: int) -> Report:
    """All of it."""
    program = rivals.find_hbal()
    rows = []
    for nodes, vms in SIZES:
        print(f"balance: {nodes} nodes, {vms} VMs", file=sys.stderr, flush=True)
        rows.append(row(nodes, vms, 1, with_hbal=program))
    return Report(rows, growth(rounds), stability.measure(), program)
