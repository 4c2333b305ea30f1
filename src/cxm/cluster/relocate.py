# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the order that moves a VM to another node while it runs."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from xml.etree.ElementTree import Element

from cxm.cluster import cib, nodes, pacemaker
from cxm.cluster.view import MOVE_S, ON_MOVE, View, await_, edited, iso, look, simulated, unblocked
from cxm.errors import RefusedError
from cxm.names import VmId
from cxm.node.domains import vm_of
from cxm.node.life import Vm, undoing
from cxm.node.verbs import Call

_log = logging.getLogger(__name__)


def migrate(call: Call, *, vm: VmId, node: str) -> dict[str, Any]:
    """Move the VM to another node while it runs; one that is there already is success."""
    here = vm_of(call, vm)
    with call.machine.order_lock(call.cloud, vm):
        view = unblocked(here)
        target = nodes.of_host(view.root, node)
        if view.where == (target,):
            # An order that was killed may have left its rule.
            rid = cib.resource_id(call.cloud, vm)
            pacemaker.change(
                call.machine.runner,
                lambda root: cib.release(root, rid),
                what=f"VM {vm} is on {target}",
            )
            return {"node": target, "moved": False}
        source = _may_move(here, view, target)
        _move(here, view, source, target)
    return {"node": target, "moved": True}


def _may_move(vm: Vm, view: View, target: str) -> str:
    """Where the VM runs; raises RefusedError unless it can go to ``target`` from there."""
    known, node = view.resource, view.status.node(target)
    if known is None or len(view.where) != 1:
        raise RefusedError(f"VM {vm.vm} does not run, so it cannot move")
    if not known.migratable:
        raise RefusedError(
            f"VM {vm.vm} is a PV guest, which Debian's Xen cannot move while it runs",
            hint="save and restore it, or make it PVH (XEN_TYPE)",
        )
    if node is None or not node.online or node.standby or node.maintenance:
        raise RefusedError(f"{target} takes no VMs at the moment: 'cxm infos' shows why")
    return view.where[0]


def _move(vm: Vm, view: View, source: str, target: str) -> None:
    machine, rid = vm.machine, cib.resource_id(vm.owner.cloud, vm.vm)
    until = iso(machine.now() + MOVE_S)

    def edit(root: Element) -> None:
        _ordered_to(vm, root, target)
        cib.confine(root, rid, target, until=until)

    simulated(vm, edit, rid, target, alive=True)
    pacemaker.change(machine.runner, edit, what=f"VM {vm.vm} moves from {source} to {target}")
    with _given_up(vm, view, source):
        after = await_(
            vm, MOVE_S, lambda now: now.where == (target,), before=view, fails_on=ON_MOVE
        )
    if any(failure.operation == "migrate_from" for failure in after.failures(vm, view)):
        _log.warning("VM %d did not come to %s alive: it was started there afresh", vm.vm, target)
    pacemaker.change(
        machine.runner, lambda root: cib.release(root, rid), what=f"VM {vm.vm} is on {target}"
    )


def _ordered_to(vm: Vm, root: Element, node: str) -> None:
    """Write where the VM is wanted; of a meta attribute Pacemaker makes nothing."""
    host = nodes.host_of(root, node)
    edited(vm, lambda known: replace(known, host=host, preferred=node))(root)


@contextmanager
def _given_up(vm: Vm, before: View, source: str) -> Iterator[None]:
    """When the block fails, the VM is wanted where it was, and Pacemaker looks after it again.

    A failed move leaves the VM blocked, and where it is must be found out: on both nodes. What is
    still under way is left to go on.
    """
    rid = cib.resource_id(vm.owner.cloud, vm.vm)

    def back(root: Element) -> None:
        _ordered_to(vm, root, source)
        cib.release(root, rid)

    try:
        yield
    except BaseException:
        with undoing(f"the wish to move VM {vm.vm}"):
            pacemaker.change(vm.machine.runner, back, what=f"VM {vm.vm} stays on {source}")
            if look(vm).failures(vm, before):
                pacemaker.refresh(vm.machine.runner, rid)
        raise
