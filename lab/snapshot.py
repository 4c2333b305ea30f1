# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns snapshots of a whole running lab: memory, devices and disks of all machines at one moment.

All machines stand still while they are saved, and all are loaded before any goes on: a cluster
notices nothing but the clock. A snapshot lives in the cache, so that a later lab starts from it.
"""

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from cxm.errors import NotFoundError, RefusedError, UsageError
from cxm.run import System
from lab.image import locked
from lab.machine import LOAD_S, Machine, Power
from lab.parallel import in_parallel
from lab.places import Places, check_name
from lab.spec import LabSpec

SAVE_S = 120.0
_MANIFEST = "snapshot.json"
_KEPT_PER_WORD = 8
# How often a moment is sought at which no guest has a processor; a busy one has it half the time.
_MOMENTS = 200
_MOMENT_S = 0.01
_WORDS = {
    "image": "node packages",
    "spec": "hosts or sizes",
    "keys": "ssh keys",
    "qemu": "QEMU binaries",
    "accelerator": "acceleration",
}


@dataclass(frozen=True, slots=True)
class Terms:
    """What must be the same for a snapshot to be usable."""

    image: str
    spec: str
    keys: str
    qemu: str
    accelerator: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One finished snapshot in the cache."""

    name: str
    directory: str
    terms: Terms
    spec: LabSpec
    states: dict[str, str]
    made: float

    def check(self, terms: Terms) -> None:
        """Refuse a snapshot that another kind of lab has made."""
        mine, wanted = asdict(self.terms), asdict(terms)
        if other := [_WORDS[name] for name, value in mine.items() if value != wanted[name]]:
            raise RefusedError(
                f"the snapshot '{self.name}' was made with other {' and other '.join(other)}"
            )

    def size(self) -> int:
        """The bytes it takes on disk."""
        paths = [os.path.join(self.directory, name) for name in os.listdir(self.directory)]
        return sum(os.stat(path).st_blocks * 512 for path in paths)


def directory_of(places: Places, name: str) -> str:
    """Where the snapshot called ``name`` is, or would be."""
    return places.cached("snapshots", name)


