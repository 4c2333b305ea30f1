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
from cxm.cluster.pacemaker import Failure, Status
from cxm.errors import CommandError, RefusedError
from cxm.node.life import Vm

_LOOK_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class View:
    """The cluster as an order finds it."""

    status: Status
    root: Element
    resource: Resource | None
    where: tuple[str, ...]  # the nodes on which the VM is active: none, or one

    def failures(self, vm: Vm, before: "View | None" = None) -> list[Failure]:
        """What went wrong with the VM, since ``before`` if that is given."""
        rid = cib.resource_id(vm.owner.cloud, vm.vm)
        known = before.status.failures if before is not None else ()
        return [each for each in self.status.failures if each.resource == rid and each not in known]


def look(vm: Vm) -> View:
    """What the cluster knows of a VM now; raises RefusedError where it cannot be asked."""
    runner = vm.machine.runner
    status, root = pacemaker.status(runner), pacemaker.cib(runner)
    rid = cib.resource_id(vm.owner.cloud, vm.vm)
    placed = status.resources.get(rid)
    return View(
        status,
        root,
        cib.find(root, vm.owner.cloud, vm.vm),
        placed.nodes if placed is not None else (),
    )


def unblocked(vm: Vm) -> View:
    """The same for an order, after a VM that a failed move has left blocked was looked for.

    Pacemaker believes such a VM to be on both nodes and does nothing about it any more. The order
    that moved it puts that right, unless it was killed.
    """
    view = look(vm)
    rid = cib.resource_id(vm.owner.cloud, vm.vm)
    placed = view.status.resources.get(rid)
    if placed is None or not placed.blocked:
        return view
    pacemaker.refresh(vm.machine.runner, rid)
    for _turn in vm.machine.waits(_LOOK_S):
        view = look(vm)
        placed = view.status.resources.get(rid)
        if placed is not None and placed.at_rest and placed.nodes:
            break
    return view


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
    for each in view.status.nodes:
        if nodes.FENCING not in nodes.attributes(view.root, each.name):
            raise RefusedError(
                f"it was never proven that {each.name} can be fenced, "
                "so no VM can be called highly available",
                hint=f"cxm fence --test {each.name}",
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


def simulated(
    vm: Vm, edit: Callable[[Element], None], rid: str, node: str, *, alive: bool = False
) -> None:
    """Raise RefusedError unless Pacemaker would have the VM on ``node`` after this change.

    With ``alive`` it must go there while it runs: it is not stopped here and started there.
    """
    root = pacemaker.cib(vm.machine.runner)
    edit(root)
    deeds = pacemaker.foresee(vm.machine.runner, root)
    found = [deed for deed in deeds if deed.resource == rid and deed.node == node]
    if not found:
        raise RefusedError(
            f"Pacemaker would not run VM {vm.vm} on {node}: the node has too little memory or "
            "CPU left, is in standby, or has no locks",
            hint="'cxm infos' shows what each node has left",
        )
    if alive and not any(deed.action == "migrate" for deed in found):
        raise RefusedError(
            f"Pacemaker would stop VM {vm.vm} and start it on {node}, not move it while it runs",
            hint="'cxm infos' shows what went wrong with it",
        )


# What of a resource may fail, so that it will not become as ordered.
ON_START: Final = ("start", "monitor", "stop")
ON_STOP: Final = ("stop",)
ON_MOVE: Final = ("migrate_to", "stop")


def await_(
    vm: Vm,
    patience_s: float,
    reached: Callable[[View], bool],
    *,
    before: View,
    fails_on: Collection[str],
) -> View:
    """Wait until the VM is as wanted and nothing is being done to it; raises CommandError.

    Only what goes wrong after ``before`` counts: Pacemaker remembers a failure for long.
    """
    rid = cib.resource_id(vm.owner.cloud, vm.vm)
    for _turn in vm.machine.waits(patience_s):
        view = look(vm)
        placed = view.status.resources.get(rid)
        if reached(view) and (placed is None or placed.at_rest):
            return view
        for failure in view.failures(vm, before):
            if failure.operation in fails_on:
                why = _reason(view, failure)
                raise CommandError(
                    f"{failure.node}: VM {vm.vm}: {failure.operation} failed: {why}",
                    hint=f"the log of {failure.node} ('journalctl -t cxm') says more",
                )
    raise CommandError(
        f"VM {vm.vm} is not as ordered after {patience_s:g} s",
        hint="'cxm timeline' shows what the cluster does; run the action again",
    )


def _reason(view: View, failure: Failure) -> str:
    """Why something failed. Of a move Pacemaker keeps no words: the agent has left them at the VM.

    The order wrote there where the VM was sent, so that it is not the reason of another day.
    """
    if failure.operation == "migrate_to" and view.resource is not None and view.resource.reason:
        return view.resource.reason
    return failure.reason
