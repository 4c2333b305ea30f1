# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns mutual exclusion between processes of one machine: file locks that end with their holder.

The kernel drops such a lock when its holder dies, so none is ever left behind.
"""

import fcntl
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final

from cxm.errors import LockTimeoutError

_POLL_S: Final = 0.05
_TURN_S: Final = 0.2


def _lock(fd: int) -> bool:
    """Lock an open file, unless somebody else has."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _take(path: str) -> int | None:
    """Take the lock if nobody has it; returns its open file, or None."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if not _lock(fd):
            os.close(fd)
            return None
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(fd), os.stat(path)):
                return fd
        # Its last holder has removed the file since it was opened here.
        os.close(fd)


def _await(take: Callable[[], int | None], seconds: float, every_s: float) -> int | None:
    """The open file that ``take`` gives at last, or None after the time."""
    deadline = time.monotonic() + seconds
    while True:
        if (fd := take()) is not None:
            return fd
        if time.monotonic() >= deadline:
            return None
        time.sleep(every_s)


@contextmanager
def hold(directory: str, name: str, *, timeout_s: float) -> Iterator[None]:
    """Hold the lock ``name`` of ``directory`` while the block runs; its file goes afterwards.

    Raises LockTimeoutError when somebody else holds it for longer than ``timeout_s``.
    """
    os.makedirs(directory, mode=0o700, exist_ok=True)
    path = os.path.join(directory, f"{name}.lock")
    fd = _await(lambda: _take(path), timeout_s, _POLL_S)
    if fd is None:
        message = f"another action holds the lock '{name}' for more than {timeout_s:g} s"
        raise LockTimeoutError(message, hint="run the action again")
    try:
        yield
    finally:
        # Only a holder may do this: whoever has opened the file meanwhile finds it nameless.
        os.unlink(path)
        os.close(fd)


@contextmanager
def turn(directory: str, places: int, *, patience_s: float, longest_s: float) -> Iterator[None]:
    """Run the block when one of so many places is free.

    Who has waited for long goes ahead: when no place has changed hands for ``patience_s``, and
    after ``longest_s`` in any case. The places are files that stay.
    """
    os.makedirs(directory, mode=0o700, exist_ok=True)
    paths = [os.path.join(directory, str(place)) for place in range(places)]
    opened = [os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600) for path in paths]
    try:
        _take_turn(opened, patience_s, longest_s)
        yield
    finally:
        for fd in opened:
            os.close(fd)


def _take_turn(places: Sequence[int], patience_s: float, longest_s: float) -> None:
    def taken() -> list[int]:
        return [os.fstat(fd).st_mtime_ns for fd in places]

    def place() -> int | None:
        return next(filter(_lock, places), None)

    known, last = taken(), time.monotonic() + longest_s
    while True:
        free = _await(place, min(patience_s, last - time.monotonic()), _TURN_S)
        if free is not None:
            os.utime(free)
            return
        before, known = known, taken()
        if known == before or time.monotonic() >= last:
            return


def is_held(directory: str, name: str) -> bool:
    """Whether somebody holds the lock ``name`` of ``directory`` at this moment.

    To find out takes a shared lock for an instant: others may ask at the same time, and one who
    wants to hold it tries again.
    """
    try:
        fd = os.open(os.path.join(directory, f"{name}.lock"), os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
