# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the order that moves a VM to another node while it runs."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final
from xml.etree.ElementTree import Element

from cxm.cluster import cib, destination, limits, nodes, pacemaker
from cxm.cluster.cib import Resource, Rule
from cxm.cluster.view import (
    ON_ITS_WAY,
    ON_MOVE,
    Sight,
    View,
    await_,
    comes_to,
    edited,
    glance,
    iso,
    stays_put,
    takes,
    unblocked,
)
from cxm.errors import CommandError, RefusedError
from cxm.names import VmId
from cxm.node.domains import vm_of
from cxm.node.life import Vm, undoing
from cxm.node.verbs import Call

_log = logging.getLogger(__name__)

# The rule of a move outlives its order, which ends it: it must not end under a move.
_LONGER_S: Final = 600.0


def migrate(call: Call, *, vm: VmId, node: str, by_opennebula: bool = True) -> dict[str, Any]:
    """Move the VM to another node while it runs; one that is there already is success.

    Only an order of OpenNebula's tells that OpenNebula takes the VM to be there.
    """
    here = vm_of(call, vm)
    with call.machine.order_lock(call.cloud, vm):
        view = unblocked(here)
        target = nodes.of_host(view.root, node)
        stays_put(view, here)
        if view.where == (target,):
            # An order that was killed may have left its rule.
            rid = cib.resource_id(call.cloud, vm)

            def there(root: Element) -> None:
                cib.release(root, rid)
                if by_opennebula:
                    _ordered_to(here, root, target, host=nodes.host_of(root, target))

            pacemaker.change(call.machine.runner, there, what=f"VM {vm} is on {target}")
            return {"node": target, "moved": False}
        source = _may_move(here, view, target)
        _move(here, view, source, target, by_opennebula=by_opennebula)
    return {"node": target, "moved": True}


def _may_move(vm: Vm, view: View, target: str) -> str:
    """Where the VM runs; raises RefusedError unless it can go to ``target`` from there."""
    known = view.resource
    if known is None or len(view.where) != 1:
        raise RefusedError(f"VM {vm.vm} does not run, so it cannot move")
    if not known.migratable:
        raise RefusedError(
            f"VM {vm.vm} cannot move while it runs: it is a PV guest, which Debian's Xen cannot "
            "move, or its resource has allow-migrate=false",
            hint="save and restore it, or make it PVH (XEN_TYPE)",
        )
    takes(view, target)
    source = view.where[0]
    destination.check(vm.machine, view.root, known, source, target, alive=True)
    return source


def _move(vm: Vm, view: View, source: str, target: str, *, by_opennebula: bool) -> None:
    machine, rid = vm.machine, cib.resource_id(vm.owner.cloud, vm.vm)
    memory_mib = view.resource.memory_mib if view.resource is not None else 0
    patience_s = limits.order_s("migrate_to", memory_mib)
    until = iso(machine.now() + patience_s + _LONGER_S)
    host = nodes.host_of(view.root, target) if by_opennebula else None

    def edit(root: Element) -> None:
        _ordered_to(vm, root, target, f"{ON_ITS_WAY}{target}", host=host)
        # Not "there or not at all": when the target dies, that would stop a guest that runs here.
        cib.attract(root, rid, target, until=until)

    pacemaker.change(
        machine.runner,
        edit,
        what=f"VM {vm.vm} moves from {source} to {target}",
        check=comes_to(vm, target, alive=True),
    )
    with _given_up(vm, view, source, Rule(rid, target, until, binding=False)):
        after = await_(
            vm,
            patience_s,
            lambda now: _has_come(vm, now, source, target),
            before=view,
            fails_on=ON_MOVE,
        )
    told = f"it moved from {source} to {target}"
    if any(failure.operation == "migrate_from" for failure in after.failures(view)):
        told = f"it did not come to {target} alive: it was started there afresh"
        _log.warning("VM %d: %s", vm.vm, told)

    def arrived(root: Element) -> None:
        _ordered_to(vm, root, target, told, host=host)
        cib.release(root, rid)

    pacemaker.change(machine.runner, arrived, what=f"VM {vm.vm} is on {target}")


def _has_come(vm: Vm, now: Sight, source: str, target: str) -> bool:
    """Whether the VM is on the target; raises CommandError when it stays, for the target is gone.

    It would go there as soon as the target is back, unasked.
    """
    node = now.status.node(target)
    is_gone = node is None or not node.online
    if is_gone and now.where == (source,) and now.at_rest:
        raise CommandError(
            f"VM {vm.vm} stays on {source}: {target} has left the cluster",
            hint="'cxm timeline' shows what became of it",
        )
    return now.where == (target,)


def _ordered_to(
    vm: Vm, root: Element, node: str, reason: str = "", *, host: str | None = None
) -> None:
    """Write where the VM is wanted and why; of a meta attribute Pacemaker makes nothing.

    ``host`` is where OpenNebula takes it to be then; None leaves that as it is.
    """

    def edit(known: Resource) -> Resource:
        believed = known.host if host is None else host
        return replace(known, host=believed, preferred=node, reason=reason or known.reason)

    edited(vm, edit)(root)


@contextmanager
def _given_up(vm: Vm, before: View, source: str, rule: Rule) -> Iterator[None]:
    """When the block fails, the VM is wanted where it was, and Pacemaker looks after it again.

    A failed move leaves the VM blocked, and where it is must be found out: on both nodes. What is
    still under way is left to go on, rule and all: without it Pacemaker would stop the VM on both
    nodes and start it afresh. cxm-watch ends the rule then; it also sees to a VM of which a node is
    lost, for nobody can be asked before that is fenced.
    """

    def back(root: Element) -> None:
        if rule not in cib.rules(root) or cib.is_busy(root, rule.resource):
            return
        _ordered_to(vm, root, source, host=before.resource.host if before.resource else None)
        cib.release(root, rule.resource)

    try:
        yield
    except BaseException:
        with undoing(f"the wish to move VM {vm.vm}"):
            _stay(vm, before, back, source)
        raise


def _stay(vm: Vm, before: View, back: Callable[[Element], None], source: str) -> None:
    seen = glance(vm)
    blocked = seen.placed is not None and seen.placed.blocked
    if not blocked and (seen.is_moving or not seen.at_rest):
        return
    pacemaker.change(vm.machine.runner, back, what=f"VM {vm.vm} stays on {source}")
    nodes_ = [seen.status.node(name) for name in seen.where]
    lost = any(node is None or not node.online or node.unclean for node in nodes_)
    if seen.failures(before) and not lost:
        pacemaker.refresh(vm.machine.runner, seen.id)
