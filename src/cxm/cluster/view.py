# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what an order about a VM finds in the cluster, and how it waits for what it asked for."""

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final
from xml.etree.ElementTree import Element

from cxm.cluster import cib, nodes, pacemaker
from cxm.cluster.cib import Resource
from cxm.cluster.pacemaker import Failure, Placed, Status
from cxm.errors import CommandError, LockTimeoutError, RefusedError
from cxm.node.life import Vm

_LOOK_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Sight:
    """What Pacemaker does with a VM at one moment."""

    id: str  # the VM's resource
    status: Status

    @property
    def placed(self) -> Placed | None:
        """The VM's resource, None for one that the cluster does not know."""
        return self.status.resources.get(self.id)

    @property
    def where(self) -> tuple[str, ...]:
        """The nodes on which the VM is active: none, or one."""
        return self.placed.nodes if self.placed is not None else ()

    @property
    def at_rest(self) -> bool:
        """Whether nothing is being done to the VM."""
        return self.placed is None or self.placed.at_rest

    @property
    def is_moving(self) -> bool:
        """Whether the VM is on its way from one node to another."""
        placed = self.placed
        if placed is None:
            return False
        return "Migrating" in (placed.role, placed.pending) or len(set(placed.nodes)) > 1

    def failures(self, before: "Sight | None" = None) -> list[Failure]:
        """What went wrong with the VM, since ``before`` if that is given."""
        known = before.status.failures if before is not None else ()
        found = (each for each in self.status.failures if each.resource == self.id)
        return [each for each in found if each not in known]


@dataclass(frozen=True, slots=True)
class View(Sight):
    """The cluster as an order finds it: what is done with the VM, and what is written of it."""

    root: Element
    resource: Resource | None


def glance(vm: Vm) -> Sight:
    """What Pacemaker does with a VM now; raises RefusedError where it cannot be asked."""
    return Sight(cib.resource_id(vm.owner.cloud, vm.vm), pacemaker.status(vm.machine.runner))


def look(vm: Vm) -> View:
    """What the cluster knows of a VM now; raises RefusedError where it cannot be asked."""
    seen, root = glance(vm), pacemaker.cib(vm.machine.runner)
    return View(seen.id, seen.status, root, cib.find(root, vm.owner.cloud, vm.vm))


def unblocked(vm: Vm) -> View:
    """The same for an order, after a VM that a failed move has left blocked was looked for.

    Pacemaker believes such a VM to be on both nodes and does nothing about it any more. The order
    that moved it puts that right, unless it was killed. One that is on its way is waited for.
    """
    view = look(vm)
    if view.placed is not None and view.placed.blocked:
        pacemaker.refresh(vm.machine.runner, view.id)
    elif not view.is_moving:
        return view
    for _turn in vm.machine.waits(_LOOK_S):
        seen = glance(vm)
        if seen.at_rest and seen.where:
            break
    return look(vm)


def ready(view: View, node: str) -> None:
    """Raise RefusedError unless a VM that is started now is safe."""
    if not view.status.quorate:
        raise RefusedError(
            f"{node} has no quorum: it cannot know what the other nodes do, so nothing is started",
            hint="'cxm infos' shows which nodes are missing",
        )
    if not view.status.fencing_enabled:
        raise RefusedError(
            "the cluster's fencing is switched off, so no VM of it can be highly available",
            hint="'cxm-setup cluster' configures it, 'cxm fence --test' proves it",
        )
    devices = nodes.devices(view.root)
    for each in view.status.nodes:
        # One that does not answer for a while is an alarm, no reason to stop a whole cloud.
        if not any(device.fences(each.name) for device in devices):
            raise RefusedError(
                f"no device can fence {each.name} any more: there is none, or it is switched off",
                hint="'cxm-setup cluster' with its --fence makes it; 'crm_resource --resource "
                f"fence-{each.name} --meta --delete-parameter target-role' switches it on",
            )
        if nodes.FENCING not in nodes.attributes(view.root, each.name):
            raise RefusedError(
                f"it was never proven that {each.name} can be fenced, "
                "so no VM can be called highly available",
                hint=f"cxm fence --test {each.name}",
            )


