# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""What a kernel image tells about how Xen can run it."""

import bz2
import gzip
import io
import lzma
import struct
import tracemalloc
from collections.abc import Callable

import pytest

from cxm.errors import DataError
from cxm.run import System
from cxm.xen.kernel import Kernel, inspect

PV, PVH = 1, 18


def elf(*numbers: int, wide: bool = True, padding: int = 0) -> bytes:
    """An ELF file whose only content is notes of Xen and of others."""
    notes = b"".join(
        struct.pack("<III", len(name), 8, number)
        + name.ljust(-(-len(name) // 4) * 4, b"\0")
        + bytes(8)
        for number, name in [
            (3, b"GNU\0"),
            (18, b"Linux\0"),
            *((each, b"Xen\0") for each in numbers),
        ]
    )
    size = 64 if wide else 52
    entry = 56 if wide else 32
    at = size + entry + padding
    ident = b"\x7fELF" + bytes([2 if wide else 1, 1, 1]) + bytes(9)
    if wide:
        head = ident + struct.pack("<HHIQQQIHHH", 2, 62, 1, 0, size, 0, 0, size, entry, 1)
        phdr = struct.pack("<IIQQQQQQ", 4, 4, at, 0, 0, len(notes), len(notes), 4)
    else:
        head = ident + struct.pack("<HHIIIIIHHH", 2, 3, 1, 0, size, 0, 0, size, entry, 1)
        phdr = struct.pack("<IIIIIIII", 4, at, 0, 0, len(notes), len(notes), 4, 4)
    return head.ljust(size, b"\0") + phdr + bytes(padding) + notes


def image(payload: bytes, *, suffix: bool = True) -> bytes:
    """A bzImage with a payload, to which the kernel's build appends its unpacked size."""
    packed = payload + (b"\x00\x00\x10\x00" if suffix else b"")
    head = bytearray(2 * 512)
    head[0x1F1] = 1
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", head, 0x206, 0x020F)
    struct.pack_into("<II", head, 0x248, 96, len(packed))
    return bytes(head) + bytes(96) + packed + b"what follows the payload"


def zstd(data: bytes) -> bytes:
    """Compressed by the real program."""
    with System().produce(["zstd", "-q", "-c"], chunks=[data]) as output:
        return b"".join(output)


def look(data: bytes) -> Kernel:
    """Inspect an image."""
    return inspect(io.BytesIO(data), System())


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ((), Kernel(pvh=False, pv=False)),
        ((PV,), Kernel(pvh=False, pv=True)),
        ((PVH,), Kernel(pvh=True, pv=False)),
        ((6, PV, 5, PVH), Kernel(pvh=True, pv=True)),
    ],
)
def test_notes_of_an_elf_file(numbers: tuple[int, ...], expected: Kernel, *, wide: bool) -> None:
    """Xen's own notes count, those of others with the same number do not."""
    assert look(elf(*numbers, wide=wide)) == expected


@pytest.mark.parametrize(
    ("pack", "suffix"),
    [
        (gzip.compress, False),
        (lambda data: lzma.compress(data, lzma.FORMAT_XZ), True),
        (lambda data: lzma.compress(data, lzma.FORMAT_ALONE), True),
        (bz2.compress, True),
        (zstd, True),
        (bytes, False),
    ],
    ids=["gzip", "xz", "lzma", "bzip2", "zstd", "plain"],
)
@pytest.mark.parametrize("padding", [0, 5 << 20])
def test_kernels_are_unpacked(
    pack: Callable[[bytes], bytes], padding: int, *, suffix: bool
) -> None:
    """A bzImage is read whatever its payload is packed with, notes at its end included."""
    data = image(pack(elf(PV, PVH, padding=padding)), suffix=suffix)
    assert look(data) == Kernel(pvh=True, pv=True)


def test_a_gzip_of_an_elf_file() -> None:
    """Xen takes a vmlinux that was packed by hand, too."""
    assert look(gzip.compress(elf(PVH))) == Kernel(pvh=True, pv=False)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"#!/bin/sh\n",
        bytes(4096),
        gzip.compress(b"a tar, perhaps" * 100),
        elf(PVH)[:70],
        elf(PVH)[:-3],
        image(b"unknown compression"),
        image(gzip.compress(elf(PVH, padding=1 << 16))[:50], suffix=False),
        image(lzma.compress(elf(PVH))[:40] + b"damaged" * 10),
        image(zstd(elf(PVH))).replace(b"HdrS", b"hdrs"),
    ],
)
def test_what_is_no_kernel(data: bytes) -> None:
    """Anything else is an error, never a guess."""
    with pytest.raises(DataError):
        look(data)


@pytest.mark.parametrize(
    "pack",
    [
        gzip.compress,
        lambda data: lzma.compress(data, lzma.FORMAT_XZ),
        lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
        bz2.compress,
    ],
    ids=["gzip", "xz", "lzma", "bzip2"],
)
def test_unpacking_takes_little_memory(pack: Callable[[bytes], bytes]) -> None:
    """Anybody may bring a kernel: 500 bytes that unpack to a gigabyte must not fill dom0."""
    data = image(pack(bytes(64 << 20)))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="no ELF file"):
            look(data)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("offset", "form", "value"),
    [(32, "<Q", 300 << 20), (54, "<HH", (0xFFFF, 0xFFFF)), (56, "<H", 5000)],
    ids=["headers far away", "headers of 4 GiB", "thousands of headers"],
)
def test_header_is_not_followed_anywhere(
    offset: int, form: str, value: int | tuple[int, ...]
) -> None:
    """What no kernel has is not looked for: each step of it costs dom0 time and memory."""
    data = bytearray(elf(PVH))
    struct.pack_into(form, data, offset, *(value if isinstance(value, tuple) else (value,)))
    with pytest.raises(DataError, match="points to nowhere"):
        look(bytes(data))
