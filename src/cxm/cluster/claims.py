# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what this node promises the sync: a VM that runs here is confirmed, and never started.

The sync on the frontend makes OpenNebula call its drivers, and means nothing to happen by that
(docs/design/0011). So it first claims the VM on the node where it runs: as long as the claim lasts,
an order of OpenNebula to start it here may only adopt it. A claim is a file in ``/run`` that ends
by itself, with a confirmation, or when OpenNebula ends the VM.
"""

import json
import logging
import os
from contextlib import suppress
from dataclasses import replace
from typing import Any
from xml.etree.ElementTree import Element

from cxm.cluster import nodes, pacemaker, whereabouts
from cxm.cluster.cib import Resource
from cxm.cluster.view import edited
from cxm.errors import NotFoundError, RefusedError
from cxm.names import CloudId, VmId
from cxm.node.domains import vm_of
from cxm.node.machine import Machine
from cxm.node.verbs import Call

_log = logging.getLogger(__name__)


def _path(machine: Machine, cloud: CloudId, vm: VmId) -> str:
    return os.path.join(machine.run_dir, "claim", f"{cloud}-{vm}")


def note(machine: Machine, cloud: CloudId, vm: VmId, seconds: float) -> None:
    """Claim the VM here for so long; a later claim takes the place of an older one."""
    path = _path(machine, cloud, vm)
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    with open(f"{path}.{os.getpid()}", "w", encoding="ascii") as file:
        json.dump(machine.monotonic() + seconds, file)
    os.replace(file.name, path)


def forget(machine: Machine, cloud: CloudId, vm: VmId) -> None:
    """The claim is over."""
    with suppress(FileNotFoundError):
        os.unlink(_path(machine, cloud, vm))


def is_claimed(machine: Machine, cloud: CloudId, vm: VmId) -> bool:
    """Whether the VM is claimed on this node; a claim that cannot be read is one."""
    try:
        with open(_path(machine, cloud, vm), encoding="ascii") as file:
            until = json.load(file)
    except FileNotFoundError:
        return False
    except (OSError, ValueError):
        return True
    return not isinstance(until, float) or machine.monotonic() < until


def require_unclaimed(machine: Machine, cloud: CloudId, vm: VmId) -> None:
    """Raise RefusedError where nothing may be started for OpenNebula but what runs already."""
    if is_claimed(machine, cloud, vm):
        raise RefusedError(
            f"VM {vm} does not run on {machine.hostname} any more, and is not started: "
            "OpenNebula's record was being brought in line with where it runs",
            hint="'cxm list' shows where it is; cxm-sync looks again by itself",
        )


def _seat(machine: Machine, cloud: CloudId, vm: VmId) -> Element:
    """The CIB, when it is certain that the VM runs here; raises RefusedError, NotFoundError."""
    status, seats, root = whereabouts.look(machine, cloud)
    found = next((each for each in seats if each.vm == vm), None)
    if found is None:
        raise NotFoundError(f"the cluster knows no VM {vm} of the cloud '{cloud}'")
    doubt = whereabouts.distrust(status) or found.doubt
    if doubt or found.node != machine.hostname:
        where = f"it is on {found.node}" if found.node else "it is nowhere"
        raise RefusedError(
            f"it is not certain that VM {vm} runs on {machine.hostname}: {doubt or where}",
            hint="'cxm list' shows where it is; cxm-sync looks again by itself",
        )
    return root


def claim(call: Call, *, vm: VmId, timeout_s: int) -> dict[str, Any]:
    """The verb: confirm that the VM runs here, and claim it for so many seconds."""
    root = _seat(call.machine, call.cloud, vm)
    note(call.machine, call.cloud, vm, timeout_s)
    return {"host": nodes.host_of(root, call.machine.hostname)}


def confirm(call: Call, *, vm: VmId) -> dict[str, Any]:
    """The verb: confirm that the VM runs here, and note that OpenNebula knows; ends the claim."""
    here, me = vm_of(call, vm), call.machine.hostname
    host = nodes.host_of(_seat(call.machine, call.cloud, vm), me)

    def known(resource: Resource) -> Resource:
        return replace(resource, host=host, preferred=me)

    what = f"VM {vm}: OpenNebula knows that it is on {me}"
    pacemaker.change(call.machine.runner, edited(here, known), what=what)
    forget(call.machine, call.cloud, vm)
    return {"host": host}
