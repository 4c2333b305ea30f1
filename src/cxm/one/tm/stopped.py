# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what a stopped VM keeps on the frontend, in its directory there.

``disk.N`` is a disk that oned moves by itself, ``volume.N`` one that it does not name (the context
of old versions), both sparse and raw; ``checkpoint`` is the saved memory. Other files are what lay
in the VM's directory on the host. A file appears whole or not at all (:mod:`cxm.sparse`).
"""

import os
import re
import shutil
import stat
from collections.abc import Iterator
from typing import Final

from cxm import sparse, wire
from cxm.errors import DataError, RefusedError
from cxm.names import CHECKPOINT
from cxm.one import sizes

_DISK: Final = re.compile(r"disk\.(0|[1-9][0-9]{0,3})")
_VOLUME: Final = re.compile(r"volume\.(0|[1-9][0-9]{0,3})")
_MODE: Final = 0o600


def disk_path(directory: str, disk: int) -> str:
    """The file that holds a disk which oned moves."""
    return os.path.join(directory, f"disk.{disk}")


def volume_path(directory: str, disk: int) -> str:
    """The file that holds a disk which oned does not name when it moves a VM."""
    return os.path.join(directory, f"volume.{disk}")


def holds(path: str) -> bool:
    """Whether a disk is kept in this file; raises RefusedError for something that cannot be ours.

    A link there is a host's: the frontend then sees the host's own directory.
    """
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return False
    if stat.S_ISREG(mode):
        return True
    raise RefusedError(
        f"{path} on the frontend is not a file that a stopped VM keeps there",
        hint="the frontend and its Xen hosts must not share the system datastore of this driver",
    )


def make_directory(directory: str) -> None:
    """Make the VM's directory on the frontend; one that exists is fine."""
    os.makedirs(directory, exist_ok=True)


def volumes(directory: str) -> dict[int, str]:
    """The disks kept here that oned does not name, by number."""
    return _numbered(directory, _VOLUME)


def disks(directory: str) -> dict[int, str]:
    """The disks kept here that oned names, by number; they stay until the directory is moved."""
    return _numbered(directory, _DISK)


def _numbered(directory: str, form: re.Pattern[str]) -> dict[int, str]:
    found = {}
    for name in _names(directory):
        match = form.fullmatch(name)
        if match:
            found[int(match[1])] = os.path.join(directory, name)
    return found


def _names(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except FileNotFoundError:
        return []


# --- in -------------------------------------------------------------------------------------------


class _Part:
    """The data of one section of a stream; afterwards ``following`` is the next section."""

    def __init__(self, items: Iterator[wire.Item]) -> None:
        self._items = items
        self.following: wire.Item | None = None

    def __iter__(self) -> Iterator[wire.Item]:
        for item in self._items:
            if isinstance(item, wire.Section):
                self.following = item
                return
            yield item


def _save(path: str, items: Iterator[wire.Item], mode: int) -> wire.Item | None:
    """Write one section into a file; returns the section that follows it."""
    part = _Part(items)
    with sparse.replacing(path, mode=mode) as fd:
        sparse.write(fd, part)
    return part.following


def receive_disk(fd: int, items: Iterator[wire.Item]) -> None:
    """Write the one section of a disk into an open file.

    A stream without a section leaves the file empty: the node's reply, which is read next, says
    why; :func:`check_received` catches a node that says nothing.
    """
    first = next(items, None)
    if first is None:
        return
    part = _Part(items)
    sparse.write(fd, part)
    if not isinstance(first, wire.Section) or part.following is not None:
        raise DataError("the content of the disk is not one section")


def check_received(fd: int, host: str) -> None:
    """Raise DataError when a download that ended well brought no disk."""
    if not os.fstat(fd).st_size:
        raise DataError(f"{host} sent an empty disk")


def receive_files(directory: str, items: Iterator[wire.Item]) -> None:
    """Write each section into the file of its name; a node sends no name with a slash."""
    section = next(items, None)
    while section is not None:
        if not isinstance(section, wire.Section) or not _is_name(section.name):
            raise DataError("the content of the VM's directory is not a sequence of files")
        mode = section.meta.get("mode")
        path = os.path.join(directory, section.name)
        section = _save(path, items, mode & 0o777 if isinstance(mode, int) else _MODE)


def _is_name(name: str) -> bool:
    return bool(name) and "/" not in name and name not in (".", "..") and not sparse.is_part(name)


# --- out ------------------------------------------------------------------------------------------


def send_files(directory: str) -> Iterator[wire.Item]:
    """All that is kept here but the disks, as the node takes it back."""
    for name in _names(directory):
        if sparse.is_part(name) or _VOLUME.fullmatch(name) or _DISK.fullmatch(name):
            continue
        path = os.path.join(directory, name)
        if not stat.S_ISREG(os.lstat(path).st_mode):
            continue
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            status = os.fstat(fd)
            if name == CHECKPOINT:
                meta = {"kind": "volume", "size_mib": sizes.mib(status.st_size)}
            else:
                meta = {"mode": stat.S_IMODE(status.st_mode)}
            yield wire.Section(name, meta)
            yield from sparse.read(fd, status.st_size)
        finally:
            os.close(fd)


# --- away -----------------------------------------------------------------------------------------


def remove_disk(path: str) -> None:
    """Remove a disk that is kept here, and what a killed action left of it."""
    for name in (path, sparse.part_of(path)):
        try:
            os.unlink(name)
        except FileNotFoundError:
            continue


def remove_directory(directory: str) -> None:
    """Remove all that the VM keeps on the frontend; nothing there is success."""
    if os.path.islink(directory):
        raise RefusedError(f"{directory} on the frontend is a link; it is not removed")
    if os.path.isdir(directory):
        shutil.rmtree(directory)
