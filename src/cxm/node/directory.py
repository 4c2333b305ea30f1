# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the VM's directory on a node: links to disks, files in and out, its end.

The directory is oneadmin's, so anything may be planted in it: all work there is done with
oneadmin's effective user, and only regular files are read.
"""

import logging
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import Any

from cxm import blockdev, interrupt
from cxm.errors import CxmError, DataError
from cxm.lvm import Group
from cxm.names import CHECKPOINT, DomainName, State, Tags, VmId
from cxm.node import adopted, configs
from cxm.node import volumes as store
from cxm.node.machine import Machine
from cxm.node.verbs import Call
from cxm.node.volumes import Owner
from cxm.wire import Item, Section, Zeros

_log = logging.getLogger(__name__)

_VOLUME = "volume"
_SHARED = ("ceph", "cifs", "fuse.glusterfs", "gfs2", "nfs", "nfs4", "ocfs2")


def _make(directory: str) -> None:
    """Make the VM's directory; to be called as the caller."""
    try:
        os.makedirs(directory, exist_ok=True)
    except PermissionError as error:
        datastores = os.path.dirname(os.path.dirname(directory))
        raise CxmError(
            f"the VM's directory {directory} cannot be made: {error.filename} belongs to others",
            hint=f"once, as root on the host: install -d -o oneadmin {datastores}",
        ) from error


def _link_path(directory: str, disk: str) -> str:
    return os.path.join(directory, f"disk.{disk}")


def unlink(machine: Machine, directory: str, disk: str) -> None:
    """Remove the link to a disk; nothing there is success."""
    with machine.as_caller(), suppress(FileNotFoundError):
        os.unlink(_link_path(directory, disk))


@contextmanager
def linked(machine: Machine, directory: str, disk: str, device: str) -> Iterator[None]:
    """Put a link to ``device`` into the VM's directory; a failed block takes a new one away."""
    path = _link_path(directory, disk)
    fresh = f"{path}.new"
    is_new = not os.path.lexists(path)
    try:
        with machine.as_caller():
            _make(directory)
            with suppress(FileNotFoundError):
                os.unlink(fresh)
            os.symlink(device, fresh)
            os.replace(fresh, path)
        yield
    except BaseException:
        # The link of a disk that the block refused to touch stays, as the disk does.
        with interrupt.held_off(), machine.as_caller():
            for each in (fresh, path) if is_new else (fresh,):
                with suppress(OSError):
                    os.unlink(each)
        raise


def _remove_tree(path: str) -> None:
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                _remove_tree(entry.path)
            else:
                os.unlink(entry.path)
    os.rmdir(path)


def remove(machine: Machine, directory: str) -> list[str]:
    """Remove the VM's directory with all in it; returns what was removed."""
    with machine.as_caller():
        try:
            _remove_tree(directory)
        except FileNotFoundError:
            return []
    _log.info("removed the directory %s", directory)
    return [directory]


def _is_shared(machine: Machine, directory: str) -> bool:
    """Whether a directory is on a file system that other machines have mounted too (proc(5))."""
    best, kind = "", ""
    with open(os.path.join(machine.proc_dir, "self", "mountinfo"), encoding="utf-8") as file:
        for line in file:
            words, _dash, rest = line.partition(" - ")
            point = words.split()[4]
            if os.path.commonpath([point, directory]) == point and len(point) >= len(best):
                best, kind = point, rest.split()[0]
    return kind in _SHARED


def drop(call: Call, *, vm: VmId, directory: str) -> dict[str, Any]:
    """Remove the directory of a VM that has gone to another node of this cluster; nothing else.

    On a file system that the nodes share it is the other node's as well: it stays.
    """
    removed = [] if _is_shared(call.machine, directory) else remove(call.machine, directory)
    adopted.forget(call.machine, Owner(call.cloud, vm))
    return {"removed": removed}


def sweep(machine: Machine, group: Group) -> list[str]:
    """Remove directories of VMs that were to come here, did not, and have been deleted since."""
    removed: list[str] = []
    for owner, directory in adopted.noted(machine):
        if adopted.is_gone(machine, owner, group):
            removed += remove(machine, directory)
            adopted.forget(machine, owner)
    return removed


def sweep_unasked(machine: Machine, group: Group, *, root: int = 0) -> list[str]:
    """Remove what a VM that was rescued from this node has left here, once it has been deleted.

    OpenNebula never asks a node about that which was dead when it should have. A service does it,
    with the rights of the account that had the directory made, which could plant links: what is
    ``root``'s or another account's stays. Only for nodes of a cluster: a VM without volumes runs
    nowhere there.
    """
    removed: list[str] = []
    for owner, directory in adopted.noted(machine):
        if adopted.has_volumes(machine, owner, group):
            continue
        removed += configs.remove(machine, configs.of_vm(machine, owner.cloud, owner.vm))
        with suppress(FileNotFoundError):
            account = adopted.account(machine, owner)
            if account.uid == root or os.lstat(directory).st_uid != account.uid:
                continue
            removed += remove(replace(machine, caller=account), directory)
        adopted.forget(machine, owner)
    return removed


def adopt(call: Call, *, vm: VmId, directory: str) -> dict[str, Any]:
    """Where the volume group is shared: make the VM's directory, with links to its disks.

    The result names the disks that are complete, none where they would have to be copied, and
    which group this is.
    """
    machine, owner = call.machine, store.Owner(call.cloud, vm)
    group = store.load(machine, owner)
    disks: list[str] = []
    if group.shared:
        sweep(machine, group)
        for owned in store.of_vm(machine, group, owner):
            if owned.tags.state is State.READY and owned.tags.kind != CHECKPOINT:
                adopted.note(machine, owner, directory)
                with linked(machine, directory, owned.tags.kind, machine.device(owned.name)):
                    disks.append(owned.tags.kind)
    return {"disks": disks, "uuid": group.uuid}


