# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns that a host has one monitoring client: names that live as long as the process that has them.

A client binds abstract unix sockets, one a name, and listens on them; the kernel gives a name back
when its process ends, however it ends. Whoever wants a name learns from the kernel which process
has it, and ends that process.
"""

import errno
import os
import signal
import socket
import struct
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Final

from cxm.errors import LockTimeoutError, RefusedError

_CREDENTIALS: Final = struct.Struct("3i")  # pid, uid, gid
_POLL_S: Final = 0.05
# An older client may still be starting: it has its names, but listens only at the end.
_PATIENCE_S: Final = 40.0
_TERM_S: Final = 5.0


def _address(name: str) -> bytes:
    return b"\0" + name.encode()


def _sign(waited_s: float) -> signal.Signals:
    """How to ask: politely at first."""
    return signal.SIGTERM if waited_s < _TERM_S else signal.SIGKILL


def _holder(name: str) -> tuple[int, int] | None:
    """Process id and user of the process that listens on a name; None when none does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.settimeout(1.0)
        try:
            asking.connect(_address(name))
        except OSError:
            return None
        raw = asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _gid = _CREDENTIALS.unpack(raw)
    return pid, uid


def evict(name: str, *, uid: int, sign: signal.Signals = signal.SIGTERM) -> bool:
    """End the process of ``uid`` that listens on a name; returns whether there was one.

    Raises RefusedError when it is another user's.
    """
    holder = _holder(name)
    if holder is None:
        return False
    pid, owner = holder
    if owner != uid:
        raise RefusedError(
            f"the name '{name}' of the monitoring client is held by process {pid} of user {owner}",
            hint="no other user has any business with this name: look at that process",
        )
    with suppress(ProcessLookupError):
        os.kill(pid, sign)
    return True


def claim(names: Iterable[str], *, uid: int) -> list[socket.socket]:
    """Take names over from whoever has them; the caller must listen on them when it is ready.

    Raises LockTimeoutError when their holder neither listens nor ends.
    """
    taken = []
    for name in names:
        claimed = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        started = time.monotonic()
        while True:
            try:
                claimed.bind(_address(name))
                break
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                waited = time.monotonic() - started
                if waited > _PATIENCE_S:
                    raise LockTimeoutError(
                        f"another monitoring client starts since {_PATIENCE_S:g} s ('{name}')",
                        hint="look for processes of monitord-client_control.sh on this host",
                    ) from None
                evict(name, uid=uid, sign=_sign(waited))
                time.sleep(_POLL_S)
        taken.append(claimed)
    return taken


def release(names: Iterable[str], *, uid: int) -> None:
    """End whoever has one of the names, and return when nobody has.

    One that still starts has its names and does not listen yet: only taking a name tells.
    """
    for door in claim(names, uid=uid):
        door.close()
