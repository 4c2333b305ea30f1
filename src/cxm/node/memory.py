# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the verbs that save a VM's memory into its checkpoint volume and restore it from there.

A checkpoint is good for one restore: it is thrown away before its guest runs a single instruction,
and by every cold start. Old memory on a disk that has changed since would corrupt the disk.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, BinaryIO, Final

from cxm import blockdev, interrupt, lvm
from cxm.errors import CxmError, DataError, RefusedError
from cxm.lvm import Group
from cxm.names import CHECKPOINT, LvName, State, Tags, VmId, lv_name
from cxm.node import plan as plans
from cxm.node import volumes as store
from cxm.node.domains import vm_of
from cxm.node.guests import Life
from cxm.node.life import Vm, end, never_ran, note, note_running, running, settled, undoing
from cxm.node.starting import activated, drop_checkpoint, launched, release, usable
from cxm.node.verbs import Call
from cxm.node.volumes import Owned
from cxm.xen import savefile, xl
from cxm.xen.guest import GuestSpec, from_json
from cxm.xen.savefile import SaveFile
from cxm.xen.xl import Domain

_log = logging.getLogger(__name__)

# What a save takes beyond the memory: 8 bytes a page, and for the whole first 4 GiB in any case.
_PER_MIB: Final = 256
_MARGIN_MIB: Final = 64
_ONLY_MEMORY: Final = "only its memory is lost: its disks are whole, and a deploy starts it afresh"


def checkpoint_mib(memory_mib: int) -> int:
    """The size of a checkpoint for so much memory."""
    return memory_mib + memory_mib // _PER_MIB + _MARGIN_MIB


# --- save ---------------------------------------------------------------------------------------


def save(call: Call, *, vm: VmId) -> dict[str, Any]:
    """Write the memory of the VM into its checkpoint and end its domain; on failure it runs on."""
    here = vm_of(call, vm)
    begun = call.machine.monotonic()
    domain = running(settled(here))
    group = here.group()
    found = store.find(call.machine, group, here.owner, CHECKPOINT)
    name = _saved_before(here, found) if domain is None else _save(here, domain, group, found)
    note(here, Life.STOPPED, "its memory was saved")
    release(here)
    seconds = call.machine.monotonic() - begun
    _log.info("the memory of VM %d was saved in %.1f s", vm, seconds)
    return {"checkpoint": name, "seconds": round(seconds, 1)}


def _save(vm: Vm, domain: Domain, group: Group, found: Owned | None) -> str:
    with _runs_on(vm, domain):
        return checkpoint(vm, domain, group, found)


def checkpoint(vm: Vm, domain: Domain, group: Group, found: Owned | None) -> str:
    """Write a domain's memory into the VM's checkpoint, made anew; returns the volume's name.

    When it fails the domain may run on; then what is there of the checkpoint is worthless.
    """
    machine = vm.machine
    if found is not None:
        store.discard(machine, group, found)
        group = vm.group()
    name = lv_name(machine.config.lv_prefix, vm.vm, CHECKPOINT)
    tags = Tags(vm.owner.cloud, vm.vm, CHECKPOINT, State.FILLING, domain.name)
    # A save that is ended halfway leaves a guest that nothing can wake: a signal waits.
    with interrupt.held_off():
        size_mib = checkpoint_mib(domain.memory_mib)
        lvm.create(machine.runner, group, name, size_mib, tags.encode())
        device = machine.device(name)
        xl.save(machine.runner, domain.domid, device, memory_mib=domain.memory_mib)
        _complete(device)
        _retag(vm, group, name, tags, State.READY)
    return name


@contextmanager
def _runs_on(vm: Vm, domain: Domain) -> Iterator[None]:
    """Record that the VM is about to go; when it runs on after a failure, nothing is left of it."""
    before = vm.record()
    note(vm, Life.STOPPED, "its memory is being saved")
    try:
        yield
    except BaseException:
        with undoing("the state before the save"):
            if running(vm.present()) is not None:
                falls = before.falls if before is not None else ()
                note_running(vm, domain.name, "its memory could not be saved", falls=falls)
                drop_checkpoint(vm, vm.group())
        raise


def _open(device: str) -> BinaryIO:
    return open(device, "rb", buffering=0)


def _complete(device: str) -> None:
    """Check a save and zero what lies behind it: some former tenant's data."""
    with _open(device) as file:
        length = savefile.check(file).length
    with blockdev.open_device(device, write=True) as opened:
        opened.zero(length, opened.size)
        opened.sync()


def _saved_before(vm: Vm, found: Owned | None) -> str:
    """The checkpoint of a VM without a domain: an earlier call was cut short at its end."""
    if found is None:
        raise RefusedError(f"VM {vm.vm} does not run here, so its memory cannot be saved")
    if found.tags.state is not State.READY:
        # Its end record proves nothing: below a save that was cut off lies the one before it, and
        # memory that was restored once is complete, too.
        raise RefusedError(
            f"VM {vm.vm} does not run here, and its saved memory is incomplete or used up",
            hint=_ONLY_MEMORY,
        )
    return found.name


def _retag(vm: Vm, group: Group, name: LvName, tags: Tags, state: State) -> Tags:
    changed = replace(tags, state=state)
    lvm.retag(vm.machine.runner, group, name, old=tags.encode(), new=changed.encode())
    return changed


