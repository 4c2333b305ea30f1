# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns sparse files: read as wire items, and written so that they appear whole or not at all."""

import errno
import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

from cxm import wire
from cxm.errors import RefusedError

_READ: Final = 1 << 20
# Zeros shorter than this are not worth an item of their own.
_GRAIN: Final = 1 << 16
_GRAIN_ZEROS: Final = bytes(_GRAIN)
# A file in the making; its name is derived, so that the next try finds what a killed one left.
_PART: Final = ".cxm-part"


def _extents(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Where a file holds data: (start, end); the whole file where the file system cannot tell."""
    position = 0
    while position < size:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
            end = os.lseek(fd, start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            start, end = position, size
        yield min(start, size), min(end, size)
        position = end


def _is_zero(data: bytes, at: int) -> bool:
    """Whether the grain at ``at`` holds zeros only; compared in place, without a copy."""
    return data.startswith(_GRAIN_ZEROS[: len(data) - at], at)


def _split(data: bytes) -> Iterator[wire.Item]:
    """Data with its longer runs of zeros taken out."""
    begin = 0
    is_zero = _is_zero(data, 0)
    for at in range(_GRAIN, len(data), _GRAIN):
        if _is_zero(data, at) != is_zero:
            yield wire.Zeros(at - begin) if is_zero else data[begin:at]
            begin, is_zero = at, not is_zero
    yield wire.Zeros(len(data) - begin) if is_zero else data[begin:]


def _pieces(fd: int, size: int) -> Iterator[wire.Item]:
    position = 0
    for start, end in _extents(fd, size):
        if start > position:
            yield wire.Zeros(start - position)
        position = start
        while position < end:
            data = os.pread(fd, min(_READ, end - position), position)
            if not data:
                # Shorter than it was: the caller, who knows the file, notices and says so.
                return
            yield from _split(data)
            position += len(data)
    if position < size:
        yield wire.Zeros(size - position)


def read(fd: int, size: int) -> Iterator[wire.Item]:
    """The first ``size`` bytes of a file, read once; holes and zeros only as lengths."""
    zeros = 0
    for piece in _pieces(fd, size):
        if isinstance(piece, wire.Zeros):
            zeros += piece.length
            continue
        if zeros:
            yield wire.Zeros(zeros)
            zeros = 0
        yield piece
    if zeros:
        yield wire.Zeros(zeros)


def write(fd: int, items: Iterable[wire.Item]) -> int:
    """Write data and holes into an empty file; returns its length."""
    position = 0
    for item in items:
        if isinstance(item, wire.Zeros):
            position += item.length
        elif isinstance(item, bytes):
            view = memoryview(item)
            while view:
                count = os.pwrite(fd, view, position)
                view = view[count:]
                position += count
    os.ftruncate(fd, position)
    return position


@contextmanager
def replacing(path: str, *, mode: int = 0o600) -> Iterator[int]:
    """A new file to write that becomes ``path`` when the block has succeeded, and is safe on disk.

    Until then, and after any failure, ``path`` is what it was. An existing file keeps its mode.
    Raises RefusedError when another process is writing the same file.
    """
    part = part_of(path)
    with suppress(FileNotFoundError):
        mode = os.lstat(path).st_mode & 0o777
    fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        _own(fd, part, path)
        try:
            os.ftruncate(fd, 0)
            yield fd
            os.fchmod(fd, mode)
            os.fsync(fd)
            os.rename(part, path)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(part)
            raise
        _sync_directory(os.path.dirname(path))
    finally:
        os.close(fd)


def _own(fd: int, part: str, path: str) -> None:
    """Make sure that the file in the making is ours alone."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_ours = os.fstat(fd).st_ino == os.stat(part).st_ino
    except (BlockingIOError, FileNotFoundError):
        is_ours = False
    if not is_ours:
        raise RefusedError(
            f"{path} is being written by another action", hint="try again when that has ended"
        )


def part_of(path: str) -> str:
    """The file in which ``path`` is in the making."""
    directory, name = os.path.split(path)
    return os.path.join(directory, f".{name}{_PART}")


def is_part(name: str) -> bool:
    """Whether a file's name is that of one in the making, left by a process that was killed."""
    return name.startswith(".") and name.endswith(_PART)


def _sync_directory(path: str) -> None:
    fd = os.open(path or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
