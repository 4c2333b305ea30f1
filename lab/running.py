# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns one running lab: its machines, its BMCs, its snapshots, the frontend's place.

lab.py makes such labs, finds them again and ends them.
"""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Self

from cxm.run import Result, System
from lab import (
    faults,
    image,
    keys,
    process,
    qemu,
    snapshot,
)
from lab.machine import Machine, Power, Surroundings
from lab.namespaces import Namespace
from lab.parallel import in_parallel
from lab.places import Places
from lab.progress import Progress
from lab.spec import DATA_SERIAL, LabSpec

STATE = "lab.json"
_BOOTED = "booted"
_BOOT_ALONE_S = 50  # measured, two cores without KVM


class Lab:
    """A running lab; ``lab.up`` makes one, ``lab.attach`` finds a running one."""

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
        around = Surroundings(where, self._image, self.core, self._accelerator, self.lab_id)
        self.machines = {
            host.name: Machine(host, around, int(state["machines"].get(host.name, 0)))
            for host in self.spec.hosts
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    # State.

    def save(self) -> None:
        """Write down what a later command must know to find the lab."""
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
        path = self.places.of(STATE)
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
        self.save()
        for machine in machines:
            machine.go()
        console = machines[0].files.console_log
        usual = f"{_BOOT_ALONE_S * max(1, len(machines) * 0.7):.0f} s"
        with self.progress.step(f"{names}: booting Debian on Xen", console, usual=usual):
            in_parallel([machine.wait_for_ssh for machine in machines])
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
        self.save()

    def down(self) -> None:
        """End every process of the lab and remove its state."""
        end_everything(self.lab_id, [self.core, self.frontend])
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
            in_parallel([machine.end for machine in self.machines.values()])
            for host in self.machines:
                faults.heal(self, host)
            try:
                running = snapshot.restore(found, list(self.machines.values()))
            finally:
                self.save()
            in_parallel([machine.wait_for_ssh for machine in running])
            in_parallel([machine.set_clock for machine in running])

    def _forget_connections(self) -> None:
        in_parallel([machine.forget_connection for machine in self.machines.values()])

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


def end_everything(lab_id: str, kept: Sequence[Namespace]) -> None:
    """End all processes of a lab; its namespaces, networks and mounts end with them."""
    networks = [space.network_id() for space in kept if space.alive(lab_id)]
    keepers = {space.pid for space in kept}
    process.end(pid for pid in process.find(lab_id, networks) if pid not in keepers)
    process.end(process.find(lab_id, networks))
