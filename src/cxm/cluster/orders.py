# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the orders about one VM of a cluster: each is one change of the CIB, and a wait outside it.

They are what the node's verbs do where the node is in a cluster, and what ``cxm`` does. A VM is
started on the node that was named, or not at all.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final
from xml.etree.ElementTree import Element

from cxm.cluster import (
    bootfiles,
    cib,
    claims,
    destination,
    limits,
    moving,
    nodes,
    pacemaker,
    peer,
    request,
)
from cxm.cluster.cib import Resource, Rule, Wish
from cxm.cluster.view import (
    ON_START,
    ON_STOP,
    RECORD,
    View,
    await_,
    comes_to,
    edited,
    glance,
    iso,
    look,
    ready,
    stays_put,
    takes,
    unblocked,
)
from cxm.errors import NotFoundError, RefusedError
from cxm.names import CHECKPOINT, State, VmId
from cxm.node import adopted
from cxm.node import plan as plans
from cxm.node import volumes as store
from cxm.node.domains import vm_of
from cxm.node.guests import Life
from cxm.node.life import Vm, end, running, settled, undoing
from cxm.node.starting import release, usable
from cxm.node.verbs import Call
from cxm.xen import xl
from cxm.xen.guest import GuestSpec, from_json

_log = logging.getLogger(__name__)

# A guest that did not hear the first time (it was booting, for example) is asked again.
_ASK_AGAIN_S: Final = 20.0
# How long a VM whose start was ordered on one node is kept off the others when nobody ends that:
# the order does, or cxm-watch, but not before its node is fenced: that may wait for a human.
_BOUND_S: Final = 86400.0
_WHOLE_CPU: Final = 100
_WEIGHT_OF_CPU: Final = 256


# --- start --------------------------------------------------------------------------------------


def start(call: Call, *, vm: VmId, directory: str, guest: dict[str, Any]) -> dict[str, Any]:
    """Have the VM run on this node; one that runs here already is adopted."""
    here = vm_of(call, vm)
    spec = from_json(guest)
    with call.machine.order_lock(call.cloud, vm):
        view = unblocked(here)
        if view.where == (call.machine.hostname,) and running(settled(here)) is None:
            # Its guest has ended, and Pacemaker has not noticed yet. What then becomes of it is
            # Pacemaker's to decide, if it was not to be started: the sync ends no VM.
            claims.require_unclaimed(call.machine, call.cloud, vm)
            _stopped(here, "its guest had ended")
            view = look(here)
        if view.where:
            return adopt(here, view)
        claims.require_unclaimed(call.machine, call.cloud, vm)
        with told(here):
            ready(view, call.machine.hostname)
            # OpenNebula may never come back for its directory: the VM may be rescued from here.
            adopted.note(call.machine, here.owner, directory)
            resource, kind = planned(here, view, spec, directory)
            what = f"VM {vm}: OpenNebula starts it on {call.machine.hostname}"
            place(here, view, resource, what, otherwise=called_off(here, view.resource))
    return {"name": resource.name, "type": kind, "adopted": False}


@contextmanager
def told(vm: Vm) -> Iterator[None]:
    """When the block, a start, fails, OpenNebula is told so: the VM must not start later, unasked.

    One that should run, and does not (its node died, and no other has room), is called off then;
    one that has come to run meanwhile goes on.
    """
    rid = cib.resource_id(vm.owner.cloud, vm.vm)
    try:
        yield
    except BaseException:
        with undoing("the order to start it"):
            off = edited(vm, lambda known: called_off(vm, known) or known)

            def edit(root: Element) -> None:
                # A rule is another order's, given on another node meanwhile: the later one wins.
                if all(each.resource != rid for each in cib.rules(root)):
                    off(root)

            what = f"VM {vm.vm}: its start failed: it is called off"
            if not glance(vm).where:
                pacemaker.change(vm.machine.runner, edit, what=what)
        raise


def called_off(vm: Vm, known: Resource | None) -> Resource | None:
    """A VM whose start on this node has failed; one that should not run is as it was."""
    if known is None or not known.started:
        return known
    reason = f"OpenNebula's start of it on {vm.machine.hostname} failed"
    return replace(known, started=False, life=Life.STOPPED, wish=Wish.NONE, reason=reason)


