# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what is known of a VM on this node, asked anew each time: its domain, keeper and record.

Whoever calls these holds the VM's lock.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final

from cxm import interrupt, names
from cxm.errors import CommandError, CxmError
from cxm.lvm import Group
from cxm.names import VmId
from cxm.node import configs, guests
from cxm.node import volumes as store
from cxm.node.configs import StoredAt
from cxm.node.guests import Guest, Life
from cxm.node.machine import Machine
from cxm.node.volumes import Owner
from cxm.run import Within
from cxm.xen import xl
from cxm.xen.xl import Domain, Reason

_log = logging.getLogger(__name__)

# A domain that stopped for one of these goes on, or its keeper or its saver takes it away.
_PASSING: Final = (Reason.REBOOT, Reason.SUSPEND, Reason.SOFT_RESET)
# A domain between two lives is back within seconds, or within minutes when many are being built.
_SETTLE_S: Final = 120.0
# How long a keeper may hang around without a domain before it is ended.
_KEEPER_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Vm:
    """A VM of a cloud on this node."""

    machine: Machine
    owner: Owner

    @property
    def vm(self) -> VmId:
        return self.owner.vm

    @property
    def uuid(self) -> str:
        return names.domain_uuid(self.owner.cloud, self.owner.vm)

    def within(self, seconds: float) -> "Vm":
        """The same, but that all commands about it end within this time, all together."""
        machine = self.machine
        limited = Within(machine.runner, seconds, machine.monotonic)
        return replace(self, machine=replace(machine, runner=limited))

    def present(self) -> list[Domain]:
        """Its domains, whatever they are doing: one, or none."""
        return [domain for domain in xl.domains(self.machine.runner) if domain.uuid == self.uuid]

    def stored(self) -> list[StoredAt]:
        """Its stored configurations: one, or none."""
        return configs.of_vm(self.machine, self.owner.cloud, self.owner.vm)

    def saved_by_xendomains(self) -> list[str]:
        """Where xendomains puts its memory when the host goes down."""
        names_ = [entry.stored.name for entry in self.stored()]
        return [os.path.join(self.machine.xendomains_dir, name) for name in names_]

    def keepers(self) -> list[int]:
        """The processes that keep its domain, or are making it, started by cxm or xendomains."""
        paths = configs.start_paths(self.machine, self.stored()) + self.saved_by_xendomains()
        if not paths and not self.machine.in_cluster:
            return []
        return xl.keepers(self.machine.runner, paths, self.scope)

    def receivers(self) -> list[int]:
        """Those of its keepers that received it from another node, or still wait for it."""
        return xl.keepers(self.machine.runner, [], self.scope) if self.machine.in_cluster else []

    @property
    def scope(self) -> str:
        """How the systemd scopes of keepers begin that received the domain from another node."""
        return f"cxm-{self.owner.cloud}-{self.owner.vm}"

    def record(self) -> Guest | None:
        """What is known of its life."""
        return guests.read(self.machine, self.owner.cloud, self.owner.vm)

    def group(self) -> Group:
        """The volume group as it is now."""
        return store.load(self.machine, self.owner)


@contextmanager
def undoing(what: str) -> Iterator[None]:
    """Undo something undisturbed; a failure is told, and does not hide what came before."""
    try:
        with interrupt.held_off():
            yield
    except CxmError as error:
        _log.warning("%s could not be put back: %s", what, error.message)


def never_ran(domain: Domain) -> bool:
    """Whether a domain is being made, or was left half-made."""
    return domain.paused and not domain.shut_down and domain.time_s < 0.05  # noqa: PLR2004 - 0.0


def running(present: list[Domain]) -> Domain | None:
    """The domain that is the VM running, paused by somebody or not."""
    return next((domain for domain in present if domain.alive and not never_ran(domain)), None)


def settled(vm: Vm) -> list[Domain]:
    """The VM's domains when none of them is between two states any more.

    A guest that reboots, and a start whose caller was killed, have a keeper at work and no running
    domain. Whatever is found when the patience ends is returned.
    """
    present: list[Domain] = []
    for _turn in vm.machine.waits(_SETTLE_S):
        # In this order: a keeper that ends after the first question has left its domain behind.
        kept = bool(vm.keepers())
        present = vm.present()
        if running(present) is not None:
            break
        changing = any(domain.dying for domain in present)
        rests = any(domain.shut_down and domain.reason not in _PASSING for domain in present)
        if not changing and (rests or not kept):
            break
    return present


def end(vm: Vm) -> None:
    """Destroy whatever there is of the VM, and see to it that nothing comes back.

    Raises CommandError when something of it stays.
    """
    machine = vm.machine
    alone_since: float | None = None
    for _turn in machine.waits(_SETTLE_S):
        # In this order: a keeper that ends after the first question has left its domain behind.
        kept = vm.keepers()
        present = vm.present()
        if not present and not kept:
            return
        for domain in present:
            if not domain.dying:
                xl.destroy(machine.runner, domain.domid)
        # A keeper without a domain is about to make one: that one is then destroyed. But one that
        # receives a guest whose node has died waits until the connection is given up.
        alone_since = None if present else alone_since or machine.monotonic()
        if alone_since is not None:
            patient = machine.monotonic() - alone_since <= _KEEPER_S
            for pid in vm.receivers() if patient else kept:
                xl.end_keeper(machine.runner, pid)
    left = vm.present()
    if left:
        raise CommandError(
            f"the domain {left[0].name} of VM {vm.vm} cannot be destroyed: its state is "
            f"{left[0].state}",
            hint="something on the host keeps its memory or its disks; 'xl list' shows it",
        )


# --- records ------------------------------------------------------------------------------------


def boot_id(machine: Machine) -> str:
    """The identity of this boot of the host."""
    with open(machine.boot_id_file, encoding="ascii") as file:
        return file.read().strip()


def note_running(vm: Vm, name: str, reason: str, *, falls: tuple[float, ...] = ()) -> None:
    """Record that the VM should run, and have the host start it when it boots."""
    machine = vm.machine
    now = machine.now()
    # The record comes last: a start that fails before leaves none, and its undoing takes the link.
    if os.path.exists(configs.path_of(machine, name)):
        configs.set_autostart(machine, name, wanted=True)
    guests.write(
        machine,
        Guest(
            vm.owner.cloud, vm.vm, name, Life.RUNNING, reason, now, boot_id(machine), falls=falls
        ),
    )


def note(vm: Vm, life: Life, reason: str) -> None:
    """Record what became of the VM; unless it should run, the host does not start it at boot."""
    machine = vm.machine
    known = vm.record()
    found = vm.stored()
    if known is None:
        name = found[0].stored.name if found else ""
        known = Guest(vm.owner.cloud, vm.vm, name, life, reason, machine.now())
    guests.write(machine, known.now(life, reason, since=machine.now()))
    if life in (Life.OFF, Life.STOPPED):
        for entry in found:
            configs.set_autostart(machine, os.path.basename(entry.path), wanted=False)


def note_released(vm: Vm) -> None:
    """Record that nothing of the VM is left to clean up."""
    known = vm.record()
    if known is not None and not known.released:
        guests.write(vm.machine, replace(known, released=True))
