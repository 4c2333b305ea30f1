# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns one whole lab: up, down, snapshot, restore, faults; tests and the command use this class."""

import fcntl
import hashlib
import json
import os
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import IO, Any, Self

from cxm.errors import CxmError, NotFoundError, RefusedError
from cxm.run import Result, System
from lab import (
    accel,
    faults,
    frontend,
    image,
    keys,
    namespaces,
    net,
    personality,
    process,
    qemu,
    snapshot,
)
from lab.machine import Machine, Power, Surroundings
from lab.namespaces import Namespace
from lab.places import Places, places
from lab.progress import Progress
from lab.spec import DATA_SERIAL, LabSpec

_STATE = "lab.json"
_BOOTED = "booted"


class Lab:
    """A running lab. Make one with :func:`up`, find a running one with :func:`attach`."""

    def __init__(self, where: Places, state: dict[str, Any], progress: Progress) -> None:
        self.places = where
        self.progress = progress
        self.lab_id = str(state["id"])
        self.spec = LabSpec.from_json(state["spec"])
        self.core = Namespace(int(state["core"]))
        self.frontend = Namespace(int(state["frontend"]))
        self._image = image.NodeImage(**state["image"])
        self._accelerator = str(state["accelerator"])
        self._bmcs: dict[str, int] = dict(state["bmcs"])
        around = Surroundings(
            where, self._image, self.core, self.frontend, self._accelerator, self.lab_id
        )
        self.machines = {
            host.name: Machine(host, around, int(state["machines"].get(host.name, 0)))
            for host in self.spec.hosts
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    # State.

    def _save(self) -> None:
        data = {
            "id": self.lab_id,
            "spec": self.spec.to_json(),
            "core": self.core.pid,
            "frontend": self.frontend.pid,
            "image": asdict(self._image),
            "accelerator": self._accelerator,
            "machines": {name: machine.pid for name, machine in self.machines.items()},
            "bmcs": self._bmcs,
        }
        path = self.places.of(_STATE)
        with open(path + ".new", "w", encoding="utf-8") as file:
            json.dump(data, file, indent=1)
        os.rename(path + ".new", path)

    def terms(self) -> snapshot.Terms:
        """What a snapshot must agree with to be restored here."""
        return snapshot.Terms(
            image=self._image.key,
            spec=self.spec.fingerprint(),
            keys=keys.fingerprint(self.places, self.spec),
            qemu=qemu.version(),
            accelerator=self._accelerator,
        )

    @property
    def accelerator(self) -> str:
        return self._accelerator

    def machine(self, name: str) -> Machine:
        """The machine called ``name``."""
        return self.machines[self.spec.host(name).name]

    def bmc_alive(self, name: str) -> bool:
        return process.alive(self._bmcs.get(name, 0)) if name in self._bmcs else False

    # Life.

    def boot(self) -> None:
        """Boot all machines from their fresh disks and wait until they are ready."""
        machines = list(self.machines.values())
        names = " ".join(self.machines)
        for machine in machines:
            with self.progress.step(f"{machine.name}: starting QEMU", machine.files.log):
                machine.start()
        self._save()
        for machine in machines:
            machine.go()
        with self.progress.step(f"{names}: booting Debian on Xen", machines[0].files.console_log):
            snapshot.in_parallel([machine.wait_for_ssh for machine in machines])
        for machine in machines:
            with self.progress.step(f"{machine.name}: waiting for its services", machine.files.log):
                failed = machine.wait_for_services()
                if failed:
                    self.progress.say(f"{machine.name}: these units failed: {' '.join(failed)}")
            self._make_volume_group(machine)

    def _make_volume_group(self, machine: Machine) -> None:
        if machine.host.data_gib:
            disk = f"/dev/disk/by-id/virtio-{DATA_SERIAL}"
            with self.progress.step(f"{machine.name}: making the volume group {self.spec.vg_name}"):
                machine.run(["vgcreate", "--yes", self.spec.vg_name, disk])

    def start_bmcs(self) -> None:
        """Start the BMC of every host; it lives as long as the lab, whatever its host does."""
        for machine in self.machines.values():
            log = self.places.log(f"{machine.name}-bmc")
            with self.progress.step(f"{machine.name}: starting its BMC", log):
                faults.write(self.places, machine.name, faults.Faults())
                self._bmcs[machine.name] = process.start(
                    [*self.core.prefix(), sys.executable, "-m", "lab.bmc",
                     machine.host.bmc_address, machine.files.bmc_control, machine.files.off,
                     faults.path(self.places, machine.name)],
                    log=log,
                    lab_id=self.lab_id,
                )  # fmt: skip
        self._save()

    def down(self) -> None:
        """End every process of the lab and remove its state."""
        _end_everything(self.places, {"id": self.lab_id, "core": self.core.pid,
                                      "frontend": self.frontend.pid})  # fmt: skip
        self.places.remove_state()

    # Snapshots.

    def snapshot(self, name: str) -> snapshot.Snapshot:
        """Save the whole running lab under ``name``."""
        with self.progress.step(f"saving the snapshot {name}"):
            self._forget_connections()
            machines = list(self.machines.values())
            return snapshot.save(self.places, name, machines, self.spec, self.terms())

    def restore(self, name: str) -> None:
        """Put the whole lab back into the state it had; faults made since are healed."""
        found = snapshot.load(self.places, name)
        found.check(self.terms())
        with self.progress.step(f"restoring the snapshot {name}"):
            self._forget_connections()
            for host in self.machines:
                if self._bmcs:
                    faults.heal(self, host)
            try:
                running = snapshot.restore(found, list(self.machines.values()))
            finally:
                self._save()
            snapshot.in_parallel([machine.wait_for_ssh for machine in running])
            snapshot.in_parallel([machine.set_clock for machine in running])

    def _forget_connections(self) -> None:
        snapshot.in_parallel([machine.forget_connection for machine in self.machines.values()])

    def snapshot_name(self, label: str) -> str:
        """The name under which programs keep the snapshot ``label`` of a lab like this one."""
        text = json.dumps(asdict(self.terms()), sort_keys=True)
        return f"{label}.{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    def prepared(self, label: str, prepare: Callable[["Lab"], None]) -> str:
        """Bring the lab into the state ``label``: by its snapshot, or by ``prepare`` once.

        ``label`` must change with everything that ``prepare`` depends on (for instance hold the
        hash of the package it installs). ``prepare`` finds freshly booted machines. Returns the
        snapshot's name, for later calls of :meth:`restore`.
        """
        name = self.snapshot_name(label)
        if snapshot.exists(self.places, name):
            self.restore(name)
            return name
        if label != _BOOTED:
            self.prepared(_BOOTED, lambda lab: lab.boot())
        prepare(self)
        self.snapshot(name)
        snapshot.prune(self.places, label)
        return name

    def booted(self) -> str:
        """Freshly booted machines, by the snapshot of their first boot if there is one."""
        return self.prepared(_BOOTED, lambda lab: lab.boot())

    # The frontend's place.

    def exec_argv(self, argv: Sequence[str]) -> list[str]:
        """The command that runs ``argv`` in the frontend's place, in the current directory."""
        return [*self.frontend.prefix(keep_directory=True), *argv]

    def exec(
        self, argv: Sequence[str], *, timeout_s: float = 60.0, ok: Sequence[int] = (0,)
    ) -> Result:
        """Run a command in the frontend's place."""
        return System().run(self.exec_argv(argv), timeout_s=timeout_s, ok=ok)

    def powers(self) -> dict[str, Power]:
        return {name: machine.power() for name, machine in self.machines.items()}


def _end_everything(where: Places, state: dict[str, Any]) -> None:
    """End all processes of a lab; its namespaces, networks and mounts end with them."""
    lab_id = str(state["id"])
    kept = [Namespace(int(state[name])) for name in ("core", "frontend") if name in state]
    networks = [space.network_id() for space in kept if space.alive(lab_id)]
    del where
    keepers = {space.pid for space in kept}
    found = process.find(lab_id, networks)
    process.end(pid for pid in found if pid not in keepers)
    process.end(process.find(lab_id, networks))


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
        with open(os.path.join(where.state, _STATE), encoding="utf-8") as file:
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
            _end_everything(where, state)
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
    built = image.node_image(where, telling)
    accelerator = accel.choose(where, qemu.xen_arguments(built, spec.hosts[0]))
    with _lock(where):
        left = _read(where)
        if left is not None:
            _end_everything(where, left)
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
            lab._save()  # noqa: SLF001 - this function is the other half of the constructor
            net.build(lab.core, lab.frontend, spec)
            frontend.furnish(where, lab.frontend, spec)
            make_disks(lab, built)
        lab.start_bmcs()
    except BaseException:
        _end_everything(where, state)
        where.remove_state()
        raise
    return lab


def make_disks(lab: Lab, built: image.NodeImage) -> None:
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
