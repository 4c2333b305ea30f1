# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Bytes in and out of a device, here a plain file: content, zeros and nothing else."""

import hashlib
import itertools
import os
from collections.abc import Iterable
from pathlib import Path

import pytest

from cxm import blockdev
from cxm.errors import DataError
from cxm.wire import Zeros

MIB = 1 << 20
NOISE = hashlib.shake_128(b"noise").digest(2 * MIB)
SIZE = 5 * MIB


@pytest.fixture
def device(tmp_path: Path) -> str:
    """A "device" of 5 MiB on which an old tenant has left bytes everywhere."""
    path = tmp_path / "device"
    path.write_bytes(b"\xaa" * SIZE)
    return str(path)


def fill(path: str, items: Iterable[bytes | Zeros]) -> int:
    """Write items to a device."""
    with blockdev.open_device(path, write=True) as opened:
        length = opened.write(items)
        opened.sync()
    return length


def flat(items: Iterable[bytes | Zeros]) -> bytes:
    """Items as bytes."""
    return b"".join(bytes(each.length) if isinstance(each, Zeros) else each for each in items)


@pytest.mark.parametrize(
    "items",
    [
        [],
        [b""],
        [b"x"],
        [Zeros(1), b"x"],
        [b"x", Zeros(MIB), b"y"],
        [b"x", Zeros(2 * MIB - 1), b"y"],
        [Zeros(SIZE)],
        [Zeros(SIZE - 1), b"x"],
        [bytes(MIB), NOISE, bytes(3), b"z"],
        [NOISE[:MIB], bytes(MIB), NOISE[MIB:]],
        [NOISE[at : at + 4096] for at in range(0, 2 * MIB, 4096)],
        [NOISE[at : at + 777] for at in range(0, 2 * MIB, 777)],
        [Zeros(7), NOISE[:100], Zeros(64 * 1024), NOISE, Zeros(MIB), Zeros(MIB // 2)],
        [NOISE + NOISE],
    ],
    ids=lambda items: f"{len(items)} items",
)
def test_device_holds_content_and_zeros(device: str, items: list[bytes | Zeros]) -> None:
    """However the content is cut into pieces, it stands there, and zeros behind and between it."""
    content = flat(items)
    assert fill(device, items) == len(content)
    assert Path(device).read_bytes() == content.ljust(SIZE, b"\0")


@pytest.mark.parametrize("block", [MIB, 2 * MIB, 3 * MIB, 8 * MIB])
def test_a_device_is_read_and_written_in_blocks(device: str, block: int) -> None:
    """Whatever BLOCK_SIZE is, the content is the same; what is read comes in pieces of its size."""
    items: list[bytes | Zeros] = [NOISE[:777], Zeros(MIB + 5), NOISE[777:], Zeros(9), b"x"]
    with blockdev.open_device(device, write=True, block=block) as opened:
        opened.write(items)
        found = list(opened.read())
    assert flat(found) == Path(device).read_bytes() == flat(items).ljust(SIZE, b"\0")
    longest = max(len(each) for each in found if isinstance(each, bytes))
    assert MIB // 2 < longest <= block
    assert (longest > MIB) == (block > MIB)


@pytest.mark.parametrize("surplus", [[b"x"], [Zeros(1)], [bytes(MIB)], [Zeros(1 << 60)]])
def test_content_that_is_too_large(device: str, surplus: list[bytes | Zeros]) -> None:
    """One byte more than the device is an error, zero or not."""
    with pytest.raises(DataError, match="larger than the 5 MiB"):
        fill(device, [bytes(SIZE), *surplus])


@pytest.mark.parametrize(("start", "end"), [(0, SIZE), (1, SIZE - 1), (5, 6), (4096, 8192), (7, 7)])
def test_zeroing_keeps_its_bounds(device: str, start: int, end: int) -> None:
    """Exactly the bytes asked for become zeros."""
    with blockdev.open_device(device, write=True) as opened:
        opened.zero(start, end)
    content = Path(device).read_bytes()
    assert content == b"\xaa" * start + bytes(end - start) + b"\xaa" * (SIZE - end)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"x",
        bytes(3 * MIB),
        NOISE + bytes(MIB) + b"x",
        bytes(MIB + 1) + NOISE[:9],
        NOISE[:70000] + bytes(70000) + NOISE[:70000],
        bytes(64 * 1024) + b"x",
    ],
)
def test_reading_gives_all_and_finds_zeros(tmp_path: Path, content: bytes) -> None:
    """What is read is what stands there; runs of zeros are lengths, and never side by side."""
    path = tmp_path / "device"
    path.write_bytes(content)
    with blockdev.open_device(str(path), write=False) as opened:
        items = list(opened.read())
    assert flat(items) == content
    kinds = [isinstance(each, Zeros) for each in items]
    assert (True, True) not in list(itertools.pairwise(kinds))
    assert all(len(each) <= MIB for each in items if isinstance(each, bytes))


def test_holes_are_not_read(tmp_path: Path) -> None:
    """A sparse file of a terabyte is read in no time."""
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.seek(1 << 39)
        file.write(b"middle")
        file.truncate(1 << 40)
    with blockdev.open_device(str(path), write=False) as opened:
        items = list(opened.read())
    assert sum(each.length if isinstance(each, Zeros) else len(each) for each in items) == 1 << 40
    data = b"".join(each for each in items if isinstance(each, bytes))
    assert data.strip(b"\0") == b"middle"
    assert len(data) <= MIB


def test_zeroing_keeps_the_holes_of_a_file(tmp_path: Path) -> None:
    """Where a file reads as zeros already, nothing is written."""
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(8 * MIB)
    fill(str(path), [b"x"])
    assert os.stat(path).st_blocks * 512 < MIB


def test_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    """A file that loses its end is an error, not a shorter disk."""
    path = tmp_path / "file"
    path.write_bytes(NOISE)
    with blockdev.open_device(str(path), write=False) as opened:
        items = opened.read()
        next(items)
        os.truncate(path, 10)
        with pytest.raises(DataError, match="ended at byte"):
            list(items)


def test_missing_device() -> None:
    """A device that is not there is an error of the system, with its path."""
    with (
        pytest.raises(FileNotFoundError, match="/nowhere"),
        blockdev.open_device("/nowhere", write=False),
    ):
        pass
