# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns how cxm-setup changes files: planned first, shown as a diff, then written whole or not."""

import difflib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from cxm.errors import ConfigError, CxmError


@dataclass(frozen=True, slots=True)
class FileChange:
    """A file as it is and as it shall be."""

    path: str
    old: str | None  # None: it does not exist
    new: str
    mode: int
    uid: int
    gid: int

    @property
    def changes(self) -> bool:
        """Whether anything is to be written."""
        return self.old != self.new

    def diff(self) -> str:
        """What would change, as a unified diff."""
        before = (self.old or "").splitlines(keepends=True)
        after = self.new.splitlines(keepends=True)
        start = "/dev/null" if self.old is None else self.path
        return "".join(
            line if line.endswith("\n") else f"{line}\n"
            for line in difflib.unified_diff(before, after, start, self.path)
        )


def read(path: str) -> str | None:
    """A file's text, None when it does not exist; raises ConfigError when it cannot be read."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


def plan(path: str, new: str, *, mode: int, owner: tuple[int, int] | None = None) -> FileChange:
    """A change of ``path``; an existing file keeps its owner and mode."""
    path = os.path.realpath(path)
    old = read(path)
    uid, gid = owner or (os.geteuid(), os.getegid())
    if old is not None:
        status = os.stat(path)
        mode, uid, gid = status.st_mode & 0o7777, status.st_uid, status.st_gid
    return FileChange(path, old, new, mode, uid, gid)


def write(change: FileChange) -> None:
    """Put the new text in place at once; raises CxmError when the system refuses."""
    directory = os.path.dirname(change.path)
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=directory, prefix=".cxm-setup.", delete=False
        ) as file:
            temporary = file.name
            file.write(change.new)
            file.flush()
            if (os.geteuid(), os.getegid()) != (change.uid, change.gid):
                os.fchown(file.fileno(), change.uid, change.gid)
            os.fchmod(file.fileno(), change.mode)
            os.fsync(file.fileno())
        os.rename(temporary, change.path)
    except OSError as error:
        if temporary is not None:
            with suppress(OSError):
                os.unlink(temporary)
        raise CxmError(f"{change.path} cannot be written: {error}") from error


def keep(path: str, stamp: str) -> str:
    """Copy a file beside itself before it is changed; returns the copy's path."""
    copy = f"{os.path.realpath(path)}.cxm-{stamp}"
    try:
        shutil.copy2(path, copy)
        status = os.stat(path)
        if os.geteuid() == 0:
            os.chown(copy, status.st_uid, status.st_gid)
    except OSError as error:
        raise CxmError(f"{path} cannot be copied to {copy}: {error}") from error
    return copy


@contextmanager
def working_as(uid: int, gid: int) -> Iterator[None]:
    """Work with another user's rights: a link planted in that user's directory gains nothing."""
    before = os.geteuid(), os.getegid(), os.getgroups()
    if before[0] != 0 or uid == 0:
        yield
        return
    try:
        os.setgroups([gid])
        os.setegid(gid)
        os.seteuid(uid)
        yield
    finally:
        os.seteuid(before[0])
        os.setegid(before[1])
        os.setgroups(before[2])
