# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns which VMs' directories are on this node because the VM was to come here while it runs.

OpenNebula never asks again about the directory of a move that it gave up: the VM is deleted where
it is, and nothing says so here. So the node remembers, and looks when it works on another VM.
"""

import os
from collections.abc import Iterator
from contextlib import suppress

from cxm import names, wholefile
from cxm.errors import UsageError
from cxm.lvm import Group
from cxm.node import configs
from cxm.node.machine import Caller, Machine
from cxm.node.volumes import Owner


def _path(machine: Machine, owner: Owner) -> str:
    return os.path.join(machine.state_dir, "adopted", f"{owner.cloud}-{owner.vm}")


def note(machine: Machine, owner: Owner, directory: str) -> None:
    """Remember a directory, before it is made, and whose it will be: the note's owner."""
    path = _path(machine, owner)
    owner_ids = (machine.caller.uid, machine.caller.gid) if os.geteuid() == 0 else None
    wholefile.write(path, directory, owner=owner_ids, directory_mode=0o700, fresh=f"{path}.new")


def account(machine: Machine, owner: Owner) -> Caller:
    """Who had the directory made, and whose rights are enough to remove it."""
    status = os.stat(_path(machine, owner))
    return Caller(status.st_uid, status.st_gid)


def forget(machine: Machine, owner: Owner) -> None:
    """The directory has been removed."""
    with suppress(FileNotFoundError):
        os.unlink(_path(machine, owner))


def noted(machine: Machine) -> Iterator[tuple[Owner, str]]:
    """The directories that are remembered."""
    try:
        found = sorted(os.listdir(os.path.join(machine.state_dir, "adopted")))
    except FileNotFoundError:
        return
    for name in found:
        cloud, _dash, number = name.rpartition("-")
        with suppress(UsageError, FileNotFoundError):
            owner = Owner(names.cloud_id(cloud), names.vm_id(number))
            with open(_path(machine, owner), encoding="utf-8") as file:
                yield owner, file.read()


def is_gone(machine: Machine, owner: Owner, group: Group) -> bool:
    """Whether a VM has been deleted: it has no volume any more, and does not run here without."""
    if configs.of_vm(machine, owner.cloud, owner.vm):
        return False
    return not has_volumes(machine, owner, group)


def has_volumes(machine: Machine, owner: Owner, group: Group) -> bool:
    """Whether there is any volume of the VM."""
    prefix = f"{machine.config.lv_prefix}-{owner.vm}-"
    return any(volume.name.startswith(prefix) for volume in group.volumes)
