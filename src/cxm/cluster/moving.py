# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns a live migration: both its ends, and who may write the VM's disks meanwhile.

A disk is one node's alone, before and after. Only while its guest moves do two nodes share it: the
source gives up being alone, the target joins, the guest goes over, the source leaves, the target
becomes alone. A mark in ``/run/cxm/moving`` says that a node's disks may still be shared; whoever
finds it later (start, stop, monitor) puts that right.

Pacemaker answers a failed migration by stopping the VM on both nodes. So sending fails only when
the guest is known to run on here, and the resource's ``on-fail=block`` leaves it alone then.
"""

import logging
import os
import textwrap
from collections.abc import Collection
from contextlib import suppress
from dataclasses import replace
from typing import Final
from xml.etree.ElementTree import Element

from cxm import lvm, names, wholefile
from cxm.cluster import cib, destination, limits, pacemaker, peer
from cxm.cluster.cib import Resource
from cxm.cluster.view import edited
from cxm.errors import CommandError, CxmError, RefusedError
from cxm.lvm import Group
from cxm.names import LvName
from cxm.node import configs
from cxm.node.guests import Life
from cxm.node.life import Vm, end, running
from cxm.node.volumes import load, of_vm
from cxm.xen import xl
from cxm.xen.xl import Domain

_log = logging.getLogger(__name__)

# The other end of xl, on the target, may need a moment more than this one.
_ARRIVE_S: Final = 30.0
_CLAIM_S: Final = 30.0
# The agent's monitor has 60 s.
_SETTLE_S: Final = 25.0
# A backend lets go of its disk within seconds.
_LET_GO_S: Final = 15.0
# The monitor, which may have to ask for it, has 60 s.
_RELEASE_S: Final = 25.0
_WITHDRAW_S: Final = 10.0
_REASON_CHARS: Final = 160
_INCOMING: Final = "--incoming"


# --- the mark -----------------------------------------------------------------------------------


def _mark(vm: Vm) -> str:
    return os.path.join(vm.machine.run_dir, "moving", f"{vm.owner.cloud}-{vm.vm}")


def note(vm: Vm, other: str = "") -> None:
    """Mark that the VM's disks may be shared from now on, with the node ``other`` if that is known.

    A mark that names a node is not overwritten by one that does not.
    """
    if not other and _other(vm):
        return
    wholefile.write(_mark(vm), f"{other}\n", directory_mode=0o755)


def _other(vm: Vm) -> str:
    """The node that the mark names."""
    try:
        with open(_mark(vm), encoding="utf-8") as file:
            return file.read().strip()
    except FileNotFoundError:
        return ""


def forget(vm: Vm) -> None:
    """Remove the mark."""
    with suppress(FileNotFoundError):
        os.unlink(_mark(vm))


def settle(vm: Vm) -> None:
    """Make the disks of a VM that runs here this node's alone, if they may not be.

    Never a reason to fail, nor to take longer than a monitor may: the guest is well, and a node
    that was lost keeps every lock from being given until it is fenced. The mark stays then.
    """
    if not os.path.exists(_mark(vm)):
        return
    try:
        take(vm.within(_SETTLE_S))
    except (CxmError, OSError) as error:
        _log.warning("the disks of VM %d may be active on another node: %s", vm.vm, error)


def take(vm: Vm, wanted: Collection[LvName] = ()) -> None:
    """Make disks of the VM this node's alone: those that are active, and ``wanted`` ones.

    What is active may be shared with a node on which the VM runs, so nobody may trust it. Where
    another node holds a disk after a migration that came to nothing, it is asked to give it up:
    nobody else looks after it there. Raises CommandError when it does not.
    """
    try:
        _claim(vm, wanted)
    except CommandError:
        for other in _maybe_held_by(vm):
            _call_off(vm, other)
        _claim(vm, wanted)
    forget(vm)


def _maybe_held_by(vm: Vm) -> list[str]:
    known = _other(vm)
    return [known] if known else peer.others(vm.machine, pacemaker.status(vm.machine.runner))


def _claim(vm: Vm, wanted: Collection[LvName]) -> None:
    group = load(vm.machine, vm.owner)
    owned = of_vm(vm.machine, group, vm.owner)
    names_ = [each.name for each in owned if each.volume.active or each.name in wanted]
    if names_ and group.shared:
        lvm.claim(vm.machine.runner, group, names_)


def holds(vm: Vm) -> bool:
    """Whether this node has disks of the VM for itself: then what is left of it here is the VM."""
    group = load(vm.machine, vm.owner)
    if not any(each.volume.active for each in of_vm(vm.machine, group, vm.owner)):
        return False
    try:
        _claim(vm, ())
    except CommandError:
        return False
    return True


# --- the source ---------------------------------------------------------------------------------


def send(vm: Vm, domain: Domain, root: Element, target: str, pacemaker_s: float) -> None:
    """Move the VM's running domain to ``target``; both nodes are as the CIB says.

    Raises CommandError when the guest runs on here, and nothing of it is left on the target.
    """
    resource = cib.known(root, vm.owner.cloud, vm.vm)
    path = configs.write(
        vm.machine, vm.owner.cloud, vm.vm, names.domain_name(resource.name), resource.config
    )
    volumes = resource.volumes
    group = load(vm.machine, vm.owner)
    note(vm, target)
    try:
        destination.same_processor(root, vm.vm, vm.machine.hostname, target)
        lvm.share(vm.machine.runner, group, volumes)
        other = peer.find(vm.machine, root, target)
        receiver = other.command(["receive", vm.owner.cloud, str(vm.vm)])
        seconds = limits.sending_s(domain.memory_mib, pacemaker_s)
        xl.migrate(vm.machine.runner, domain.domid, path, receiver, timeout_s=seconds)
    except CxmError as error:
        if any(domain.powered_off and not domain.moving for domain in vm.present()):
            _call_off(vm, target)
            note_off(vm)
            raise CommandError(
                f"VM {vm.vm} did not move to {target}: its guest switched itself off"
            ) from error
        if _runs_on(vm, target):
            # What the other end said is the cause; xl only says that it has ended.
            cause = peer.refusal(error) or error.message
            raise CommandError(
                f"VM {vm.vm} did not move to {target}, it runs on here: {cause}",
                hint=error.hint,
            ) from error
        # It is beyond the point of no return. Where it is now, migrate_from finds out; where it is
        # not, Pacemaker starts it anew. Either way nothing of it may stay here.
        _log.warning("VM %d was cut off on its way to %s: %s", vm.vm, target, error.sentence())
    if _left(vm, group, volumes):
        forget(vm)
    _log.info("VM %d has left for %s", vm.vm, target)


def note_off(vm: Vm) -> None:
    """The guest has switched itself off: it stays off, wherever the cluster wanted it."""
    reason = "its guest switched itself off"

    def edit(known: Resource) -> Resource:
        if not known.started:
            return known
        return replace(known, started=False, life=Life.OFF, reason=reason)

    pacemaker.change(vm.machine.runner, edited(vm, edit), what=f"VM {vm.vm}: {reason}")


def _runs_on(vm: Vm, target: str) -> bool:
    """Whether the guest is still here after a migration that failed; then that is all there is."""
    if running(vm.present()) is None:
        return False
    _call_off(vm, target)
    settle(vm)
    return True


def tell(vm: Vm, reason: str) -> None:
    """Write at the VM why it did not move: Pacemaker keeps an agent's words, but not of a move."""
    # What a command says at length is in the log.
    reason = textwrap.shorten(reason, _REASON_CHARS, placeholder=" ...")
    try:
        edit = edited(vm, lambda known: replace(known, reason=reason))
        pacemaker.change(vm.machine.runner, edit, what=reason)
    except CxmError as error:
        _log.warning("the cluster does not know why VM %d did not move: %s", vm.vm, error)


