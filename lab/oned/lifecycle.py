# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the life of a VM: which driver actions oned calls in which state, and what follows."""

import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from cxm.errors import UsageError
from lab.oned.cloud import Action
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
    "BOOT_SUSPENDED": ("SUSPENDED", "SUSPENDED"),
    "BOOT_POWEROFF": ("POWEROFF", "POWEROFF"),
    "BOOT_UNKNOWN": ("UNKNOWN", "UNKNOWN"),
    "BOOT_STOPPED": ("STOPPED", "BOOT_STOPPED_FAILURE"),
    "BOOT_UNDEPLOY": ("UNDEPLOYED", "BOOT_UNDEPLOY_FAILURE"),
    "EPILOG": ("FAILED", "EPILOG_FAILURE"),
    "EPILOG_STOP": ("FAILED", "EPILOG_STOP_FAILURE"),
    "EPILOG_UNDEPLOY": ("FAILED", "EPILOG_UNDEPLOY_FAILURE"),
}
_RUNNING: Final = ("RUNNING", "UNKNOWN")
_BOOTS: Final = {"STOPPED": "BOOT_STOPPED", "UNDEPLOYED": "BOOT_UNDEPLOY"}

Done = Callable[[Vm, bool], None]  # the VM, and whether it was removed instead of shut down


