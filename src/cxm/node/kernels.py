# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns which kernels and ramdisks a guest may boot, and where the node keeps its copies of them.

root hands these files to the guest, so a path must not be a way to read a file of the host. Files
in KERNEL_DIRS may be named. A file in the VM's own directory (from a FILE datastore) is read with
the rights of oneadmin and copied to ``/var/lib/cxm/kernels/<sha256>``: it outlives the directory,
and VMs with the same kernel share it. On a node of a cluster every file is copied, those in
KERNEL_DIRS too: the other nodes get it under the same path (:mod:`cxm.cluster.bootfiles`).
"""

import hashlib
import json
import os
import re
import stat
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any, BinaryIO, Final

from cxm import wholefile
from cxm.config import GuestType
from cxm.errors import DataError, RefusedError
from cxm.node import configs
from cxm.node.machine import Machine
from cxm.node.verbs import Call
from cxm.run import CHUNK
from cxm.xen import choice, kernel
from cxm.xen.choice import Choice, Images
from cxm.xen.guest import GuestSpec
from cxm.xen.kernel import Kernel

_MAX_SIZE: Final = 1 << 30
_KERNEL: Final = "vmlinu"  # vmlinuz, or vmlinux when it is not packed
# A copy that no configuration mentions may belong to a start that is under way.
_UNUSED_S: Final = 3600.0
_FACTS: Final = "facts.json"
_MAX_FACTS: Final = 500
DIGEST: Final = re.compile("[0-9a-f]{64}")
_NAMED: Final = re.compile(f"/kernels/(?P<digest>{DIGEST.pattern})(?![0-9a-f])")


def _store(machine: Machine) -> str:
    return os.path.join(machine.state_dir, "kernels")


def stage(machine: Machine, path: str, directory: str) -> str:
    """The path by which root may use a kernel or ramdisk; raises RefusedError for a forbidden one.

    ``directory`` is the VM's own.
    """
    path = os.path.normpath(path)
    if os.path.dirname(path) == directory:
        return _copy(machine, _open(machine, path))
    real = os.path.realpath(path)
    for allowed in machine.config.kernel_dirs:
        if real.startswith(os.path.realpath(allowed) + "/"):
            if not os.path.isfile(real):
                raise RefusedError(f"the kernel or ramdisk {path} does not exist on this node")
            _check_public(real)
            return _copy(machine, open(real, "rb")) if machine.in_cluster else real
    raise RefusedError(
        f"the kernel or ramdisk {path} is not in {' or '.join(machine.config.kernel_dirs)}",
        hint="put it there, name its directory in KERNEL_DIRS of the node's /etc/cxm/cxmrc, "
        "or take it from a FILE datastore (KERNEL_DS, INITRD_DS)",
    )


def _check_public(path: str) -> None:
    """Refuse a file that this node keeps from its users: a guest reads what it boots.

    Ubuntu keeps its kernels so, but they hold no secret; a ramdisk may hold keys.
    """
    if os.stat(path).st_mode & stat.S_IROTH or os.path.basename(path).startswith(_KERNEL):
        return
    raise RefusedError(
        f"the kernel or ramdisk {path} may not be read by everybody on this node",
        hint=f"if a guest may see what it holds: chmod a+r {path}",
    )


def _open(machine: Machine, path: str) -> BinaryIO:
    """A plain file of the VM's directory, opened with oneadmin's rights and through no link."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with machine.as_caller():
        try:
            fd = os.open(path, flags)
        except OSError as error:
            raise RefusedError(
                f"the kernel or ramdisk {path} cannot be read: {error.strerror}"
            ) from error
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_SIZE:
        os.close(fd)
        raise RefusedError(f"the kernel or ramdisk {path} is not a file, or too large")
    return open(fd, "rb")


def _copy(machine: Machine, source: BinaryIO) -> str:
    with source:
        return _store_copy(machine, read_all(source))


def read_all(source: BinaryIO) -> Iterator[bytes]:
    """The content of a file, in pieces."""
    while chunk := source.read(CHUNK):
        yield chunk


