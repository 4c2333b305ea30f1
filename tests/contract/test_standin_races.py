# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""What oned makes of a report that comes while a driver is at work (7.4's LifeCycleStates.cc)."""

import threading
import time

import pytest

from lab.oned.cloud import Action
from lab.oned.drivers import Answer, Log
from lab.oned.lifecycle import Lifecycle
from lab.oned.model import Datastore, History, Host, Vm
from lab.oned.profiles import profile
from lab.oned.transfer import Transfers
from lab.oned.vmm import Hypervisor

_HERE = Host(0, "node1", "cxm", "vmm_cxm")
_THERE = Host(1, "node2", "cxm", "vmm_cxm")
_FAILED = Answer(ok=False, info="no")


class Slow(Hypervisor):
    """Drivers that take their time: something happens before they answer."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.began = threading.Event()
        self.go_on = threading.Event()

    def deploy(self, vm: Vm, log: Log) -> Answer:
        self.began.set()
        self.go_on.wait(10)
        return self.answer

    def end(self, vm: Vm, action: str, log: Log) -> Answer:
        return self.deploy(vm, log)

    def migrate(self, vm: Vm, log: Log) -> Answer:
        return _FAILED


class Silent(Transfers):
    """Nothing is transferred."""

    def __init__(self) -> None:
        """Needs nothing."""


class Play:
    """A VM that is switched on or off, and reported so before its driver has answered."""

    def __init__(self, version: str, directory: str, answer: Answer, *, on: bool = True) -> None:
        self.drivers = Slow(answer)
        self.life = Lifecycle(
            profile(version),
            Silent(),
            self.drivers,
            lock=threading.RLock(),
            vm_dir=lambda _vm: directory,
            done=lambda _vm, _removed: None,
            schedule=lambda: None,
        )
        store = Datastore(101, "san", 1, "-", "cxm", [])
        self.vm = Vm(7, "vm7", [], [], state="POWEROFF" if on else "RUNNING")
        self.vm.histories.append(History(0, _HERE, store, int(time.time())))
        self.life.act(self.vm, Action.RESUME if on else Action.POWEROFF)
        assert self.drivers.began.wait(10)
        self.life.report(self.vm, "RUNNING" if on else "POWEROFF")

    def end(self) -> str:
        """The driver answers; returns the VM's state afterwards."""
        self.drivers.go_on.set()
        self.life.finish(10)
        return self.vm.state


@pytest.mark.parametrize(("version", "state"), [("3.8", "POWEROFF"), ("7.4", "RUNNING")])
def test_a_vm_that_is_reported_counts_as_deployed(version: str, state: str, tmp_path: str) -> None:
    """A failure that the driver reports afterwards is not heard, since 4.14."""
    play = Play(version, str(tmp_path), _FAILED)
    assert play.vm.state == ("BOOT_POWEROFF" if version == "3.8" else "RUNNING")
    assert play.end() == state


@pytest.mark.parametrize(("version", "state"), [("3.8", "RUNNING"), ("7.4", "POWEROFF")])
def test_a_vm_that_is_reported_off_counts_as_off(version: str, state: str, tmp_path: str) -> None:
    """It can be switched on again while its driver is still at work on it, since 4.14."""
    play = Play(version, str(tmp_path), _FAILED, on=False)
    assert play.end() == state


def test_a_late_answer_is_taken_for_that_of_a_migration(tmp_path: str) -> None:
    """The migration fails, and oned believes that it is there: nothing must report too early."""
    play = Play("7.4", str(tmp_path), Answer(ok=True, info="vm7"))
    play.life.migrate(play.vm, _THERE, live=True)
    assert play.vm.state == "MIGRATE"
    assert play.end() == "RUNNING"
    assert play.vm.history.host is _THERE