def load(places: Places, name: str) -> Snapshot:
    """The snapshot called ``name``."""
    directory = directory_of(places, name)
    try:
        with open(os.path.join(directory, _MANIFEST), encoding="utf-8") as file:
            data = json.load(file)
        return Snapshot(
            name=name,
            directory=directory,
            terms=Terms(**data["terms"]),
            spec=LabSpec.from_json(data["spec"]),
            states=data["states"],
            made=data["made"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NotFoundError(f"there is no snapshot '{name}'", hint="cxm-lab snapshots") from error


def exists(places: Places, name: str) -> bool:
    """Whether there is a finished snapshot called ``name``."""
    return os.path.exists(os.path.join(directory_of(places, name), _MANIFEST))


def everything(places: Places) -> list[Snapshot]:
    """All snapshots, newest last."""
    parent = os.path.dirname(directory_of(places, "x"))
    names = [name for name in os.listdir(parent) if exists(places, name)]
    return sorted((load(places, name) for name in names), key=lambda snapshot: snapshot.made)


def forget(places: Places, name: str) -> None:
    """Delete a snapshot."""
    shutil.rmtree(load(places, name).directory)


def prune(places: Places, label: str) -> None:
    """Keep the last used ones of the snapshots that programs made for labels like ``label``.

    Labels are alike when they begin with the same word ("cxm-1f2e" and "cxm-77aa").
    """
    word = _first_word(label)
    mine = [found for found in everything(places)
            if "." in found.name and _first_word(found.name.partition(".")[0]) == word]  # fmt: skip
    used = {
        found.name: os.stat(os.path.join(found.directory, _MANIFEST)).st_mtime for found in mine
    }
    for found in sorted(mine, key=lambda snapshot: used[snapshot.name])[:-_KEPT_PER_WORD]:
        shutil.rmtree(found.directory, ignore_errors=True)


def _first_word(label: str) -> str:
    return label.partition("-")[0]


def check_label(name: str) -> str:
    """Names with a dot are kept for snapshots that are made and pruned by programs."""
    return check_name(name, "the snapshot's name")


def _copy(source: str, target: str) -> None:
    System().run(["cp", "--sparse=auto", "--reflink=auto", source, target], timeout_s=SAVE_S)


def _disks(machine: Machine) -> dict[str, str]:
    """The disks of one machine: name in a snapshot to path in the lab."""
    disks = {f"{machine.name}-root.qcow2": machine.files.root}
    if machine.host.data_gib:
        disks[f"{machine.name}-data.img"] = machine.files.data
    return disks


def _all_disks(machines: Sequence[Machine]) -> dict[str, str]:
    disks: dict[str, str] = {}
    for machine in machines:
        disks |= _disks(machine)
        if machine.host.san:
            disks["san.img"] = machine.files.san
    return disks


def _memory(directory: str, machine: Machine) -> str:
    return os.path.join(directory, f"{machine.name}-memory.zst")


def save(
    places: Places, name: str, machines: Sequence[Machine], spec: LabSpec, terms: Terms
) -> Snapshot:
    """Save all machines; they go on as they were."""
    states = {machine.name: machine.power() for machine in machines}
    if gone := [host for host, state in states.items() if state is Power.GONE]:
        raise UsageError(f"cannot take a snapshot: the QEMU of {' '.join(gone)} has died")
    with_memory = [machine for machine in machines if states[machine.name] is not Power.OFF]
    target = directory_of(places, name)
    new = tempfile.mkdtemp(prefix="new-", dir=os.path.dirname(target))
    try:
        try:
            for machine in with_memory:
                _stand_still(machine, is_running=states[machine.name] is Power.RUNNING)
            in_parallel([_saver(machine, new) for machine in with_memory])
            for disk, path in _all_disks(machines).items():
                _copy(path, os.path.join(new, disk))
        finally:
            for machine in with_memory:
                if states[machine.name] is Power.RUNNING:
                    machine.go()
        manifest = {
            "terms": asdict(terms),
            "spec": spec.to_json(),
            "states": {host: state.value for host, state in states.items()},
            "made": time.time(),
        }
        with open(os.path.join(new, _MANIFEST), "w", encoding="utf-8") as file:
            json.dump(manifest, file, indent=1)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    with locked(places.cached("snapshots", "lock")):
        shutil.rmtree(target, ignore_errors=True)
        os.rename(new, target)
    return load(places, name)


def _stand_still(machine: Machine, *, is_running: bool) -> None:
    """Freeze a machine at a moment that can be loaded again.

    QEMU without KVM saves a processor that is inside a guest of Xen's, and then refuses to load it.
    """
    for _time in range(_MOMENTS):
        machine.hang()
        if not machine.in_guest():
            return
        if not is_running:
            break
        machine.go()
        time.sleep(_MOMENT_S)
    raise RefusedError(
        f"{machine.name} cannot be saved now: its processor is inside a guest, or has not come to "
        "Xen yet",
        hint="try again when its guests have less to do",
    )


def _saver(machine: Machine, directory: str) -> Callable[[], None]:
    def work() -> None:
        with machine.qmp() as qmp:
            qmp.save_memory(_memory(directory, machine), timeout_s=SAVE_S)

    return work


def _loader(machine: Machine, directory: str) -> Callable[[], None]:
    def work() -> None:
        with machine.qmp() as qmp:
            qmp.load_memory(_memory(directory, machine))
            qmp.wait_status("paused", timeout_s=LOAD_S)

    return work


def restore(snapshot: Snapshot, machines: Sequence[Machine]) -> list[Machine]:
    """Start all machines, ended before, as those of the snapshot; return those that run."""
    for disk, path in _all_disks(machines).items():
        _copy(os.path.join(snapshot.directory, disk), path)
    os.utime(os.path.join(snapshot.directory, _MANIFEST))
    states = {machine.name: Power(snapshot.states[machine.name]) for machine in machines}
    with_memory = [machine for machine in machines if states[machine.name] is not Power.OFF]
    for machine in machines:
        machine.start(incoming=machine in with_memory)
        if machine not in with_memory:
            with open(machine.files.off, "w", encoding="ascii"):
                pass
        elif os.path.exists(machine.files.off):
            os.unlink(machine.files.off)
    in_parallel([_loader(machine, snapshot.directory) for machine in with_memory])
    running = [machine for machine in with_memory if states[machine.name] is Power.RUNNING]
    for machine in running:
        machine.go()
    return running
