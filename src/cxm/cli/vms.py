# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the subcommands about one VM that are not orders: its console, and its volumes by hand."""

from typing import Final

from cxm import lvm, names
from cxm.cli.world import World
from cxm.cluster.model import Cluster, find_vm
from cxm.errors import NotFoundError, RefusedError
from cxm.lvm import Group
from cxm.names import CloudId
from cxm.node import volumes
from cxm.node.machine import Machine
from cxm.node.volumes import Owned, Owner
from cxm.xen import xl

_LOCK_S: Final = 5.0


def console(world: World, *, vm: str) -> int:
    """The VM's console, until Ctrl-]."""
    found = find_vm(world.cluster(), vm)
    if not found.nodes:
        raise RefusedError(f"VM {found.label} runs nowhere: it is {found.state}")
    here = world.here()
    if here not in found.nodes:
        raise RefusedError(
            f"VM {found.label} runs on {found.node}",
            hint=f"ssh -t {found.node} cxm console {found.name}",
        )
    resource = found.resource
    uuid = names.domain_uuid(resource.cloud, resource.vm)
    for domain in xl.domains(world.runner):
        if domain.uuid == uuid and domain.alive:
            world.say(f"Console of {found.label}; Ctrl-] leaves it.")
            return world.foreground(["xl", "console", str(domain.domid)])
    raise NotFoundError(f"VM {found.label} has no domain on {here} at this moment")


# --- volumes --------------------------------------------------------------------------------------


def _owner(cluster: Cluster, clouds: tuple[CloudId, ...], text: str) -> tuple[Owner, str]:
    """Whose volumes are meant, and its name: a VM of the cluster, or one that only has disks."""
    cloud, slash, number = text.rpartition("/")
    try:
        found = find_vm(cluster, text)
    except NotFoundError:
        known = clouds if not slash else (names.cloud_id(cloud),)
        if not number.isdecimal() or len(known) != 1:
            raise
        vm = names.vm_id(number)
        return Owner(known[0], vm), f"VM {vm}"
    return Owner(found.resource.cloud, found.resource.vm), f"VM {found.label}"


def _disks(machine: Machine, owner: Owner, label: str) -> tuple[Group, list[Owned]]:
    group = lvm.group(machine.runner, machine.config.vg_name)
    owned = volumes.of_vm(machine, group, owner)
    if not owned:
        raise NotFoundError(f"{label} has no volume in the group {group.name}")
    return group, owned


def activate(world: World, *, vm: str) -> int:
    """Make the volumes of a VM that is off usable on this node, and on no other."""
    machine, cluster = world.machine(), world.cluster()
    owner, label = _owner(cluster, machine.config.clouds, vm)
    for each in cluster.vms:
        if (each.resource.cloud, each.resource.vm) != (owner.cloud, owner.vm):
            continue
        if each.nodes or each.resource.started:
            where = f"is on {each.node}" if each.nodes else "is to run"
            raise RefusedError(f"{label} {where}: its volumes are its own", hint="switch it off")
    with machine.vm_lock(owner.cloud, owner.vm, timeout_s=_LOCK_S):
        group, owned = _disks(machine, owner, label)
        devices = []
        for each_owned in owned:
            if not each_owned.volume.active:
                lvm.activate(machine.runner, group, each_owned.name)
            devices.append(machine.device(each_owned.name))
            world.say(devices[-1])
    world.end(
        f"{label} cannot start on another node until 'cxm deactivate {vm}'",
        {"cloud": owner.cloud, "vm": owner.vm, "devices": devices},
    )
    return 0


def deactivate(world: World, *, vm: str) -> int:
    """Let go of a VM's volumes on this node."""
    machine, cluster = world.machine(), world.cluster()
    owner, label = _owner(cluster, machine.config.clouds, vm)
    with machine.vm_lock(owner.cloud, owner.vm, timeout_s=_LOCK_S):
        group, owned = _disks(machine, owner, label)
        busy = [each.name for each in owned if each.volume.in_use]
        if busy:
            raise RefusedError(
                f"in use on this node: {', '.join(busy)}",
                hint="a domain or a mount has them: 'xl list', 'lsblk'",
            )
        active = [each.name for each in owned if each.volume.active]
        for name in active:
            lvm.deactivate(machine.runner, group, name)
    world.end(
        f"{label}: {', '.join(active) or 'nothing'} was active here",
        {"cloud": owner.cloud, "vm": owner.vm, "volumes": active},
    )
    return 0
