# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns which volume belongs to which VM, and a volume's life: ``filling``, then ``ready``.

A volume is a VM's when its name and its tags both say so. One that only looks so, by name, is never
touched. A volume that is ``filling`` holds nothing of worth: whoever finds one throws it away.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Final

from cxm import filesystem, interrupt, lvm, names
from cxm.errors import CxmError, NotFoundError, RefusedError, UsageError
from cxm.lvm import Group, Volume
from cxm.names import CloudId, DomainName, LvName, State, Tags, VmId
from cxm.node.machine import Machine

_log = logging.getLogger(__name__)

# Backends let go of their disks some moments after their domain has gone.
_RELEASE_S: Final = 15.0


@dataclass(frozen=True, slots=True)
class Owned:
    """A volume that is a VM's own."""

    volume: Volume
    tags: Tags

    @property
    def name(self) -> LvName:
        return self.volume.name


@dataclass(frozen=True, slots=True)
class Owner:
    """A VM of a cloud: all volumes are asked for by this."""

    cloud: CloudId
    vm: VmId

    @property
    def label(self) -> str:
        """What the VM's mounts are called."""
        return f"{self.cloud}-{self.vm}"


def load(machine: Machine, owner: Owner) -> Group:
    """The volume group as it is now, after a mount that a killed action left has been undone."""
    filesystem.clear(machine.runner, machine.config.tmp_root, owner.label)
    return lvm.group(machine.runner, machine.config.vg_name)


def _owned(volume: Volume, owner: Owner, kind: str) -> Owned:
    try:
        tags = names.decode_tags(list(volume.tags))
    except CxmError as error:
        raise RefusedError(f"the volume {volume.name} is not touched: {error.message}") from error
    if tags is None:
        raise RefusedError(
            f"the volume {volume.name} was not made by cxm and is not touched",
            hint="rename or remove it; its name is that of a disk of this VM",
        )
    if (tags.cloud, tags.vm, tags.kind) != (owner.cloud, owner.vm, kind):
        raise RefusedError(
            f"the volume {volume.name} belongs to disk {tags.kind} of VM {tags.vm} of the cloud "
            f"'{tags.cloud}', not to disk {kind} of VM {owner.vm} of the cloud '{owner.cloud}'",
            hint="clouds that share a volume group need nodes with different LV_PREFIX",
        )
    return Owned(volume, tags)


def find(machine: Machine, group: Group, owner: Owner, kind: str) -> Owned | None:
    """A VM's volume; raises RefusedError when something else has its name."""
    volume = group.find(names.lv_name(machine.config.lv_prefix, owner.vm, kind))
    return None if volume is None else _owned(volume, owner, kind)


def get(machine: Machine, group: Group, owner: Owner, kind: str) -> Owned:
    """The same; raises NotFoundError where there is none, RefusedError for an incomplete one."""
    found = find(machine, group, owner, kind)
    what = "checkpoint" if kind == names.CHECKPOINT else f"disk {kind}"
    if found is None:
        raise NotFoundError(f"VM {owner.vm} has no {what} in the volume group {group.name}")
    if found.tags.state is State.FILLING:
        raise RefusedError(
            f"the volume {found.name} is incomplete", hint=f"the {what} must be made again"
        )
    return found


def of_vm(machine: Machine, group: Group, owner: Owner) -> list[Owned]:
    """All volumes of a VM: its disks by number, then its checkpoint."""
    prefix = f"{machine.config.lv_prefix}-{owner.vm}-"
    found: dict[tuple[bool, int], Owned] = {}
    for volume in group.volumes:
        if not volume.name.startswith(prefix):
            continue
        kind = volume.name.removeprefix(prefix)
        with suppress(UsageError):  # a name that only begins like ours
            names.volume_kind(kind)
            number = int(kind) if kind.isdecimal() else 0
            found[kind == names.CHECKPOINT, number] = _owned(volume, owner, kind)
    return [found[key] for key in sorted(found)]


