# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what an image file holds, recognised by its content, never by its name.

A raw image has no mark of its own, so everything with the mark of something that cxm does not take
is refused with a sentence; it is never taken for raw.
"""

import os
import re
import struct
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from cxm import run
from cxm.errors import CommandError, CxmError, DataError

_HEAD: Final = 1 << 17
_SECTOR: Final = 512
_MAX_BYTES: Final = 1 << 46
_ISO: Final = (32769, b"CD001")
_VHD: Final = b"conectix"
_QCOW2: Final = b"QFI\xfb"
_QCOW2_EXTERNAL_DATA: Final = 1 << 2
_GZIP: Final = b"\x1f\x8b\x08"
_ZSTD: Final = b"\x28\xb5\x2f\xfd"

# Formats that cxm does not take: where they show, what shows there, and what they are.
_REFUSED: Final = (
    (0, rb"\xfd7zXZ\0", "xz-compressed"),
    (0, rb"BZh[1-9](?:1AY&SY|\x17\x72\x45\x38\x50\x90)", "bzip2-compressed"),
    (0, rb"\x04\x22\x4d\x18", "lz4-compressed"),
    (0, rb"LZIP", "lzip-compressed"),
    (0, rb"\x5d\0\0..\xff\xff\xff\xff\xff", "lzma-compressed"),
    (0, rb"\x1f[\x9d\xa0]", "compress-compressed"),
    (0, rb"PK\x03\x04", "a zip archive"),
    (0, rb"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (0, rb"Rar!\x1a\x07", "a RAR archive"),
    (0, rb"07070[127]", "a cpio archive"),
    (0, rb"!<arch>\n", "an ar archive or a Debian package"),
    (0, rb"\xed\xab\xee\xdb", "an RPM package"),
    (0, rb"KDMV|COWD|# Disk DescriptorFile", "a VMware disk (vmdk)"),
    (64, rb"\x7f\x10\xda\xbe", "a VirtualBox disk (vdi)"),
    (0, rb"vhdxfile", "a Hyper-V disk (vhdx)"),
    (0, _VHD, "a Hyper-V disk (vhd)"),
    (0, rb"QED\0", "a QED disk"),
    (0, rb"QFI\xfb\0\0\0\x01|OOOM", "a disk of an old QEMU (qcow1 or cow)"),
    (0, rb"Withou(?:tFreeSpace|FreSpacExt)", "a Parallels disk"),
    (0, rb"\x7fELF", "a program or kernel (ELF)"),
    (0, rb"\s*<(?:!DOCTYPE|!doctype|html|HTML|\?xml)", "a web page or XML"),
)


class Content(StrEnum):
    """What a stream to a node holds (docs/design/0002)."""

    RAW = "raw"
    GZIP = "gzip"
    ZSTD = "zstd"
    TAR = "tar"
    TAR_GZ = "tar.gz"
    TAR_ZST = "tar.zst"

    @property
    def is_tar(self) -> bool:
        """Whether it holds files, for which a file system is made first."""
        return self in (Content.TAR, Content.TAR_GZ, Content.TAR_ZST)

    @property
    def is_compressed(self) -> bool:
        return self not in (Content.RAW, Content.TAR)


@dataclass(frozen=True, slots=True)
class Found:
    """What an image file holds; ``content_bytes`` is what its content is known to need at least."""

    content: Content
    content_bytes: int
    is_optical: bool = False
    is_qcow2: bool = False


def _is_tar(head: bytes) -> bool:
    """Whether a tar archive begins here: of its header's checksum, or its mark, one must fit."""
    header = head[:_SECTOR]
    if len(header) < _SECTOR or not header.strip(b"\0"):
        return False
    if header[257:262] == b"ustar":
        return True
    field = header[148:156].strip(b" \0")
    if not re.fullmatch(rb"[0-7]{1,7}", field):
        return False
    return sum(header[:148]) + sum(header[156:]) + 8 * ord(" ") == int(field, 8)


def _name_refused(head: bytes) -> str | None:
    for offset, pattern, what in _REFUSED:
        if re.compile(pattern, re.DOTALL).match(head, offset):
            return what
    return None


def _refuse(shown: str, what: str) -> DataError:
    return DataError(
        f"{shown} is {what}, which cxm does not take",
        hint="register it as raw, qcow2 or tar, plain or compressed by gzip or zstd",
    )


def _inside_gzip(head: bytes, shown: str) -> bytes:
    try:
        return zlib.decompressobj(wbits=31).decompress(head, _HEAD)
    except zlib.error as error:
        raise DataError(f"{shown} is a damaged gzip file: {error}") from error


class _EnoughError(Exception):
    """The beginning is known; the rest need not be decompressed."""


