# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns mutual exclusion between processes of one machine: file locks that end with their holder.

The kernel drops such a lock when its holder dies, so none is ever left behind.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from cxm.errors import LockTimeoutError

_POLL_S: Final = 0.05


@contextmanager
def hold(directory: str, name: str, *, timeout_s: float) -> Iterator[None]:
    """Hold the lock ``name`` of ``directory`` while the block runs.

    Raises LockTimeoutError when somebody else holds it for longer than ``timeout_s``.
    """
    os.makedirs(directory, mode=0o700, exist_ok=True)
    path = os.path.join(directory, f"{name}.lock")
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    message = (
                        f"another action holds the lock '{name}' for more than {timeout_s:g} s"
                    )
                    raise LockTimeoutError(message, hint="run the action again") from None
                time.sleep(_POLL_S)
        yield
    finally:
        os.close(fd)


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