def _call_off(vm: Vm, target: str) -> None:
    try:
        other = peer.find(vm.machine, pacemaker.cib(vm.machine.runner), target)
        other.ask("release", vm.owner.cloud, vm.vm, timeout_s=_RELEASE_S)
    except CxmError as error:
        _log.warning("VM %d: what came of it to %s may be there still: %s", vm.vm, target, error)


def _left(vm: Vm, group: Group, volumes: list[LvName]) -> bool:
    """Clean up where a guest has left; what cannot be done now, the agent's stop does next."""
    try:
        for domain in vm.present():
            # One that is suspended under its own name had not left when xl was killed: no matter.
            if not domain.dying:
                xl.destroy(vm.machine.runner, domain.domid)
        _deactivate(vm, group, volumes)
    except CxmError as error:
        _log.warning("VM %d has left, but something of it stays: %s", vm.vm, error.sentence())
        return False
    return True


def _deactivate(vm: Vm, group: Group, volumes: list[LvName]) -> None:
    """A backend lets go of its disks some moments after its domain has gone."""
    for name in volumes:
        for _turn in vm.machine.waits(_LET_GO_S):
            try:
                lvm.deactivate(vm.machine.runner, group, name)
            except CommandError as error:
                failure = error
                if "in use" not in error.stderr:
                    raise
            else:
                break
        else:
            raise failure


