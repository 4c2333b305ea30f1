#!/usr/bin/python3 -ISB
# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Takes the place of cxm-helper on a node of the lab: the same helper, ended at a planned step.

A step is a command that is started. So the steps of a verb are found by counting, and the product
knows nothing of this. (What lies between two commands is ended in tests/actions, in-process.)

``PLAN/<verb>`` is one JSON line: the way, and the number of a step or words of a command. What was
done is told in ``DONE/<verb>``. ``GATE/<verb>`` makes the helper wait before it begins. Where it
waits for the frontend it makes a file in ``WAITS``, and goes on when that is gone.
"""

import json
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from typing import Any, Final

sys.path.insert(0, "/usr/lib/cxm/python")

from cxm.node.helper import main

ROOT: Final = "/run/killing"
_PATIENCE_S: Final = 600.0
_POLL_S: Final = 0.02
_WRITES: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_CHANGES: Final = ("os.rename", "os.remove", "os.symlink", "os.mkdir", "os.rmdir")
_STREAMED: Final = 2 << 20  # bytes that a command has read when it is in the middle of its input


def wait(name: str) -> None:
    """Tell the frontend, and wait until it says to go on."""
    path = f"{ROOT}/WAITS/{name}"
    with open(path, "w", encoding="ascii"):
        pass
    until = time.monotonic() + _PATIENCE_S
    while os.path.exists(path) and time.monotonic() < until:
        time.sleep(_POLL_S)


def above() -> list[tuple[int, str]]:
    """The processes above this one, the nearest first."""
    found: list[tuple[int, str]] = []
    pid = os.getppid()
    while pid > 1:
        with open(f"/proc/{pid}/cmdline", encoding="utf-8", errors="replace") as file:
            found.append((pid, file.read().replace("\0", " ").strip()))
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            pid = int(file.read().rpartition(")")[2].split()[1])
    return found


def end(pids: list[int]) -> None:
    """Kill processes and wait until they are gone."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    until = time.monotonic() + _PATIENCE_S
    while any(_lives(pid) for pid in pids) and time.monotonic() < until:
        time.sleep(_POLL_S)


def _lives(pid: int) -> bool:
    with suppress(OSError), open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
        return file.read().rpartition(")")[2].split()[0] not in "ZX"
    return False


def _shown(argv: list[Any]) -> str:
    return " ".join(map(os.fsdecode, argv))


class Killer:
    """Does what was planned at the planned step, once."""

    def __init__(self, verb: str, way: str, point: int | str) -> None:
        self._verb = verb
        self._way = way
        self._point = point
        self._commands = 0
        self._passed = False  # the command of way "after" has been started
        self._done = False

    def starts(self, argv: list[Any]) -> None:
        """Called when a command is about to be started."""
        step = _shown(argv)
        self._commands += 1
        if self._passed or (self._way in ("before", "cut", "driver") and self._is(step)):
            self._act(step)

    def audited(self, event: str, args: tuple[Any, ...]) -> None:
        """Called by Python before each of many things: the first change behind a command is due."""
        is_change = event in _CHANGES or (event == "open" and args[2] & _WRITES)
        if self._passed and is_change:
            self._act(str(args[0]))

    def begun(self, pid: int, argv: list[Any]) -> None:
        """Called when a command has been started."""
        step = _shown(argv)
        if not self._is(step):
            return
        if self._way == "begun":
            self._act(step)
        elif self._way == "after":
            self._passed = True
        elif self._way == "amid":
            threading.Thread(target=self._amid, args=(pid, step), daemon=True).start()

    def _amid(self, pid: int, step: str) -> None:
        with suppress(OSError):  # it has ended before
            while _lives(pid):
                with open(f"/proc/{pid}/io", encoding="ascii") as file:
                    if int(file.readline().split()[1]) >= _STREAMED:
                        self._act(step)
                time.sleep(_POLL_S)

    def _is(self, step: str) -> bool:
        if isinstance(self._point, str):
            return self._point in step
        return self._point == self._commands

    def _act(self, step: str) -> None:
        if self._done:
            return
        self._done = True
        with open(f"{ROOT}/DONE/{self._verb}", "w", encoding="utf-8") as file:
            file.write(f"{self._way} {self._commands}: {step}\n")
        os.unlink(f"{ROOT}/PLAN/{self._verb}")
        if self._way == "cut":
            end([pid for pid, words in above() if words.startswith("sshd: oneadmin")])
        elif self._way == "driver":
            local = [pid for pid, words in above() if "/vmm/cxm/" in words and "python3" in words]
            if local:
                end(local[:1])
            else:
                wait(f"driver-{self._verb}")
        else:
            os.kill(os.getpid(), signal.SIGKILL)


def arm(verb: str) -> None:
    """Wait at the gate if there is one, and get ready for what is planned."""
    with suppress(FileNotFoundError):
        os.unlink(f"{ROOT}/GATE/{verb}")
        wait(f"gate-{verb}")
    try:
        with open(f"{ROOT}/PLAN/{verb}", encoding="utf-8") as file:
            way, point = json.load(file)
    except FileNotFoundError:
        return
    killer = Killer(verb, way, point)
    # By this name: only cxm/run.py starts processes, and it takes the class from there.
    processes = sys.modules["subprocess"]
    original = processes.Popen

    def popen(argv: list[Any], **options: Any) -> Any:
        killer.starts(argv)
        made = original(argv, **options)
        killer.begun(made.pid, argv)
        return made

    processes.__dict__["Popen"] = popen
    sys.addaudithook(killer.audited)


if __name__ == "__main__":
    arm(sys.argv[1] if len(sys.argv) > 1 else "")
    sys.exit(main(sys.argv[1:]))
