# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns how lab tests end actions half-way: plans for killing_helper.py on a node, and its requests.

The node's helper is replaced by one that does the same and ends itself, its connection or its
driver at a planned step (see there). Nothing else is changed, the product least of all.
"""

import json
import os
import shlex
import signal
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from lab.machine import Machine

_HELPER: Final = "/usr/lib/cxm/cxm-helper"
_ROOT: Final = "/run/killing"
_HERE: Final = os.path.dirname(os.path.abspath(__file__))


class Way(StrEnum):
    """How an action is ended."""

    BEFORE = "before"  # the helper is killed before a command
    BEGUN = "begun"  # the helper is killed when a command has begun, which then goes on alone
    CUT = "cut"  # the connection is killed before a command; the helper lives
    DRIVER = "driver"  # the driver is killed before a command; the helper lives
    AFTER = "after"  # the helper is killed when a command has ended
    AMID = "amid"  # the helper is killed when a command has read a good part of its input


@dataclass(frozen=True, slots=True)
class Point:
    """When an action is ended: at the command of this number, or at the one with these words."""

    way: Way
    step: int | str


class Kills:
    """The plans on one node."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def install(self) -> None:
        """Put the killing helper in the helper's place."""
        with open(os.path.join(_HERE, "killing_helper.py"), encoding="utf-8") as file:
            self._machine.write(f"{_HELPER}.new", file.read())
        self._shell(f"chmod 755 {_HELPER}.new && mv {_HELPER}.new {_HELPER}")

    def plan(self, points: Mapping[str, Point], *, gate: str) -> None:
        """Plan the ends of verbs; the first call of ``gate`` waits before it begins."""
        words = [f"rm -rf {_ROOT} && cd /run && mkdir killing && cd killing",
                 f"mkdir PLAN DONE GATE WAITS && touch GATE/{gate}"]  # fmt: skip
        for verb, point in points.items():
            line = json.dumps([point.way.value, point.step])
            words.append(f"printf '%s\\n' {shlex.quote(line)} >PLAN/{verb}")
        self._shell(" && ".join(words))

    def waiting(self, seconds: int) -> list[str]:
        """What waits for the frontend now, or within some seconds."""
        return self._shell(
            f"cd {_ROOT}/WAITS; n=0; while [ $n -lt {seconds * 5} ]; do set -- *; "
            '[ "$1" = "*" ] || break; sleep 0.2; n=$((n+1)); done; [ "$1" = "*" ] || echo "$@"'
        ).split()

    def release(self, name: str) -> None:
        """Let what waits go on."""
        self._shell(f"rm {_ROOT}/WAITS/{name}")

    def done(self) -> dict[str, str]:
        """Which verbs have been ended, and at which step."""
        lines = self._shell(f"cd {_ROOT}/DONE && grep -H . * 2>/dev/null; true").splitlines()
        return {line.partition(":")[0]: line.partition(":")[2] for line in lines}

    def _shell(self, script: str) -> str:
        return self._machine.run(["sh", "-c", script]).stdout


def kill_driver(action: str) -> bool:
    """Kill the TM driver that runs ``action`` for this process; whether there was one."""
    for pid in _below(os.getpid()):
        with suppress(OSError), open(f"/proc/{pid}/cmdline", encoding="utf-8") as file:
            words = file.read().split("\0")
            if words[0].endswith("python3") and any(f"/tm/cxm/{action}" in word for word in words):
                os.kill(pid, signal.SIGKILL)
                return True
    return False


def _below(pid: int) -> Iterator[int]:
    """All processes that a process has started, and theirs."""
    with suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children", encoding="ascii") as file:
                for child in map(int, file.read().split()):
                    yield child
                    yield from _below(child)