def adopt(vm: Vm, view: View) -> dict[str, Any]:
    """Take a VM that runs here already for one that should; elsewhere it is refused."""
    me = vm.machine.hostname
    stays_put(view, vm)
    if view.where != (me,) or view.resource is None:
        raise RefusedError(
            f"VM {vm.vm} runs on {' and '.join(view.where)}, so it is not started on {me}",
            hint=f"{RECORD}; 'cxm list' shows where VMs are",
        )
    host = nodes.host_of(view.root, me)
    wanted = edited(
        vm,
        lambda known: replace(known, started=True, life=Life.RUNNING, host=host, preferred=me),
    )

    def edit(root: Element) -> None:
        wanted(root)
        cib.release(root, cib.resource_id(vm.owner.cloud, vm.vm))

    pacemaker.change(vm.machine.runner, edit, what=f"VM {vm.vm} runs here, and shall")
    patience_s = limits.order_s("start", view.resource.memory_mib)
    await_(vm, patience_s, lambda now: now.where == (me,), before=view, fails_on=ON_START)
    return {"name": view.resource.name, "type": "", "adopted": True}


def planned(vm: Vm, view: View, spec: GuestSpec, directory: str) -> tuple[Resource, str]:
    """The VM as it shall be; all about it that can be checked has been, every node can boot it.

    It is nowhere, as Pacemaker sees it, which waits for the fencing of a node that is lost.
    """
    wanted = plans.volumes_of(vm, spec)
    if vm.receivers():
        with vm.machine.vm_lock(vm.owner.cloud, vm.vm):
            moving.end_half(vm)
    if running(settled(vm)) is not None:
        group = vm.group()
        owned = [each for each in store.of_vm(vm.machine, group, vm.owner) if each.name in wanted]
    else:
        group, owned = usable(vm, wanted)
    plan = plans.make(vm, spec, directory=directory, group=group, owned=owned)
    weight = spec.cpu_weight
    cpu = _WHOLE_CPU * spec.vcpus if weight is None else -(-_WHOLE_CPU * weight // _WEIGHT_OF_CPU)
    resource = Resource(
        cloud=vm.owner.cloud,
        vm=vm.vm,
        name=plan.name,
        config=plan.text,
        memory_mib=cib.needed_mib(plan.memory_mib, spec.vcpus),
        cpu=cpu,
        migratable=plan.choice.guest_type.value != "pv",
        started=True,
        reason="OpenNebula started it",
        host=nodes.host_of(view.root, vm.machine.hostname),
        preferred=vm.machine.hostname,
    )
    bootfiles.spread(vm, plan.text, view.status, view.root)
    return resource, plan.choice.guest_type.value


def place(vm: Vm, view: View, resource: Resource, what: str, *, otherwise: Resource | None) -> None:
    """Start the VM on this node: one change, simulated before it is made.

    When that fails the VM is as ``otherwise`` says, or the cluster knows it no more.
    """
    machine, me, rid = vm.machine, vm.machine.hostname, resource.id
    patience_s = limits.order_s("start", resource.memory_mib)
    rule = Rule(rid, me, iso(machine.now() + _BOUND_S), binding=True)

    def edit(root: Element) -> None:
        if otherwise is not None:
            cib.known(root, vm.owner.cloud, vm.vm)  # it has been deleted meanwhile
        cib.put(root, resource)
        cib.confine(root, rid, me, until=rule.until)

    if view.failures():
        pacemaker.clean_up(machine.runner, rid)
    try:
        # Who hears nothing of a change does not know that it was not made.
        pacemaker.change(machine.runner, edit, what=what, check=comes_to(vm, me))
        await_(vm, patience_s, lambda now: now.where == (me,), before=view, fails_on=ON_START)
    except BaseException:
        with undoing(f"the resource {rid}"):
            _withdraw(vm, rule, otherwise)
        raise
    pacemaker.change(
        machine.runner, lambda root: cib.release(root, rid), what=f"VM {vm.vm} runs on {me}"
    )


def _withdraw(vm: Vm, rule: Rule, otherwise: Resource | None) -> None:
    """Undo an order to start: nothing runs, and the VM is as it is to be then.

    That it should run no more is written with the end of the rule: whoever is cut off between two
    changes leaves a VM that is off, and says why. Where the rule is not this order's any more, a
    later order on another node has taken the VM over: what that one does stays.
    """
    rid = cib.resource_id(vm.owner.cloud, vm.vm)
    runner = vm.machine.runner
    view = look(vm)

    reason = f"its start on {vm.machine.hostname} failed"

    def off(known: Resource) -> Resource:
        return replace(known, started=False, life=Life.STOPPED, wish=Wish.NONE, reason=reason)

    def stopped(root: Element) -> None:
        if rule in cib.rules(root):
            cib.release(root, rid)
            edited(vm, off)(root)

    what = f"VM {vm.vm} did not start: it is called off"
    if not pacemaker.change(runner, stopped, what=what):
        return
    _await_stop(vm, view)
    if otherwise is None:
        pacemaker.change(
            runner, lambda root: cib.remove(root, rid), what=f"VM {vm.vm} is forgotten"
        )
    else:
        pacemaker.change(
            runner,
            edited(vm, lambda _known: otherwise),
            what=f"VM {vm.vm} is {'as before' if otherwise.started else 'stopped'}",
        )
    pacemaker.clean_up(runner, rid)


def begin(call: Call, *, vm: VmId, node: str, reason: str) -> dict[str, Any]:
    """Have a VM that the cluster knows start on a node, cold; one that runs is refused.

    ``node`` is what the cluster or OpenNebula calls it; raises NotFoundError for an unknown one.
    Raises RefusedError for one whose memory is saved: a cold start would throw it away. What is
    left of memory that is of no worth (incomplete, or used) is no obstacle: the start removes it.
    """
    # Where a VM is placed is the machine that gives the order, but for its name.
    name = nodes.of_host(pacemaker.cib(call.machine.runner), node)
    there = replace(call, machine=replace(call.machine, hostname=name))
    target = vm_of(there, vm)
    with call.machine.order_lock(call.cloud, vm):
        view = look(target)
        if view.resource is None:
            raise NotFoundError(f"the cluster does not know VM {vm}")
        if view.where:
            raise RefusedError(f"VM {vm} is on {' and '.join(view.where)} already")
        saved = store.find(call.machine, target.group(), target.owner, CHECKPOINT)
        if saved is not None and saved.tags.state is State.READY:
            raise RefusedError(
                f"the memory of VM {vm} is saved, and a start would throw it away",
                hint="have OpenNebula resume it",
            )
        ready(view, name)
        takes(view, name)
        # What its guest finds in the processor it finds when it boots.
        destination.check(call.machine, view.root, view.resource, name, name, alive=False)
        wanted = replace(
            view.resource,
            started=True,
            life=Life.RUNNING,
            reason=reason,
            preferred=name,
        )
        what = f"VM {vm}: {reason}, on {name}"
        place(target, view, wanted, what, otherwise=view.resource)
    return {"name": wanted.name, "node": name}


# --- stop ---------------------------------------------------------------------------------------


def stop(
    call: Call,
    *,
    vm: VmId,
    how: str,
    timeout_s: int,
    life: Life = Life.STOPPED,
    reason: str = "OpenNebula stopped it",
) -> dict[str, Any]:
    """End the VM wherever it runs; returns when it is gone and its disks are released.

    ``life`` is OFF when somebody else than OpenNebula ends it: then a probe tells that
    (:mod:`cxm.cluster.poweredoff`). OpenNebula destroys a VM only on the node where it is: who
    destroys it elsewhere (a hook that cleans up a lost host) believes what is not true any more.
    """
    here = vm_of(call, vm)
    where = glance(here).where
    was = "running" if where else "absent"
    if life is Life.STOPPED:
        if how == "destroy" and where and call.machine.hostname not in where:
            raise RefusedError(
                f"VM {vm} runs on {where[0]}, so it is not destroyed on {call.machine.hostname}",
                hint=RECORD,
            )
        claims.forget(call.machine, call.cloud, vm)
    # Without the order's lock: who destroys the VM need not wait until its guest has listened.
    was_off = how == "shutdown" and _shut_down(here, timeout_s)
    with call.machine.order_lock(call.cloud, vm):
        view = unblocked(here)
        if was_off and view.where and _ask(here, view.where[0], "state"):
            raise RefusedError(
                f"VM {vm} was off, and was started again meanwhile, on {view.where[0]}",
                hint="'cxm timeline' shows by whom; if it is to be off, order it again",
            )
        if view.resource is not None:
            _stopped(here, reason, life, hard=how == "destroy")
        with call.machine.vm_lock(call.cloud, vm):
            if view.resource is None:
                end(here)
            release(here)
    return {"was": was}


def _stopped(vm: Vm, reason: str, life: Life = Life.STOPPED, *, hard: bool = False) -> None:
    """Have the VM end; ``hard`` does not let the agent ask its guest first, if that runs here."""

    def edit(known: Resource) -> Resource:
        return replace(known, started=False, life=life, wish=Wish.NONE, reason=reason)

    view = look(vm)
    pacemaker.change(vm.machine.runner, edited(vm, edit), what=f"VM {vm.vm}: {reason}")
    for domain in vm.present() if hard else ():
        if not domain.dying:
            xl.destroy(vm.machine.runner, domain.domid)
    _await_stop(vm, view)


def _await_stop(vm: Vm, view: View) -> None:
    patience_s = limits.order_s("stop", view.resource.memory_mib if view.resource else 0)
    await_(vm, patience_s, lambda now: not now.where, before=view, fails_on=ON_STOP)


def _shut_down(vm: Vm, timeout_s: float) -> bool:
    """Ask the guest until it is off, which is returned, or its time is up.

    Pacemaker only ever waits for little.
    """
    asked_at: float | None = None
    for _turn in vm.machine.waits(timeout_s):
        where, now = glance(vm).where, vm.machine.monotonic()
        is_due = asked_at is None or now - asked_at >= _ASK_AGAIN_S
        asked_at = now if is_due else asked_at
        word = "shutdown" if is_due else "state"
        if not where or not _ask(vm, where[0], word):
            return True
    return False


def _ask(vm: Vm, node: str, word: str) -> bool:
    """Ask the guest for something, on the node where it runs; False when it runs no more."""
    if node != vm.machine.hostname:
        other = peer.find(vm.machine, pacemaker.cib(vm.machine.runner), node)
        return bool(other.ask(word, vm.owner.cloud, vm.vm)["running"])
    return request.ask(vm, word)


def reboot(call: Call, *, vm: VmId) -> dict[str, Any]:
    """Ask the guest to reboot, wherever it runs."""
    here = vm_of(call, vm)
    view = look(here)
    if view.resource is None or not view.where or not _ask(here, view.where[0], "reboot"):
        raise RefusedError(f"VM {vm} does not run, so it cannot reboot")
    _log.info("VM %d reboots", vm)
    return {"name": view.resource.name}


def reset(call: Call, *, vm: VmId) -> dict[str, Any]:
    """Destroy the VM's domain and start it again, on the node where it was."""
    here = vm_of(call, vm)
    with call.machine.order_lock(call.cloud, vm):
        view = unblocked(here)
        if view.resource is None or view.where != (call.machine.hostname,):
            raise RefusedError(
                f"VM {vm} does not run on {call.machine.hostname}, so it is not reset here",
                hint="'cxm list' shows where it is",
            )
        ready(view, call.machine.hostname)
        takes(view, call.machine.hostname)
        again = replace(view.resource, started=True, preferred=call.machine.hostname)
        # Whoever is cut off now leaves a VM that is off, that says so, and that can be started.
        _stopped(here, "OpenNebula resets it", Life.OFF, hard=True)
        view = look(here)
        place(here, view, again, f"VM {vm} is reset", otherwise=view.resource)
    return {"name": again.name}


# --- for other verbs ----------------------------------------------------------------------------


def forget(vm: Vm) -> list[str]:
    """Take a VM out of the cluster; returns what was removed. Raises RefusedError while it runs."""
    view = look(vm)
    if view.where:
        raise RefusedError(f"VM {vm.vm} runs on {view.where[0]}")
    if view.resource is None:
        return []
    if view.resource.started:
        raise RefusedError(f"VM {vm.vm} is to run in the cluster, which is about to start it")
    rid = view.resource.id
    pacemaker.change(
        vm.machine.runner, lambda root: cib.remove(root, rid), what=f"VM {vm.vm} is forgotten"
    )
    return [rid]
