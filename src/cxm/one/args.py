# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the arguments of Transfer Manager actions, 3.6 to 7.4: from oned's words to typed requests.

Pure. A request whose words contradict each other (a directory that is not the VM's) is refused, so
that no action works on another VM's disk.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cxm import fetch
from cxm.errors import UsageError
from cxm.names import VmId, vm_id
from cxm.one.version import OneVersion

_DISK: Final = re.compile(r"disk\.(0|[1-9][0-9]{0,3})")
_FILE: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,200}")
_HOST: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,252}")


@dataclass(frozen=True, slots=True)
class Directory:
    """A VM's directory in the system datastore of a host."""

    host: str
    path: str


@dataclass(frozen=True, slots=True)
class DiskPlace:
    """A disk of a VM on a host."""

    host: str
    directory: str
    disk: int

    @property
    def path(self) -> str:
        return f"{self.directory}/disk.{self.disk}"


@dataclass(frozen=True, slots=True)
class FilePlace:
    """A plain file, a kernel or ramdisk, in a VM's directory on a host."""

    host: str
    directory: str
    file: str


@dataclass(frozen=True, slots=True)
class Clone:
    """``clone`` and ``ln``: an image becomes a disk, or a file of a FILE datastore a kernel."""

    source: str  # a path on the frontend, or the address of a web server
    target: DiskPlace | FilePlace
    vm: VmId


@dataclass(frozen=True, slots=True)
class Blank:
    """``mkimage`` and ``mkswap``: an empty disk."""

    size_mib: int
    form: str  # FORMAT as oned gave it, or "swap"
    target: DiskPlace
    vm: VmId


@dataclass(frozen=True, slots=True)
class ContextFile:
    """A file of the context disk: where it is, and its name there (empty: the name it has)."""

    source: str
    name: str


@dataclass(frozen=True, slots=True)
class ContextDisk:
    """``context``: files become a CD."""

    files: tuple[ContextFile, ...]
    target: DiskPlace
    vm: VmId


@dataclass(frozen=True, slots=True)
class Delete:
    """``delete``: a disk, or the VM's directory with all that is left."""

    target: DiskPlace | Directory
    vm: VmId


@dataclass(frozen=True, slots=True)
class MoveDisk:
    """``mv`` of a disk."""

    source: DiskPlace
    target: DiskPlace
    vm: VmId


@dataclass(frozen=True, slots=True)
class MoveDirectory:
    """``mv`` of the VM's directory, after its disks."""

    source: Directory
    target: Directory
    vm: VmId


@dataclass(frozen=True, slots=True)
class SaveBack:
    """``mvds``: a disk goes back into its image."""

    source: DiskPlace
    image: str
    vm: VmId


@dataclass(frozen=True, slots=True)
class Migration:
    """``premigrate``, ``postmigrate`` and ``failmigrate``."""

    source: str
    target: str
    directory: str
    vm: VmId


@dataclass(frozen=True, slots=True)
class Monitor:
    """``monitor``: the space of a shared system datastore."""

    datastore: int
    description: str | None  # encoded XML; None: it comes on the standard input


def _expect(action: str, argv: Sequence[str], words: str) -> None:
    """Refuse a call with another number of arguments than ``words`` names."""
    if len(argv) != len(words.split()):
        raise UsageError(f"{action} takes {words}, and got {len(argv)} arguments: {' '.join(argv)}")


def _normal(path: str) -> str:
    normal = re.sub("^/+", "/", os.path.normpath(path))
    if not normal.startswith("/") or "\0" in path or "/../" in f"{path}/":
        raise UsageError(f"'{path}' is not an absolute path")
    return normal


def _split(word: str) -> tuple[str, str]:
    """Host and path of ``HOST:PATH``."""
    host, colon, path = word.partition(":")
    if not colon or not _HOST.fullmatch(host):
        raise UsageError(f"'{word}' is not HOST:PATH")
    return host, _normal(path)


def _check_owner(directory: str, vm: VmId) -> None:
    if os.path.basename(directory) != str(vm):
        raise UsageError(f"'{directory}' is not the directory of VM {vm}")


def place(word: str, vm: VmId) -> DiskPlace | FilePlace | Directory:
    """What ``HOST:PATH`` means for a VM: its directory, or a disk or file in it."""
    host, path = _split(word)
    if os.path.basename(path) == str(vm):
        return Directory(host, path)
    directory, name = os.path.split(path)
    _check_owner(directory, vm)
    match = _DISK.fullmatch(name)
    if match:
        return DiskPlace(host, directory, int(match[1]))
    if name.startswith("disk.") or not _FILE.fullmatch(name):
        raise UsageError(f"'{path}' is neither a disk nor a file of VM {vm}")
    return FilePlace(host, directory, name)


def _disk_place(word: str, vm: VmId) -> DiskPlace:
    found = place(word, vm)
    if not isinstance(found, DiskPlace):
        raise UsageError(f"'{word}' is not a disk of VM {vm}")
    return found


def image_source(word: str) -> str:
    """The image that ``HOST:PATH``, a path with a colon in it, or a web address names.

    oned puts its own host in front of a path only where that holds no colon.
    """
    if fetch.is_address(word):
        return word
    return _normal(word) if word.startswith("/") else _split(word)[1]


def clone(argv: Sequence[str]) -> Clone:
    """The request of ``clone`` and ``ln``."""
    _expect("clone", argv, "SOURCE HOST:TARGET VM DATASTORE")
    vm = vm_id(argv[2])
    target = place(argv[1], vm)
    if isinstance(target, Directory):
        raise UsageError(f"'{argv[1]}' is neither a disk nor a file of VM {vm}")
    return Clone(image_source(argv[0]), target, vm)


