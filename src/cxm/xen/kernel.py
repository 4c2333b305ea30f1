# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what a kernel image tells about how Xen can run it: its ELF notes.

An image is an ELF file (vmlinux, grub for Xen), a gzip of one, or a bzImage with a compressed ELF
file inside. Only as much of it is unpacked as lies before the notes.
"""

import bz2
import lzma
import struct
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import BinaryIO, Final, Protocol

from cxm.errors import DataError
from cxm.run import CHUNK, Runner

# Numbers of the notes with the owner "Xen" (xen/include/public/elfnote.h).
_NOTE_ENTRY: Final = 1  # where a PV guest starts
_NOTE_PHYS32_ENTRY: Final = 18  # where a PVH guest starts
_PT_NOTE: Final = 4
# Anybody may bring a kernel, and root looks at it. Debian's 6.1 has five headers, and 504 bytes of
# notes 23 MiB behind its start.
_MAX_PART: Final = 1 << 16
_MAX_UNPACKED: Final = 1 << 28

_ELF_MAGIC: Final = b"\x7fELF"
_GZIP_MAGIC: Final = b"\x1f\x8b"
# Offsets in the header of a bzImage (Linux: Documentation/arch/x86/boot.rst).
_SETUP_SECTS, _MAGIC_AT, _VERSION_AT, _PAYLOAD_AT = 0x1F1, 0x202, 0x206, 0x248
_HEAD_SIZE: Final = 0x250
_PAYLOAD_SINCE: Final = 0x0208
# The kernel's build appends the unpacked size, but for gzip, which ends with it itself.
_SIZE_SUFFIX: Final = 4


@dataclass(frozen=True, slots=True)
class Kernel:
    """How Xen can start an image."""

    pvh: bool
    pv: bool


class _Unpacker(Protocol):
    @property
    def eof(self) -> bool: ...

    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


_UNPACKERS: Final[Sequence[tuple[bytes, Callable[[], _Unpacker]]]] = (
    (_GZIP_MAGIC, lambda: zlib.decompressobj(wbits=31)),
    (b"\xfd7zXZ\0", lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, _MAX_UNPACKED)),
    (b"\x5d\0\0", lambda: lzma.LZMADecompressor(lzma.FORMAT_ALONE, _MAX_UNPACKED)),
    (b"BZh", bz2.BZ2Decompressor),
)
# Not in the standard library of Python 3.11: their programs unpack them.
_PROGRAMS: Final = (
    (b"\x28\xb5\x2f\xfd", ("zstd", "-q", "-d", "-c")),
    (b"\x02\x21\x4c\x18", ("lz4", "-q", "-d", "-c")),
)


class _Forward:
    """Reads a stream at growing offsets and forgets what lies before."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._start = 0
        self._data = b""

    def at(self, offset: int, size: int) -> bytes:
        """``size`` bytes from ``offset``; raises DataError where the stream has no such part."""
        if offset < self._start or size > _MAX_PART or offset + size > _MAX_UNPACKED:
            raise DataError("its ELF header points to nowhere")
        while self._start + len(self._data) < offset + size:
            keep = max(min(offset - self._start, len(self._data)), 0)
            self._start += keep
            self._data = self._data[keep:]
            chunk = next(self._chunks, b"")
            if not chunk:
                raise DataError("it ends too early")
            self._data += chunk
        begin = offset - self._start
        return self._data[begin : begin + size]


