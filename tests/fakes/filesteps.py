# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the file steps of a verb: where it renames, links or removes, a fault can strike as well.

Python tells an audit hook of each such call before it is made, so nothing is patched. What the
models themselves do with files is no step.
"""

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from cxm.errors import CommandError
from tests.fakes.machine import FakeNode

_EVENTS: Final = frozenset(("os.rename", "os.remove", "os.symlink", "os.mkdir", "os.rmdir"))
# What outlives a process: links and files of VMs, records, configurations.
_PLACES: Final = ("datastores", "state", "cfg", "auto", "tmp")
_watchers: list[Callable[[tuple[str, ...]], None]] = []


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if event in _EVENTS and _watchers:
        _watchers[-1]((event, *(os.fsdecode(each) for each in args if not isinstance(each, int))))


sys.addaudithook(_hook)


def _changes_nothing(event: str, *paths: str) -> bool:
    """Whether a directory is there already, or nothing is there to be removed."""
    if event == "os.mkdir":
        return os.path.isdir(paths[-1])
    return event in ("os.remove", "os.rmdir") and not os.path.lexists(paths[-1])


@contextmanager
def watched(node: FakeNode) -> Iterator[None]:
    """Count the file steps of what happens in the block among the node's steps."""
    roots = tuple(node.path(place) + os.sep for place in _PLACES)

    def watch(words: tuple[str, ...]) -> None:
        if node.is_busy or not words[-1].startswith(roots) or _changes_nothing(*words):
            return
        try:
            node.file_step(words)
        except CommandError as error:
            raise OSError(errno.EIO, os.strerror(errno.EIO), words[-1]) from error

    _watchers.append(watch)
    try:
        yield
    finally:
        _watchers.remove(watch)


def is_file_step(argv: tuple[str, ...]) -> bool:
    """Whether a step is of this kind: a kill after it is one before the next step."""
    return argv[0] in _EVENTS
