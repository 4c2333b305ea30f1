# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the bytes of a block device: zeroing it, filling it from wire items, reading it as such.

What is written is written, everything else of the device is zeroed, by the device itself where it
can (BLKZEROOUT): no byte of a former tenant stays. Zeros are found and never copied. Plain files
work as well.
"""

import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from cxm.errors import DataError, RefusedError
from cxm.wire import Zeros

BLOCK: Final = 1 << 20
_BLKZEROOUT: Final = 0x127F
# A device that cannot zero by itself is written: short steps let a signal through in between.
_ZERO_STEP: Final = 64 << 20
# Pages and all sector sizes; BLKZEROOUT wants whole sectors and drops whole pages of the cache.
_ALIGN: Final = 4096
# Runs of zeros that are shorter are not worth an item of their own.
_GRAIN: Final = 64 << 10
_ZEROS: Final = bytes(BLOCK)


def is_zero(data: bytes) -> bool:
    """Whether ``data`` is all zeros; stops at the first byte that is not."""
    if len(data) > BLOCK:
        return all(is_zero(data[at : at + BLOCK]) for at in range(0, len(data), BLOCK))
    return data == (_ZEROS if len(data) == BLOCK else _ZEROS[: len(data)])


def write_at(fd: int, data: bytes, offset: int) -> None:
    """Write all of ``data``."""
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, offset)
        view, offset = view[done:], offset + done


class Device:
    """An open block device or plain file, read and written ``block`` bytes at a time."""

    def __init__(self, fd: int, path: str, size: int, block: int = BLOCK) -> None:
        self._fd = fd
        self.path = path
        self.size = size
        self._block = block
        self._can_zero = stat.S_ISBLK(os.fstat(fd).st_mode)

    def sync(self) -> None:
        """Return when everything written is on the medium."""
        os.fsync(self._fd)

    def _zero_by_writing(self, start: int, end: int) -> None:
        zeros = _ZEROS if self._block == BLOCK else bytes(self._block)
        for offset in range(start, end, self._block):
            length = min(self._block, end - offset)
            # Reading is cheaper than writing, and keeps the holes of a plain file.
            if self._can_zero or not is_zero(os.pread(self._fd, length, offset)):
                write_at(self._fd, zeros[:length], offset)

    def _zero_by_device(self, start: int, end: int) -> None:
        for offset in range(start, end, _ZERO_STEP):
            length = min(_ZERO_STEP, end - offset)
            try:
                fcntl.ioctl(self._fd, _BLKZEROOUT, struct.pack("=QQ", offset, length))
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL):
                    raise
                self._zero_by_writing(offset, offset + length)

    def zero(self, start: int, end: int) -> None:
        """Make all bytes from ``start`` up to ``end`` zero."""
        first, last = -(-start // _ALIGN) * _ALIGN, end // _ALIGN * _ALIGN
        if not self._can_zero or first >= last:
            self._zero_by_writing(start, end)
            return
        self._zero_by_writing(start, first)
        self._zero_by_device(first, last)
        self._zero_by_writing(last, end)

    def write(self, items: Iterable[bytes | Zeros]) -> int:
        """Fill the device with ``items`` and zero all the rest; returns their length in bytes.

        Raises DataError when they are longer than the device; what it holds then is undefined.
        """
        gaps: list[tuple[int, int]] = []
        offset = gap_from = 0
        for item in _blocks(items, self._block):
            length = item.length if isinstance(item, Zeros) else len(item)
            if offset + length > self.size:
                raise DataError(
                    f"the content is larger than the {self.size >> 20} MiB of {self.path}",
                    hint="raise LV_SIZE in the image's template",
                )
            if not isinstance(item, Zeros):
                if gap_from < offset:
                    gaps.append((gap_from, offset))
                write_at(self._fd, item, offset)
                gap_from = offset + length
            offset += length
        # Last, and not in between: the device zeroes at once, while what is written may wait.
        for start, end in [*gaps, (gap_from, self.size)]:
            self.zero(start, end)
        return offset

    def read(self) -> Iterator[bytes | Zeros]:
        """The content of the device from its first to its last byte, zeros as lengths."""
        zeros = 0
        for item in self._pieces():
            if isinstance(item, Zeros):
                zeros += item.length
                continue
            if zeros:
                yield Zeros(zeros)
                zeros = 0
            yield item
        if zeros:
            yield Zeros(zeros)

    def _pieces(self) -> Iterator[bytes | Zeros]:
        offset = 0
        while offset < self.size:
            start = self._next_data(offset)
            if start > offset:
                yield Zeros(start - offset)
                offset = start
                continue
            length = min(self._block - offset % self._block, self.size - offset)
            data = os.pread(self._fd, length, offset)
            if not data:
                raise DataError(f"{self.path} ended at byte {offset} of {self.size}")
            offset += len(data)
            yield from _runs(data)

    def _next_data(self, offset: int) -> int:
        """Where data may follow; a file's holes are skipped, at most once for each block."""
        if self._can_zero:
            return offset
        try:
            return os.lseek(self._fd, offset, os.SEEK_DATA)
        except OSError as error:
            # No more data: a hole up to the end, unless the file has lost its end meanwhile.
            is_hole = error.errno == errno.ENXIO and os.fstat(self._fd).st_size >= self.size
            return self.size if is_hole else offset


def _runs(data: bytes) -> Iterator[bytes | Zeros]:
    """A block as runs of data and of zeros."""
    if is_zero(data):
        yield Zeros(len(data))
        return
    start = 0
    zero = is_zero(data[:_GRAIN])
    for at in range(_GRAIN, len(data), _GRAIN):
        if is_zero(data[at : at + _GRAIN]) != zero:
            yield Zeros(at - start) if zero else data[start:at]
            start, zero = at, not zero
    yield Zeros(len(data) - start) if zero else data[start:]


def _blocks(items: Iterable[bytes | Zeros], size: int) -> Iterator[bytes | Zeros]:
    """The same content in whole blocks, each of which is data or, if all of it is, zeros.

    What comes from a pipe comes in small pieces: this makes one write of a block, not of a piece.
    """
    parts: list[bytes] = []
    have = 0  # bytes in parts, never a whole block

    def taken() -> bytes | Zeros:
        nonlocal have
        block = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        have = 0
        return Zeros(len(block)) if is_zero(block) else block

    for item in items:
        if isinstance(item, Zeros) and item.length >= size:
            if have:
                yield taken()
            yield item
            continue
        rest = bytes(item.length) if isinstance(item, Zeros) else item
        while rest:
            part, rest = rest[: size - have], rest[size - have :]
            parts.append(part)
            have += len(part)
            if have == size:
                yield taken()
    if have:
        yield taken()


@contextmanager
def open_device(path: str, *, write: bool, block: int = BLOCK) -> Iterator[Device]:
    """Open a block device or plain file.

    Raises RefusedError when somebody else (a mount, a domain's disk backend) holds the device.
    """
    flags = (os.O_RDWR if write else os.O_RDONLY) | os.O_CLOEXEC
    if stat.S_ISBLK(os.stat(path).st_mode):
        flags |= os.O_EXCL
    try:
        fd = os.open(path, flags)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise RefusedError(f"{path} is in use") from error
        raise
    try:
        yield Device(fd, path, os.lseek(fd, 0, os.SEEK_END), block)
    finally:
        os.close(fd)
