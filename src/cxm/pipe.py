# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns items that a thread makes while another takes them, neither being far ahead."""

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Generic, TypeVar

T = TypeVar("T")

# Pieces of up to 1 MiB: enough to keep both sides busy.
_DEPTH: Final = 8
_POLL_S: Final = 0.2
_PATIENCE_S: Final = 20.0


class _StoppedError(Exception):
    """The taking side has ended; the making side need not go on."""


class _Pipe(Generic[T]):
    """Items on their way."""

    def __init__(self) -> None:
        # A tuple holds an item, None ends them: an item itself may be anything.
        self._queue: queue.Queue[tuple[T] | None] = queue.Queue(_DEPTH)
        self._closed = threading.Event()
        self.failure: BaseException | None = None

    def make(self, work: Callable[[Callable[[T], None]], None]) -> None:
        """Run ``work`` with a function that takes its items, and remember how it failed."""
        try:
            work(lambda item: self._put((item,)))
        except _StoppedError:
            return
        except BaseException as error:  # noqa: BLE001 - raised again in the taker's thread
            self.failure = error
        try:
            self._put(None)
        except _StoppedError:
            return

    def _put(self, item: tuple[T] | None) -> None:
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=_POLL_S)
            except queue.Full:
                continue
            return
        raise _StoppedError

    def close(self) -> None:
        self._closed.set()

    def take(self, beat: T | None, beat_s: float | None) -> Iterator[T]:
        """The items; a failure of the making side is raised behind them.

        So what is made of them never ends well unless the making has.
        """
        while True:
            try:
                item = self._queue.get(timeout=beat_s)
            except queue.Empty:
                if beat is not None:
                    yield beat
                continue
            if item is None:
                break
            yield item[0]
        if self.failure is not None:
            raise self.failure


@contextmanager
def piped(
    work: Callable[[Callable[[T], None]], None],
    *,
    beat: T | None = None,
    beat_s: float | None = None,
) -> Iterator[Iterator[T]]:
    """Run ``work`` in a thread; the block iterates over what it puts.

    ``beat`` stands in whenever nothing has come for ``beat_s``. The first failure of either side is
    raised, that of the work even when the block has ended well.
    """
    pipe: _Pipe[T] = _Pipe()
    thread = threading.Thread(target=pipe.make, args=(work,), daemon=True)
    thread.start()
    try:
        yield pipe.take(beat, beat_s)
    finally:
        pipe.close()
        # What hangs is given up: a connection by ssh itself, a file by its server; we need not see.
        thread.join(_PATIENCE_S)
    if pipe.failure is not None:
        raise pipe.failure
