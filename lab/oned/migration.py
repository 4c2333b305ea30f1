# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns how a VM moves to another host: while it runs, saved meanwhile, or at rest.

oned writes the history record of the new host before anything else, so that all drivers read of
the target in the VM's XML, even those that still work on the source. If the VM stays, that record
is closed and another one of the old host follows it.
"""

import time
from collections.abc import Callable
from typing import Final

from cxm.errors import UsageError
from lab.oned.drivers import Answer
from lab.oned.jobs import Jobs
from lab.oned.model import Host, Vm
from lab.oned.steps import DriverDiedError

# What a VM at rest is in while its files move.
_PROLOGS: Final = {
    "POWEROFF": "PROLOG_MIGRATE_POWEROFF",
    "SUSPENDED": "PROLOG_MIGRATE_SUSPEND",
    "UNKNOWN": "PROLOG_MIGRATE_UNKNOWN",
}
_UNMOVED: Final = {f"{state}_FAILURE": was for was, state in _PROLOGS.items() if was != "UNKNOWN"}


class Migrations(Jobs):
    """Moves VMs between hosts."""

    def migrate(self, vm: Vm, host: Host, *, live: bool) -> None:
        """A user's request; raises UsageError when the VM's state does not allow it."""
        with self._lock:
            job = self._plan_migration(vm, host, live=live)
        self._start(vm, job)

    def _plan_migration(self, vm: Vm, host: Host, *, live: bool) -> Callable[[], None]:
        at_rest = tuple(_PROLOGS) if self._profile.migrates_at_rest else ()
        if self._profile.migrates_unknown:
            at_rest = (*at_rest, "UNKNOWN")
        self._require(vm, "RUNNING", *at_rest)
        source, was = vm.history, vm.state
        if source.host is host:
            raise UsageError(f"VM is already running on host [{host.id}]")
        self._record(vm, host, source.system)
        if was != "RUNNING":  # then oned ignores that it should be live
            self._leave_record(source, "migrate")
            self._state(vm, _PROLOGS[was])
            return lambda: self._migrate_at_rest(vm, was)
        if live:
            self._state(vm, "MIGRATE")
            return lambda: self._migrate_live(vm)
        vm.history.action = "migrate"
        self._state(vm, "SAVE_MIGRATE")
        return lambda: self._migrate_saved(vm)

    def _is_unmoved(self, vm: Vm) -> bool:
        """Whether the move of its files has failed, of a VM that stays off."""
        return vm.state in _UNMOVED

    def _moved_after_all(self, vm: Vm, *, success: bool) -> None:
        """A user says how a move of files that failed has ended; no driver is called."""
        if not self._is_unmoved(vm) or (not success and not self._profile.takes_moves_back):
            return
        was = _UNMOVED[vm.state]
        if not success:
            source = vm.histories[-2]
            self._leave_record(vm.history, "migrate")
            self._record(vm, source.host, source.system)
        self._close(vm, "migrate")
        self._state(vm, was)

    def _migrations_again(self, vm: Vm) -> dict[str, tuple[str, Callable[[], None]]]:
        """What a retry does in each state of a failed migration."""
        again: dict[str, tuple[str, Callable[[], None]]] = {
            "PROLOG_MIGRATE_FAILURE": ("PROLOG_MIGRATE", lambda: self._carry(vm)),
            "BOOT_MIGRATE_FAILURE": (
                "BOOT_MIGRATE",
                lambda: self._boot(vm, self._hypervisor.restore),
            ),
        }
        for was, state in _PROLOGS.items():
            again[f"{state}_FAILURE"] = (state, lambda was=was: self._migrate_at_rest(vm, was))  # type: ignore[misc]
        return again

    # Jobs.

    def _migrate_live(self, vm: Vm) -> None:
        try:
            done = self._hypervisor.migrate(vm, vm.say)
        except DriverDiedError:
            return
        if vm.state != "MIGRATE":
            vm.say("deploy_success_action, VM in a wrong state", "E")
            return
        if not done.ok:
            self._stay(vm, "migrate", done, "live-migrate")
            return
        self._leave_record(vm.histories[-2], "live-migrate")
        self._state(vm, "RUNNING")

    def _migrate_saved(self, vm: Vm) -> None:
        source = vm.histories[-2]
        done = self._hypervisor.save(vm, vm.say, source)
        if not done.ok:
            self._stay(vm, "save", done, "migrate")
            return
        self._leave_record(source, "migrate")
        self._state(vm, "PROLOG_MIGRATE")
        self._carry(vm)

    def _carry(self, vm: Vm) -> None:
        if self._transfer(vm, "migrate", self._transfers.migrate(vm)):
            self._state(vm, "BOOT_MIGRATE" if self._profile.boots_after_migration else "BOOT")
            self._boot(vm, self._hypervisor.restore)

    def _migrate_at_rest(self, vm: Vm, was: str) -> None:
        # Up to 4.14 a VM that is not known any more is only deployed.
        has_files = was != "UNKNOWN" or self._profile.migrates_at_rest
        if has_files and not self._transfer(vm, "migrate", self._transfers.migrate(vm)):
            return
        if was == "UNKNOWN":
            self._state(vm, "BOOT")
            self._boot(vm, self._hypervisor.deploy)
        else:
            self._close(vm, "migrate")
            self._state(vm, was)

    # Steps.

    def _stay(self, vm: Vm, what: str, done: Answer, action: str) -> None:
        """The migration failed before the VM left: it is taken to run on."""
        with self._lock:
            self._blame(vm, what, done)
            source = vm.histories[-2]
            self._leave_record(source, action)
            vm.history.ended = int(time.time())
            self._record(vm, source.host, source.system)
            self._state(vm, "RUNNING")
