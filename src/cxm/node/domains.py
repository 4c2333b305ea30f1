# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the verbs that start and stop a VM's domain (docs/design/0002 and 0004).

Each reads the truth first, so that one that was cut short is finished by calling it again.
"""

import logging
from typing import Any, Final

from cxm.errors import CommandError, RefusedError
from cxm.names import CloudId, VmId
from cxm.node import configs, guests, kernels
from cxm.node import plan as plans
from cxm.node.guests import Life
from cxm.node.life import Vm, end, note, note_running, running, settled
from cxm.node.machine import Machine
from cxm.node.starting import (
    activated,
    create,
    drop_checkpoint,
    launched,
    release,
    start_stored,
    usable,
)
from cxm.node.verbs import Call
from cxm.node.volumes import Owner
from cxm.xen import xl
from cxm.xen.guest import GuestSpec, from_json
from cxm.xen.xl import Domain

_log = logging.getLogger(__name__)

# A guest that did not hear the first time (it was booting, for example) is asked again.
_ASK_AGAIN_S: Final = 20.0
_ASKED: Final = "OpenNebula asked it to shut down"


def vm_of(call: Call, vm: VmId) -> Vm:
    """The VM of a call."""
    return Vm(call.machine, Owner(call.cloud, vm))


# --- start --------------------------------------------------------------------------------------


def start(call: Call, *, vm: VmId, directory: str, guest: dict[str, Any]) -> dict[str, Any]:
    """Adopt the VM's domain when it runs, else start it cold; nothing is left of a failure."""
    here = vm_of(call, vm)
    spec = from_json(guest)
    present = settled(here)
    found = running(present)
    if found is not None:
        note_running(here, found.name, "it runs, and OpenNebula wants it to")
        _log.info("VM %d runs already, as %s", vm, found.name)
        return {"name": found.name, "type": "", "adopted": True}
    if present:
        end(here)
    return _start_cold(here, spec, directory)


def _start_cold(vm: Vm, spec: GuestSpec, directory: str) -> dict[str, Any]:
    group, owned = usable(vm, plans.volumes_of(vm, spec))
    plan = plans.make(vm, spec, directory=directory, group=group, owned=owned)
    with plans.stored(vm, plan) as path:
        drop_checkpoint(vm, group)
        with (
            activated(vm, group, owned),
            launched(vm, lambda: create(vm, path)) as domain,
        ):
            note_running(vm, domain.name, "OpenNebula started it")
    _log.info("VM %d was started as %s: %s", vm.vm, domain.name, plan.choice.reason)
    return {"name": domain.name, "type": plan.choice.guest_type.value, "adopted": False}


# --- stop ---------------------------------------------------------------------------------------


def stop(call: Call, *, vm: VmId, how: str, timeout_s: int) -> dict[str, Any]:
    """End the VM's domain; returns when it is gone and its disks are released.

    The VM's lock is held only while something is changed, not while the guest shuts down: an order
    to destroy it overtakes one that waits.
    """
    here = vm_of(call, vm)
    if how == "shutdown":
        with call.machine.vm_lock(call.cloud, vm):
            domain = running(settled(here))
            if domain is not None:
                note(here, Life.STOPPED, _ASKED)
        if domain is not None:
            _shut_down(here, domain.domid, timeout_s)
    with call.machine.vm_lock(call.cloud, vm):
        return _finish(here, asked=how == "shutdown")


def _finish(vm: Vm, *, asked: bool) -> dict[str, Any]:
    present = vm.present()
    record = vm.record()
    found = running(present)
    if asked and found is not None and record is not None and record.wanted:
        raise RefusedError(f"VM {vm.vm} was started again while it shut down")
    was = "absent" if not present else "off" if found is None else "running"
    if asked and found is not None:
        _log.info("VM %d did not shut down in time and is destroyed", vm.vm)
    if record is not None or present:
        note(vm, Life.STOPPED, "OpenNebula stopped it")
    end(vm)
    release(vm)
    if present:
        _log.info("VM %d is off", vm.vm)
    return {"was": was}