def _notes(stream: _Forward) -> set[int]:
    """The numbers of Xen's notes in an ELF file."""
    ident = stream.at(0, 64)
    if ident[:4] != _ELF_MAGIC or ident[4] not in (1, 2) or ident[5] != 1:
        raise DataError("it holds no ELF file for a PC")
    wide = ident[4] == 2  # noqa: PLR2004 - ELFCLASS64
    table, entry_size, entries = (
        (struct.unpack_from("<Q", ident, 32)[0], *struct.unpack_from("<HH", ident, 54))
        if wide
        else (struct.unpack_from("<I", ident, 28)[0], *struct.unpack_from("<HH", ident, 42))
    )
    headers = stream.at(table, entry_size * entries)
    segments = []
    for number in range(entries):
        row = headers[number * entry_size : (number + 1) * entry_size]
        kind, first = struct.unpack_from("<II", row)
        offset, size = (
            (struct.unpack_from("<Q", row, 8)[0], struct.unpack_from("<Q", row, 32)[0])
            if wide
            else (first, struct.unpack_from("<I", row, 16)[0])
        )
        if kind == _PT_NOTE and size <= _MAX_PART:
            segments.append((offset, size))
    found: set[int] = set()
    for offset, size in sorted(segments):
        found |= _numbers(stream.at(offset, size))
    return found


def _numbers(notes: bytes) -> set[int]:
    found = set()
    position = 0
    while position + 12 <= len(notes):
        name_size, value_size, number = struct.unpack_from("<III", notes, position)
        name = notes[position + 12 : position + 12 + name_size]
        if name.rstrip(b"\0") == b"Xen":
            found.add(number)
        position += 12 + -(-name_size // 4) * 4 + -(-value_size // 4) * 4
    return found


def _blocks(file: BinaryIO, size: int) -> Iterator[bytes]:
    while size > 0 and (chunk := file.read(min(size, CHUNK))):
        size -= len(chunk)
        yield chunk


def _pieces(unpacker: _Unpacker, blocks: Iterator[bytes]) -> Iterator[bytes]:
    """What a compressed stream holds, never more than a chunk of it at a time."""
    for block in blocks:
        rest = block
        while not unpacker.eof and (piece := unpacker.decompress(rest, CHUNK)):
            yield piece
            # zlib hands back what it has not used; the others keep it.
            rest = getattr(unpacker, "unconsumed_tail", b"")
        if unpacker.eof:
            return


def _unpacked(file: BinaryIO, start: int, size: int, runner: Runner) -> Iterator[bytes]:
    """The unpacked payload of a bzImage."""
    file.seek(start)
    magic = file.read(8)
    file.seek(start)
    if magic.startswith(_ELF_MAGIC):
        yield from _blocks(file, size)
        return
    for begins, make in _UNPACKERS:
        if magic.startswith(begins):
            yield from _pieces(make(), _blocks(file, size))
            return
    for begins, argv in _PROGRAMS:
        if magic.startswith(begins):
            with runner.produce(argv, chunks=_blocks(file, size - _SIZE_SUFFIX)) as output:
                yield from output
            return
    raise DataError(f"its compression is unknown ({magic[:6].hex()})")


def _elf(file: BinaryIO, runner: Runner) -> Generator[bytes, None, None]:
    """The ELF file that an image is or holds."""
    head = file.read(_HEAD_SIZE)
    if head.startswith(_ELF_MAGIC):
        file.seek(0)
        yield from _blocks(file, _MAX_UNPACKED)
        return
    if head.startswith(_GZIP_MAGIC):
        yield from _unpacked(file, 0, _MAX_UNPACKED, runner)
        return
    version = struct.unpack_from("<H", head, _VERSION_AT)[0] if len(head) == _HEAD_SIZE else 0
    if head[_MAGIC_AT : _MAGIC_AT + 4] != b"HdrS" or version < _PAYLOAD_SINCE:
        raise DataError("it is neither an ELF file nor a bzImage")
    offset, size = struct.unpack_from("<II", head, _PAYLOAD_AT)
    setup = ((head[_SETUP_SECTS] or 4) + 1) * 512
    yield from _unpacked(file, setup + offset, size, runner)


def inspect(file: BinaryIO, runner: Runner) -> Kernel:
    """How Xen can start the image in ``file``; raises DataError for what is no kernel."""
    with closing(_elf(file, runner)) as chunks:
        try:
            notes = _notes(_Forward(chunks))
        except (lzma.LZMAError, zlib.error, OSError, EOFError, struct.error) as error:
            raise DataError(f"it is damaged: {error}") from error
    return Kernel(pvh=_NOTE_PHYS32_ENTRY in notes, pv=_NOTE_ENTRY in notes)
