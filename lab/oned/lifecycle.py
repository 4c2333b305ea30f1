# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the life of a VM: which driver actions oned calls in which state, and what follows."""

import threading
from collections.abc import Callable
from typing import Final

from cxm.errors import UsageError
from lab.oned.cloud import Action
from lab.oned.migration import Migrations
from lab.oned.model import Datastore, Host, Vm

_RUNNING: Final = ("RUNNING", "UNKNOWN")
_BOOTS: Final = {"STOPPED": "BOOT_STOPPED", "UNDEPLOYED": "BOOT_UNDEPLOY"}


class Lifecycle(Migrations):
    """Moves VMs through their states by calling the drivers, one job a VM at a time."""

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
            Action.RECREATE: self._recreate,
        }
        with self._lock:
            job = plans[action](vm)
        if job is not None:
            self._start(vm, job)

    def recover(self, vm: Vm, *, success: bool) -> None:
        """A user says how an operation has ended; no driver is called, but by what follows."""
        if not self._profile.recovers:
            raise UsageError(f"OpenNebula {self._profile.version} has no recover")
        with self._lock:
            if vm.state == "UNKNOWN":
                self._state(vm, "RUNNING", "recovered")
            elif vm.state.startswith("BOOT"):
                if success:
                    self._later(lambda: self._recovered(vm))
            elif self._is_unmoved(vm):
                self._later(lambda: self._moved_after_all(vm, success=success))
            elif vm.state == "MIGRATE":
                source = vm.histories[-2]
                self._leave_record(source, "live-migrate")
                if not success:
                    vm.history.ended = source.ended
                    self._record(vm, source.host, source.system)
                self._state(vm, "RUNNING", "recovered")
            elif vm.state != "RUNNING":
                raise UsageError(f"recover is not available for state {vm.state}")

    def report(self, vm: Vm, state: str) -> None:
        """What monitoring says of a VM: RUNNING, POWEROFF, SUSPENDED, FAILURE or UNKNOWN."""
        with self._lock:
            if state == "RUNNING" and vm.state in ("POWEROFF", "SUSPENDED", "UNKNOWN"):
                self._state(vm, "RUNNING", "VM found again by the drivers")
            elif state == "POWEROFF" and vm.state in _RUNNING:
                self._close(vm, "poweroff")
                self._state(vm, "POWEROFF", "VM running but it was not found")
            elif self._profile.done_when_reported and _is_outcome(state, vm.state):
                if state == "POWEROFF":
                    self._close(vm, "poweroff")
                self._state(vm, state, f"VM reported {state} by the drivers")
            elif state == "SUSPENDED" and vm.state in _RUNNING:
                self._close(vm, "suspend")
                self._state(vm, "SUSPENDED", "VM running but monitor state is PAUSED")
            elif state == "FAILURE" and not self._profile.failure_states and vm.state in _RUNNING:
                self._state(vm, "FAILED", "VM running but monitor state is ERROR")
            elif state in ("UNKNOWN", "FAILURE") and vm.state == "RUNNING":
                self._state(vm, "UNKNOWN", "VM is not known any more")

    # Plans: each checks the state, sets the next one and returns the job, or None.

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
            done = self._hypervisor.end(vm, how, vm.say)
            # It may have been reported off meanwhile; then nobody waits for the answer.
            if vm.state == "SHUTDOWN_POWEROFF" and self._try(vm, done, how):
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
        if not vm.histories or vm.state == "DONE":
            return lambda: self._gone(vm, removed=True)
        clean_up = self._clean_up(vm)

        def job() -> None:
            # oned says DONE at once and cleans up behind it; the result is not asked for.
            self._gone(vm, removed=True)
            clean_up()

        return job

    def _recreate(self, vm: Vm) -> Callable[[], None]:
        self._require(vm, *_RUNNING, "FAILED")
        clean_up = self._clean_up(vm)
        self._state(vm, "CLEANUP")

        def job() -> None:
            clean_up()
            self._close(vm, "")
            self._state(vm, "PENDING")
            self._schedule()

        return job

    def _clean_up(self, vm: Vm) -> Callable[[], None]:
        """What removes the VM in the state that it is in; how that ends nobody asks."""
        state = vm.state
        away = state in ("STOPPED", "UNDEPLOYED")
        here = away and self._profile.deletes_stopped_on_frontend
        only_disks = state.startswith(("PROLOG", "EPILOG")) or away or state in (
            "POWEROFF", "SUSPENDED", "FAILED",
        )  # fmt: skip

        def remove_disks(*, on_frontend: bool = False) -> None:
            lines = self._transfers.delete(vm, on_frontend=on_frontend)
            self._transfers.run(vm, "delete", lines, vm.say)

        def clean_up() -> None:
            if state.startswith("PROLOG_MIGRATE"):
                lines = self._transfers.delete_both(vm)
                self._transfers.run(vm, "delete_both", lines, vm.say)
            elif only_disks:
                remove_disks(on_frontend=here)
            elif not self._profile.failure_states:
                # oned asks both drivers at once, so disks are removed while the domain still runs.
                cancel = threading.Thread(
                    target=self._hypervisor.end, args=(vm, "cancel", vm.say), daemon=True
                )
                cancel.start()
                remove_disks()
                cancel.join()
            else:
                self._hypervisor.cleanup(vm, vm.say)

        return clean_up

    def _retry(self, vm: Vm) -> Callable[[], None]:
        if not self._profile.failure_states:
            self._require(vm, "FAILED")
            return self._recreate(vm)
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
            **self._migrations_again(vm),
        }
        self._require(vm, *again)
        state, job = again[vm.state]
        self._state(vm, state)
        return job

    # Jobs.

    def _recovered(self, vm: Vm) -> None:
        if vm.state.startswith("BOOT"):
            self._state(vm, "RUNNING", "recovered")

    def _create(self, vm: Vm) -> None:
        if self._transfer(vm, "prolog", self._transfers.prolog(vm)):
            self._state(vm, "BOOT")
            self._boot(vm, self._hypervisor.deploy)

    def _come_back(self, vm: Vm, was: str) -> None:
        if self._transfer(vm, "resume", self._transfers.resume(vm)):
            self._state(vm, _BOOTS[was])
            restore = was == "STOPPED"
            self._boot(vm, self._hypervisor.restore if restore else self._hypervisor.deploy)

    def _epilog(self, vm: Vm, *, on_frontend: bool) -> None:
        if self._transfer(vm, "epilog", self._transfers.epilog(vm, on_frontend=on_frontend)):
            self._close(vm, "terminate")
            self._gone(vm, removed=False)


def _is_outcome(reported: str, state: str) -> bool:
    """Whether what is reported is what an action in this state is there for."""
    if reported == "RUNNING":
        return state.startswith("BOOT")
    return reported == "POWEROFF" and state == "SHUTDOWN_POWEROFF"
