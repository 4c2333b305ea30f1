# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the end of volumes whose deletion was asked for while they were in use.

The sync asks for it when oned says that the VM is DONE. What must be true besides is found out
here, under the VM's lock: no domain on any node, nothing in the cluster that may start it, no
volume in use. That none is active elsewhere LVM itself sees to: it removes a volume of a shared
group only with its lock.
"""

import logging
from typing import Any

from cxm import lvm
from cxm.errors import RefusedError
from cxm.names import State, VmId
from cxm.node import disks, domains
from cxm.node import volumes as store
from cxm.node.verbs import Call
from cxm.node.volumes import Owner

_log = logging.getLogger(__name__)


def purge(call: Call, *, vm: VmId, forced: bool) -> dict[str, Any]:
    """Remove the VM's volumes whose deletion was asked for; with ``forced`` all of them.

    A VM that OpenNebula itself has stopped is forgotten by the cluster too. One that ended by
    itself, or by an operator, after OpenNebula had given it up, may have been somebody's rescued
    work: its volumes stay until a human says so. Raises RefusedError for what is not safe.
    """
    machine, owner = call.machine, Owner(call.cloud, vm)
    group = store.load(machine, owner)
    owned = store.of_vm(machine, group, owner)
    wanted = [each for each in owned if forced or each.tags.state is State.DELETE_REQUESTED]
    if not wanted:
        return {"removed": []}
    disks.require_gone(machine, owner)
    used = [each.name for each in owned if each.volume.in_use]
    if used:
        raise RefusedError(f"VM {vm}: its volume {used[0]} is in use on {machine.hostname}")
    removed: list[str] = []
    if machine.in_cluster:
        from cxm.cluster import whereabouts  # noqa: PLC0415 - most hosts are in no cluster

        whereabouts.require_nowhere(machine, call.cloud, vm, forced=forced)
        if len(wanted) == len(owned):
            removed += domains.forget(machine, owner.cloud, vm)
    lvm.remove(machine.runner, group, *(each.name for each in wanted))
    removed += [each.name for each in wanted]
    _log.info("VM %d: removed %s, as OpenNebula had asked", vm, ", ".join(removed))
    return {"removed": removed}
