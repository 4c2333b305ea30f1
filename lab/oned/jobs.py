# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the steps that lives of VMs are made of: jobs, states, history records, what a failure does.

Which step follows which is the business of lifecycle.py and migration.py.
"""

import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from cxm.errors import UsageError
from lab.oned.drivers import Answer, Log
from lab.oned.model import Datastore, History, Host, Vm
from lab.oned.profiles import Profile
from lab.oned.transfer import Transfers
from lab.oned.vmm import Hypervisor

# State in which a step failed -> (up to 4.14, since). Where a step fails that is not here, the VM
# is taken to run on.
_FAILURES: Final = {
    "PROLOG": ("FAILED", "PROLOG_FAILURE"),
    "PROLOG_RESUME": ("STOPPED", "PROLOG_RESUME_FAILURE"),
    "PROLOG_UNDEPLOY": ("UNDEPLOYED", "PROLOG_UNDEPLOY_FAILURE"),
    "BOOT": ("FAILED", "BOOT_FAILURE"),
    "BOOT_MIGRATE": ("FAILED", "BOOT_MIGRATE_FAILURE"),
    "PROLOG_MIGRATE": ("FAILED", "PROLOG_MIGRATE_FAILURE"),
    "PROLOG_MIGRATE_POWEROFF": ("FAILED", "PROLOG_MIGRATE_POWEROFF_FAILURE"),
    "PROLOG_MIGRATE_SUSPEND": ("FAILED", "PROLOG_MIGRATE_SUSPEND_FAILURE"),
    "PROLOG_MIGRATE_UNKNOWN": ("FAILED", "PROLOG_MIGRATE_UNKNOWN_FAILURE"),
    "BOOT_SUSPENDED": ("SUSPENDED", "SUSPENDED"),
    "BOOT_POWEROFF": ("POWEROFF", "POWEROFF"),
    "BOOT_UNKNOWN": ("UNKNOWN", "UNKNOWN"),
    "BOOT_STOPPED": ("STOPPED", "BOOT_STOPPED_FAILURE"),
    "BOOT_UNDEPLOY": ("UNDEPLOYED", "BOOT_UNDEPLOY_FAILURE"),
    "EPILOG": ("FAILED", "EPILOG_FAILURE"),
    "EPILOG_STOP": ("FAILED", "EPILOG_STOP_FAILURE"),
    "EPILOG_UNDEPLOY": ("FAILED", "EPILOG_UNDEPLOY_FAILURE"),
}

_QUEUED_S: Final = 0.2

Done = Callable[[Vm, bool], None]  # the VM, and whether it was removed instead of shut down


class Jobs:
    """The steps of VMs' lives, one job a VM at a time."""

    def __init__(
        self,
        profile: Profile,
        transfers: Transfers,
        hypervisor: Hypervisor,
        *,
        lock: threading.RLock,
        vm_dir: Callable[[int], str],
        done: Done,
        schedule: Callable[[], None],
    ) -> None:
        self._profile = profile
        self._transfers = transfers
        self._hypervisor = hypervisor
        self._lock = lock
        self._vm_dir = vm_dir
        self._done = done
        self._schedule = schedule
        self._jobs: list[threading.Thread] = []
        self._busy: dict[int, threading.Lock] = {}

    def finish(self, timeout_s: float) -> None:
        """Wait for the jobs that are under way."""
        until = time.monotonic() + timeout_s
        for job in list(self._jobs):
            job.join(max(0.0, until - time.monotonic()))

    def _require(self, vm: Vm, *states: str) -> None:
        if vm.state not in states:
            raise UsageError(f"This action is not available for state {vm.state}")

    def _boot(self, vm: Vm, start: Callable[[Vm, Log], Answer]) -> None:
        state = vm.state
        done = start(vm, vm.say)
        starting = start == self._hypervisor.deploy
        if done.ok and starting:
            words = done.info.split()
            if words and words[0] != "-":
                vm.deploy_id = words[0]
            else:
                done = Answer(ok=False, info="Empty deploy ID for virtual machine")
        if self._try(vm, done, "deploy" if starting else "restore"):
            self._booted(vm, state)
        elif state == "BOOT_STOPPED" and not self._profile.failure_states:
            self._leave(vm, "EPILOG_STOP", "stop", "STOPPED")

    def _booted(self, vm: Vm, state: str) -> None:
        """A VM has booted, in ``state`` when that began; it may have been reported meanwhile.

        Then the user may have asked for more. A live migration is answered by this answer: oned
        takes it for done.
        """
        with self._lock:
            if vm.state == state:
                vm.history.action = ""
            elif vm.state == "MIGRATE":
                self._leave_record(vm.histories[-2], "live-migrate")
            else:
                return
            self._state(vm, "RUNNING")

    def _leave(self, vm: Vm, state: str, action: str, then: str) -> None:
        self._state(vm, state)
        vm.history.action = action
        if self._transfer(vm, "stop", self._transfers.stop(vm)):
            self._close(vm, action)
            self._state(vm, then)

    def _start(self, vm: Vm, job: Callable[[], None]) -> None:
        busy = self._busy.setdefault(vm.id, threading.Lock())

        def work() -> None:
            with busy:
                job()

        thread = threading.Thread(target=work, daemon=True, name=f"vm-{vm.id}")
        self._jobs = [one for one in self._jobs if one.is_alive()] + [thread]
        thread.start()

    def _later(self, work: Callable[[], None]) -> None:
        """Do it when the request has been answered, as oned does what it only puts into a queue."""

        def take() -> None:
            with self._lock:
                work()

        timer = threading.Timer(_QUEUED_S, take)
        timer.daemon = True
        timer.start()
        self._jobs.append(timer)

    def _transfer(self, vm: Vm, kind: str, lines: Sequence[str]) -> bool:
        return self._try(vm, self._transfers.run(vm, kind, lines, vm.say), f"transfer {kind}")

    def _try(self, vm: Vm, done: Answer, what: str) -> bool:
        """Whether a step succeeded; if not, the VM gets the state that follows from that."""
        if done.ok:
            return True
        with self._lock:
            self._blame(vm, what, done)
            old, new = _FAILURES.get(vm.state, ("RUNNING", "RUNNING"))
            if vm.state != "DONE":
                self._state(vm, new if self._profile.failure_states else old)
        return False

    def _blame(self, vm: Vm, what: str, done: Answer) -> None:
        vm.say(f"Error in {what}: {done.info}", "E")
        if done.info != "-":
            vm.set_error(f"{what.upper()}: {done.info}")

    def _state(self, vm: Vm, state: str, why: str = "") -> None:
        with self._lock:
            vm.state = state
            vm.state_since = time.monotonic()
            vm.say(f"New VM state is {state}{': ' if why else ''}{why}")

    def _record(self, vm: Vm, host: Host, system: Datastore) -> None:
        sequence = len(vm.histories)
        vm.histories.append(History(sequence, host, system, int(time.time())))
        os.makedirs(self._vm_dir(vm.id), exist_ok=True)

    def _again(self, vm: Vm) -> None:
        """A new history record on the same host."""
        self._record(vm, vm.history.host, vm.history.system)

    def _leave_record(self, record: History, action: str) -> None:
        record.ended = int(time.time())
        record.action = action

    def _close(self, vm: Vm, action: str) -> None:
        vm.history.ended = int(time.time())
        vm.history.action = action

    def _gone(self, vm: Vm, *, removed: bool) -> None:
        if vm.state != "DONE":
            vm.ended = int(time.time())
            self._done(vm, removed)
            self._state(vm, "DONE")
