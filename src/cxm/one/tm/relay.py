# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns data that goes from one host to another through the frontend, without a copy there."""

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final

from cxm import wire
from cxm.errors import DataError
from cxm.node.client import Node

# Pieces of up to 1 MiB between the two connections: enough to keep both busy.
_DEPTH: Final = 8
_POLL_S: Final = 0.2
_PATIENCE_S: Final = 20.0


class _StoppedError(Exception):
    """The receiving side has ended; the sending side need not go on."""


class _Pipe:
    """Items on their way from the thread that downloads to the one that uploads."""

    def __init__(self) -> None:
        self._queue: queue.Queue[wire.Item | None] = queue.Queue(_DEPTH)
        self._closed = threading.Event()
        self.failure: BaseException | None = None

    def put(self, item: wire.Item | None) -> None:
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=_POLL_S)
            except queue.Full:
                continue
            return
        raise _StoppedError

    def close(self) -> None:
        self._closed.set()

    def __iter__(self) -> Iterator[wire.Item]:
        """What was put, until None; a failure of the sending side is raised here.

        So the upload never ends well unless the download has: its last item and its reply.
        """
        while (item := self._queue.get()) is not None:
            yield item
        if self.failure is not None:
            raise self.failure


def relay(
    source: Node,
    verb: str,
    args: dict[str, Any],
    deliver: Callable[[Iterator[wire.Item]], None],
) -> None:
    """Download from ``source`` and hand its items to ``deliver``, which uploads them.

    Returns when both have succeeded; raises the first failure of either.
    """
    pipe = _Pipe()

    def take(items: Iterator[wire.Item]) -> None:
        for item in items:
            pipe.put(item)

    def download() -> None:
        try:
            source.download(verb, args, take, pack=True)
        except _StoppedError:
            return
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            pipe.failure = error
        try:
            pipe.put(None)
        except _StoppedError:
            return

    thread = threading.Thread(target=download, daemon=True)
    thread.start()
    try:
        deliver(iter(pipe))
    finally:
        pipe.close()
        # A connection to a host that hangs is given up by ssh itself; we need not see it.
        thread.join(_PATIENCE_S)
    if pipe.failure is not None:
        raise pipe.failure


def first_section(items: Iterator[wire.Item]) -> wire.Section:
    """The section that a stream begins with."""
    first = next(items, None)
    if not isinstance(first, wire.Section):
        raise DataError("the content of the disk is missing")
    return first
