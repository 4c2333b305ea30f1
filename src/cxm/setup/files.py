# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns how cxm-setup changes files: planned first, shown as a diff, then written whole or not.

Whoever can write a directory on the way decides which file a path means: root reads and writes
there with that account's rights.
"""

import difflib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from cxm.errors import ConfigError, CxmError, RefusedError
from cxm.rights import working_as


@dataclass(frozen=True, slots=True)
class FileChange:
    """A file as it is and as it shall be."""

    path: str
    old: str | None  # None: it does not exist
    new: str
    mode: int
    uid: int
    gid: int
    rights: tuple[int, int] = (0, 0)  # whose rights it is written with; see _rights()

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


def _leading(path: str) -> Iterator[tuple[str, os.stat_result]]:
    """What decides where a path leads: its directories and links, from the first on."""
    parent = os.path.dirname(path)
    if parent != path:
        yield from _leading(parent)
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    if stat.S_ISDIR(status.st_mode):
        yield path, status
    elif stat.S_ISLNK(status.st_mode):
        yield path, status
        yield from _leading(os.path.join(parent, os.readlink(path)))


def _rights(path: str) -> tuple[int, int]:
    """The user and group whose rights a path is read and written with.

    They are those of the first account but root that decides where it leads: root would follow it
    anywhere. Raises RefusedError where many accounts decide.
    """
    for part, status in _leading(os.path.abspath(path)):
        if status.st_uid != 0:
            return status.st_uid, status.st_gid
        others = stat.S_IWOTH | (stat.S_IWGRP if status.st_gid != 0 else 0)
        is_open = stat.S_ISDIR(status.st_mode) and not status.st_mode & stat.S_ISVTX
        if is_open and status.st_mode & others and os.geteuid() == 0:
            raise RefusedError(
                f"{part} belongs to root, but others can write it: {path} is not safe there",
                hint=f"chmod go-w {part}",
            )
    return 0, 0


def read(path: str) -> str | None:
    """A file's text, None when it does not exist; raises ConfigError when it cannot be read."""
    try:
        with working_as(*_rights(path)), open(path, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


def plan(path: str, new: str, *, mode: int, owner: tuple[int, int] | None = None) -> FileChange:
    """A change of ``path``; an existing file keeps its owner and mode."""
    rights = _rights(path)
    with working_as(*rights):
        path = os.path.realpath(path)
        old = read(path)
        uid, gid = owner or (os.geteuid(), os.getegid())
        if old is not None:
            status = os.stat(path)
            mode, uid, gid = stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid
    return FileChange(path, old, new, mode, uid, gid, rights)


def _give(fd: int, uid: int, gid: int, mode: int) -> None:
    if (os.geteuid(), os.getegid()) != (uid, gid):
        os.fchown(fd, uid, gid)
    os.fchmod(fd, mode)


def write(change: FileChange) -> None:
    """Put the new text in place at once; raises CxmError when the system refuses."""
    try:
        with working_as(*change.rights):
            _replace(change)
    except OSError as error:
        raise CxmError(
            f"{change.path} cannot be written: {error}",
            hint="a file is to belong to the account that its directory belongs to",
        ) from error


def _replace(change: FileChange) -> None:
    directory = os.path.dirname(change.path)
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=directory, prefix=".cxm-setup.", delete=False
    ) as file:
        try:
            file.write(change.new)
            file.flush()
            _give(file.fileno(), change.uid, change.gid, change.mode)
            os.fsync(file.fileno())
            os.rename(file.name, change.path)
        except BaseException:
            with suppress(OSError):
                os.unlink(file.name)
            raise


def keep(change: FileChange, copy: str) -> None:
    """Copy a file to ``copy``, which must not exist, before it is changed."""
    try:
        with working_as(*change.rights), open(change.path, "rb") as source:
            status = os.fstat(source.fileno())
            # Never through a link: its name can be guessed.
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            with open(os.open(copy, flags, 0o600), "wb") as target:
                shutil.copyfileobj(source, target)
                _give(target.fileno(), status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode))
    except OSError as error:
        raise CxmError(f"{change.path} cannot be copied to {copy}: {error}") from error
