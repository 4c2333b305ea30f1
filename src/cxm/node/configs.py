# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the stored configurations of domains, their autostart links, and who may have which name.

A configuration is ``CFG_DIR/<name>``; a link to it in AUTO_DIR makes ``xendomains`` start it when
the host boots. Whose it is says the UUID in it, whatever its name.
"""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass

from cxm import lock, names, wholefile
from cxm.errors import DataError, RefusedError
from cxm.names import CloudId, DomainName, VmId
from cxm.node.machine import Machine
from cxm.xen import domcfg
from cxm.xen.domcfg import Stored
from cxm.xen.xl import Domain

# Checking a name and taking it is short; many VMs may start at once.
_NAMES_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class StoredAt:
    """A stored configuration and where it lies."""

    path: str
    stored: Stored


def path_of(machine: Machine, name: str) -> str:
    """Where the configuration of a domain of this name lies."""
    return os.path.join(machine.config.cfg_dir, name)


def link_of(machine: Machine, name: str) -> str:
    """Where its autostart link lies."""
    return os.path.join(machine.config.auto_dir, name)


def _all(machine: Machine) -> Iterator[StoredAt]:
    """The configurations that cxm has written; other files are none of its business."""
    with suppress(FileNotFoundError):
        for entry in sorted(os.listdir(machine.config.cfg_dir)):
            path = os.path.join(machine.config.cfg_dir, entry)
            with suppress(DataError, OSError, UnicodeDecodeError):
                # A name that begins with a dot is of a file whose writing was cut short.
                if not entry.startswith("."):
                    yield StoredAt(path, domcfg.read(_text(path), path))


def _text(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()


def of_vm(machine: Machine, cloud: CloudId, vm: VmId) -> list[StoredAt]:
    """The stored configurations of a VM: one, or none; more when a rename was cut short."""
    uuid = names.domain_uuid(cloud, vm)
    return [found for found in _all(machine) if found.stored.uuid == uuid]


def start_paths(machine: Machine, found: list[StoredAt]) -> list[str]:
    """The configurations by which a domain may be started, by cxm or by xendomains."""
    files = [entry.path for entry in found]
    return files + [link_of(machine, os.path.basename(path)) for path in files]


def names_lock(machine: Machine) -> AbstractContextManager[None]:
    """The lock under which a name is checked and taken."""
    directory = os.path.join(machine.run_dir, "lock")
    return lock.hold(directory, "names", timeout_s=_NAMES_TIMEOUT_S)


def check_name(
    machine: Machine, cloud: CloudId, vm: VmId, name: DomainName, domains: list[Domain]
) -> None:
    """Raise RefusedError when another domain or configuration has the name already."""
    uuid = names.domain_uuid(cloud, vm)
    holder = ""
    for domain in domains:
        if domain.name == name and domain.uuid != uuid:
            holder = f"by {_whose(machine, domain.uuid)}, which runs here"
    path = path_of(machine, name)
    if os.path.lexists(path) and not any(path == at.path for at in of_vm(machine, cloud, vm)):
        owner = next((at.stored.uuid for at in _all(machine) if at.path == path), "")
        holder = holder or f"by {_whose(machine, owner)}, whose configuration is {path}"
    if holder:
        raise RefusedError(
            f"the name '{name}' of VM {vm} is taken already, {holder}",
            hint="rename one of them, or use %I in VM_FQDN_TEMPLATE",
        )


def _whose(machine: Machine, uuid: str) -> str:
    for cloud in machine.config.clouds:
        vm = names.vm_of_uuid(cloud, uuid)
        if vm is not None:
            return f"VM {vm} of the cloud '{cloud}'"
    return "a domain that cxm did not make"


def _unfinished(machine: Machine, cloud: CloudId, vm: VmId) -> str:
    """Where a configuration lies until it is complete: found by the VM alone, whatever its name."""
    return os.path.join(machine.config.cfg_dir, f".{cloud}-{vm}.new")


def drop_unfinished(machine: Machine, cloud: CloudId, vm: VmId) -> None:
    """Remove what a killed start has left of a configuration; nothing there is success."""
    with suppress(FileNotFoundError):
        os.unlink(_unfinished(machine, cloud, vm))


def write(machine: Machine, cloud: CloudId, vm: VmId, name: DomainName, text: str) -> str:
    """Store a configuration, readable by root alone (it may hold a password); returns its path."""
    os.makedirs(machine.config.cfg_dir, exist_ok=True)
    path = path_of(machine, name)
    wholefile.write(path, text, mode=0o600, fresh=_unfinished(machine, cloud, vm), sync=True)
    return path


def set_autostart(machine: Machine, name: str, *, wanted: bool) -> None:
    """Have xendomains start the domain at boot, or not. A file of somebody else is left alone."""
    link = link_of(machine, name)
    target = path_of(machine, name)
    if os.path.islink(link) and (not wanted or os.readlink(link) != target):
        os.unlink(link)
    if wanted and not os.path.lexists(link):
        os.makedirs(machine.config.auto_dir, exist_ok=True)
        os.symlink(target, link)


def remove(machine: Machine, found: list[StoredAt]) -> list[str]:
    """Remove configurations and their autostart links; returns what was removed."""
    removed = []
    for entry in found:
        name = os.path.basename(entry.path)
        if os.path.islink(link_of(machine, name)):
            set_autostart(machine, name, wanted=False)
            removed.append(link_of(machine, name))
        os.unlink(entry.path)
        removed.append(entry.path)
    return removed


def mentioned(machine: Machine, directory: str) -> set[str]:
    """The names of files of ``directory`` that any stored configuration mentions."""
    found: set[str] = set()
    files = os.listdir(directory)
    with suppress(FileNotFoundError):
        for entry in os.listdir(machine.config.cfg_dir):
            with suppress(OSError, UnicodeDecodeError):
                text = _text(path_of(machine, entry))
                found |= {name for name in files if name in text}
    return found