def _store_copy(machine: Machine, content: Iterable[bytes], wanted: str = "") -> str:
    """Write a copy, whole or not at all; returns its path. ``wanted`` is the hash it must have."""
    store = _store(machine)
    os.makedirs(store, mode=0o755, exist_ok=True)
    fresh = os.path.join(store, f"new.{os.getpid()}")
    digest, size = hashlib.sha256(), 0
    try:
        with open(fresh, "wb") as target:
            for chunk in content:
                size += len(chunk)
                if size > _MAX_SIZE:
                    raise RefusedError("a kernel or ramdisk of more than 1 GiB is not kept")
                digest.update(chunk)
                target.write(chunk)
            target.flush()
            os.fsync(target.fileno())
        if wanted and digest.hexdigest() != wanted:
            raise DataError(f"what came is not the kernel or ramdisk {wanted}: it has another hash")
        final = os.path.join(store, digest.hexdigest())
        os.replace(fresh, final)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(fresh)
    return final


# --- copies by their hash -----------------------------------------------------------------------


def mentioned(text: str) -> set[str]:
    """The hashes of the copies that a configuration names."""
    return {match["digest"] for match in _NAMED.finditer(text)}


def path_of(machine: Machine, digest: str) -> str:
    """Where this node has the copy with this hash, if it has it."""
    return os.path.join(_store(machine), digest)


def has(machine: Machine, digest: str) -> bool:
    """Whether the copy is here; one that is stays for an hour, whoever mentions it."""
    try:
        os.utime(path_of(machine, digest))
    except FileNotFoundError:
        return False
    return True


def keep(machine: Machine, digest: str, content: Iterable[bytes]) -> None:
    """Store what another node sends; raises DataError unless it has this hash."""
    _store_copy(machine, content, digest)


def drop_unused(machine: Machine, also: Collection[str] = ()) -> list[str]:
    """Remove the copies that neither a stored configuration nor ``also`` mentions any more."""
    store = _store(machine)
    if not os.path.isdir(store):
        return []
    used = configs.mentioned(machine, store) | set(also)
    removed = []
    for name in sorted(os.listdir(store)):
        path = os.path.join(store, name)
        with suppress(FileNotFoundError):
            old = time.time() - os.stat(path).st_mtime > _UNUSED_S
            if name not in used and name != _FACTS and old:
                os.unlink(path)
                removed.append(path)
    return removed


def tidy(call: Call) -> dict[str, Any]:
    """What ``gather`` is on a standalone host, which has nobody to gather from."""
    return {"removed": drop_unused(call.machine)}


# --- how a guest runs ---------------------------------------------------------------------------


def _known_facts(path: str) -> dict[str, list[bool]]:
    with suppress(OSError, ValueError):
        with open(path, encoding="utf-8") as file:
            known = json.load(file)
        if isinstance(known, dict):
            return known
    return {}


def facts(machine: Machine, path: str) -> Kernel | None:
    """How Xen can start a kernel, None when that cannot be told.

    Unpacking a kernel takes a second: what was found is remembered by path, size and time.
    """
    status = os.stat(path)
    key = f"{path} {status.st_size} {status.st_mtime_ns}"
    store = os.path.join(_store(machine), _FACTS)
    known = _known_facts(store)
    if key in known:
        pvh, pv = known[key]
        return Kernel(pvh=pvh, pv=pv)
    try:
        with open(path, "rb") as file:
            found = kernel.inspect(file, machine.runner)
    except DataError:
        return None
    kept = dict(list(known.items())[-_MAX_FACTS:]) | {key: [found.pvh, found.pv]}
    wholefile.write(store, json.dumps(kept), directory_mode=0o755)
    return found


def _image(machine: Machine, name: str) -> str | None:
    paths = (os.path.join(directory, name) for directory in machine.config.kernel_dirs)
    return next((path for path in paths if os.path.isfile(path)), None)


def choose(machine: Machine, spec: GuestSpec, path: str) -> Choice:
    """How the guest will run; ``path`` is its staged kernel, empty when it brings none."""
    images = Images(_image(machine, choice.GRUB_PVH), _image(machine, choice.GRUB_PV))
    needed = path and spec.guest_type is not GuestType.HVM
    chosen = choice.choose(
        spec.guest_type,
        path=path,
        kernel=facts(machine, path) if needed else None,
        bootloader=spec.bootloader,
        images=images,
    )
    if machine.in_cluster and chosen.kernel != path:
        # grub's image: another node may have another version of it, or none.
        return replace(chosen, kernel=_copy(machine, open(chosen.kernel, "rb")))
    return chosen
