# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""root works with another account's rights wherever that account decides what a path means."""

import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from cxm import interrupt, rights
from cxm.errors import CxmError, RefusedError
from cxm.setup import files

ACCOUNT = (65534, 65534)

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can change its rights")


@pytest.fixture
def open_path() -> Iterator[Path]:
    """A directory that every account can reach, unlike pytest's."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


@contextmanager
def signals_are_exceptions() -> Iterator[None]:
    """TERM ends the test's work as it ends the helper's."""
    numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    interrupt.install()
    try:
        yield
    finally:
        interrupt.install()  # forgets what has come
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


@root_only
def test_rights_change_for_the_block_alone() -> None:
    """Inside: the account and its group, no other; after a failure everything is as before."""
    before = os.geteuid(), os.getegid(), os.getgroups()
    with suppress(ValueError), rights.working_as(*ACCOUNT):
        assert (os.geteuid(), os.getegid(), os.getgroups()) == (*ACCOUNT, [ACCOUNT[1]])
        raise ValueError
    assert (os.geteuid(), os.getegid(), os.getgroups()) == before


@root_only
def test_signal_waits_until_the_rights_are_back() -> None:
    """What undoes a failed verb must never run with half of the rights."""
    before = os.geteuid(), os.getegid(), os.getgroups()
    seen = []

    def work() -> None:
        with rights.working_as(*ACCOUNT):
            signal.raise_signal(signal.SIGTERM)
            seen.append("the block ends first")

    with signals_are_exceptions(), pytest.raises(interrupt.InterruptedBySignalError):
        work()
    assert seen
    assert (os.geteuid(), os.getegid(), os.getgroups()) == before


def account_directory(path: Path) -> Path:
    """A directory of the account, with a file of its own in it."""
    path.mkdir()
    (path / "oned.conf").write_text("A = 1\n")
    for each in (path, path / "oned.conf"):
        os.chown(each, *ACCOUNT)
    return path


@root_only
def test_copy_is_not_written_through_a_planted_link(open_path: Path) -> None:
    """The name of a copy can be guessed: a link there would give root's file to the account."""
    etc = account_directory(open_path / "etc")
    victim = open_path / "shadow"
    victim.write_text("secret\n")
    victim.chmod(0o600)
    (etc / "oned.conf.cxm-now").symlink_to(victim)
    change = files.plan(str(etc / "oned.conf"), "A = 2\n", mode=0o640)
    with pytest.raises(CxmError, match="cannot be copied"):
        files.keep(change, f"{change.path}.cxm-now")
    assert victim.read_text() == "secret\n"
    assert victim.stat().st_uid == 0


@root_only
def test_file_is_not_made_where_a_dangling_link_leads(open_path: Path) -> None:
    """A file that does not exist yet may be a link to a place that only root can write."""
    etc = account_directory(open_path / "etc")
    target = open_path / "cron"
    os.symlink(target, etc / "vmm_exec_cxm.conf")
    os.chown(etc / "vmm_exec_cxm.conf", *ACCOUNT, follow_symlinks=False)
    change = files.plan(str(etc / "vmm_exec_cxm.conf"), "x\n", mode=0o644, owner=ACCOUNT)
    with pytest.raises(CxmError, match="cannot be written"):
        files.write(change)
    assert not target.exists()


@root_only
def test_link_of_root_is_followed_with_the_rights_of_where_it_leads(open_path: Path) -> None:
    """The account may have put another link at the end of root's own."""
    account_directory(open_path / "theirs")
    secret = open_path / "secret"
    secret.write_text("secret\n")
    secret.chmod(0o600)
    (open_path / "theirs/second").symlink_to(secret)
    (open_path / "first").symlink_to("theirs/second")
    with pytest.raises(CxmError, match="cannot be read"):
        files.read(str(open_path / "first"))


@root_only
def test_directory_of_the_account_is_changed_as_before(open_path: Path) -> None:
    """The file keeps owner and mode, its copy too."""
    etc = account_directory(open_path / "etc")
    (etc / "oned.conf").chmod(0o600)
    change = files.plan(str(etc / "oned.conf"), "A = 2\n", mode=0o640)
    kept = f"{change.path}.cxm-now"
    files.keep(change, kept)
    files.write(change)
    assert (etc / "oned.conf").read_text() == "A = 2\n"
    assert Path(kept).read_text() == "A = 1\n"
    for path in (change.path, kept):
        status = os.stat(path)
        assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (*ACCOUNT, 0o600)


@root_only
def test_directory_of_root_that_others_can_write_is_refused(open_path: Path) -> None:
    """Nobody can tell whose rights would be right there; the hint ends that."""
    (open_path / "etc").mkdir()
    (open_path / "etc").chmod(0o777)
    with pytest.raises(RefusedError, match="others can write") as failure:
        files.plan(str(open_path / "etc/oned.conf"), "x\n", mode=0o640)
    assert failure.value.hint == f"chmod go-w {open_path}/etc"
