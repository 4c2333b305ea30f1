# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns mutual exclusion between processes of one machine: file locks that end with their holder.

The kernel drops such a lock when its holder dies, so none is ever left behind.
"""

import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from cxm.errors import LockTimeoutError

_POLL_S: Final = 0.05
_TURN_S: Final = 0.2


def _try(path: str) -> int | None:
    """Take the lock if nobody has it; returns its open file, or None."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(fd), os.stat(path)):
                return fd
        except BlockingIOError:
            os.close(fd)
            return None
        except FileNotFoundError:
            pass
        # Its last holder has removed the file since it was opened here.
        os.close(fd)


def _await(
    directory: str, names: Sequence[str], seconds: float, every_s: float
) -> tuple[str, int] | None:
    """Take the first of these locks that is free; path and open file, or None after the time."""
    os.makedirs(directory, mode=0o700, exist_ok=True)
    deadline = time.monotonic() + seconds
    while True:
        for name in names:
            path = os.path.join(directory, f"{name}.lock")
            if (fd := _try(path)) is not None:
                return path, fd
        if time.monotonic() >= deadline:
            return None
        time.sleep(every_s)


def _leave(path: str, fd: int) -> None:
    # Only a holder may do this: whoever has opened the file meanwhile finds it nameless.
    os.unlink(path)
    os.close(fd)


@contextmanager
def hold(directory: str, name: str, *, timeout_s: float) -> Iterator[None]:
    """Hold the lock ``name`` of ``directory`` while the block runs; its file goes afterwards.

    Raises LockTimeoutError when somebody else holds it for longer than ``timeout_s``.
    """
    taken = _await(directory, [name], timeout_s, _POLL_S)
    if taken is None:
        message = f"another action holds the lock '{name}' for more than {timeout_s:g} s"
        raise LockTimeoutError(message, hint="run the action again")
    try:
        yield
    finally:
        _leave(*taken)


@contextmanager
def turn(directory: str, name: str, places: int, *, patience_s: float) -> Iterator[None]:
    """Run the block when one of so many places is free; who has waited for long goes ahead."""
    names = [f"{name}-{place}" for place in range(places)]
    taken = _await(directory, names, patience_s, _TURN_S)
    try:
        yield
    finally:
        if taken is not None:
            _leave(*taken)


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