def released(
    machine: Machine, owner: Owner, look: Callable[[Group], list[Owned]]
) -> tuple[Group, list[Owned]]:
    """The group, and what ``look`` finds in it when nothing of that is in use any more.

    What a VM without a domain has in use is waited for; what stays so longer is returned as it is.
    """
    for _turn in machine.waits(_RELEASE_S):
        group = load(machine, owner)
        found = look(group)
        if not any(each.volume.in_use for each in found):
            break
    return group, found


def check_name(group: Group, owner: Owner, name: DomainName) -> None:
    """Raise RefusedError when a volume of another VM carries the domain's name already."""
    for volume in group.volumes:
        if f"cxm.name={name}" not in volume.tags:
            continue
        mine = {f"cxm.cloud={owner.cloud}", f"cxm.vm={owner.vm}"}
        if not mine <= set(volume.tags):
            raise RefusedError(
                f"the name '{name}' of VM {owner.vm} is taken already, by the VM of {volume.name}",
                hint="rename one of them, or use %I in VM_FQDN_TEMPLATE",
            )


@contextmanager
def activated(machine: Machine, group: Group, owned: Owned) -> Iterator[str]:
    """The device of a volume that nobody uses; afterwards it is as active as it was.

    On a shared group it is inactive afterwards: what is active there and not in use is left over.
    """
    if not owned.volume.active:
        lvm.activate(machine.runner, group, owned.name)
    try:
        yield machine.device(owned.name)
    finally:
        if group.shared or not owned.volume.active:
            with interrupt.held_off():
                lvm.deactivate(machine.runner, group, owned.name)


def discard(machine: Machine, group: Group, owned: Owned) -> None:
    """Remove a volume; raises RefusedError while it is in use."""
    if owned.volume.in_use:
        raise RefusedError(f"the volume {owned.name} is in use")
    lvm.remove(machine.runner, group, owned.name)


def request_deletion(machine: Machine, group: Group, owned: Owned) -> None:
    """Note on a volume that is in use that it is wanted no more."""
    wanted = replace(owned.tags, state=State.DELETE_REQUESTED)
    lvm.retag(machine.runner, group, owned.name, old=owned.tags.encode(), new=wanted.encode())


@contextmanager
def filling(
    machine: Machine,
    group: Group,
    tags: Tags,
    size_mib: int,
    *,
    reuse: Owned | None = None,
) -> Iterator[str]:
    """Make a volume for the block to fill, whose end makes it ``ready``; gives the device.

    The block must have written all of the device and synced it. When it fails, the volume is
    removed. ``reuse`` is an existing volume to fill again instead.
    """
    name = names.lv_name(machine.config.lv_prefix, tags.vm, tags.kind)
    begun = replace(tags, state=State.FILLING).encode()
    runner = machine.runner
    try:
        if reuse is None:
            lvm.create(runner, group, name, size_mib, begun)
        else:
            lvm.retag(runner, group, name, old=reuse.tags.encode(), new=begun)
            if not reuse.volume.active:
                lvm.activate(runner, group, name)
        yield machine.device(name)
        if group.shared:
            # On a shared group, active means: this node's. Who runs the VM is decided later.
            lvm.deactivate(runner, group, name)
        done = replace(tags, state=State.READY).encode()
        lvm.retag(runner, group, name, old=begun, new=done)
    except BaseException:
        with interrupt.held_off():
            _throw_away(machine, Owner(tags.cloud, tags.vm), tags.kind)
        raise


def _throw_away(machine: Machine, owner: Owner, kind: str) -> None:
    """Remove what was being filled, if it came that far; what stays is thrown away next time."""
    try:
        group = lvm.group(machine.runner, machine.config.vg_name)
        owned = find(machine, group, owner, kind)
        if owned is not None and owned.tags.state is State.FILLING:
            lvm.remove(machine.runner, group, owned.name)
    except CxmError as error:
        _log.warning("the incomplete volume could not be removed: %s", error.message)
