# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what a node says of VMs that it does not have: those that are off, or run elsewhere.

OpenNebula listens only to the host that it takes for the VM's, and that is the one which it last
ordered the VM to. So of all nodes that one says it: that the VM is off, wherever its guest was when
it went off; or that it runs, on another node, until the sync has told OpenNebula where.

A node observes itself every few seconds, and must not ask Pacemaker each time. Pacemaker writes its
CIB to the disk of every node when the configuration has changed, not when a state has (source): as
long as that file is the same, so is the answer (docs/design/0006).
"""

import logging
import os
from collections.abc import Collection, Iterable, Mapping
from typing import Final

from cxm.cluster import cib, nodes, pacemaker
from cxm.cluster.cib import Resource
from cxm.cluster.pacemaker import Status
from cxm.errors import CxmError
from cxm.names import CloudId, VmId
from cxm.node.guests import Life
from cxm.node.machine import Machine
from cxm.node.sight import Off

_log = logging.getLogger(__name__)

# An answer is not trusted for longer: Pacemaker may have ended here, or may no longer write.
_TRUSTED_S: Final = 60.0
# Monitoring does not wait for a Pacemaker that hangs: a host that is not heard of is given up.
_ASK_S: Final = 10.0
# Where a VM is that should be here is asked more often than what should be here.
_LOOK_EVERY_S: Final = 10.0


# --- decisions ------------------------------------------------------------------------------------


def looked_for_on(
    found: Iterable[Resource], cloud: CloudId, node: str, host: str
) -> list[Resource]:
    """The VMs of a cloud that OpenNebula looks for on ``node``, which it calls ``host``."""
    return [
        each
        for each in found
        if each.cloud == cloud and (each.host == host if each.host else each.preferred == node)
    ]


def answered_for(ours: Iterable[Resource]) -> list[Resource]:
    """Those that should be off without OpenNebula's doing."""
    return [each for each in ours if each.life is Life.OFF and not each.started]


def run_elsewhere(ours: Iterable[VmId], cloud: CloudId, status: Status, node: str) -> list[int]:
    """Those that run on another healthy node, or are on their way to one.

    The last step of a migration is a stop on the source, and Pacemaker calls the VM Stopping, on
    the target (seen).
    """
    if not status.quorate:
        return []
    up = {each.name for each in status.nodes if each.online and not each.unclean} - {node}
    found = []
    for vm in ours:
        placed = status.resources.get(cib.resource_id(cloud, vm))
        if placed is None:
            continue
        is_moving = "Migrating" in (placed.role, placed.pending)
        if is_moving or (placed.role in ("Started", "Stopping") and set(placed.nodes) & up):
            found.append(int(vm))
    return found


def at_rest(ours: Iterable[Resource], status: Status) -> tuple[dict[int, str], bool]:
    """Those that are nowhere, with their names; and whether some are still being stopped.

    Without a quorum none is: another node may have been told to start it.
    """
    if not status.quorate:
        return {}, False
    off: dict[int, str] = {}
    is_changing = False
    for each in ours:
        placed = status.resources.get(each.id)
        if placed is None or (placed.at_rest and not placed.nodes):
            off[each.vm] = each.name
        else:
            is_changing |= not placed.blocked
    return off, is_changing


def is_due(known: Off, mark: str, now: float) -> bool:
    """Whether the cluster has to be asked again."""
    is_fresh = known.asked_at is not None and 0 <= now - known.asked_at < _TRUSTED_S
    return known.changing or known.mark != mark or not is_fresh


# --- asking ---------------------------------------------------------------------------------------


def look(machine: Machine, cloud: CloudId, known: Off) -> Mapping[int, str]:
    """The VMs that this node says are off, with their names; ``known`` is brought up to date.

    A Pacemaker that does not answer leaves nothing to be said of them.
    """
    now, mark = machine.monotonic(), _mark(machine.cib_file)
    if is_due(known, mark, now):
        known.asked_at, known.mark = now, mark
        known.vms, known.changing, known.ours, known.looked_at = {}, False, {}, None
        try:
            _ask(machine, cloud, known)
        except CxmError as error:
            _log.debug("nothing is said of VMs that are off: %s", error.sentence())
    return known.vms


def _ask(machine: Machine, cloud: CloudId, known: Off) -> None:
    root = pacemaker.cib(machine.runner, local=True, timeout_s=_ASK_S)
    me = machine.hostname
    # Of one that is damaged in the CIB nothing is said; that is no reason to hide the others.
    found, _damaged = cib.readable(root)
    ours = looked_for_on(found, cloud, me, nodes.host_of(root, me))
    known.ours = {each.vm: each.name for each in ours if each.started}
    if off := answered_for(ours):
        known.vms, known.changing = at_rest(off, pacemaker.status(machine.runner, timeout_s=_ASK_S))


def elsewhere(
    machine: Machine, cloud: CloudId, known: Off, here: Collection[VmId]
) -> Mapping[int, str]:
    """The VMs that run on other nodes while OpenNebula looks for them here, but for those ``here``.

    ``known`` was brought up to date by :func:`look`.
    """
    missing = [VmId(vm) for vm in known.ours if vm not in here]
    if not missing:
        return {}
    now = machine.monotonic()
    if known.looked_at is None or not 0 <= now - known.looked_at < _LOOK_EVERY_S:
        known.looked_at, known.elsewhere = now, []
        try:
            status = pacemaker.status(machine.runner, timeout_s=_ASK_S)
            known.elsewhere = run_elsewhere(missing, cloud, status, machine.hostname)
        except CxmError as error:
            _log.debug("nothing is said of VMs that are elsewhere: %s", error.sentence())
    return {vm: known.ours[vm] for vm in known.elsewhere if vm in missing}


def _mark(path: str) -> str:
    """What tells one content of a file that is always replaced as a whole from another."""
    try:
        status = os.stat(path)
    except OSError:
        return ""
    return f"{status.st_ino}-{status.st_mtime_ns}"
