# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what is decided about a guest before anything is changed: its name, its type, its devices.

The result is the text of its configuration. Everything that can be checked is checked here.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from cxm import config, names
from cxm.errors import CxmError, RefusedError
from cxm.lvm import Group
from cxm.names import DomainName, LvName
from cxm.node import configs, kernels
from cxm.node import volumes as store
from cxm.node.life import Vm, undoing
from cxm.node.volumes import Owned
from cxm.xen import domcfg, xl
from cxm.xen.choice import Choice
from cxm.xen.guest import Bootloader, GuestSpec


@dataclass(frozen=True, slots=True)
class Plan:
    """A guest whose start has been decided."""

    name: DomainName
    choice: Choice
    text: str  # its configuration
    memory_mib: int


def volumes_of(vm: Vm, spec: GuestSpec) -> list[LvName]:
    """The names of the volumes that are the guest's disks."""
    prefix = vm.machine.config.lv_prefix
    return [names.lv_name(prefix, vm.vm, disk.disk) for disk in spec.disks]


def _name(vm: Vm, spec: GuestSpec, owned: Sequence[Owned]) -> DomainName:
    """The domain's name: as asked for, or as it was when its disks were made.

    A guest without disks whose frontend cannot tell its name (TYPE="xen" before 6.0) keeps the
    name that OpenNebula gives it.
    """
    tagged = next((each.tags.name for each in owned if each.tags.name), "")
    return names.domain_name(spec.name or tagged or f"one-{vm.vm}")


def _check_bridges(vm: Vm, spec: GuestSpec) -> None:
    for nic in spec.nics:
        path = os.path.join(vm.machine.sys_dir, "class/net", nic.bridge)
        if nic.bridge and not nic.openvswitch and not os.path.isdir(path):
            raise RefusedError(
                f"the bridge {nic.bridge} of VM {vm.vm} does not exist on this node",
                hint="create it there, or correct BRIDGE of the virtual network",
            )


def _check_bootloader(vm: Vm, spec: GuestSpec) -> None:
    if spec.bootloader is Bootloader.PYGRUB and not spec.kernel and not vm.machine.config.pygrub:
        raise RefusedError(
            "pygrub is not allowed on this node: root would read a file system of the VM's making",
            hint="leave OS/BOOTLOADER out, and the VM boots by grub inside of itself (package "
            'grub-xen-host on the node); or, if you trust those who use it, set PYGRUB="yes" in '
            f"the node's {config.NODE_FILE}",
        )


def make(vm: Vm, spec: GuestSpec, *, directory: str, group: Group, owned: Sequence[Owned]) -> Plan:
    """Decide how the guest will run; raises CxmError, with the VM's number, when it cannot."""
    machine = vm.machine
    try:
        name = _name(vm, spec, owned)
        _check_bridges(vm, spec)
        _check_bootloader(vm, spec)
        kernel = kernels.stage(machine, spec.kernel, directory) if spec.kernel else ""
        ramdisk = kernels.stage(machine, spec.ramdisk, directory) if spec.ramdisk else ""
        choice = kernels.choose(machine, spec, kernel)
        store.check_name(group, vm.owner, name)
        text = domcfg.render(
            replace(spec, name=name),
            cloud=vm.owner.cloud,
            vm=vm.vm,
            choice=choice,
            ramdisk=ramdisk,
            devices={each.tags.kind: machine.device(each.name) for each in owned},
        )
    except CxmError as error:
        if str(vm.vm) not in error.message.split():
            error.message = f"VM {vm.vm}: {error.message}"
        raise
    return Plan(name, choice, text, spec.memory_mib)


@contextmanager
def stored(vm: Vm, plan: Plan) -> Iterator[str]:
    """Take the name and store the configuration; gives its path. When the block fails, it is gone.

    Another configuration of the VM, from before it was renamed, is removed.
    """
    machine = vm.machine
    with configs.names_lock(machine):
        domains = xl.domains(machine.runner)
        configs.check_name(machine, vm.owner.cloud, vm.vm, plan.name, domains)
        path = configs.write(machine, vm.owner.cloud, vm.vm, plan.name, plan.text)
        configs.remove(machine, [entry for entry in vm.stored() if entry.path != path])
    try:
        yield path
    except BaseException:
        with undoing("the configuration"):
            configs.remove(machine, vm.stored())
        raise