class Lifecycle:
    """Moves VMs through their states by calling the drivers, one job a VM at a time."""

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

    # What is asked.

    def place(self, vm: Vm, host: Host, system: Datastore) -> None:
        """The scheduler's decision for a pending VM."""
        previous = vm.histories[-1] if vm.histories else None
        was = {"stop": "STOPPED", "undeploy": "UNDEPLOYED"}.get(
            previous.action if previous else "", ""
        )
        self._record(vm, host, system)
        if was:
            prolog = "PROLOG_RESUME" if was == "STOPPED" else "PROLOG_UNDEPLOY"
            self._state(vm, prolog)
            self._start(vm, lambda: self._come_back(vm, was))
        else:
            self._state(vm, "PROLOG")
            self._start(vm, lambda: self._create(vm))

    def act(self, vm: Vm, action: Action) -> None:
        """A user's request; raises UsageError when the VM's state does not allow it."""
        plans: dict[Action, Callable[[Vm], Callable[[], None] | None]] = {
            Action.SUSPEND: self._suspend,
            Action.RESUME: self._resume,
            Action.POWEROFF: lambda vm: self._power(vm, "shutdown"),
            Action.POWEROFF_HARD: lambda vm: self._power(vm, "cancel"),
            Action.STOP: self._stop,
            Action.UNDEPLOY: lambda vm: self._undeploy(vm, "shutdown"),
            Action.UNDEPLOY_HARD: lambda vm: self._undeploy(vm, "cancel"),
            Action.TERMINATE: lambda vm: self._terminate(vm, "shutdown"),
            Action.TERMINATE_HARD: lambda vm: self._terminate(vm, "cancel"),
            Action.REBOOT: lambda vm: self._restart(vm, "reboot"),
            Action.RESET: lambda vm: self._restart(vm, "reset"),
            Action.DELETE: self._delete,
            Action.RETRY: self._retry,
        }
        with self._lock:
            job = plans[action](vm)
        if job is not None:
            self._start(vm, job)

    def report(self, vm: Vm, state: str) -> None:
        """What monitoring says of a VM: RUNNING, POWEROFF, SUSPENDED, FAILURE or UNKNOWN."""
        with self._lock:
            if state == "RUNNING" and vm.state in ("POWEROFF", "SUSPENDED", "UNKNOWN"):
                self._state(vm, "RUNNING", "VM found again by the drivers")
            elif state == "POWEROFF" and vm.state in _RUNNING:
                self._close(vm, "poweroff")
                self._state(vm, "POWEROFF", "VM running but it was not found")
            elif state == "SUSPENDED" and vm.state in _RUNNING:
                self._close(vm, "suspend")
                self._state(vm, "SUSPENDED", "VM running but monitor state is PAUSED")
            elif state == "FAILURE" and not self._profile.failure_states and vm.state in _RUNNING:
                self._state(vm, "FAILED", "VM running but monitor state is ERROR")
            elif state in ("UNKNOWN", "FAILURE") and vm.state == "RUNNING":
                self._state(vm, "UNKNOWN", "VM is not known any more")

    def finish(self, timeout_s: float) -> None:
        """Wait for the jobs that are under way."""
        until = time.monotonic() + timeout_s
        for job in list(self._jobs):
            job.join(max(0.0, until - time.monotonic()))

    # Plans: each checks the state, sets the next one and returns the job, or None.

    def _require(self, vm: Vm, *states: str) -> None:
        if vm.state not in states:
            raise UsageError(f"This action is not available for state {vm.state}")

    def _suspend(self, vm: Vm) -> Callable[[], None]:
        self._require(vm, "RUNNING")
        self._state(vm, "SAVE_SUSPEND")

        def job() -> None:
            if self._try(vm, self._hypervisor.save(vm, vm.say), "save"):
                self._close(vm, "suspend")
                self._state(vm, "SUSPENDED")

        return job

    def _resume(self, vm: Vm) -> Callable[[], None] | None:
        self._require(vm, "SUSPENDED", "POWEROFF", "STOPPED", "UNDEPLOYED", "UNKNOWN")
        if vm.state in ("STOPPED", "UNDEPLOYED"):
            self._state(vm, "PENDING")
            return None
        if vm.state == "SUSPENDED":
            self._again(vm)
            self._state(vm, "BOOT_SUSPENDED")
            return lambda: self._boot(vm, self._hypervisor.restore)
        if vm.state == "POWEROFF":
            self._again(vm)
            self._state(vm, "BOOT_POWEROFF")
        else:
            self._state(vm, "BOOT_UNKNOWN")
        return lambda: self._boot(vm, self._hypervisor.deploy)

    def _power(self, vm: Vm, how: str) -> Callable[[], None]:
        self._require(vm, *_RUNNING)
        self._state(vm, "SHUTDOWN_POWEROFF")

        def job() -> None:
            if self._try(vm, self._hypervisor.end(vm, how, vm.say), how):
                self._close(vm, "poweroff")
                self._state(vm, "POWEROFF")

        return job

    def _stop(self, vm: Vm) -> Callable[[], None]:
        self._require(vm, "RUNNING", "SUSPENDED")
        asleep = vm.state == "SUSPENDED"
        self._state(vm, "EPILOG_STOP" if asleep else "SAVE_STOP")

        def job() -> None:
            if not asleep and not self._try(vm, self._hypervisor.save(vm, vm.say), "save"):
                return
            self._leave(vm, "EPILOG_STOP", "stop", "STOPPED")

        return job

    def _undeploy(self, vm: Vm, how: str) -> Callable[[], None]:
        if not self._profile.can_undeploy:
            raise UsageError(f"OpenNebula {self._profile.version} cannot undeploy")
        self._require(vm, *_RUNNING, "POWEROFF")
        off = vm.state == "POWEROFF"
        self._state(vm, "EPILOG_UNDEPLOY" if off else "SHUTDOWN_UNDEPLOY")

        def job() -> None:
            if not off and not self._try(vm, self._hypervisor.end(vm, how, vm.say), how):
                return
            self._leave(vm, "EPILOG_UNDEPLOY", "undeploy", "UNDEPLOYED")

        return job

    def _terminate(self, vm: Vm, how: str) -> Callable[[], None] | None:
        if vm.state == "PENDING":
            self._gone(vm, removed=False)
            return None
        idle = ("POWEROFF", "SUSPENDED", "STOPPED", "UNDEPLOYED")
        allowed = (*_RUNNING, *idle) if self._profile.failure_states else _RUNNING
        self._require(vm, *allowed)
        runs, away = vm.state in _RUNNING, vm.state in ("STOPPED", "UNDEPLOYED")
        self._state(vm, "SHUTDOWN" if runs else "EPILOG")

        def job() -> None:
            if runs and not self._try(vm, self._hypervisor.end(vm, how, vm.say), how):
                return
            self._state(vm, "EPILOG")
            self._epilog(vm, on_frontend=away)

        return job

    def _restart(self, vm: Vm, action: str) -> Callable[[], None]:
        self._require(vm, "RUNNING")

        def job() -> None:
            done = self._hypervisor.restart(vm, action, vm.say)
            if not done.ok:
                self._blame(vm, action, done)

        return job

    def _delete(self, vm: Vm) -> Callable[[], None]:
        state = vm.state
        if not vm.histories or state == "DONE":
            return lambda: self._gone(vm, removed=True)
        away = state in ("STOPPED", "UNDEPLOYED")
        here = away and self._profile.deletes_stopped_on_frontend
        only_disks = state.startswith(("PROLOG", "EPILOG")) or away or state in (
            "POWEROFF", "SUSPENDED", "FAILED",
        )  # fmt: skip
        old = not self._profile.failure_states

        def job() -> None:
            # oned says DONE at once and cleans up behind it; the result is not asked for.
            self._gone(vm, removed=True)
            if only_disks:
                self._transfers.run(
                    vm, "delete", self._transfers.delete(vm, on_frontend=here), vm.say
                )
            elif old:
                # oned asks both drivers at once, so disks are removed while the domain still runs.
                cancel = threading.Thread(
                    target=self._hypervisor.end, args=(vm, "cancel", vm.say), daemon=True
                )
                cancel.start()
                self._transfers.run(vm, "delete", self._transfers.delete(vm), vm.say)
                cancel.join()
            else:
                self._hypervisor.cleanup(vm, vm.say)

        return job

    def _retry(self, vm: Vm) -> Callable[[], None]:
        if not self._profile.failure_states:
            self._require(vm, "FAILED")
            return lambda: self._resubmit(vm)
        again: dict[str, tuple[str, Callable[[], None]]] = {
            "PROLOG_FAILURE": ("PROLOG", lambda: self._create(vm)),
            "PROLOG_RESUME_FAILURE": ("PROLOG_RESUME", lambda: self._come_back(vm, "STOPPED")),
            "PROLOG_UNDEPLOY_FAILURE": (
                "PROLOG_UNDEPLOY",
                lambda: self._come_back(vm, "UNDEPLOYED"),
            ),
            "BOOT_FAILURE": ("BOOT", lambda: self._boot(vm, self._hypervisor.deploy)),
            "BOOT_STOPPED_FAILURE": (
                "BOOT_STOPPED",
                lambda: self._boot(vm, self._hypervisor.restore),
            ),
            "BOOT_UNDEPLOY_FAILURE": (
                "BOOT_UNDEPLOY",
                lambda: self._boot(vm, self._hypervisor.deploy),
            ),
            "EPILOG_FAILURE": ("EPILOG", lambda: self._epilog(vm, on_frontend=False)),
            "EPILOG_STOP_FAILURE": (
                "EPILOG_STOP",
                lambda: self._leave(vm, "EPILOG_STOP", "stop", "STOPPED"),
            ),
            "EPILOG_UNDEPLOY_FAILURE": (
                "EPILOG_UNDEPLOY",
                lambda: self._leave(vm, "EPILOG_UNDEPLOY", "undeploy", "UNDEPLOYED"),
            ),
        }
        self._require(vm, *again)
        state, job = again[vm.state]
        self._state(vm, state)
        return job

    # Jobs.

    def _create(self, vm: Vm) -> None:
        if self._transfer(vm, "prolog", self._transfers.prolog(vm)):
            self._state(vm, "BOOT")
            self._boot(vm, self._hypervisor.deploy)

    def _come_back(self, vm: Vm, was: str) -> None:
        if self._transfer(vm, "resume", self._transfers.resume(vm)):
            self._state(vm, _BOOTS[was])
            restore = was == "STOPPED"
            self._boot(vm, self._hypervisor.restore if restore else self._hypervisor.deploy)

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
            self._state(vm, "RUNNING")
        elif state == "BOOT_STOPPED" and not self._profile.failure_states:
            self._leave(vm, "EPILOG_STOP", "stop", "STOPPED")

    def _leave(self, vm: Vm, state: str, action: str, then: str) -> None:
        self._state(vm, state)
        vm.history.action = action
        if self._transfer(vm, "stop", self._transfers.stop(vm)):
            self._close(vm, action)
            self._state(vm, then)

    def _epilog(self, vm: Vm, *, on_frontend: bool) -> None:
        if self._transfer(vm, "epilog", self._transfers.epilog(vm, on_frontend=on_frontend)):
            self._close(vm, "terminate")
            self._gone(vm, removed=False)

    def _resubmit(self, vm: Vm) -> None:
        self._state(vm, "CLEANUP")
        self._transfers.run(vm, "delete", self._transfers.delete(vm), vm.say)
        self._close(vm, "")
        self._state(vm, "PENDING")
        self._schedule()

    # Steps.

    def _start(self, vm: Vm, job: Callable[[], None]) -> None:
        busy = self._busy.setdefault(vm.id, threading.Lock())

        def work() -> None:
            with busy:
                job()

        thread = threading.Thread(target=work, daemon=True, name=f"vm-{vm.id}")
        self._jobs = [one for one in self._jobs if one.is_alive()] + [thread]
        thread.start()

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

    def _close(self, vm: Vm, action: str) -> None:
        vm.history.ended = int(time.time())
        vm.history.action = action

    def _gone(self, vm: Vm, *, removed: bool) -> None:
        if vm.state != "DONE":
            vm.ended = int(time.time())
            self._done(vm, removed)
            self._state(vm, "DONE")
