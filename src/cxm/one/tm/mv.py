# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the action mv: a VM's disks and directory change place.

Between a host and the frontend (stop, undeploy, resume) or between two standalone hosts (cold
migration; through the frontend, without a copy there). Between two nodes that share their storage
nothing is copied, and the node that is left may be dead. oned moves each disk, then the directory.

The place that is moved from is the truth as long as it holds the disk: its content replaces what an
earlier move, cut or given up, left at the other place. It is removed only when the copy is safe, so
a move that is killed anywhere and run again ends well, and nothing is ever lost.
"""

import itertools
import logging
from collections.abc import Iterator
from typing import Any

from cxm import image, sparse, wire
from cxm.content import Content
from cxm.errors import DataError, NotFoundError, RefusedError
from cxm.names import CHECKPOINT, State, VmId
from cxm.node.client import Node
from cxm.one import args, sizes, subject
from cxm.one.action import Call, Context
from cxm.one.args import Directory, DiskPlace, MoveDirectory, MoveDisk
from cxm.one.subject import Subject
from cxm.one.tm import leaving, relay, stopped

_log = logging.getLogger(__name__)

_REMOVE_TIMEOUT_S = 600.0
# LCM states PROLOG_MIGRATE_UNKNOWN and its failure: the host it was on does not answer.
_SOURCE_IS_LOST = (60, 61)


def run(ctx: Context, call: Call) -> str:
    """Move it; nothing is printed."""
    request = args.move(call.argv)
    source, target = request.source.host, request.target.host
    if source.lower() == target.lower():
        _check_same_place(request)
        return ""
    if isinstance(request, MoveDisk):
        _move_disk(ctx, request)
    else:
        _move_directory(ctx, request)
    return ""


def _check_same_place(request: MoveDisk | MoveDirectory) -> None:
    """On one host there is nothing to move, but for another system datastore's directory."""
    source, target = request.source, request.target
    if source.path != target.path:
        raise RefusedError(
            f"cxm does not move VM {request.vm} from {source.path} to {target.path} on the same "
            f"host {source.host}: its disks are in the host's volume group anyway",
            hint="use one system datastore for each volume group",
        )


def _shared(ctx: Context, target: Directory, vm: VmId) -> tuple[list[str], str]:
    """The VM's disks that are on the target's shared storage already, linked there; its group.

    The source is not asked: it may be dead.
    """
    found = ctx.node(target.host).call("dir-adopt", {"vm": vm, "dir": target.path})
    return [str(disk) for disk in found["disks"]], str(found["uuid"])


def _check_own_storage(source: str, target: str, vm: VmId, groups: tuple[str, str]) -> None:
    """Two hosts with one volume group have nothing to copy, and a copy would destroy the disk."""
    if groups[0] == groups[1]:
        raise RefusedError(
            f"cxm does not move VM {vm} from {source} to {target}: they have the same volume "
            "group, and no locks that tell who may write to it",
            hint="make them a cluster: cxm-setup cluster",
        )


# --- disks ----------------------------------------------------------------------------------------


def _move_disk(ctx: Context, request: MoveDisk) -> None:
    if ctx.is_store(request.source.host):
        _resume_disk(ctx, request)
    elif ctx.is_store(request.target.host):
        _stop_disk(ctx, request)
    else:
        _migrate_disk(ctx, request)


def _held(node: Node, vm: VmId) -> tuple[dict[str, str], str]:
    """The state of each volume of a VM on a node, by disk number or ``checkpoint``; its group."""
    found = node.call("vm-volumes", {"vm": vm})
    states = {str(row["disk"]): str(row["state"]) for row in found["volumes"]}
    return states, str(found["uuid"])


def _states(node: Node, vm: VmId) -> dict[str, str]:
    return _held(node, vm)[0]


def _has(node: Node, vm: VmId, disk: int) -> bool:
    return _states(node, vm).get(str(disk)) == State.READY


def _write_args(asked: Subject, place: DiskPlace, size_mib: int) -> dict[str, Any]:
    return {
        "vm": asked.record.vm,
        "disk": place.disk,
        "dir": place.directory,
        "name": asked.domain,
        "size_mib": size_mib,
        "content": Content.RAW.value,
        "fstype": None,
        "replace": True,
    }


def _send(ctx: Context, path: str, place: DiskPlace, asked: Subject) -> None:
    """Make a disk on a host from the file that holds it on the frontend."""
    with image.opened_as_is(path) as opened:
        ctx.node(place.host).upload(
            "disk-write",
            _write_args(asked, place, sizes.mib(opened.file_bytes)),
            opened.items(),
            pack=opened.is_worth_packing(),
        )


def _fetch(ctx: Context, place: DiskPlace, vm: VmId, path: str) -> None:
    """Keep a disk of a host in a file on the frontend."""
    with sparse.replacing(path) as fd:
        ctx.node(place.host).download(
            "disk-read",
            {"vm": vm, "disk": place.disk, "as": "raw", "fstype": None, "level": None},
            lambda items: stopped.receive_disk(fd, items),
            pack=True,
        )
        stopped.check_received(fd, place.host)


def _remove(ctx: Context, place: DiskPlace, vm: VmId) -> None:
    ctx.node(place.host).call("disk-remove", {"vm": vm, "disk": place.disk, "dir": place.directory})


def _resume_disk(ctx: Context, request: MoveDisk) -> None:
    path = request.source.path
    if stopped.holds(path):
        # It stays here until the directory has been moved: a resume that fails half-way may be
        # tried on another host.
        _send(ctx, path, request.target, subject.ask(ctx, request.vm))
    elif not _has(ctx.node(request.target.host), request.vm, request.target.disk):
        raise NotFoundError(
            f"VM {request.vm}: its disk {request.source.disk} is neither in {path} on the "
            f"frontend nor on {request.target.host}",
            hint="was the VM stopped while another frontend was in charge?",
        )


