# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what is checked of a domain's saved memory: that it is complete, how long, of which guest.

A save on a block device has no length of its own: behind it lies whatever was there before. Its
records are walked by their headers (Xen's docs/specs/libxl-migration-stream and
libxc-migration-stream); no memory is read.
"""

import json
import os
import struct
from dataclasses import dataclass
from typing import BinaryIO, Final

from cxm.config import GuestType
from cxm.errors import DataError

_XL_MAGIC: Final = b"Xen saved domain, xl format\n \0 \r"
_XL_HEAD: Final = struct.Struct("=4I")  # byte order, two sets of flags, length of xl's own data
_BYTE_ORDER: Final = 0x01020304
_LIBXL_IDENT: Final = 0x4C6962786C466D74  # "LibxlFmt"
_LIBXC_MARKER: Final = 0xFFFFFFFFFFFFFFFF
_RECORD: Final = struct.Struct("=2I")
_END: Final = 0
_LIBXC_CONTEXT: Final = 1
_LIBXC_HEAD_SIZE: Final = 24 + 16
_LIBXL_HEAD_SIZE: Final = 16
_MAX_DATA: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class SaveFile:
    """A complete save: its length in bytes, and the type of guest that it is of."""

    length: int
    guest_type: GuestType | None


class _Walker:
    """Reads headers of a file one after another."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._size = size
        self.offset = 0

    def take(self, count: int) -> bytes:
        self._file.seek(self.offset)
        data = self._file.read(count)
        if len(data) != count:
            raise DataError("the saved memory ends too early")
        self.offset += count
        return data

    def skip(self, count: int) -> None:
        self.offset += count
        if self.offset > self._size:
            raise DataError("the saved memory ends too early")

    def record(self) -> int:
        """Pass a record of either stream; returns its type."""
        kind, length = _RECORD.unpack(self.take(_RECORD.size))
        self.skip(-(-length // 8) * 8)
        return int(kind)


def _xl_head(walker: _Walker) -> GuestType | None:
    if walker.take(len(_XL_MAGIC)) != _XL_MAGIC:
        raise DataError("it holds no saved memory")
    order, _mandatory, _optional, length = _XL_HEAD.unpack(walker.take(_XL_HEAD.size))
    if order != _BYTE_ORDER or length > _MAX_DATA:
        raise DataError("the saved memory begins with a damaged header")
    data = walker.take(length)
    # A length of its own, then the configuration as JSON.
    try:
        config = json.loads(data[4:].rstrip(b"\0"))
        return GuestType(config["c_info"]["type"])
    except (ValueError, KeyError, TypeError):
        return None


def _libxc(walker: _Walker) -> None:
    head = walker.take(_LIBXC_HEAD_SIZE)
    if struct.unpack_from(">Q", head)[0] != _LIBXC_MARKER:
        raise DataError("the saved memory is damaged")
    while walker.record() != _END:
        pass


def check(file: BinaryIO) -> SaveFile:
    """Walk through a save from its beginning; raises DataError unless it is complete."""
    walker = _Walker(file, file.seek(0, os.SEEK_END))
    guest_type = _xl_head(walker)
    head = walker.take(_LIBXL_HEAD_SIZE)
    if struct.unpack_from(">Q", head)[0] != _LIBXL_IDENT:
        raise DataError("the saved memory is damaged")
    while True:
        kind = walker.record()
        if kind == _END:
            return SaveFile(walker.offset, guest_type)
        if kind == _LIBXC_CONTEXT:
            _libxc(walker)
