# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns file systems on devices: finding, making and mounting them, and tar archives in and out.

A guest's file system is only ever mounted in a directory of root alone, without set-uid
programs, devices and execution, and is unmounted again whatever happens.
"""

import logging
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final

from cxm import interrupt
from cxm.config import FILESYSTEMS
from cxm.errors import CommandError, DataError, RefusedError
from cxm.run import Producer, Runner

_log = logging.getLogger(__name__)

_MAKE_TIMEOUT_S: Final = 900.0
# Unmounting writes what the kernel still holds of the data.
_UNMOUNT_TIMEOUT_S: Final = 900.0
# blkid: nothing was found; several things were found that contradict each other.
_BLKID_NOTHING: Final = (0, 2, 8)
# umount says the same for what is not mounted and what is busy; rmdir then tells them apart.
_UMOUNT_NOTHING: Final = (0, 1, 32)

_PREZEROED: Final = "assume_storage_prezeroed=1"
_EXT: Final = ("mke2fs", "-F", "-q", "-E")
# None of them asks anything, and none discards: a discarded block need not read as zeros.
_MAKE: Final = {
    "ext2": (*_EXT, f"nodiscard,{_PREZEROED}", "-t", "ext2"),
    "ext3": (*_EXT, f"nodiscard,{_PREZEROED}", "-t", "ext3"),
    "ext4": (*_EXT, f"nodiscard,{_PREZEROED}", "-t", "ext4"),
    "xfs": ("mkfs.xfs", "-f", "-q", "-K"),
    "btrfs": ("mkfs.btrfs", "-f", "-q", "-K"),
    "vfat": ("mkfs.vfat", "-I"),
    "swap": ("mkswap", "-f"),
}
# The guest that owns a copied xfs may be mounted beside its origin; both have the same UUID.
_MOUNT_OPTIONS: Final = {"xfs": ",nouuid"}

_TAR_UNIX: Final = ("--numeric-owner", "--xattrs", "--xattrs-include=*", "--acls")
# A FAT has neither owners nor modes that tar could restore.
_TAR_FAT: Final = ("--no-same-owner", "--no-same-permissions")


def detect(runner: Runner, device: str) -> str | None:
    """The file system on a device, if it is one of config.FILESYSTEMS; None for all else."""
    result = runner.run(["blkid", "-p", "-o", "export", device], ok=_BLKID_NOTHING)
    found = re.search(r"^TYPE=(\S+)$", result.stdout, re.MULTILINE)
    return found[1] if result.code == 0 and found and found[1] in FILESYSTEMS else None


def make(runner: Runner, device: str, kind: str) -> None:
    """Make a file system or ``swap`` on a device that holds nothing but zeros."""
    argv = [*_MAKE[kind], device]
    try:
        try:
            runner.run(argv, timeout_s=_MAKE_TIMEOUT_S)
        except CommandError as error:
            # e2fsprogs before 1.47 does not know that zeroed inode tables need no second zeroing.
            if _PREZEROED not in error.stderr:
                raise
            old = [word.replace(f",{_PREZEROED}", "") for word in argv]
            runner.run(old, timeout_s=_MAKE_TIMEOUT_S)
    except CommandError as error:
        # What is wrong stands first; mkfs.xfs lets its whole manual follow.
        said = error.stderr.strip().splitlines()
        if not said:
            raise
        error.message = f"no {kind} can be made on {device}: {said[0]}"
        raise


def _home(root: str) -> str:
    """The directory below ``root`` for the mounts, where nobody but root can plant anything."""
    path = os.path.join(root, "cxm")
    with suppress(FileExistsError):
        os.mkdir(path, 0o700)
    status = os.lstat(path)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o77:
        raise RefusedError(
            f"{path} is not a directory of root alone",
            hint="remove it; cxm makes it when it mounts the file system of a disk",
        )
    return path


def clear(runner: Runner, root: str, label: str) -> None:
    """Unmount and remove what a killed process has left below ``root`` under this label."""
    path = os.path.join(root, "cxm", label)
    if os.path.lexists(path):
        _home(root)
        _log.warning("%s is left from an action that was killed: unmounting it", path)
        _release(runner, path, ok=_UMOUNT_NOTHING)


def _release(runner: Runner, path: str, *, ok: Sequence[int] = (0,)) -> None:
    runner.run(["umount", path], timeout_s=_UNMOUNT_TIMEOUT_S, ok=ok)
    os.rmdir(path)


@contextmanager
def mounted(
    runner: Runner, device: str, kind: str, *, root: str, label: str, write: bool
) -> Iterator[str]:
    """Mount a device and give the path; ``label`` says below ``root`` whose mount it is.

    One label must not be used by two processes at once: the VM's lock sees to that.
    """
    clear(runner, root, label)
    path = os.path.join(_home(root), label)
    options = "nosuid,nodev,noexec," + ("rw,noatime" if write else "ro")
    try:
        os.mkdir(path, 0o700)
        runner.run(
            ["mount", "-t", kind, "-o", options + _MOUNT_OPTIONS.get(kind, ""), device, path],
            timeout_s=_MAKE_TIMEOUT_S,
        )
        yield path
        with interrupt.held_off():
            _release(runner, path)
    except BaseException:
        # What went wrong first is what the operator must read. An unmounting that failed, because
        # something looked into the directory just then, gets its second chance here.
        with interrupt.held_off(), suppress(CommandError, OSError):
            _release(runner, path, ok=_UMOUNT_NOTHING)
        raise


def unpack(runner: Runner, chunks: Iterable[bytes], directory: str, kind: str) -> None:
    """Unpack a tar archive, keeping owners by number, modes, ACLs, extended attributes, devices.

    Nothing gets outside of ``directory``: absolute names lose their first '/', links that lead
    outside are made last (tar's own care), and an archive with '..' in a name is refused.
    Raises DataError when the archive is damaged or too large.
    """
    keep = _TAR_FAT if kind == "vfat" else ("--same-owner", "-p", *_TAR_UNIX)
    try:
        runner.feed(["tar", "-x", "-f", "-", *keep, "-C", directory], chunks)
    except CommandError as error:
        raise _explain(error) from error


def _explain(error: CommandError) -> CommandError | DataError:
    """What tar's complaint says about the image."""
    if "No space left on device" in error.stderr:
        return DataError(
            "the image's files do not fit into the disk",
            hint="raise LV_SIZE in the image's template",
        )
    found = re.search(r"^tar: (.*): Member name contains '\.\.'", error.stderr, re.MULTILINE)
    if found:
        return DataError(f"the image holds a file outside of its root directory: '{found[1]}'")
    if "not look like a tar archive" in error.stderr:
        return DataError("the image is not a tar archive")
    if "Unexpected EOF" in error.stderr:
        return DataError("the tar archive in the image ends too early")
    if error.stderr:
        # The first complaint tells most, and there may be one for every file.
        said = " ".join(error.stderr.split())[:300]
        return DataError(f"the image cannot be unpacked: {said}")
    return error


def pack(runner: Runner, directory: str) -> Producer:
    """All files of a file system as a tar archive."""
    # When a file was last read or renamed is no part of an image.
    keep = ("--sparse", "--one-file-system", "--exclude=./lost+found", *_TAR_UNIX)
    times = "--pax-option=delete=atime,delete=ctime"
    return runner.produce(["tar", "-c", "-f", "-", *keep, times, "-C", directory, "."])