def _stop_disk(ctx: Context, request: MoveDisk) -> None:
    source, path = request.source, request.target.path
    stopped.make_directory(request.target.directory)
    is_kept = stopped.holds(path)
    try:
        _fetch(ctx, source, request.vm, path)
    except NotFoundError:
        # Moved already, by an action that was cut before it could say so?
        if not is_kept or str(source.disk) in _states(ctx.node(source.host), request.vm):
            raise
        return
    _log.info("VM %s disk %s is kept in %s", request.vm, source.disk, path)
    _remove(ctx, source, request.vm)


def _relay_disk(ctx: Context, source: DiskPlace, target: DiskPlace, asked: Subject) -> None:
    def deliver(items: Iterator[wire.Item]) -> None:
        head = relay.first_section(items)
        size_mib = head.meta.get("size_mib")
        if not isinstance(size_mib, int):
            raise DataError(f"{source.host} does not say how large disk {source.disk} is")
        ctx.node(target.host).upload(
            "disk-write",
            _write_args(asked, target, size_mib),
            itertools.chain([head], items),
            pack=True,
        )

    arguments = {
        "vm": asked.record.vm,
        "disk": source.disk,
        "as": "raw",
        "fstype": None,
        "level": None,
    }
    relay.relay(ctx.node(source.host), "disk-read", arguments, deliver)


def _migrate_disk(ctx: Context, request: MoveDisk) -> None:
    source, target, vm = request.source, request.target, request.vm
    place = Directory(target.host, target.directory)
    disks, group = _shared(ctx, place, vm)
    if str(target.disk) in disks:
        _log.info("VM %s disk %s is on storage that %s shares", vm, target.disk, target.host)
        return
    held, own = _held(ctx.node(source.host), vm)
    _check_own_storage(source.host, target.host, vm, (own, group))
    if str(source.disk) not in held:
        if _has(ctx.node(target.host), vm, target.disk):
            return
        raise NotFoundError(
            f"VM {vm}: its disk {source.disk} is neither on {source.host} nor on {target.host}"
        )
    _relay_disk(ctx, source, target, subject.ask(ctx, vm))
    _remove(ctx, source, vm)


# --- the directory --------------------------------------------------------------------------------


def _move_directory(ctx: Context, request: MoveDirectory) -> None:
    if ctx.is_store(request.source.host):
        _resume_directory(ctx, request)
    elif ctx.is_store(request.target.host):
        _stop_directory(ctx, request)
    else:
        _migrate_directory(ctx, request)


def _left_behind(source: Directory, states: dict[str, str]) -> Iterator[DiskPlace]:
    """The disks that are still on a host when the directory goes.

    oned names the disks of the VM's template, not that of its context, which up to 4.14 is made
    only once. Whatever it is, it must not be lost with the VM's other remains.
    """
    for kind, state in states.items():
        if kind != CHECKPOINT and state == State.READY:
            yield DiskPlace(source.host, source.path, int(kind))


def _resume_directory(ctx: Context, request: MoveDirectory) -> None:
    source, target = request.source.path, request.target
    asked = subject.ask(ctx, request.vm)
    kept = stopped.volumes(source)
    if named := stopped.disks(source):
        # Each has been sent before, by an action of its own; what is not there would be lost.
        there = _states(ctx.node(target.host), request.vm)
        kept |= {disk: path for disk, path in named.items() if there.get(str(disk)) != State.READY}
    for disk, path in kept.items():
        _send(ctx, path, DiskPlace(target.host, target.path, disk), asked)
    ctx.node(target.host).upload(
        "dir-write",
        {"vm": request.vm, "dir": target.path, "name": asked.domain},
        stopped.send_files(source),
        pack=True,
    )
    stopped.remove_directory(source)


def _stop_directory(ctx: Context, request: MoveDirectory) -> None:
    source, target, vm = request.source, request.target.path, request.vm
    node = ctx.node(source.host)
    stopped.make_directory(target)
    for place in _left_behind(source, _states(node, vm)):
        _fetch(ctx, place, vm, stopped.volume_path(target, place.disk))
    node.download(
        "dir-read",
        {"vm": vm, "dir": source.path},
        lambda items: stopped.receive_files(target, items),
        pack=True,
    )
    node.call("vm-remove", {"vm": vm, "dir": source.path}, timeout_s=_REMOVE_TIMEOUT_S)


def _migrate_directory(ctx: Context, request: MoveDirectory) -> None:
    source, target, vm = request.source, request.target, request.vm
    asked = subject.ask(ctx, vm)
    disks, group = _shared(ctx, target, vm)
    if disks:
        if asked.record.lcm_state not in _SOURCE_IS_LOST:
            leaving.drop(ctx, source.host, vm, source.path)
        return
    node = ctx.node(source.host)
    held, own = _held(node, vm)
    _check_own_storage(source.host, target.host, vm, (own, group))
    for place in _left_behind(source, held):
        _relay_disk(ctx, place, DiskPlace(target.host, target.path, place.disk), asked)

    def deliver(items: Iterator[wire.Item]) -> None:
        arguments = {"vm": vm, "dir": target.path, "name": asked.domain}
        ctx.node(target.host).upload("dir-write", arguments, items, pack=True)

    relay.relay(node, "dir-read", {"vm": vm, "dir": source.path}, deliver)
    node.call("vm-remove", {"vm": vm, "dir": source.path}, timeout_s=_REMOVE_TIMEOUT_S)
