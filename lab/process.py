# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the lab's long-lived processes: the only module of the lab that imports ``subprocess``.

Each of them, and every program started by ``cxm-lab exec``, carries the lab's id in its
environment. That is how ``down`` finds all of them, and nothing else, even when files with
process ids were lost.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

from cxm import pace
from cxm.errors import CommandError
from cxm.run import environment, tail

ID_VARIABLE = "CXM_LAB_ID"
_TERM_S = 3.0
_KILL_S = 10.0
_children: list[subprocess.Popen[bytes]] = []


def start(argv: Sequence[str], *, log: str, lab_id: str) -> int:
    """Start a process that outlives us; return its id."""
    with open(log, "ab") as output:
        child = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment({ID_VARIABLE: lab_id}),
            start_new_session=True,
        )
    _children.append(child)
    return child.pid


def interactive(argv: Sequence[str], lab_id: str) -> int:
    """Run a program on our own terminal and return its exit status."""
    env = os.environ | {ID_VARIABLE: lab_id}
    with subprocess.Popen(argv, env=env) as child:
        while True:
            with suppress(KeyboardInterrupt):
                code = child.wait()
                return code if code >= 0 else 128 - code


def alive(pid: int) -> bool:
    """Whether a process is there and is no zombie."""
    for child in _children:
        child.poll()
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except (OSError, IndexError):
        return False


def belongs(pid: int, lab_id: str) -> bool:
    """Whether a running process was started for the lab ``lab_id``."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return f"{ID_VARIABLE}={lab_id}".encode() in file.read().split(b"\0")
    except OSError:
        return False


def namespace(pid: int, kind: str) -> str:
    """The identity of a namespace of a process; empty when it cannot be seen."""
    try:
        return os.readlink(f"/proc/{pid}/ns/{kind}")
    except OSError:
        return ""


def _ancestors() -> set[int]:
    """Ourselves, our parent, its parent and so on."""
    found = set()
    pid = os.getpid()
    while pid > 0 and pid not in found:
        found.add(pid)
        try:
            with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
                pid = int(file.read().rpartition(")")[2].split()[1])
        except (OSError, IndexError, ValueError):
            break
    return found


def find(lab_id: str, networks: Iterable[str] = ()) -> list[int]:
    """All processes of a lab: by its id, or because they live in one of its network namespaces."""
    known = {network for network in networks if network}
    ours = _ancestors()  # "down" may be called inside of "exec"
    return [
        pid
        for pid in map(int, filter(str.isdigit, os.listdir("/proc")))
        if pid not in ours
        and alive(pid)
        and (belongs(pid, lab_id) or namespace(pid, "net") in known)
    ]


def end(pids: Iterable[int]) -> None:
    """End processes: TERM, then KILL; return when they are gone."""
    left = [pid for pid in pids if alive(pid)]
    for sign, patience_s in ((signal.SIGTERM, _TERM_S), (signal.SIGKILL, _KILL_S)):
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, sign)
        until = time.monotonic() + patience_s
        while left and time.monotonic() < until:
            time.sleep(0.02)
            left = [pid for pid in left if alive(pid)]


def wait_until(
    condition: Callable[[], bool],
    *,
    timeout_s: float,
    what: str,
    pause_s: float = 0.05,
    pid: int | None = None,
    log: str | None = None,
) -> None:
    """Wait for a condition; fail when time is up, or when the process it depends on has ended.

    Looking takes its part of an emulated node, so it is not done more often than that bears.
    """
    until = time.monotonic() + timeout_s
    began = time.monotonic()
    while not condition():
        took_s = time.monotonic() - began
        if pid is not None and not alive(pid):
            raise CommandError(f"{what}: its process has ended: {last_words(log)}")
        if time.monotonic() > until:
            raise CommandError(f"{what}: not within {timeout_s:g} s{last_words(log, lead='; ')}")
        time.sleep(pace.pause(took_s, least_s=pause_s))
        began = time.monotonic()


def last_words(log: str | None, *, lead: str = "") -> str:
    """The end of a log file, on one line."""
    if log is None:
        return ""
    try:
        with open(log, encoding="utf-8", errors="replace") as file:
            words = tail(file.read()[-2000:])
    except OSError:
        return ""
    return f"{lead}last words: {words}" if words else ""
