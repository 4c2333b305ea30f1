# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the other planners: hbal of Ganeti as it is packaged, and the original's way, written anew.

The original goes by its description: it looks at all sequences of one move, then of two, and so on
up to a limit; a sequence is scored by sqrt(RAM^2 + CPU^2), each the difference between the fullest
and the emptiest node in percent of the whole; the first length at which the best one gains enough
ends it. It copies the state for each sequence, and takes no two of the same score. That a copy is a
copy of a list here, not of objects, and a look into a set in place of all former states, is to
its advantage.
"""

import math
import os
import re
import resource
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cxm.balance.model import Snapshot
from cxm.errors import CommandError
from cxm.run import System

HBAL: Final = ("hbal", "/usr/lib/ganeti/3.0/usr/bin/hbal")
_MOVE: Final = re.compile(r"^\s*\d+\.\s+(\S+)\s+(\S+)\s+=> (\S+)\s", re.MULTILINE)
_GROUP: Final = "7c7f3b1e-0000-4000-8000-000000000001"
_LAYERS: Final = 3
_MIN_GAIN: Final = 5.0


@dataclass(frozen=True, slots=True)
class Found:
    """What a planner found: VM and node of each move, in order; None where it gave up."""

    moves: Sequence[tuple[str, str]] | None
    cpu_s: float
    why: str = ""


def find_hbal() -> str | None:
    """The program, if it is there."""
    places = [shutil.which(HBAL[0]), HBAL[1]]
    return next((place for place in places if place and os.path.exists(place)), None)


def hbal(program: str, snapshot: Snapshot, budget_s: float) -> Found:
    """What hbal finds within its time, with CPU use as its dynamic utilisation."""
    with tempfile.TemporaryDirectory() as directory:
        data, load = os.path.join(directory, "data"), os.path.join(directory, "load")
        with open(data, "w", encoding="ascii") as file:
            file.write(text_data(snapshot))
        with open(load, "w", encoding="ascii") as file:
            file.write(utilisation(snapshot))
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        argv = [program, "-t", data, "-U", load, "--no-disk-moves", "-v"]
        why, moves = "", None
        try:
            printed = System().run(argv, timeout_s=budget_s).stdout
            moves = [(vm, node) for vm, _source, node in _MOVE.findall(printed)]
        except CommandError as error:
            why = error.message
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Found(moves, spent, why)


def text_data(snapshot: Snapshot) -> str:
    """A cluster for hbal's text back end; its disks are shared, so a VM may go to any node."""
    used = {node.name: 0 for node in snapshot.nodes}
    for vm in snapshot.vms:
        used[vm.node or ""] += vm.memory
    nodes = [
        f"{node.name}|{node.memory}|0|{node.memory - used[node.name]}|1000000|1000000"
        f"|{node.cpu // 100}|N|{_GROUP}|1||N|0|1|1.0"
        for node in snapshot.nodes
    ]
    vms = [
        f"{vm.name}|{vm.memory}|0|{max(1, round(vm.cpu / 25))}|running|Y|{vm.node}||sharedfile"
        "||1|-|N"
        for vm in snapshot.vms
    ]
    spec = "|1,1,1,1,1,1|1,1,0,0,0,0;9999999,999,9999999,99,99,99|sharedfile|64.0|64.0"
    groups = [f"group|{_GROUP}|preferred||"]
    return "\n".join([*groups, "", *nodes, "", *vms, "", "", spec, f"group{spec}"]) + "\n"


def utilisation(snapshot: Snapshot) -> str:
    """CPU in parts of a node; memory is in hbal's score already, as what is free of it."""
    mean = sum(node.cpu for node in snapshot.nodes) / len(snapshot.nodes)
    return "".join(f"{vm.name} {(vm.used or 0) / mean:.6f} 0 0 0\n" for vm in snapshot.vms)


def original(snapshot: Snapshot, budget_s: float) -> Found:
    """What the original's way finds within its time."""
    begun = time.process_time()
    nodes = [node.name for node in snapshot.nodes]
    index = {name: at for at, name in enumerate(nodes)}
    vms = snapshot.vms
    start = [index[vm.node or ""] for vm in vms]
    room = [node.memory for node in snapshot.nodes]
    whole = (sum(room), sum(node.cpu for node in snapshot.nodes))
    before, _used = _score(snapshot, start, whole)
    layer: list[tuple[list[int], list[tuple[int, int]]]] = [(start, [])]
    seen = {before}
    best, path = before, []
    for _length in range(_LAYERS):
        following = []
        for state, moves in layer:
            memory = _score(snapshot, state, whole)[1]
            for vm, node in enumerate(state):
                if time.process_time() - begun > budget_s:
                    return Found(None, time.process_time() - begun, "its time was over")
                for other in range(len(nodes)):
                    if other == node or memory[other] + vms[vm].memory > room[other]:
                        continue
                    copy = list(state)
                    copy[vm] = other
                    score, _used = _score(snapshot, copy, whole)
                    if score in seen:
                        continue
                    seen.add(score)
                    following.append((copy, [*moves, (vm, other)]))
                    if score < best:
                        best, path = score, following[-1][1]
        if before and 100 * (before - best) / before >= _MIN_GAIN:
            break
        layer = following
    gained = bool(before) and 100 * (before - best) / before >= _MIN_GAIN
    found = [(vms[vm].name, nodes[node]) for vm, node in path] if gained else []
    return Found(found, time.process_time() - begun)


def _score(
    snapshot: Snapshot, state: Sequence[int], whole: tuple[int, int]
) -> tuple[float, list[int]]:
    memory, cpu = [0] * len(snapshot.nodes), [0.0] * len(snapshot.nodes)
    for vm, node in zip(snapshot.vms, state, strict=True):
        memory[node] += vm.memory
        cpu[node] += vm.used or 0.0
    apart = (
        100 * (max(memory) - min(memory)) / whole[0],
        100 * (max(cpu) - min(cpu)) / whole[1],
    )
    return math.hypot(*apart), memory
