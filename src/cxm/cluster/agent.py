# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what Pacemaker's resource agent does with a VM on this node (docs/design/0010).

A healthy monitor never comes here: ``packaging/ocf/domain`` answers it without starting Python.
Nothing here waits for a guest, but for at most :data:`SOFT_S`.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from enum import IntEnum
from typing import Final

from cxm import names
from cxm.cluster import bootfiles, cib, locks, moving, nudge, pacemaker, request
from cxm.cluster.cib import Resource, Wish
from cxm.cluster.view import edited
from cxm.errors import CxmError, LockTimeoutError, RefusedError
from cxm.names import CHECKPOINT, State
from cxm.node import configs, memory
from cxm.node import volumes as store
from cxm.node.guests import Life
from cxm.node.life import Vm, end, running, settled
from cxm.node.machine import Machine
from cxm.node.starting import activated, create, drop_checkpoint, launched, release, usable
from cxm.node.volumes import Owner
from cxm.xen import xl
from cxm.xen.xl import Domain

_log = logging.getLogger(__name__)

# How long a guest may take to switch itself off before it is destroyed: longer would delay every
# failover.
SOFT_S: Final = 20.0
# How long LVM may take to give back the disks of a guest that is off.
_RELEASE_S: Final = 30.0
# How long a guest may be between two lives: rebooting, or suspended by a save that somebody does.
_GAP_S: Final = 40.0
# How long a monitor may take where Pacemaker does not say it.
_MONITOR_S: Final = 60.0
# Of such a time, what is left for the agent to start and to say what it has found.
_SPARED_S: Final = 10.0
_PASSING: Final = (xl.Reason.REBOOT, xl.Reason.SUSPEND, xl.Reason.SOFT_RESET)


class Ocf(IntEnum):
    """The exit codes of a resource agent."""

    SUCCESS = 0
    ERROR = 1
    ARGUMENTS = 2
    UNIMPLEMENTED = 3
    NOT_INSTALLED = 5
    NOT_CONFIGURED = 6
    NOT_RUNNING = 7


def resource_of(vm: Vm) -> Resource:
    """What the cluster knows of a VM; raises NotFoundError when it knows nothing."""
    return cib.known(pacemaker.cib(vm.machine.runner), vm.owner.cloud, vm.vm)


def update(vm: Vm, what: str, edit: Callable[[Resource], Resource]) -> None:
    """Change what the cluster knows of a VM; nothing when it is gone meanwhile."""
    pacemaker.change(vm.machine.runner, edited(vm, edit), what=what)


# --- start --------------------------------------------------------------------------------------


def start(vm: Vm, limit_s: float) -> Ocf:
    """Start the VM, from its saved memory if that is wished and possible, else cold."""
    resource = resource_of(vm)
    # Pacemaker starts only what runs nowhere.
    moving.end_half(vm)
    present = settled(vm)
    found = running(present)
    path = _configured(vm, resource)
    if found is not None:
        _log.info("VM %d runs already, as %s", vm.vm, found.name)
        moving.settle(vm)
        return Ocf.SUCCESS
    locks.await_(vm.machine, locks.start_s(limit_s))
    bootfiles.fetch_all(vm.machine, resource.config)
    if present:
        end(vm)
    volumes = resource.volumes
    # Its saved memory too: whichever way it starts that is read or removed, and another node where
    # LVM stood still may have it.
    checkpoint = names.lv_name(vm.machine.config.lv_prefix, vm.vm, CHECKPOINT)
    moving.take(vm, [*volumes, checkpoint])
    if resource.wish is Wish.RESTORE and resource_of(vm).wish is not Wish.RESTORE:
        # It may have waited for minutes: its memory is for the order that comes next.
        raise RefusedError(f"VM {vm.vm} is not restored: its order was withdrawn meanwhile")
    if resource.wish is Wish.RESTORE and _can_wake(vm):
        memory.wake(vm, None, "")
        memory.throw_away(vm)
        nudge.spool(vm.machine, resource.name)
        _log.info("VM %d goes on from its saved memory", vm.vm)
        return Ocf.SUCCESS
    if resource.wish is not Wish.NONE:
        _log.warning("VM %d is started afresh: there is no saved memory that can be used", vm.vm)
        update(
            vm, f"VM {vm.vm}: no memory to restore", lambda known: replace(known, wish=Wish.NONE)
        )
    group, owned = usable(vm, volumes, kept=True)
    drop_checkpoint(vm, group)
    with (
        activated(vm, group, owned),
        launched(vm, lambda: create(vm, path)) as domain,
    ):
        _log.info("VM %d was started as %s", vm.vm, domain.name)
    nudge.spool(vm.machine, resource.name)
    return Ocf.SUCCESS


