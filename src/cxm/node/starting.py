# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the steps of which a VM's start on this node is made, and how each is undone.

Whoever calls these holds the VM's lock.
"""

import logging
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress

from cxm import lvm, names
from cxm.errors import CommandError, NotFoundError, RefusedError
from cxm.lvm import Group
from cxm.names import CHECKPOINT, LvName, State
from cxm.node import volumes as store
from cxm.node.life import Vm, end, note_released, note_running, running, undoing
from cxm.node.volumes import Owned
from cxm.xen import xl
from cxm.xen.xl import Domain

_log = logging.getLogger(__name__)


def usable(vm: Vm, wanted: Collection[LvName], *, kept: bool = False) -> tuple[Group, list[Owned]]:
    """The VM's volumes of these names, and their group; raises CxmError unless all can be used.

    With ``kept`` also those whose deletion was asked for: a VM that the cluster rescued goes on,
    though OpenNebula has given it up meanwhile.
    """
    states = (State.READY, State.DELETE_REQUESTED) if kept else (State.READY,)

    def look(group: Group) -> list[Owned]:
        owned = store.of_vm(vm.machine, group, vm.owner)
        return [each for each in owned if each.name in wanted]

    group, owned = store.released(vm.machine, vm.owner, look)
    for name in sorted(set(wanted) - {each.name for each in owned}):
        raise NotFoundError(f"VM {vm.vm} has no volume {name} in the volume group {group.name}")
    for each in owned:
        if each.tags.state not in states:
            raise RefusedError(
                f"the volume {each.name} of VM {vm.vm} is not ready: it is '{each.tags.state}'"
            )
        if each.volume.in_use:
            raise RefusedError(
                f"the volume {each.name} is in use, though VM {vm.vm} has no domain here",
                hint="a mount or a program on this node holds it",
            )
    return group, owned


def drop_checkpoint(vm: Vm, group: Group) -> None:
    """Throw all saved memory away: after a cold start it would corrupt the guest's disks."""
    found = store.find(vm.machine, group, vm.owner, CHECKPOINT)
    if found is not None:
        store.discard(vm.machine, group, found)
    for path in vm.saved_by_xendomains():
        with suppress(FileNotFoundError):
            os.unlink(path)
            _log.info("removed %s, which xendomains could not restore", path)


@contextmanager
def activated(vm: Vm, group: Group, owned: list[Owned]) -> Iterator[None]:
    """Activate disks; when the block fails, those that were not active are so no more."""
    done: list[Owned] = []
    try:
        for each in owned:
            if not each.volume.active:
                done.append(each)
                lvm.activate(vm.machine.runner, group, each.name)
        yield
    except BaseException:
        with undoing("the disks"):
            for each in reversed(done):
                lvm.deactivate(vm.machine.runner, group, each.name)
        raise


def release(vm: Vm) -> None:
    """Deactivate all volumes of a VM that has no domain.

    One that stays in use is told, and not recorded as released: the host's next turn tries again.
    """
    machine = vm.machine

    def let_go(group: Group) -> list[Owned]:
        owned = [each for each in store.of_vm(machine, group, vm.owner) if each.volume.active]
        for each in owned:
            if not each.volume.in_use:
                lvm.deactivate(machine.runner, group, each.name)
        return [each for each in owned if each.volume.in_use]

    _group, held = store.released(machine, vm.owner, let_go)
    if held:
        what = ", ".join(each.name for each in held)
        _log.warning("VM %d is off, but something on this node still uses %s", vm.vm, what)
    else:
        note_released(vm)


def create(vm: Vm, path: str) -> None:
    """Make the domain that a configuration describes, when it is its turn on this node."""
    with vm.machine.launching():
        xl.create(vm.machine.runner, path)


@contextmanager
def launched(vm: Vm, make: Callable[[], None]) -> Iterator[Domain]:
    """Run ``make``, which makes the VM's domain, and give the domain.

    Nothing stays when that fails, or the block does: who undoes what lies around it would take the
    configuration of a running domain away.
    """
    try:
        yield _launch(vm, make)
    except BaseException:
        with undoing("the half-made domain"):
            end(vm)
        raise


def _launch(vm: Vm, make: Callable[[], None]) -> Domain:
    """When xl refuses since somebody else (xendomains, at boot) has just made it, that is taken."""
    try:
        make()
        return _made(vm)
    except CommandError:
        found = running(vm.present())
        if found is None:
            raise
        _log.info("VM %d was started by somebody else meanwhile", vm.vm)
        return found


def _made(vm: Vm) -> Domain:
    for domain in vm.present():
        return domain
    raise NotFoundError(
        f"the domain of VM {vm.vm} is gone right after its start",
        hint="the logs of xl are in /var/log/xen",
    )


def start_stored(vm: Vm, reason: str, *, falls: tuple[float, ...] = ()) -> str:
    """Start a VM that has no domain from its stored configuration; returns its name."""
    found = vm.stored()
    if not found:
        raise NotFoundError(
            f"VM {vm.vm} has no stored configuration on this node",
            hint="deploy it again from OpenNebula",
        )
    entry = found[0]
    group, owned = usable(vm, [names.LvName(name) for name in entry.stored.volumes])
    drop_checkpoint(vm, group)
    with (
        activated(vm, group, owned),
        launched(vm, lambda: create(vm, entry.path)),
    ):
        note_running(vm, entry.stored.name, reason, falls=falls)
    return entry.stored.name
