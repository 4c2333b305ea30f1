# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what a process of cxm tells about itself under measurement: its notes, and their meaning.

The notes are made by ``bench/probe.py``, which is put into the stub and the helper for the run. All
times of one process are of one clock; times of two machines are never compared.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from bench.figures import covered

_DOORS: Final = ("ssh", "sudo")  # how an action reaches the helper


@dataclass(frozen=True, slots=True)
class Span:
    """A command that ran, or a sleep."""

    name: str
    begin: float
    end: float


@dataclass(frozen=True, slots=True)
class Process:
    """One process of cxm: an action, or the helper doing a verb."""

    name: str  # the action's name, or the verb
    began: float | None  # when the shell started it; unknown of a helper
    ended: float
    started: tuple[tuple[str, float], ...]  # the commands it started, and when
    spans: tuple[Span, ...]

    def count(self, command: str) -> int:
        """How often it started a command."""
        return sum(1 for name, _at in self.started if name == command)


@dataclass(frozen=True, slots=True)
class Figures:
    """What one call of an action took; times in milliseconds."""

    ssh: int  # connections that the action made itself
    startup: float
    wall: float
    overhead: float


def parse(text: str) -> list[Process]:
    """The processes that wrote notes, in the order of their ends."""
    return sorted(map(_process, text.splitlines()), key=lambda one: one.ended)


def _process(line: str) -> Process:
    row: dict[str, Any] = json.loads(line)
    return Process(
        name=row["name"],
        began=float(row["began"]) if row["began"] else None,
        ended=row["ended"],
        started=tuple((name, at) for name, at in row["started"]),
        spans=tuple(Span(*span) for span in row["spans"]),
    )


def figures(action: Process, helpers: Sequence[Process]) -> Figures:
    """What an action took, whose work on the host was done by these calls of the helper.

    Work is what other programs did, or what the guest was waited for: all commands of the helper,
    and those of the action that ended before it first reached for the helper. Everything else is
    overhead: ssh and sudo, two interpreters, cxm's own code.
    """
    if action.began is None or not action.started:
        raise ValueError(f"{action.name} started no command")
    doors = [at for name, at in action.started if name in _DOORS]
    first = min(doors, default=action.ended)
    local = [
        (span.begin, span.end)
        for span in action.spans
        if span.name not in _DOORS and span.end <= first
    ]
    work = covered(local)
    for helper in helpers:
        work += covered([(span.begin, span.end) for span in helper.spans])
    wall = action.ended - action.began
    return Figures(
        ssh=action.count("ssh"),
        startup=1000 * (action.started[0][1] - action.began),
        wall=1000 * wall,
        overhead=1000 * (wall - work),
    )