def _configured(vm: Vm, resource: Resource) -> str:
    """Store the VM's configuration on this node; returns its path. One of an old name goes."""
    machine = vm.machine
    path = configs.write(
        machine, vm.owner.cloud, vm.vm, names.domain_name(resource.name), resource.config
    )
    configs.remove(machine, [entry for entry in vm.stored() if entry.path != path])
    return path


def _can_wake(vm: Vm) -> bool:
    found = store.find(vm.machine, vm.group(), vm.owner, CHECKPOINT)
    return found is not None and found.tags.state is State.READY


# --- stop ---------------------------------------------------------------------------------------


def stop(vm: Vm) -> Ocf:
    """End the VM's domain here, whatever it is doing, and release its disks."""
    _shut_down(vm)
    for domain in vm.present():
        if not domain.dying:
            # Without the VM's lock: whoever holds it (a save) fails at once, and lets it go.
            xl.destroy(vm.machine.runner, domain.domid)
    try:
        with vm.machine.vm_lock(vm.owner.cloud, vm.vm):
            _clear(vm)
    except LockTimeoutError as error:
        # Somebody reads a disk of it, for minutes perhaps: no reason to have this node fenced.
        if vm.present() or vm.keepers() or vm.receivers():
            raise
        _log.warning("VM %d is off, its disks are in use here: %s", vm.vm, error.sentence())
    _log.info("VM %d is off on this node", vm.vm)
    return Ocf.SUCCESS


def _clear(vm: Vm) -> None:
    """End what is left of the VM here, and let go of its disks and its configuration."""
    end(vm)
    try:
        release(vm.within(_RELEASE_S))
    except CxmError as error:
        # Where a node was lost and is not fenced yet, LVM stands still: a failed stop would
        # have this healthy node fenced as well. Whoever needs the disks asks for them.
        _log.warning("VM %d is off, its disks stay this node's: %s", vm.vm, error.sentence())
    else:
        moving.forget(vm)
    try:
        configs.remove(vm.machine, vm.stored())
    except OSError as error:
        # A file system that has become read-only: the next start writes a new one, elsewhere.
        _log.warning("VM %d is off, its configuration stays: %s", vm.vm, error)


def _shut_down(vm: Vm) -> None:
    machine = vm.machine
    asked: set[int] = set()
    for _turn in machine.waits(SOFT_S):
        domain = running(vm.present())
        if domain is None or domain.paused:
            return
        if domain.domid in asked:
            continue
        asked.add(domain.domid)
        if not request.is_heard(vm, domain, "shutdown"):
            return


# --- monitor ------------------------------------------------------------------------------------


def monitor(here: Vm, limit_s: float, *, probe: bool = False) -> Ocf:
    """What became of a VM that does not simply run.

    A ``probe`` asks whether it is here at all: that an action is at work on it here says nothing.
    All that is looked at and waited for ends before ``limit_s`` (0: as usual): Pacemaker starts a
    VM again whose monitor takes longer.
    """
    patience_s = _but_for_the_end(limit_s or _MONITOR_S)
    vm = here.within(patience_s)
    if vm.machine.vm_busy(vm.owner.cloud, vm.vm) and (not probe or _here(vm.present())):
        return Ocf.SUCCESS  # the action answers for it
    present = _settled(vm, min(_GAP_S, _but_for_the_end(patience_s)))
    domain = running(present)
    if domain is not None:
        moving.settle(vm)
        return Ocf.SUCCESS
    found = _here(present)
    if not found:
        return Ocf.NOT_RUNNING if probe else _gone(vm)
    if found[0].powered_off:
        return _switched_off(vm, probe=probe)
    if not found[0].shut_down and vm.keepers():
        return Ocf.SUCCESS
    _log.warning("VM %d: %s", vm.vm, _fate(found[0]))
    return Ocf.ERROR


def _but_for_the_end(limit_s: float) -> float:
    """How much of a time may pass before the rest of what it is for begins."""
    return max(limit_s - _SPARED_S, limit_s / 2)


def _here(present: list[Domain]) -> list[Domain]:
    """The domains that are not half of a migration."""
    return [each for each in present if not each.moving and not each.dying]