# --- out ----------------------------------------------------------------------------------------


def _open_regular(path: str) -> tuple[int, os.stat_result] | None:
    """A regular file opened without following a link or waiting for a pipe; None for all else."""
    if not stat.S_ISREG(os.lstat(path).st_mode):
        return None
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        os.close(fd)
        return None
    return fd, status


def _names(directory: str) -> list[str]:
    """The names in a directory; none where a move that was cut has removed it already."""
    try:
        return sorted(os.listdir(directory))
    except FileNotFoundError:
        return []


def read(call: Call, *, vm: VmId, directory: str) -> dict[str, Any]:
    """Send the regular files of the VM's directory, and its checkpoint if it has one."""
    machine, owner = call.machine, Owner(call.cloud, vm)
    group = store.load(machine, owner)
    checkpoint = store.find(machine, group, owner, CHECKPOINT)
    sections: list[tuple[Section, blockdev.Device]] = []
    with ExitStack() as stack:
        # Opened as the caller, which may read them; an open file can be read by anybody.
        with machine.as_caller():
            for name in _names(directory):
                path = os.path.join(directory, name)
                opened = _open_regular(path)
                if opened is not None:
                    fd, status = opened
                    stack.callback(os.close, fd)
                    head = Section(name, {"mode": stat.S_IMODE(status.st_mode)})
                    sections.append((head, blockdev.Device(fd, path, status.st_size)))
        if checkpoint is not None and checkpoint.tags.state is State.READY:
            device = stack.enter_context(store.activated(machine, group, checkpoint))
            meta = {"kind": _VOLUME, "size_mib": checkpoint.volume.size_mib}
            volume = stack.enter_context(blockdev.open_device(device, write=False))
            sections.append((Section(CHECKPOINT, meta), volume))

        def items() -> Iterator[Item]:
            for head, source in sections:
                yield head
                yield from source.read()

        call.send(items())
    return {"files": [head.name for head, _source in sections]}


# --- in -----------------------------------------------------------------------------------------


def _sections(items: Iterator[Item]) -> Iterator[tuple[Section, Iterator[bytes | Zeros]]]:
    """Each section with its content; a content that has ended has had its checksum checked."""
    following = next(items, None)

    def content() -> Iterator[bytes | Zeros]:
        nonlocal following
        following = None
        for item in items:
            if isinstance(item, Section):
                following = item
                return
            yield item

    while following is not None:
        if not isinstance(following, Section):
            raise DataError("the data does not begin with the name of a file")
        head = following
        part = content()
        yield head, part
        for _rest in part:
            pass


def _put(
    machine: Machine, directory: str, name: str, mode: int, data: Iterator[bytes | Zeros]
) -> int:
    """Write a file of the VM's directory in one step; returns its size."""
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise DataError(f"'{name}' is not the name of a file")
    path = os.path.join(directory, name)
    fresh = f"{path}.new"
    size = 0
    try:
        with machine.as_caller():
            _make(directory)
            with suppress(FileNotFoundError):
                os.unlink(fresh)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(fresh, flags, 0o600)
        with open(fd, "wb", buffering=0) as file:
            for item in data:
                length = item.length if isinstance(item, Zeros) else len(item)
                if not isinstance(item, Zeros):
                    blockdev.write_at(fd, item, size)
                size += length
            file.truncate(size)
            os.fchmod(fd, mode & 0o777)
            os.fsync(fd)
        with machine.as_caller():
            os.replace(fresh, path)
    except BaseException:
        with interrupt.held_off(), machine.as_caller(), suppress(OSError):
            os.unlink(fresh)
        raise
    return size


def _put_checkpoint(
    machine: Machine, owner: Owner, name: DomainName, head: Section, data: Iterator[bytes | Zeros]
) -> None:
    size_mib = head.meta.get("size_mib")
    if head.name != CHECKPOINT or not isinstance(size_mib, int) or size_mib < 1:
        raise DataError(f"the volume '{head.name}' of the data is not a checkpoint with a size")
    group = store.load(machine, owner)
    found = store.find(machine, group, owner, CHECKPOINT)
    if found is not None:
        store.discard(machine, group, found)
        group = store.load(machine, owner)
    tags = Tags(owner.cloud, owner.vm, CHECKPOINT, State.FILLING, name)
    with (
        store.filling(machine, group, tags, size_mib) as device,
        blockdev.open_device(device, write=True) as opened,
    ):
        opened.write(data)
        opened.sync()


def write(call: Call, *, vm: VmId, directory: str, name: DomainName) -> dict[str, Any]:
    """Put files, and a checkpoint if there is one, where the VM will be resumed."""
    files = []
    for head, data in _sections(call.items):
        if head.meta.get("kind") == _VOLUME:
            _put_checkpoint(call.machine, Owner(call.cloud, vm), name, head, data)
        else:
            mode = head.meta.get("mode")
            _put(call.machine, directory, head.name, mode if isinstance(mode, int) else 0o644, data)
        files.append(head.name)
    return {"files": files}


def write_file(call: Call, *, vm: VmId, directory: str, file: str) -> dict[str, Any]:
    """Put one file, a kernel or ramdisk, into the VM's directory."""
    sizes = [
        _put(call.machine, directory, file, 0o644, data) for _head, data in _sections(call.items)
    ]
    if len(sizes) != 1:
        raise DataError(f"VM {vm}: the content of {file} came in {len(sizes)} parts, not in one")
    return {"size": sizes[0]}
