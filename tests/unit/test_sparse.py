# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Sparse files: holes and zeros do not travel, and a file appears whole or not at all."""

import fcntl
import os
import random
from collections.abc import Iterable
from pathlib import Path

import pytest

from cxm import sparse, wire
from cxm.errors import RefusedError

GRAIN = 1 << 16
MIB = 1 << 20


def assembled(items: Iterable[wire.Item]) -> bytes:
    """The content that items stand for."""
    parts = []
    for item in items:
        assert not isinstance(item, wire.Section)
        parts.append(bytes(item.length) if isinstance(item, wire.Zeros) else item)
    return b"".join(parts)


def read(path: Path) -> list[wire.Item]:
    """The items of a file."""
    with path.open("rb") as file:
        return list(sparse.read(file.fileno(), path.stat().st_size))


def travelled(items: Iterable[wire.Item]) -> int:
    """How many bytes cross the wire."""
    return sum(len(item) for item in items if isinstance(item, bytes))


def test_holes_do_not_travel(tmp_path: Path) -> None:
    """A file of 1 GiB with two small data areas sends only these."""
    path = tmp_path / "image"
    with path.open("wb") as file:
        file.seek(100 * MIB)
        file.write(b"x" * GRAIN)
        file.seek(800 * MIB)
        file.write(b"y" * 100)
        file.truncate(1024 * MIB)
    items = read(path)
    assert travelled(items) <= 3 * GRAIN
    zeros = sum(item.length for item in items if isinstance(item, wire.Zeros))
    assert zeros + travelled(items) == 1024 * MIB


def test_written_zeros_do_not_travel(tmp_path: Path) -> None:
    """Zeros that somebody wrote cost as little as holes, and neighbours become one item."""
    path = tmp_path / "image"
    path.write_bytes(b"a" * GRAIN + bytes(5 * MIB) + b"b" * 10)
    assert travelled(read(path)) == GRAIN + 10


@pytest.mark.parametrize("seed", range(20))
def test_any_file_comes_back_as_it_was(tmp_path: Path, seed: int) -> None:
    """Reading and writing is the identity, whatever the pattern of data, zeros and holes."""
    rng = random.Random(seed)
    path, copy = tmp_path / "image", tmp_path / "copy"
    with path.open("wb") as file:
        for _ in range(rng.randrange(12)):
            length = rng.choice([1, 511, GRAIN - 1, GRAIN, GRAIN + 1, MIB, 3 * MIB + 7])
            kind = rng.randrange(3)
            if kind == 0:
                file.write(rng.randbytes(length))
            elif kind == 1:
                file.write(bytes(length))
            else:
                file.seek(length, os.SEEK_CUR)
        file.truncate(file.tell())
    items = read(path)
    assert assembled(items) == path.read_bytes()
    with sparse.replacing(str(copy)) as fd:
        assert sparse.write(fd, items) == path.stat().st_size
    assert copy.read_bytes() == path.read_bytes()


def test_zeros_become_holes(tmp_path: Path) -> None:
    """A disk that is mostly empty takes little room on the frontend."""
    path = tmp_path / "copy"
    with sparse.replacing(str(path)) as fd:
        sparse.write(fd, [wire.Zeros(500 * MIB), b"end"])
    assert path.stat().st_size == 500 * MIB + 3
    assert path.stat().st_blocks * 512 < MIB


def test_an_empty_file_gives_nothing(tmp_path: Path) -> None:
    """There is nothing to send of nothing."""
    path = tmp_path / "image"
    path.touch()
    assert read(path) == []


def test_a_failure_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    """What was there stays until its successor is complete."""
    path = tmp_path / "image"
    path.write_bytes(b"old")

    def write_half() -> None:
        with sparse.replacing(str(path)) as fd:
            os.write(fd, b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert [entry.name for entry in tmp_path.iterdir()] == ["image"]
    assert path.read_bytes() == b"old"


def test_what_a_killed_writer_left_is_taken_over(tmp_path: Path) -> None:
    """The next try finds the file in the making and begins it anew."""
    path = tmp_path / "image"
    Path(sparse.part_of(str(path))).write_bytes(b"left by a process that was killed" * 1000)
    with sparse.replacing(str(path)) as fd:
        os.write(fd, b"new")
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["image"]


def test_two_writers_do_not_mix(tmp_path: Path) -> None:
    """The second is refused, and does not disturb the first."""
    path = str(tmp_path / "image")

    def write_too() -> None:
        with sparse.replacing(path):
            pass

    with sparse.replacing(path) as fd:
        with pytest.raises(RefusedError, match="being written by another action"):
            write_too()
        os.write(fd, b"first")
    assert Path(path).read_bytes() == b"first"


def test_a_link_in_place_of_the_file_in_the_making_is_not_followed(tmp_path: Path) -> None:
    """A planted link must not make us write elsewhere."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    path = str(tmp_path / "image")
    Path(sparse.part_of(path)).symlink_to(victim)
    with pytest.raises(OSError, match="symbolic"), sparse.replacing(path):
        pass
    assert victim.read_bytes() == b"precious"


@pytest.mark.parametrize(("before", "expected"), [(0o640, 0o640), (None, 0o660)])
def test_the_mode_of_a_replaced_file_stays(
    tmp_path: Path, before: int | None, expected: int
) -> None:
    """An image keeps who may read it."""
    path = tmp_path / "image"
    if before is not None:
        path.touch()
        path.chmod(before)
    with sparse.replacing(str(path), mode=0o660):
        pass
    assert path.stat().st_mode & 0o777 == expected


def test_a_lock_on_a_file_that_was_replaced_meanwhile_is_no_lock(tmp_path: Path) -> None:
    """Who waited at a file that became the result does not write into the result."""
    path = tmp_path / "image"
    part = Path(sparse.part_of(str(path)))
    with part.open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(RefusedError), sparse.replacing(str(path)):
            pass
    assert part.exists()
