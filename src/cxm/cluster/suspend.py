# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the orders that save a VM's memory and let it go on from there, on any node of the cluster.

A save is done by the order itself: as an action of the agent it would hold up a failover for as
long as it takes. Restoring is a start with a wish.
"""

import logging
from dataclasses import replace
from typing import Any

from cxm.cluster import agent, claims, limits, nodes, pacemaker
from cxm.cluster.cib import Wish
from cxm.cluster.orders import adopt, called_off, place, planned, told
from cxm.cluster.view import ON_STOP, RECORD, View, await_, edited, look, ready, unblocked
from cxm.errors import CommandError, NotFoundError, RefusedError
from cxm.names import CHECKPOINT, VmId
from cxm.node import memory
from cxm.node import volumes as store
from cxm.node.domains import vm_of
from cxm.node.guests import Life
from cxm.node.life import Vm, running, settled, undoing
from cxm.node.starting import drop_checkpoint
from cxm.node.verbs import Call
from cxm.xen.guest import from_json

_log = logging.getLogger(__name__)


def save(call: Call, *, vm: VmId) -> dict[str, Any]:
    """Write the VM's memory into its checkpoint and end its domain; on failure it runs on."""
    here = vm_of(call, vm)
    begun = call.machine.monotonic()
    with call.machine.order_lock(call.cloud, vm):
        view = unblocked(here)
        if view.where and view.where != (call.machine.hostname,):
            raise RefusedError(
                f"VM {vm} runs on {view.where[0]}, not here: nothing was done",
                hint=RECORD,
            )
        name = _saved(here, view) if view.where else memory.kept(here)[1].name
        seconds = call.machine.monotonic() - begun
    _log.info("the memory of VM %d was saved in %.1f s", vm, seconds)
    return {"checkpoint": name, "seconds": round(seconds, 1)}


def _saved(vm: Vm, view: View) -> str:
    machine, runner = vm.machine, vm.machine.runner
    with machine.vm_lock(vm.owner.cloud, vm.vm):
        domain = running(settled(vm))
        if domain is None:
            raise RefusedError(f"VM {vm.vm} does not run here, so its memory cannot be saved")
        wish = edited(vm, lambda known: replace(known, wish=Wish.SAVE))
        pacemaker.change(runner, wish, what=f"VM {vm.vm}: its memory is being saved")
        group = vm.group()
        found = store.find(machine, group, vm.owner, CHECKPOINT)
        try:
            name = memory.checkpoint(vm, domain, group, found)
        except BaseException:
            with undoing("the state before the save"):
                calm = edited(vm, lambda known: replace(known, wish=Wish.NONE))
                pacemaker.change(runner, calm, what=f"VM {vm.vm}: it could not be saved")
                if running(vm.present()) is not None:
                    drop_checkpoint(vm, vm.group())
            raise
        edit = edited(vm, agent.saved)
        pacemaker.change(runner, edit, what=f"VM {vm.vm}: its memory was saved")
    patience_s = limits.order_s("stop", domain.memory_mib)
    await_(vm, patience_s, lambda now: not now.where, before=view, fails_on=ON_STOP)
    return name


def restore(
    call: Call, *, vm: VmId, directory: str, guest: dict[str, Any] | None
) -> dict[str, Any]:
    """Start the VM here from its checkpoint, which is then gone; one that runs here is success."""
    here = vm_of(call, vm)
    me = call.machine.hostname
    with call.machine.order_lock(call.cloud, vm):
        view = unblocked(here)
        if view.where:
            return adopt(here, view)
        claims.require_unclaimed(call.machine, call.cloud, vm)
        with told(here):
            ready(view, me)
            memory.kept(here)
            resource = view.resource
            if resource is None:
                if guest is None:
                    raise NotFoundError(f"the cluster has no configuration of VM {vm}")
                resource, _kind = planned(here, view, from_json(guest), directory)
            wished = replace(
                resource,
                started=True,
                life=Life.RUNNING,
                wish=Wish.RESTORE,
                reason="OpenNebula restored it from its saved memory",
                host=nodes.host_of(view.root, me),
                preferred=me,
            )
            what = f"VM {vm}: OpenNebula restores it on {me}"
            place(here, view, wished, what, otherwise=called_off(here, view.resource))
        after = look(here).resource
        if after is None or after.wish is not Wish.RESTORE:
            raise CommandError(
                f"VM {vm} was started afresh on {me}: its saved memory could not be used",
                hint="its disks are whole; the log of the node ('journalctl -t cxm') says why",
            )
        calm = edited(here, lambda known: replace(known, wish=Wish.NONE))
        pacemaker.change(call.machine.runner, calm, what=f"VM {vm} goes on")
    return {"name": resource.name}
