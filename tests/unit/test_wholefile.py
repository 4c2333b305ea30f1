# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""A small file is written whole or not at all."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cxm import wholefile


@pytest.fixture(autouse=True)
def usual_umask() -> Iterator[None]:
    """That of a service."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    """A file's mode."""
    return path.stat().st_mode & 0o7777


def test_what_was_there_is_replaced(tmp_path: Path) -> None:
    """Who has the old file open goes on reading it."""
    path = tmp_path / "file"
    wholefile.write(str(path), "old\n")
    with path.open() as reader:
        wholefile.write(str(path), b"\xff")
        assert reader.read() == "old\n"
    assert path.read_bytes() == b"\xff"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(
    ("umask", "wanted", "expected"), [(0o022, 0o666, 0o644), (0, 0o600, 0o600)]
)
def test_mode(tmp_path: Path, umask: int, wanted: int, expected: int) -> None:
    """The umask takes from it; it is no other file's, neither the old one's nor a kill's rest."""
    path, fresh = tmp_path / "file", tmp_path / "file.new"
    for each in (path, fresh):
        each.touch()
        each.chmod(0o777)
    os.umask(umask)
    wholefile.write(str(path), "secret", mode=wanted, fresh=str(fresh), sync=True)
    assert mode(path) == expected


def test_owner(tmp_path: Path) -> None:
    """It is given before the file has its name."""
    path = tmp_path / "file"
    wholefile.write(str(path), "", owner=(os.geteuid(), os.getegid()))
    assert path.stat().st_uid == os.geteuid()


def test_the_directory_is_made_when_that_is_asked_for(tmp_path: Path) -> None:
    """With its own mode; one that is there keeps that which it has."""
    path = tmp_path / "made" / "file"
    with pytest.raises(FileNotFoundError):
        wholefile.write(str(path), "")
    for directory_mode in (0o700, 0o755):
        wholefile.write(str(path), "", directory_mode=directory_mode)
        assert mode(path.parent) == 0o700


def test_a_link_in_the_way_is_not_followed(tmp_path: Path) -> None:
    """Neither where the file is in the making, nor where it is to be."""
    victim, path, fresh = tmp_path / "victim", tmp_path / "file", tmp_path / "fresh"
    victim.write_text("precious")
    path.symlink_to(victim)
    fresh.symlink_to(victim)
    wholefile.write(str(path), "text", fresh=str(fresh))
    assert (victim.read_text(), path.read_text()) == ("precious", "text")
    assert not path.is_symlink()


@pytest.mark.parametrize("fresh", ["", "file.new"])
def test_a_failure_leaves_nothing(tmp_path: Path, fresh: str) -> None:
    """The old content stays, and nothing lies beside it."""
    path = tmp_path / "file"
    path.mkdir()  # no file can take its place
    with pytest.raises(IsADirectoryError):
        wholefile.write(str(path), "text", fresh=fresh and str(tmp_path / fresh))
    assert os.listdir(tmp_path) == ["file"]


def test_readers_of_the_directory_see_no_unfinished_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name is hidden, and differs from process to process."""
    seen: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda _fd: seen.extend(os.listdir(tmp_path)))
    wholefile.write(str(tmp_path / "file"), "text", sync=True)
    assert seen == [f".file.{os.getpid()}"]
