# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Files are changed whole or not at all, and keep their mode."""

import os
from pathlib import Path

import pytest

from cxm.errors import ConfigError, CxmError
from cxm.setup import files


def test_change_is_shown_and_written_with_the_old_mode(tmp_path: Path) -> None:
    """A link leads to the file behind it; a copy can be kept first."""
    target = tmp_path / "oned.conf"
    target.write_text("A = 1\nB = 2\n")
    target.chmod(0o640)
    link = tmp_path / "link"
    link.symlink_to(target)
    change = files.plan(str(link), "A = 1\nB = 3\n", mode=0o600)
    assert "-B = 2\n+B = 3\n" in change.diff()
    kept = f"{target}.cxm-stamp"
    files.keep(change, kept)
    files.write(change)
    assert target.read_text() == "A = 1\nB = 3\n"
    assert target.stat().st_mode & 0o777 == 0o640
    assert link.is_symlink()
    assert Path(kept).read_text() == "A = 1\nB = 2\n"
    assert not files.plan(str(target), "A = 1\nB = 3\n", mode=0o600).changes


def test_new_file_gets_the_mode_that_was_asked_for(tmp_path: Path) -> None:
    """Its diff begins at nothing."""
    change = files.plan(str(tmp_path / "new"), "x\n", mode=0o600)
    assert change.diff().startswith("--- /dev/null\n")
    files.write(change)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o600


def test_failed_write_leaves_nothing(tmp_path: Path) -> None:
    """Neither a half file nor a temporary one."""
    change = files.plan(str(tmp_path / "missing" / "file"), "x", mode=0o600)
    with pytest.raises(CxmError, match="cannot be written"):
        files.write(change)
    (tmp_path / "directory").mkdir()
    blocked = files.FileChange(str(tmp_path / "directory"), None, "x", 0o600, *_me())
    with pytest.raises(CxmError, match="cannot be written"):
        files.write(blocked)
    assert [path.name for path in tmp_path.iterdir()] == ["directory"]


def _me() -> tuple[int, int]:

    return os.geteuid(), os.getegid()


def test_file_that_is_no_text_is_one_sentence(tmp_path: Path) -> None:
    """Nothing is edited that was not understood."""
    path = tmp_path / "oned.conf"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read"):
        files.read(str(path))
