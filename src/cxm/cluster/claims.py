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
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any
from xml.etree.ElementTree import Element

from cxm import wholefile
from cxm.cluster import cib, nodes, pacemaker, whereabouts
from cxm.errors import RefusedError
from cxm.names import CloudId, VmId
from cxm.node.machine import Machine
from cxm.node.verbs import Call

_log = logging.getLogger(__name__)


def _path(machine: Machine, cloud: CloudId, vm: VmId) -> str:
    return os.path.join(machine.run_dir, "claim", f"{cloud}-{vm}")


def note(machine: Machine, cloud: CloudId, vm: VmId, seconds: float) -> None:
    """Claim the VM here for so long; a later claim takes the place of an older one."""
    until = json.dumps(machine.monotonic() + seconds)
    wholefile.write(_path(machine, cloud, vm), until, directory_mode=0o755)


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


def _doubts(machine: Machine, cloud: CloudId) -> Callable[[VmId], str]:
    """Why it is not certain that a VM runs here, after a look at the whole cluster."""
    status, seats, _root = whereabouts.look(machine, cloud)
    known = {each.vm: each for each in seats}

    def doubt(vm: VmId) -> str:
        seat = known.get(vm)
        if seat is None:
            return f"the cluster knows no VM {vm} of the cloud '{cloud}'"
        return whereabouts.doubt_of(status, seat.node, seat.doubt, machine.hostname)

    return doubt


def _refusal(machine: Machine, vm: VmId, why: str) -> RefusedError:
    return RefusedError(
        f"it is not certain that VM {vm} runs on {machine.hostname}: {why}",
        hint="'cxm list' shows where it is; cxm-sync looks again by itself",
    )


def claim(call: Call, *, vms: list[VmId], timeout_s: int) -> dict[str, Any]:
    """The verb: confirm that these VMs run here, and claim them for so many seconds.

    One of which that is not certain is not claimed, which keeps no other from it.
    """
    doubt = _doubts(call.machine, call.cloud)
    refused: dict[str, str] = {}
    for vm in vms:
        if why := doubt(vm):
            refused[str(vm)] = _refusal(call.machine, vm, why).sentence()
        else:
            note(call.machine, call.cloud, vm, timeout_s)
    return {"refused": refused}


def confirm(call: Call, *, vm: VmId) -> dict[str, Any]:
    """The verb: confirm that the VM runs here still; ends the claim, and changes nothing else.

    Many are confirmed at the same time. With the claim, for which the whole cluster was looked at,
    a glance is enough.
    """
    machine, cloud = call.machine, call.cloud
    if is_claimed(machine, cloud, vm):
        why = whereabouts.glance(machine, cloud, vm)
    else:
        why = _doubts(machine, cloud)(vm)
    if why:
        raise _refusal(machine, vm, why)
    forget(machine, cloud, vm)
    return {"node": machine.hostname}


def told(call: Call, *, hosts: dict[VmId, str]) -> dict[str, Any]:
    """The verb: note on which host OpenNebula takes each of these VMs to be, in one change.

    That host speaks to OpenNebula of what is off or elsewhere (:mod:`cxm.cluster.poweredoff`).
    """

    def edit(root: Element) -> None:
        for vm, host in hosts.items():
            known = cib.find(root, call.cloud, vm)
            if known is not None and known.host != host:
                node = nodes.of_host(root, host)
                cib.put(root, replace(known, host=host, preferred=node))

    what = ", ".join(f"VM {vm} on {host}" for vm, host in hosts.items())
    pacemaker.change(call.machine.runner, edit, what=f"OpenNebula knows: {what}")
    return {}
