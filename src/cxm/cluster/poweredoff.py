# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns which VMs of the cluster are off without OpenNebula's doing, and for which a node answers.

OpenNebula listens only to the host that it takes for the VM's, and that is the node which the VM
was last ordered to. So of all nodes that one says it, wherever the guest was when it went off.

A node observes itself every few seconds, and must not ask Pacemaker each time. Pacemaker writes its
CIB to the disk of every node when the configuration has changed, not when a state has (source): as
long as that file is the same, so is the answer (docs/design/0006).
"""

import logging
import os
from collections.abc import Iterable, Mapping
from typing import Final

from cxm.cluster import cib, pacemaker
from cxm.cluster.cib import Resource
from cxm.cluster.pacemaker import Status
from cxm.errors import CxmError
from cxm.names import CloudId
from cxm.node.guests import Life
from cxm.node.machine import Machine
from cxm.node.sight import Off

_log = logging.getLogger(__name__)

# An answer is not trusted for longer: Pacemaker may have ended here, or may no longer write.
_TRUSTED_S: Final = 60.0
# Monitoring does not wait for a Pacemaker that hangs: a host that is not heard of is given up.
_ASK_S: Final = 10.0


# --- decisions ------------------------------------------------------------------------------------


def answered_for(found: Iterable[Resource], cloud: CloudId, node: str) -> list[Resource]:
    """The VMs of a cloud that should be off, and of which ``node`` would say so."""
    return [
        each
        for each in found
        if each.cloud == cloud
        and each.preferred == node
        and each.life is Life.OFF
        and not each.started
    ]


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
        known.asked_at, known.mark, known.vms, known.changing = now, mark, {}, False
        try:
            known.vms, known.changing = _ask(machine, cloud)
        except CxmError as error:
            _log.debug("nothing is said of VMs that are off: %s", error.sentence())
    return known.vms


def _ask(machine: Machine, cloud: CloudId) -> tuple[dict[int, str], bool]:
    # Of one that is damaged in the CIB nothing is said; that is no reason to hide the others.
    found, _damaged = cib.readable(pacemaker.cib(machine.runner, local=True, timeout_s=_ASK_S))
    ours = answered_for(found, cloud, machine.hostname)
    if not ours:
        return {}, False
    return at_rest(ours, pacemaker.status(machine.runner, timeout_s=_ASK_S))


def _mark(path: str) -> str:
    """What tells one content of a file that is always replaced as a whole from another."""
    try:
        status = os.stat(path)
    except OSError:
        return ""
    return f"{status.st_ino}-{status.st_mtime_ns}"