def _fate(domain: Domain) -> str:
    if not domain.shut_down:
        return "its domain was left half-made"
    known = {
        xl.Reason.WATCHDOG: "its watchdog found it dead",
        xl.Reason.SUSPEND: "it is suspended, and nobody goes on with it",
        xl.Reason.REBOOT: "it reboots, and nobody starts it again",
    }
    return next((text for reason, text in known.items() if domain.reason == reason), "it crashed")


def _settled(vm: Vm, patience_s: float) -> list[Domain]:
    """The VM's domains when it is not between two lives, or after a while."""
    present: list[Domain] = []
    for _turn in vm.machine.waits(patience_s):
        kept = bool(vm.keepers())
        present = vm.present()
        here = _here(present)
        passing = any(domain.shut_down and domain.reason in _PASSING for domain in here)
        if running(present) is not None or not (kept or passing):
            break
        if any(domain.shut_down for domain in here) and not passing:
            break
        if present and not here:
            break  # it is on its way from here or to here
    return present


def _gone(vm: Vm) -> Ocf:
    """No domain: it is not here, or its memory was saved by somebody who could not say so."""
    found = cib.find(pacemaker.cib(vm.machine.runner), vm.owner.cloud, vm.vm)
    if found is not None and found.started and found.wish is Wish.SAVE and _can_wake(vm):
        update(vm, f"VM {vm.vm}: its memory was saved", saved)
        return Ocf.SUCCESS
    return Ocf.NOT_RUNNING


def saved(resource: Resource) -> Resource:
    """A VM whose memory lies in its checkpoint."""
    return replace(
        resource,
        started=False,
        life=Life.STOPPED,
        wish=Wish.NONE,
        reason="its memory was saved",
    )


def _switched_off(vm: Vm, *, probe: bool) -> Ocf:
    if probe and not moving.holds(vm):
        _log.warning("VM %d: what is left of it here is not the VM: no disk is ours", vm.vm)
        return Ocf.NOT_RUNNING
    moving.note_off(vm)
    return Ocf.SUCCESS


# --- the agent ----------------------------------------------------------------------------------


def run(machine: Machine, action: str, env: Mapping[str, str]) -> Ocf:
    """Do one action for the resource that the environment describes; raises CxmError."""
    cloud = names.cloud_id(env.get("OCF_RESKEY_cloud", ""))
    vm = Vm(machine, Owner(cloud, names.vm_id(env.get("OCF_RESKEY_vm", ""))))
    limit_s = int(env.get("OCF_RESKEY_CRM_meta_timeout", "0") or "0") / 1000
    if action == "start":
        with vm.machine.vm_lock(cloud, vm.vm):
            return start(vm, limit_s)
    if action == "stop":
        return stop(vm)
    if action == "monitor":
        return monitor(vm, limit_s, probe=env.get("OCF_RESKEY_CRM_meta_interval", "0") == "0")
    if action == "migrate_to":
        target = env.get("OCF_RESKEY_CRM_meta_migrate_target", "")
        return _sent(vm, target, limit_s)
    if action == "migrate_from":
        return _come(vm, env.get("OCF_RESKEY_CRM_meta_migrate_source", ""))
    return Ocf.UNIMPLEMENTED


def _sent(vm: Vm, target: str, limit_s: float) -> Ocf:
    """Move the VM away; why it does not move is written at the VM, for its order."""
    try:
        with vm.machine.vm_lock(vm.owner.cloud, vm.vm):
            domain = running(vm.present())
            if domain is not None:
                moving.send(vm, domain, pacemaker.cib(vm.machine.runner), target, limit_s)
                return Ocf.SUCCESS
    except CxmError as error:
        moving.tell(vm, error.message)
        raise
    reason = f"VM {vm.vm} does not run on {vm.machine.hostname}, so it cannot move"
    moving.tell(vm, reason)
    _log.error("%s", reason)
    return Ocf.NOT_RUNNING


def _name_of(vm: Vm) -> str:
    """The domain's name; its number where that cannot be told. Never fails: the VM has come."""
    try:
        domain = running(vm.present())
    except CxmError:
        domain = None
    return domain.name if domain is not None else str(vm.vm)


def _come(vm: Vm, source: str) -> Ocf:
    """Confirm a VM that has come; whoever else is at work on it is no reason to stop it."""
    try:
        with vm.machine.vm_lock(vm.owner.cloud, vm.vm):
            has_come = moving.arrive(vm, source)
    except LockTimeoutError:
        has_come = moving.arrive(vm, source)
    if has_come:
        nudge.spool(vm.machine, _name_of(vm), source)
    else:
        _log.error("VM %d has not come", vm.vm)
    return Ocf.SUCCESS if has_come else Ocf.NOT_RUNNING