# --- restore ------------------------------------------------------------------------------------


def restore(
    call: Call, *, vm: VmId, directory: str, guest: dict[str, Any] | None
) -> dict[str, Any]:
    """Start the VM from its checkpoint, which is then gone; a VM that runs is success.

    ``guest`` is for a node that has no configuration of the VM yet.
    """
    here = vm_of(call, vm)
    spec = None if guest is None else from_json(guest)
    present = settled(here)
    group = here.group()
    found = store.find(call.machine, group, here.owner, CHECKPOINT)
    domain = running(present) or _restored_before(present, found)
    if domain is None:
        if present:
            end(here)
        domain = wake(here, spec, directory)
    elif domain.paused:
        xl.unpause(call.machine.runner, domain.domid)
    note_running(here, domain.name, "OpenNebula restored it from its saved memory")
    throw_away(here)
    _log.info("VM %d goes on as %s", vm, domain.name)
    return {"name": domain.name}


def _restored_before(present: list[Domain], found: Owned | None) -> Domain | None:
    """A complete domain that only was not woken: its checkpoint is no more one to restore."""
    if found is not None and found.tags.state is State.READY:
        return None
    return next((domain for domain in present if never_ran(domain)), None)


def kept(vm: Vm) -> tuple[Group, Owned]:
    """The VM's saved memory; raises RefusedError unless it is there and complete."""
    group = vm.group()
    found = store.find(vm.machine, group, vm.owner, CHECKPOINT)
    if found is None:
        raise RefusedError(f"VM {vm.vm} has no saved memory", hint=_ONLY_MEMORY)
    if found.tags.state is not State.READY:
        raise RefusedError(
            f"the saved memory of VM {vm.vm} is '{found.tags.state}' and cannot be restored",
            hint=_ONLY_MEMORY,
        )
    return group, found


def _check(vm: Vm, device: str) -> SaveFile:
    try:
        with _open(device) as file:
            return savefile.check(file)
    except DataError as error:
        raise RefusedError(
            f"the saved memory of VM {vm.vm} cannot be restored: {error.message}",
            hint=_ONLY_MEMORY,
        ) from error


def wake(vm: Vm, spec: GuestSpec | None, directory: str) -> Domain:
    """Start a VM that has no domain from its checkpoint, which is worthless from then on.

    By its stored configuration, or by ``spec`` where there is none. Raises RefusedError for a
    checkpoint that is not there or not complete. Once the guest runs nothing is left here that may
    fail; :func:`throw_away` comes next.
    """
    machine = vm.machine
    group, found = kept(vm)
    # Afterwards it is not deactivated by itself: that may fail, and would end the guest that runs.
    with activated(vm, group, [found]):
        device = machine.device(found.name)
        checked = _check(vm, device)
        stored = vm.stored()
        if stored:
            config: Any = nullcontext(stored[0].path)
            wanted = [LvName(name) for name in stored[0].stored.volumes]
            memory_mib = stored[0].stored.memory_mib
            group, owned = usable(vm, wanted)
        elif spec is not None:
            group, owned = usable(vm, plans.volumes_of(vm, spec))
            spec = replace(spec, guest_type=checked.guest_type or spec.guest_type)
            plan = plans.make(vm, spec, directory=directory, group=group, owned=owned)
            config, memory_mib = plans.stored(vm, plan), plan.memory_mib
        else:
            raise RefusedError(f"VM {vm.vm} has no stored configuration on this node")
        with (
            config as path,
            activated(vm, group, owned),
            launched(
                vm, lambda: xl.restore(machine.runner, path, device, memory_mib=memory_mib)
            ) as domain,
        ):
            _let_run(vm, group, found, domain)
    return domain


def _let_run(vm: Vm, group: Group, found: Owned, domain: Domain) -> None:
    """Let the restored domain run; from this moment its checkpoint is worthless.

    When that fails it is good again, but only if the guest has not run: it may have written.
    """
    used = _retag(vm, group, found.name, found.tags, State.FILLING)
    try:
        xl.unpause(vm.machine.runner, domain.domid)
    except BaseException:
        with undoing("the checkpoint"):
            # An unpause that was cut by its time limit or a signal may have done its work.
            waits = _waits(vm.present(), domain)
            end(vm)
            if waits:
                _retag(vm, group, found.name, used, State.READY)
            else:
                _log.warning("VM %d may have run: its saved memory is used up", vm.vm)
        raise


def _waits(present: list[Domain], restored: Domain) -> bool:
    """Whether a domain that was restored is still there as it was made, and nothing else is."""
    return [each.domid for each in present] == [restored.domid] and never_ran(present[0])


def throw_away(vm: Vm) -> None:
    """Remove the used checkpoint, active or not.

    One that stays is told; a stop deactivates it, the next save or cold start removes it.
    """

    def look(group: Group) -> list[Owned]:
        found = store.find(vm.machine, group, vm.owner, CHECKPOINT)
        return [] if found is None else [found]

    try:
        group, _found = store.released(vm.machine, vm.owner, look)
        drop_checkpoint(vm, group)
    except CxmError as error:
        _log.warning("the used checkpoint of VM %d could not be removed: %s", vm.vm, error.message)
