# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the life of labs: bring one up, find a running one, take one down."""

import fcntl
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import IO, Any

from cxm.errors import CxmError, NotFoundError, RefusedError
from cxm.run import System
from lab import accel, frontend, image, namespaces, net, personality, preflight, qemu
from lab.namespaces import Namespace
from lab.places import Places, places
from lab.progress import Progress
from lab.running import STATE, Lab, end_everything
from lab.spec import LabSpec

__all__ = ["Lab", "attach", "down", "keeper", "prepare", "running", "up"]


def _end(state: dict[str, Any]) -> None:
    kept = [Namespace(int(state[name])) for name in ("core", "frontend") if name in state]
    end_everything(str(state["id"]), kept)


@contextmanager
def _lock(where: Places) -> Iterator[IO[str]]:
    """One command at a time makes or ends a lab of this name."""
    with open(where.cached("locks", where.name), "w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RefusedError(
                f"another command is just making or ending the lab '{where.name}'"
            ) from error
        yield file


def _read(where: Places) -> dict[str, Any] | None:
    try:
        with open(os.path.join(where.state, STATE), encoding="utf-8") as file:
            state: dict[str, Any] = json.load(file)
            return state
    except (OSError, ValueError):
        return None


def running(where: Places) -> bool:
    """Whether a lab of this name is up."""
    state = _read(where)
    return state is not None and Namespace(int(state["core"])).alive(str(state["id"]))


def attach(name: str | None = None, progress: Progress | None = None) -> Lab:
    """The running lab called ``name``."""
    where = places(name)
    state = _read(where)
    if state is None or not running(where):
        raise NotFoundError(f"the lab '{where.name}' is not up", hint="cxm-lab up")
    return Lab(where, state, progress or Progress(quiet=True))


def down(name: str | None = None) -> bool:
    """End the lab called ``name``, or what is left of it; whether there was anything."""
    where = places(name)
    with _lock(where):
        state = _read(where)
        if state is not None:
            _end(state)
        where.remove_state()
    with suppress(OSError):
        os.rmdir(os.path.dirname(where.state))
    return state is not None


def up(
    spec: LabSpec, *, name: str | None = None, progress: Progress | None = None, boot: bool = False
) -> Lab:
    """Bring up a lab: from the snapshot of its first boot, or (``boot``) by booting again."""
    lab = prepare(spec, name=name, progress=progress)
    try:
        if boot:
            lab.boot()
        else:
            lab.booted()
    except BaseException:
        lab.down()
        raise
    return lab


def prepare(spec: LabSpec, *, name: str | None = None, progress: Progress | None = None) -> Lab:
    """Everything of a lab but its machines: namespaces, networks, disks, BMCs."""
    telling = progress or Progress(quiet=True)
    where = places(name)
    if running(where):
        raise RefusedError(
            f"the lab '{where.name}' is up already",
            hint="cxm-lab down, or choose another with --name",
        )
    preflight.check(where, spec)
    built = image.node_image(where, telling)
    accelerator = accel.choose(where, qemu.xen_arguments(built, spec.hosts[0]))
    with _lock(where):
        left = _read(where)
        if left is not None:
            _end(left)
        where.remove_state()
        where.make_state()
        _empty_logs(where)
        return _assemble(where, spec, built, accelerator, telling)


def _empty_logs(where: Places) -> None:
    os.makedirs(where.logs, exist_ok=True)
    for name in os.listdir(where.logs):
        if name != "image.log":
            os.unlink(os.path.join(where.logs, name))


def _assemble(
    where: Places, spec: LabSpec, built: image.NodeImage, accelerator: str, progress: Progress
) -> Lab:
    log = where.log("lab")
    state: dict[str, Any] = {"id": uuid.uuid4().hex}
    try:
        with progress.step("making networks and disks", log):
            for kept in ("core", "frontend"):
                state[kept] = namespaces.make(log=log, lab_id=state["id"]).pid
            state |= {
                "spec": spec.to_json(),
                "image": asdict(built),
                "accelerator": accelerator,
                "machines": {},
                "bmcs": {},
            }
            lab = Lab(where, state, progress)
            lab.save()
            net.build(lab.core, lab.frontend, spec)
            frontend.furnish(where, lab.frontend, spec)
            _make_disks(lab, built)
        lab.start_bmcs()
    except BaseException:
        _end(state)
        where.remove_state()
        raise
    return lab


def _make_disks(lab: Lab, built: image.NodeImage) -> None:
    """Fresh disks for every machine: an overlay on the image, empty sparse files."""
    for host in lab.spec.hosts:
        files = lab.machine(host.name).files
        personality.write_disk(files.personality, personality.files(lab.places, lab.spec, host))
        System().run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw",
                      "-b", built.root, files.root])  # fmt: skip
        if host.data_gib:
            _sparse(files.data, host.data_gib)
        if host.san:
            _sparse(files.san, lab.spec.san_gib)


def _sparse(path: str, gib: int) -> None:
    try:
        with open(path, "wb") as file:
            file.truncate(gib << 30)
    except OSError as error:
        raise CxmError(f"cannot make the disk {path}: {error.strerror}") from error


def keeper(name: str | None = None) -> int | None:
    """The process whose namespaces a running lab lives in."""
    where = places(name)
    state = _read(where)
    return int(state["core"]) if state is not None and running(where) else None