# --- the target ---------------------------------------------------------------------------------


def receive(vm: Vm, resource: Resource) -> list[str]:
    """Get ready for a VM's domain; returns the command that takes it from its input."""
    destination.has_bridges(vm.machine, resource)
    present = vm.present()
    if present:
        raise RefusedError(f"VM {vm.vm} has a domain here already: {present[0].name}")
    volumes = resource.volumes
    note(vm)
    lvm.share(vm.machine.runner, load(vm.machine, vm.owner), volumes)
    return xl.receive_argv(vm.scope)


def end_half(vm: Vm) -> None:
    """End what came here of a VM that runs nowhere: whoever sent it is dead, or gave up.

    Else what receives it would wait until the connection is given up, and whoever starts it, too.
    """
    if vm.receivers() and all(domain.moving for domain in vm.present()):
        end(vm)


def withdraw(vm: Vm) -> None:
    """End what came here of a VM that did not move after all."""
    if vm.machine.vm_busy(vm.owner.cloud, vm.vm):
        raise RefusedError(f"an action is at work on VM {vm.vm} here")
    for _turn in vm.machine.waits(_WITHDRAW_S):
        present = vm.present()
        if running(present) is not None and not _half(present):
            raise RefusedError(f"VM {vm.vm} runs here, as {present[0].name}")
        kept = vm.keepers()
        if not present and not kept:
            break
        for domain in present:
            if not domain.dying:
                xl.destroy(vm.machine.runner, domain.domid)
        for pid in kept:
            xl.end_keeper(vm.machine.runner, pid)
    group = load(vm.machine, vm.owner)
    owned = of_vm(vm.machine, group, vm.owner)
    _deactivate(vm, group, [each.name for each in owned if each.volume.active])
    forget(vm)


def _half(present: list[Domain]) -> bool:
    return any(domain.name.endswith(_INCOMING) for domain in present)


def arrive(vm: Vm, source: str) -> bool:
    """Confirm that the VM's domain has come from a node, and make its disks this node's alone.

    False when it has not. Once it runs here nothing else is a reason to fail: it would be stopped.
    """
    domain: Domain | None = None
    for _turn in vm.machine.waits(_ARRIVE_S):
        domain = running(vm.present())
        if domain is not None or not vm.keepers():
            break
    if domain is None:
        return False
    try:
        note(vm, source)
        resource = cib.known(pacemaker.cib(vm.machine.runner), vm.owner.cloud, vm.vm)
        configs.write(
            vm.machine, vm.owner.cloud, vm.vm, names.domain_name(resource.name), resource.config
        )
    except (CxmError, OSError) as error:
        _log.warning("VM %d has come, but not all about it is as it should be: %s", vm.vm, error)
    for _turn in vm.machine.waits(_CLAIM_S):
        settle(vm)
        if not os.path.exists(_mark(vm)):
            break
    _log.info("VM %d has come, as %s", vm.vm, domain.name)
    return True