def takes(view: View, node: str) -> None:
    """Raise RefusedError for a node to which nothing can be sent at the moment."""
    seen = view.status.node(node)
    if seen is None or not seen.online or seen.standby or seen.maintenance:
        raise RefusedError(f"{node} takes no VMs at the moment: 'cxm infos' shows why")


def stays_put(view: View, vm: Vm) -> None:
    """Raise RefusedError while the VM is on its way: an order would turn the move back."""
    if view.is_moving:
        raise RefusedError(
            f"VM {vm.vm} is on its way from {' to '.join(view.where)} just now",
            hint="'cxm list' shows where it is; run it again when that is done",
        )


def iso(seconds: float) -> str:
    """Seconds since 1970 as Pacemaker's rules take a moment."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def edited(vm: Vm, edit: Callable[[Resource], Resource]) -> Callable[[Element], None]:
    """A change of the CIB that alters what it says of a VM, if it still says anything."""

    def apply(root: Element) -> None:
        known = cib.find(root, vm.owner.cloud, vm.vm)
        if known is not None:
            cib.put(root, edit(known))

    return apply


def comes_to(vm: Vm, node: str, *, alive: bool = False) -> Callable[[Element], None]:
    """A check of a change, which Pacemaker simulates: does it have the VM on ``node`` then?

    It raises RefusedError. With ``alive`` the VM must go there while it runs, not be stopped here
    and started there.
    """
    rid = cib.resource_id(vm.owner.cloud, vm.vm)

    def check(changed: Element) -> None:
        deeds = pacemaker.foresee(vm.machine.runner, changed)
        found = [deed for deed in deeds if deed.resource == rid and deed.node == node]
        if not found:
            raise RefusedError(
                f"Pacemaker would not run VM {vm.vm} on {node}: the node has too little memory or "
                "CPU left, is in standby, has no locks, or a constraint keeps the VM away from it",
                hint="'cxm infos' shows what each node has left; an administrator's constraints: "
                "'cibadmin --query --scope constraints'",
            )
        if alive and not any(deed.action == "migrate" for deed in found):
            raise RefusedError(
                f"Pacemaker would stop VM {vm.vm} and start it on {node}, "
                "not move it while it runs",
                hint="'cxm infos' shows what went wrong with it",
            )

    return check


# For whom OpenNebula sends to a node where the VM is not.
RECORD: Final = "cxm-sync brings OpenNebula's record in line within seconds; then try again"
# What of a resource may fail, so that it will not become as ordered.
ON_START: Final = ("start", "monitor", "stop")
ON_STOP: Final = ("stop",)
ON_MOVE: Final = ("migrate_to", "stop")


def await_(
    vm: Vm,
    patience_s: float,
    reached: Callable[[Sight], bool],
    *,
    before: Sight,
    fails_on: Collection[str],
) -> Sight:
    """Wait until the VM is as wanted and nothing is being done to it.

    Raises CommandError when it will not become so, LockTimeoutError when patience ends first. Only
    what goes wrong after ``before`` counts: Pacemaker remembers a failure for long.
    """
    for _turn in vm.machine.waits(patience_s):
        seen = glance(vm)
        if reached(seen) and seen.at_rest:
            return seen
        for failure in seen.failures(before):
            if failure.operation in fails_on:
                why = _reason(vm, failure)
                raise CommandError(
                    f"{failure.node}: VM {vm.vm}: {failure.operation} failed: {why}",
                    hint=f"the log of {failure.node} ('journalctl -t cxm') says more",
                )
    raise LockTimeoutError(
        f"VM {vm.vm} is not as ordered after {patience_s:g} s",
        hint="'cxm timeline' shows what the cluster does; run the action again",
    )


# What an order writes at the VM that it moves.
ON_ITS_WAY: Final = "it was on its way to "


def _reason(vm: Vm, failure: Failure) -> str:
    """Why something failed. Of a move Pacemaker keeps no words: the agent has left them at the VM.

    The order wrote there where the VM was sent, so that it is not the reason of another day.
    """
    if failure.operation == "migrate_to":
        known = look(vm).resource
        if known is not None and known.reason and not known.reason.startswith(ON_ITS_WAY):
            return known.reason
    return failure.reason
