# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns how a process ends on TERM, HUP and INT: by an exception, so that everything is undone.

Only the first signal counts; it waits while :func:`held_off` protects work that must not be torn
(the undoing itself, or the step between making something and knowing how to undo it).
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_SIGNALS: Final = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


class InterruptedBySignalError(BaseException):
    """A signal asked the process to end; like KeyboardInterrupt, no library code catches it."""


class _State:
    depth = 0
    waiting: str | None = None
    raised = False


def _raise_waiting() -> None:
    if _State.waiting is not None and not _State.raised and _State.depth == 0:
        _State.raised = True
        raise InterruptedBySignalError(_State.waiting)


def _receive(number: int, _frame: object) -> None:
    _State.waiting = _State.waiting or signal.Signals(number).name
    _raise_waiting()


def install() -> None:
    """Turn the first signal from now on into an exception."""
    _State.depth, _State.waiting, _State.raised = 0, None, False
    for number in _SIGNALS:
        # A handler, never SIG_IGN: the commands that are started would inherit that.
        signal.signal(number, _receive)


@contextmanager
def held_off() -> Iterator[None]:
    """Let signals wait until the block has ended."""
    _State.depth += 1
    try:
        yield
    finally:
        _State.depth -= 1
    _raise_waiting()
