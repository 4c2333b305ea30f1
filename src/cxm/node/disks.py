# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the verbs about a VM's disks: made and filled, read, removed (docs/design/0002)."""

import itertools
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from cxm import blockdev, filesystem, lvm, names, run
from cxm.errors import CommandError, CxmError, DataError, RefusedError, UsageError
from cxm.lvm import Group
from cxm.names import DomainName, State, Tags, VmId
from cxm.node import adopted, guests
from cxm.node import directory as directories
from cxm.node import volumes as store
from cxm.node.life import Vm
from cxm.node.machine import Machine
from cxm.node.verbs import Call
from cxm.node.volumes import Owned, Owner
from cxm.wire import Item, Section, Zeros

if TYPE_CHECKING:
    from cxm.cluster.view import View

_log = logging.getLogger(__name__)

_DECOMPRESS: Final = {
    "gzip": ("gzip", "-dc"),
    "tar.gz": ("gzip", "-dc"),
    "zstd": ("zstd", "-q", "-d", "-c"),
    "tar.zst": ("zstd", "-q", "-d", "-c"),
}
_BTRFS: Final = "btrfs"
_DEFAULT_LEVEL: Final = 1


# --- filling ------------------------------------------------------------------------------------


def _data(items: Iterable[Item]) -> Iterator[bytes | Zeros]:
    """The content of a section; raises DataError when there is a second one."""
    for item in items:
        if isinstance(item, Section):
            raise DataError(f"the data holds a part '{item.name}' that was not expected")
        yield item


def _plain(items: Iterable[bytes | Zeros]) -> Iterator[bytes]:
    """The same as bytes, for a program's input."""
    for item in items:
        if isinstance(item, Zeros):
            for start in range(0, item.length, blockdev.BLOCK):
                yield bytes(min(blockdev.BLOCK, item.length - start))
        else:
            yield item


def _decompressed(
    machine: Machine,
    content: str,
    items: Iterable[bytes | Zeros],
    take: Callable[[Iterable[bytes | Zeros]], object],
) -> None:
    """Hand the decompressed items to ``take``, and check how the decompression ended."""
    argv = _DECOMPRESS.get(content)
    if argv is None:
        take(items)
        return
    try:
        with machine.runner.produce(argv, chunks=_plain(items)) as output:
            take(output)
    except CommandError as error:
        if error.argv != argv:
            raise
        raise DataError(f"the image is damaged: {run.tail(error.stderr)}") from error


def _fill_filesystem(
    machine: Machine, owner: Owner, device: str, kind: str, unpack: Callable[[str], None]
) -> None:
    """Make a file system on the zeroed device and let ``unpack`` put files into it."""
    with blockdev.open_device(device, write=True) as opened:
        opened.zero(0, opened.size)
        opened.sync()
    filesystem.make(machine.runner, device, kind)
    with filesystem.mounted(
        machine.runner,
        device,
        kind,
        root=machine.config.tmp_root,
        label=owner.label,
        write=True,
    ) as path:
        unpack(path)


def _fill(call: Call, owner: Owner, device: str, *, content: str, fstype: str) -> None:
    """Fill a device with the section that the call still holds; return when it is safe."""
    machine, data = call.machine, _data(call.items)

    def unpack(path: str) -> None:
        def untar(chunks: Iterable[bytes | Zeros]) -> None:
            filesystem.unpack(machine.runner, _plain(chunks), path, fstype)

        _decompressed(machine, content, data, untar)

    def copy(chunks: Iterable[bytes | Zeros]) -> None:
        with blockdev.open_device(device, write=True, block=call.block) as opened:
            opened.write(chunks)

    if content.startswith("tar"):
        _fill_filesystem(machine, owner, device, fstype, unpack)
    else:
        _decompressed(machine, content, data, copy)
    # A program may stop reading before the end, but the checksum stands there.
    for _rest in data:
        pass
    _sync(device)


def _sync(device: str) -> None:
    with blockdev.open_device(device, write=True) as opened:
        opened.sync()


def _has_domain(machine: Machine, owner: Owner) -> bool:
    from cxm.xen import xl  # noqa: PLC0415 - what makes a disk needs nothing of Xen

    uuid = names.domain_uuid(owner.cloud, owner.vm)
    return any(domain.uuid == uuid for domain in xl.domains(machine.runner))