def _shut_down(vm: Vm, domid: int, timeout_s: float) -> None:
    """Ask the guest until it is off, is wanted again, or the time is up.

    Each time the record says anew that it is being stopped: tend forgets a stop that nobody
    follows any more, and takes the guest for one that should run.
    """
    machine = vm.machine
    deadline = machine.monotonic() + timeout_s
    asked_at: float | None = None
    for _turn in machine.waits(timeout_s):
        domain = _alive(vm.present())
        if domain is None:
            if not vm.keepers():
                return
            continue
        now = machine.monotonic()
        if asked_at is None or domain.domid != domid or now - asked_at >= _ASK_AGAIN_S:
            if asked_at is not None and not _still_stopping(vm):
                return
            domid, asked_at = domain.domid, now
            try:
                xl.ask_shutdown(machine.runner, domid, timeout_s=max(deadline - now, 1.0))
            except CommandError as error:
                _log.debug("VM %d does not listen: %s", vm.vm, error.message)


def _still_stopping(vm: Vm) -> bool:
    """Renew the record of a stop; False when another order has come in the meantime."""
    with vm.machine.vm_lock(vm.owner.cloud, vm.vm):
        record = vm.record()
        if record is None or record.life is not Life.STOPPED:
            return False
        note(vm, Life.STOPPED, _ASKED)
        return True


def _alive(present: list[Domain]) -> Domain | None:
    return next((domain for domain in present if domain.alive), None)


# --- reboot and reset ---------------------------------------------------------------------------


def reboot(call: Call, *, vm: VmId) -> dict[str, Any]:
    """Ask the guest to reboot; returns when it has taken the request."""
    here = vm_of(call, vm)
    domain = running(settled(here))
    if domain is None:
        raise RefusedError(f"VM {vm} does not run here, so it cannot reboot")
    try:
        xl.ask_reboot(call.machine.runner, domain.domid)
    except CommandError as error:
        raise RefusedError(
            f"the guest of VM {vm} does not take the request to reboot: {error.message}",
            hint="a reset needs no help from the guest",
        ) from error
    _log.info("VM %d reboots", vm)
    return {"name": domain.name}


def reset(call: Call, *, vm: VmId) -> dict[str, Any]:
    """Destroy the VM's domain and start it again from its stored configuration."""
    here = vm_of(call, vm)
    if not here.stored():
        raise RefusedError(
            f"VM {vm} has no stored configuration on this node, so it cannot be reset",
            hint="deploy it again from OpenNebula",
        )
    end(here)
    name = start_stored(here, "OpenNebula reset it")
    _log.info("VM %d was reset", vm)
    return {"name": name}


# --- for other verbs ----------------------------------------------------------------------------


def refuse_migration(call: Call, *, vm: VmId, node: str) -> dict[str, Any]:
    """A standalone host shares its disks with no other: nothing moves while it runs."""
    raise RefusedError(
        f"{call.machine.hostname} is in no cluster, so VM {vm} cannot move to {node} while it "
        "runs; nothing was done",
        hint="migrate it without --live: it is saved, moved and restored",
    )


def forget(machine: Machine, cloud: CloudId, vm: VmId) -> list[str]:
    """Remove the VM's configuration, autostart link and record; returns the paths removed."""
    removed: list[str] = []
    if machine.in_cluster:
        from cxm.cluster import orders  # noqa: PLC0415 - it imports this module

        removed = orders.forget(Vm(machine, Owner(cloud, vm)))
    configs.drop_unfinished(machine, cloud, vm)
    removed += configs.remove(machine, configs.of_vm(machine, cloud, vm))
    guests.forget(machine, cloud, vm)
    if not machine.in_cluster:  # there other nodes' VMs need them: bootfiles.gather removes them
        kernels.drop_unused(machine)
    return removed
