# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""The context's files become a small CD, remade at each boot."""

from pathlib import Path

import pytest

from cxm.errors import CxmError, NotFoundError, UnreachableError, UsageError
from cxm.one.tm.context import make_cd
from cxm.run import System
from tests.fakes.hosts import Cloud, run


def _cd_file(cloud: Cloud, name: str, tmp_path: Path) -> bytes:
    """A file of the CD that the VM would see, read by its long name."""
    cd = tmp_path / "cd"
    cd.write_bytes(cloud.hosts["solo1"].content("lv-one-42-11"))
    result = System().run(["isoinfo", "-i", str(cd), "-R", "-x", f"/{name}"])
    return result.stdout.encode()


def _context(cloud: Cloud, *files: str) -> None:
    target = cloud.place("solo1", "disk.11")
    run(cloud, "context", str(cloud.front / "vms" / "42" / "context.sh"), *files, target, "42", "0")


def test_the_context_becomes_a_cd(cloud: Cloud, tmp_path: Path) -> None:
    """Its label, its files under their names; nothing stays on the frontend."""
    script = cloud.front / "init file.sh"
    script.write_text("#!/bin/sh\n")
    _context(cloud, f"{script}:'start it.sh'")
    assert cloud.hosts["solo1"].content("lv-one-42-11")[32808:32815] == b"CONTEXT"
    assert _cd_file(cloud, "context.sh", tmp_path) == b"HOSTNAME='web-1'\n"
    assert _cd_file(cloud, "start it.sh", tmp_path) == b"#!/bin/sh\n"
    assert not list((cloud.front / "tmp").iterdir())
    assert cloud.steps == [("solo1", "disk-write")]


def test_the_context_is_remade_at_each_boot(cloud: Cloud, tmp_path: Path) -> None:
    """From 5.0 on oned calls the action again, for the same disk."""
    _context(cloud)
    (cloud.front / "vms" / "42" / "context.sh").write_text("HOSTNAME='other'\n")
    _context(cloud)
    assert _cd_file(cloud, "context.sh", tmp_path) == b"HOSTNAME='other'\n"


def test_a_directory_of_files(cloud: Cloud, tmp_path: Path) -> None:
    """FILES may name a directory."""
    directory = cloud.front / "extra"
    (directory / "sub").mkdir(parents=True)
    (directory / "sub" / "file").write_text("deep\n")
    _context(cloud, str(directory))
    assert _cd_file(cloud, "extra/sub/file", tmp_path) == b"deep\n"


@pytest.mark.parametrize(
    ("files", "error", "says"),
    [
        (["/nowhere/init.sh"], NotFoundError, "the context file /nowhere/init.sh does not exist"),
        (["{front}/vms/42/context.sh"], UsageError, "two files of its context are named"),
        (["http://127.0.0.1:1/init.sh"], UnreachableError, "cannot be fetched"),
        (["http://127.0.0.1:1/"], UsageError, "has no name"),
    ],
)
def test_a_context_that_cannot_be_made_leaves_nothing(
    cloud: Cloud, files: list[str], error: type[CxmError], says: str
) -> None:
    """One sentence, and nothing on the frontend or the host."""
    with pytest.raises(error, match=says):
        _context(cloud, *(file.format(front=cloud.front) for file in files))
    assert not list((cloud.front / "tmp").iterdir())
    assert not cloud.steps


def test_any_of_the_tools_makes_the_cd(tmp_path: Path) -> None:
    """The first that is installed is taken; with none, a sentence says what to install."""
    (tmp_path / "files").mkdir()
    cd = tmp_path / "cd"
    make_cd(System(), str(tmp_path / "files"), str(cd), tools=(("no-such-tool",), ("genisoimage",)))
    assert cd.stat().st_size
    with pytest.raises(CxmError, match="none of no-such-tool to make"):
        make_cd(System(), str(tmp_path / "files"), str(cd), tools=(("no-such-tool",),))