def _size_mib(word: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]{0,9}", word):
        raise UsageError(f"'{word}' is not the size of a disk in MiB")
    return int(word)


def mkimage(argv: Sequence[str]) -> Blank:
    """The request of ``mkimage``."""
    _expect("mkimage", argv, "SIZE FORMAT HOST:TARGET VM DATASTORE")
    vm = vm_id(argv[3])
    return Blank(_size_mib(argv[0]), argv[1], _disk_place(argv[2], vm), vm)


def mkswap(argv: Sequence[str]) -> Blank:
    """The request of ``mkswap``."""
    _expect("mkswap", argv, "SIZE HOST:TARGET VM DATASTORE")
    vm = vm_id(argv[2])
    return Blank(_size_mib(argv[0]), "swap", _disk_place(argv[1], vm), vm)


def _joined(words: Sequence[str]) -> list[str]:
    """Files whose quoted name held blanks, at which oned's driver split them, in one piece."""
    files: list[str] = []
    is_open = False
    for word in words:
        if is_open:
            files[-1] += f" {word}"
        else:
            files.append(word)
        tail = files[-1].partition(":'")[2]
        is_open = ":'" in files[-1] and not tail.endswith("'")
    return files


def _context_file(word: str) -> ContextFile:
    """A file as a web address, ``PATH``, or ``PATH:'NAME'``, the quotes gone where a shell ran."""
    if fetch.is_address(word):
        return ContextFile(word, "")
    path, colon, name = word.partition(":")
    if name.startswith("'") and name.endswith("'"):
        name = name[1:-1]
    return ContextFile(_normal(path), _context_name(name) if colon else "")


def _context_name(name: str) -> str:
    if not name or name in (".", "..") or "/" in name or "\0" in name:
        raise UsageError(f"'{name}' cannot be the name of a file of the context")
    return name


def context(argv: Sequence[str]) -> ContextDisk:
    """The request of ``context``."""
    if len(argv) < 4:  # noqa: PLR2004 - as the sentence says
        raise UsageError(
            f"context takes FILE... HOST:TARGET VM DATASTORE, and got: {' '.join(argv)}"
        )
    *words, target, vm_word, _datastore = argv
    vm = vm_id(vm_word)
    files = tuple(_context_file(word) for word in _joined(words))
    return ContextDisk(files, _disk_place(target, vm), vm)


def delete(argv: Sequence[str]) -> Delete:
    """The request of ``delete``."""
    _expect("delete", argv, "HOST:TARGET VM DATASTORE")
    vm = vm_id(argv[1])
    target = place(argv[0], vm)
    if isinstance(target, FilePlace):
        raise UsageError(f"'{argv[0]}' is neither a disk nor the directory of VM {vm}")
    return Delete(target, vm)


def move(argv: Sequence[str]) -> MoveDisk | MoveDirectory:
    """The request of ``mv``."""
    _expect("mv", argv, "HOST:SOURCE HOST:TARGET VM DATASTORE")
    vm = vm_id(argv[2])
    source, target = place(argv[0], vm), place(argv[1], vm)
    if isinstance(source, Directory) and isinstance(target, Directory):
        return MoveDirectory(source, target, vm)
    if isinstance(source, DiskPlace) and isinstance(target, DiskPlace):
        if source.disk == target.disk:
            return MoveDisk(source, target, vm)
        raise UsageError(f"mv of disk {source.disk} of VM {vm} to disk {target.disk}")
    raise UsageError(f"mv from '{argv[0]}' to '{argv[1]}' is neither of a disk nor of a directory")


def save_back(argv: Sequence[str]) -> SaveBack:
    """The request of ``mvds``."""
    _expect("mvds", argv, "HOST:SOURCE IMAGE VM DATASTORE")
    vm = vm_id(argv[2])
    image = image_source(argv[1])
    if fetch.is_address(image):
        raise UsageError(
            f"the image of disk '{argv[0]}' is {image}: nothing can be saved to a web server"
        )
    return SaveBack(_disk_place(argv[0], vm), image, vm)


def migration(argv: Sequence[str], version: OneVersion) -> Migration:
    """The request of ``premigrate``, ``postmigrate`` and ``failmigrate``.

    3.8 gives the hosts the other way round. A sixth argument is the VM's XML up to 5.8, the name
    of the calling TM from 5.10 on; neither is needed here.
    """
    if len(argv) < 5:  # noqa: PLR2004 - as the sentence says
        raise UsageError(
            f"a migration takes SOURCE TARGET DIRECTORY VM DATASTORE, and got: {' '.join(argv)}"
        )
    source, target, directory, vm_word = argv[:4]
    if version < (4, 0):
        source, target = target, source
    vm = vm_id(vm_word)
    path = _normal(directory)
    _check_owner(path, vm)
    return Migration(source, target, path, vm)


def monitor(argv: Sequence[str]) -> Monitor:
    """The request of ``monitor``: ``ID`` (6.8 on), ``- ID`` (6.4 on, optional) or ``XML ID``."""
    if not 1 <= len(argv) <= 2 or not argv[-1].isdecimal():  # noqa: PLR2004 - as the sentence says
        raise UsageError(f"monitor takes [XML] DATASTORE, and got {len(argv)} arguments")
    given = argv[0] if len(argv) > 1 and argv[0] != "-" else None
    return Monitor(int(argv[-1]), given)
