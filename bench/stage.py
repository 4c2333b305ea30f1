# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns where benchmarks play: a lone host with cxm, and VMs whose actions are called one by one."""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from bench.timed import TimedScripts
from cxm.errors import CxmError
from cxm.run import System
from cxm.setup import parts
from lab import guest_image, installed, keys, lab
from lab.guest_image import GuestImage
from lab.lab import Lab
from lab.machine import Machine
from lab.oned import scenarios
from lab.oned.cloud import Network
from lab.oned.documents import Documents
from lab.oned.drivers import Answer
from lab.oned.inlab import open_standin
from lab.oned.model import History, Host, Vm
from lab.oned.standin import StandIn
from lab.oned.transfer import Transfers
from lab.oned.vmm import Hypervisor
from lab.places import places
from lab.progress import Progress
from lab.spec import BRIDGE, make_spec

HOST = "solo1"
ADDRESS = "10.77.1.150"
_VERSION = "7.4"
_NETWORK = "bench"
_IMAGE_S = 60.0


@dataclass(slots=True)
class Stage:
    """A lone host, a stand-in for oned that schedules nothing, and its drivers to be called."""

    lab: Lab
    machine: Machine
    standin: StandIn
    guest: GuestImage
    scripts: TimedScripts
    transfers: Transfers
    hypervisor: Hypervisor
    documents: Documents
    direct: str  # the line of a VM's template that boots a kernel of the host's
    host: Host = field(default_factory=lambda: Host(0, HOST, "cxm", "vmm_cxm"))

    def image(self, path: str, name: str, more: str) -> int:
        """Register a file as an image; it is ready."""
        number = self.standin.register_image(
            path, f'NAME="{name}"\nTYPE="OS"\nDEV_PREFIX="xvd"\nFSTYPE="ext4"\n{more}'
        )
        until = time.monotonic() + _IMAGE_S
        while self.standin.image(number).state != "READY":
            if time.monotonic() > until:
                raise CxmError(f"the image {name} does not become ready")
            time.sleep(0.05)
        return number

    def vm(self, template: str, state: str) -> Vm:
        """A VM that oned has placed on the host just now."""
        vm = self.standin.record(self.standin.create_vm(template))
        vm.state = state
        place = self.standin.place
        os.makedirs(place.here(place.vm_dir(vm.id)), exist_ok=True)
        self.again(vm)
        return vm

    def again(self, vm: Vm) -> None:
        """A new history record on the same host."""
        sequence = len(vm.histories)
        vm.histories.append(
            History(sequence, self.host, self.standin.system_store, int(time.time()))
        )

    def line(self, vm: Vm, words: str) -> None:
        """Run a line of a transfer file as oned does; raises CxmError when it fails."""
        check(self.transfers.run_line(words.split(), vm.say), words)

    def root_ssh(self) -> str:
        """The words of a connection of its own to the host, as root."""
        key = keys.key_path(self.lab.places, keys.ROOT_KEY)
        return f"ssh -o BatchMode=yes -l root -i {key} {HOST}"


def check(answer: Answer, what: str) -> str:
    """What a driver answered; raises CxmError when it is a failure."""
    if not answer.ok:
        raise CxmError(f"{what}: {answer.info}")
    return answer.info


@contextmanager
def lab_of(name: str, hosts: Sequence[str]) -> Iterator[tuple[Lab, GuestImage]]:
    """A lab of its own with these hosts, and a guest's image; it ends at the end."""
    progress = Progress()
    if lab.running(places(name)):
        lab.down(name)
    with lab.prepare(make_spec(hosts), name=name, progress=progress) as running:
        yield running, guest_image.ready(running.places, progress)


@contextmanager
def opened(name: str) -> Iterator[Stage]:
    """The lab called ``name`` with its lone host, and all that belongs to it; ends at the end."""
    with lab_of(name, [HOST]) as (running, guest):
        installed.bring_up(running)
        machine = running.machine(HOST)
        direct = scenarios.directly(machine, guest)
        with open_standin(running, _VERSION) as standin:
            standin.create_network(Network(_NETWORK, BRIDGE, ADDRESS))
            scripts = TimedScripts(System(), standin.place, standin.profile)
            documents = Documents(standin.profile, standin.place)
            transfers = Transfers(scripts)
            local = parts.local_actions(standin.version)
            hypervisor = Hypervisor(scripts, documents, transfers, [], local)
            yield Stage(
                running,
                machine,
                standin,
                guest,
                scripts,
                transfers,
                hypervisor,
                documents,
                direct,
            )