def _unused(
    machine: Machine, owner: Owner, look: Callable[[Group], list[Owned]]
) -> tuple[Group, list[Owned]]:
    """The group, and what ``look`` finds in it, out of use if that is only a matter of moments.

    A domain keeps its disks in use for longer than anybody waits here.
    """
    group = store.load(machine, owner)
    found = look(group)
    if any(each.volume.in_use for each in found) and not _has_domain(machine, owner):
        return store.released(machine, owner, look)
    return group, found


def _section(items: Iterator[Item]) -> Section:
    first = next(items, None)
    if not isinstance(first, Section):
        raise DataError("the content of the disk is missing")
    return first


def _size(size_mib: int | None, section: Section) -> int:
    if size_mib is not None:
        return size_mib
    size = section.meta.get("size")
    if not isinstance(size, int) or size < 1:
        raise DataError("neither the request nor its data says how large the disk is")
    return -(-size // lvm.MIB)


@dataclass(frozen=True, slots=True)
class _Disk:
    """A disk that is to be made."""

    owner: Owner
    kind: str
    directory: str
    name: DomainName
    size_mib: int

    @property
    def tags(self) -> Tags:
        return Tags(self.owner.cloud, self.owner.vm, self.kind, State.FILLING, self.name)


def _reusable(
    machine: Machine, group: Group, disk: _Disk, found: Owned | None, *, replace: bool
) -> tuple[Owned | None, bool]:
    """The volume that stands where the disk is to be made, and whether its content is to be kept.

    What is of no use is removed. Raises RefusedError for a volume that a guest may have written to.
    """
    if found is None:
        return None, False
    # The context of a VM that is nowhere, though it should run, is made anew: a start follows.
    view = _in_cluster(machine, disk.owner)
    if why := _lives(view, or_shall=not replace):
        raise RefusedError(
            f"the volume {found.name} is that of VM {disk.owner.vm}, and {why}: it is kept",
            hint="OpenNebula's record is wrong: 'cxm-sync --dry-run' on the frontend says how",
        )
    if found.volume.in_use:
        raise RefusedError(f"the volume {found.name} of VM {disk.owner.vm} is in use")
    if found.tags.state is State.READY and not replace:
        # A host or its cluster knows a VM that has run until it goes.
        is_known = view is not None and view.resource is not None
        if is_known or guests.read(machine, disk.owner.cloud, disk.owner.vm) is not None:
            raise RefusedError(
                f"the volume {found.name} exists already and VM {disk.owner.vm} has run with it; "
                "its content is kept",
                hint="delete the VM if the disk is not wanted any more",
            )
        if found.volume.size == group.rounded(disk.size_mib):
            return found, True
    elif found.tags.state is State.READY and found.volume.size >= group.rounded(disk.size_mib):
        return found, False
    lvm.remove(machine.runner, group, found.name)
    return None, False


def _make(
    machine: Machine, disk: _Disk, fill: Callable[[str], None], *, replace: bool = False
) -> dict[str, Any]:
    """Make a disk with its link, or keep the one that is there; returns the verb's result."""
    group = store.load(machine, disk.owner)
    found = store.find(machine, group, disk.owner, disk.kind)
    store.check_name(group, disk.owner, disk.name)
    device = machine.device(names.lv_name(machine.config.lv_prefix, disk.owner.vm, disk.kind))
    reuse, keep = _reusable(machine, group, disk, found, replace=replace)
    if reuse is None and found is not None:
        group = lvm.group(machine.runner, group.name)
    with directories.linked(machine, disk.directory, disk.kind, device):
        if not keep:
            with store.filling(machine, group, disk.tags, disk.size_mib, reuse=reuse):
                fill(device)
    size_mib = group.rounded(disk.size_mib) // lvm.MIB if reuse is None else reuse.volume.size_mib
    return {"lv": os.path.basename(device), "size_mib": size_mib, "created": not keep}


def write(
    call: Call,
    *,
    vm: VmId,
    disk: str,
    directory: str,
    name: DomainName,
    size_mib: int | None,
    content: str,
    fstype: str | None,
    replace: bool,
) -> dict[str, Any]:
    """Make a disk from an image that follows as data."""
    if content.startswith("tar") and fstype is None:
        raise UsageError(f"disk {disk} of VM {vm}: a tar image needs a file system to unpack into")
    section = next(call.items, None)
    if not isinstance(section, Section):
        raise DataError(f"disk {disk} of VM {vm}: its content is missing")
    size = _size(size_mib, section)
    wanted = _Disk(Owner(call.cloud, vm), disk, directory, name, size)

    def fill(device: str) -> None:
        _fill(call, wanted.owner, device, content=content, fstype=fstype or "")

    made = _make(call.machine, wanted, fill, replace=replace)
    for _rest in _data(
        call.items
    ):  # a disk that was kept needs no content, but the caller sends it
        pass
    return made


def blank(
    call: Call,
    *,
    vm: VmId,
    disk: str,
    directory: str,
    name: DomainName,
    size_mib: int,
    made_as: str,
) -> dict[str, Any]:
    """Make an empty disk: all zeros, a swap space, or a file system without files."""

    def fill(device: str) -> None:
        with blockdev.open_device(device, write=True, block=call.block) as opened:
            opened.zero(0, opened.size)
            opened.sync()
        if made_as != "raw":
            filesystem.make(call.machine.runner, device, made_as)
            _sync(device)

    wanted = _Disk(Owner(call.cloud, vm), disk, directory, name, size_mib)
    return _make(call.machine, wanted, fill)


# --- reading ------------------------------------------------------------------------------------


def read(
    call: Call, *, vm: VmId, disk: str, content: str, fstype: str | None, level: int | None
) -> dict[str, Any]:
    """Send a disk's content, as it is or as an image of the given kind.

    Files only (``tar.gz``) become a file system again: where that would not be the one that they
    came from but ``fstype``, or where there is none, the disk is sent whole instead. So is one with
    btrfs: its subvolumes are file systems of their own, which an archive of one would not have.
    """
    machine, owner = call.machine, Owner(call.cloud, vm)
    group, (found,) = _unused(
        machine, owner, lambda group: [store.get(machine, group, owner, disk)]
    )
    if found.volume.in_use:
        raise RefusedError(f"the volume {found.name} of VM {vm} is in use; it cannot be read")
    with store.activated(machine, group, found) as device:
        kind = filesystem.detect(machine.runner, device)
        if content == "tar.gz" and (kind in (None, _BTRFS) or kind != (fstype or kind)):
            content = "gzip"
        meta = {"content": content, "size_mib": found.volume.size_mib, "fstype": kind}
        head = Section(f"disk.{disk}", meta)
        gzip = ("gzip", f"-{level or _DEFAULT_LEVEL}", "-c")
        if content == "tar.gz" and kind is not None:
            with (
                filesystem.mounted(
                    machine.runner,
                    device,
                    kind,
                    root=machine.config.tmp_root,
                    label=owner.label,
                    write=False,
                ) as path,
                filesystem.pack(machine.runner, path) as archive,
                machine.runner.produce(gzip, chunks=archive) as packed,
            ):
                call.send(itertools.chain([head], packed))
        else:
            with blockdev.open_device(device, write=False, block=call.block) as opened:
                if content == "raw":
                    call.send(itertools.chain([head], opened.read()))
                else:
                    with machine.runner.produce(gzip, chunks=_plain(opened.read())) as packed:
                        call.send(itertools.chain([head], packed))
    return {"lv": found.name, "content": content, "fstype": kind}


def volumes(call: Call, *, vm: VmId) -> dict[str, Any]:
    """The volumes of a VM, and which group they are in."""
    owner = Owner(call.cloud, vm)
    group = lvm.group(call.machine.runner, call.machine.config.vg_name)
    rows = [
        {
            "disk": owned.tags.kind,
            "lv": owned.name,
            "state": owned.tags.state.value,
            "size_mib": owned.volume.size_mib,
        }
        for owned in store.of_vm(call.machine, group, owner)
    ]
    return {"volumes": rows, "uuid": group.uuid}


def usage(call: Call) -> dict[str, Any]:
    """The space of the volume group, and which one it is."""
    group = lvm.group(call.machine.runner, call.machine.config.vg_name)
    total, free = group.size // lvm.MIB, group.free // lvm.MIB
    return {
        "vg": group.name,
        "uuid": group.uuid,
        "total_mib": total,
        "used_mib": total - free,
        "free_mib": free,
    }


# --- removing -----------------------------------------------------------------------------------


def _in_cluster(machine: Machine, owner: Owner) -> "View | None":
    """What this host's cluster knows of a VM; None where the host is in none."""
    if not machine.in_cluster:
        return None
    from cxm.cluster.view import look  # noqa: PLC0415 - most nodes are in no cluster

    return look(Vm(machine, owner))


def _lives(view: "View | None", *, or_shall: bool = True) -> str:
    """What keeps a VM's disks in this cluster, whatever OpenNebula believes; empty for nothing.

    One that should run may be nowhere for the moment: its node has died.
    """
    if view is None:
        return ""
    if view.where:
        return f"it runs on {' and '.join(view.where)}"
    wanted = or_shall and view.resource is not None and view.resource.started
    return "the cluster is to run it, and is about to start it" if wanted else ""


def require_gone(machine: Machine, owner: Owner) -> None:
    """Raise RefusedError while a VM runs, here or anywhere in the cluster, or is to run there."""
    why = _lives(_in_cluster(machine, owner))
    if not why and _has_domain(machine, owner):
        why = "its domain is still there"
    if why:
        raise RefusedError(f"VM {owner.vm} is not removed: {why}")


def _remove_all(machine: Machine, owner: Owner, look: Callable[[Group], list[Owned]]) -> list[str]:
    """Remove volumes, unless one of them is in use: then all are marked, and RefusedError says so.

    Only xl knows a domain that has not opened its disks yet, or has closed them.
    """
    group, found = _unused(machine, owner, look)
    if not found:
        return []
    used = [owned.name for owned in found if owned.volume.in_use]
    try:
        alive = _lives(_in_cluster(machine, owner))
    except CxmError:
        # Nobody knows whether it lives. oned does not ask again, whatever it is answered.
        for owned in found:
            _request_deletion(machine, group, owned)
        raise
    if used or alive or _has_domain(machine, owner):
        for owned in found:
            _request_deletion(machine, group, owned)
        what = f"its volume {used[0]} is in use" if used else "its domain is still there"
        what = alive or what
        raise RefusedError(
            f"VM {owner.vm} is not removed: {what}",
            hint="stop the VM; its volumes are marked delete-requested until they are removed",
        )
    lvm.remove(machine.runner, group, *(owned.name for owned in found))
    return [owned.name for owned in found]


def _request_deletion(machine: Machine, group: Group, owned: Owned) -> None:
    """Mark a volume; where LVM refuses that (another node has it), it stays unmarked, and is told.

    Then the sync finds a VM that is DONE in OpenNebula and lives on in the cluster.
    """
    try:
        store.request_deletion(machine, group, owned)
    except CommandError as error:
        _log.warning("%s is not marked delete-requested: %s", owned.name, error.message)


def remove(call: Call, *, vm: VmId, disk: str, directory: str | None) -> dict[str, Any]:
    """Remove a disk and the link to it; one that is not there is success."""
    machine, owner = call.machine, Owner(call.cloud, vm)

    def look(group: Group) -> list[Owned]:
        found = store.find(machine, group, owner, disk)
        return [] if found is None else [found]

    removed = _remove_all(machine, owner, look)
    if directory is not None:
        directories.unlink(machine, directory, disk)
    return {"removed": bool(removed)}


def remove_vm(call: Call, *, vm: VmId, directory: str) -> dict[str, Any]:
    """Remove all that this node holds of a VM."""
    from cxm.node import domains  # noqa: PLC0415 - no other verb here needs what it imports

    machine, owner = call.machine, Owner(call.cloud, vm)
    removed: list[str] = _remove_all(
        machine, owner, lambda group: store.of_vm(machine, group, owner)
    )
    if not removed and _has_domain(machine, owner):
        raise RefusedError(f"VM {vm} is not removed: its domain is still there", hint="stop the VM")
    removed += domains.forget(machine, owner.cloud, owner.vm)
    removed += directories.remove(machine, directory)
    adopted.forget(machine, owner)
    if next(adopted.noted(machine), None) is not None:
        removed += directories.sweep(machine, store.load(machine, owner))
    return {"removed": removed}