def _collect(chunks: Iterable[bytes], head: bytearray) -> None:
    for chunk in chunks:
        head += chunk
        if len(head) >= _HEAD:
            raise _EnoughError


def _chunks(fd: int) -> Iterator[bytes]:
    position = 0
    while chunk := os.pread(fd, _HEAD, position):
        yield chunk
        position += len(chunk)


def _inside_zstd(fd: int, shown: str, runner: run.Runner) -> bytes:
    head = bytearray()
    argv = ("zstd", "-d", "-q", "-c")
    try:
        with (
            suppress(_EnoughError),
            runner.produce(argv, chunks=_chunks(fd), ok=(0, 1)) as output,
        ):
            _collect(output, head)
    except CommandError as error:
        raise CxmError(f"{shown} cannot be decompressed here: {error.message}") from error
    if not head:
        raise DataError(f"{shown} is a damaged zstd file")
    return bytes(head[:_HEAD])


def _zstd_length(head: bytes) -> int:
    """The content's length as the first zstd frame tells it; 0 when it does not."""
    descriptor = head[4]
    is_single = bool(descriptor & 0x20)
    size = {0: 1 if is_single else 0, 1: 2, 2: 4, 3: 8}[descriptor >> 6]
    at = 5 + (0 if is_single else 1) + (0, 1, 2, 4)[descriptor & 3]
    length = int.from_bytes(head[at : at + size], "little")
    return length + 256 if size == 2 else length  # noqa: PLR2004 - the format's own offset


def _inner(head: bytes, shown: str, packer: str, plain: Content, tar: Content) -> Content:
    if _is_tar(head):
        return tar
    what = _name_refused(head)
    if what is None and head.startswith((_QCOW2, _GZIP, _ZSTD)):
        what = "another compressed or qcow2 file"
    if what is not None:
        raise _refuse(f"{shown}, inside of its {packer},", what)
    return plain


def _is_iso(head: bytes) -> bool:
    return head.startswith(_ISO[1], _ISO[0])


def _qcow2(head: bytes, shown: str) -> Found:
    version, backing, length = struct.unpack_from(">IQ8xQ", head, 4)
    (encryption,) = struct.unpack_from(">I", head, 32)
    features = struct.unpack_from(">Q", head, 72)[0] if version > 2 else 0  # noqa: PLR2004
    # Such an image makes qemu-img read other files of the frontend, of its author's choice.
    if backing or features & _QCOW2_EXTERNAL_DATA:
        raise DataError(
            f"{shown} is a qcow2 image that needs another file",
            hint="make it whole with 'qemu-img convert'",
        )
    if encryption:
        raise DataError(f"{shown} is an encrypted qcow2 image, which cxm does not take")
    if not 0 < length <= _MAX_BYTES:
        raise DataError(f"{shown} is a damaged qcow2 image: it claims to hold {length} bytes")
    return Found(Content.RAW, length, is_qcow2=True)


def recognise(fd: int, shown: str, runner: run.Runner) -> Found:
    """What an image file holds; raises DataError for what cxm does not take."""
    size = os.fstat(fd).st_size
    head = os.pread(fd, _HEAD, 0)
    if not head:
        raise DataError(f"{shown} is empty")
    what = _name_refused(head)
    if what is not None:
        raise _refuse(shown, what)
    if head.startswith(_QCOW2) and len(head) > 104:  # noqa: PLR2004 - the header's length
        return _qcow2(head, shown)
    if head.startswith(_GZIP):
        inside = _inside_gzip(head, shown)
        content = _inner(inside, shown, "gzip", Content.GZIP, Content.TAR_GZ)
        # A gzip file ends with its content's length, modulo 4 GiB.
        return Found(content, _last_number(fd, size), is_optical=_is_iso(inside))
    if head.startswith(_ZSTD) and len(head) > 18:  # noqa: PLR2004 - the header's length
        inside = _inside_zstd(fd, shown, runner)
        content = _inner(inside, shown, "zstd", Content.ZSTD, Content.TAR_ZST)
        return Found(content, _zstd_length(head), is_optical=_is_iso(inside))
    if _is_tar(head):
        return Found(Content.TAR, size)
    if size % _SECTOR:
        raise DataError(
            f"{shown} is nothing that cxm knows, and no disk: its {size} bytes are no multiple "
            f"of {_SECTOR}",
            hint="was it registered or uploaded completely?",
        )
    if os.pread(fd, len(_VHD), size - _SECTOR) == _VHD:
        raise _refuse(shown, "a Hyper-V disk (vhd)")
    return Found(Content.RAW, size, is_optical=_is_iso(head))


def _last_number(fd: int, size: int) -> int:
    tail = os.pread(fd, 4, max(0, size - 4))
    return int.from_bytes(tail, "little")
