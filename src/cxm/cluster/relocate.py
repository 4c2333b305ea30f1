# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the order that moves a VM to another node while it runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from xml.etree.ElementTree import Element

from cxm.cluster import cib, pacemaker, peer
from cxm.cluster.view import MOVE_S, View, await_, iso, look, simulated
from cxm.errors import NotFoundError, RefusedError
from cxm.names import VmId
from cxm.node.domains import vm_of
from cxm.node.life import Vm, undoing
from cxm.node.verbs import Call


def migrate(call: Call, *, vm: VmId, node: str) -> dict[str, Any]:
    """Move the VM to another node while it runs; one that is there already is success."""
    here = vm_of(call, vm)
    with call.machine.order_lock(call.cloud, vm):
        view = look(here)
        target = node_of(view.root, node)
        if view.where == (target,):
            return {"node": target, "moved": False}
        source = _may_move(here, view, target)
        _move(here, source, target)
    return {"node": target, "moved": True}


def node_of(root: Element, host: str) -> str:
    """The node that OpenNebula, or an operator, calls ``host``; raises NotFoundError."""
    names = [each.get("uname", "") for each in root.iterfind("configuration/nodes/node")]
    known = {name: name for name in names}
    known |= {peer.attributes(root, name).get("cxm-host", name): name for name in names}
    if host not in known:
        raise NotFoundError(
            f"no node of this cluster is called '{host}'",
            hint=f"its nodes are {', '.join(sorted(names))}",
        )
    return known[host]


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


def _move(vm: Vm, source: str, target: str) -> None:
    machine, rid = vm.machine, cib.resource_id(vm.owner.cloud, vm.vm)
    until = iso(machine.now() + MOVE_S)

    def edit(root: Element) -> None:
        cib.prefer(root, rid, target)
        cib.confine(root, rid, target, until=until)

    simulated(vm, edit, rid, target)
    pacemaker.change(machine.runner, edit, what=f"VM {vm.vm} moves from {source} to {target}")
    with _given_up(vm, source):
        await_(vm, MOVE_S, lambda view: view.where == (target,), "migrate_to")
    pacemaker.change(
        machine.runner, lambda root: cib.release(root, rid), what=f"VM {vm.vm} is on {target}"
    )


@contextmanager
def _given_up(vm: Vm, source: str) -> Iterator[None]:
    """When the block fails, the VM is wanted where it was, and Pacemaker looks after it again."""
    rid = cib.resource_id(vm.owner.cloud, vm.vm)

    def back(root: Element) -> None:
        cib.prefer(root, rid, source)
        cib.release(root, rid)

    try:
        yield
    except BaseException:
        with undoing(f"the wish to move VM {vm.vm}"):
            pacemaker.change(vm.machine.runner, back, what=f"VM {vm.vm} stays on {source}")
            pacemaker.clean_up(vm.machine.runner, rid)
        raise
