# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns whether a node can take the guest of another: its bridges, its processor.

Asked before an order or ``cxm eject`` changes anything, and once more at both ends of every move,
for Pacemaker makes some that nobody ordered.
"""

import os
from typing import Final
from xml.etree.ElementTree import Element

from cxm.cluster import cpus, guestdisks, nodes, peer
from cxm.cluster.amounts import count
from cxm.cluster.cib import Resource
from cxm.errors import RefusedError
from cxm.names import VmId
from cxm.node.machine import Machine

_CPU_HINT: Final = "save and restore it instead; 'cxm check-cpu' compares all nodes"


def check(
    machine: Machine, root: Element, resource: Resource, source: str, target: str, *, alive: bool
) -> None:
    """Raise RefusedError unless ``target`` can take the VM from ``source``, ``alive`` or not.

    Bridges are looked for on the target; that it answers proves that a guest can be sent.
    """
    if alive:
        same_processor(root, resource.vm, source, target)
    if target == machine.hostname:
        missing = missing_bridges(machine, resource)
    else:
        answer = peer.find(machine, root, target).ask("bridges", resource.cloud, resource.vm)
        missing = [str(each) for each in answer["missing"]]
    _require(missing, resource.vm, target)


def same_processor(root: Element, vm: VmId, source: str, target: str) -> None:
    """Raise RefusedError where the target's processor lacks what the guest may be using."""
    own, other = (nodes.attributes(root, each).get(nodes.CPU, "") for each in (source, target))
    if own and other and (missing := cpus.lacking(other, own)):
        raise RefusedError(
            f"the processor of {target} lacks {count(missing, 'feature')} of that of {source}, so "
            f"VM {vm} may not survive the move",
            hint=_CPU_HINT,
        )


def has_bridges(machine: Machine, resource: Resource) -> None:
    """Raise RefusedError where this node lacks a bridge for a guest that is to come."""
    _require(missing_bridges(machine, resource), resource.vm, machine.hostname)


def missing_bridges(machine: Machine, resource: Resource) -> list[str]:
    """The bridges that this node lacks for a guest that is to come."""
    wanted = guestdisks.needs(resource, machine.config.vg_name).bridges
    return guestdisks.lacking(wanted, interfaces(machine))


def interfaces(machine: Machine) -> frozenset[str]:
    """What may be a bridge on this node: one of Open vSwitch looks like any interface."""
    net = os.path.join(machine.sys_dir, "class", "net")
    names = os.listdir(net) if os.path.isdir(net) else []
    return frozenset(names) - {"lo"}


def _require(missing: list[str], vm: VmId, node: str) -> None:
    if missing:
        raise RefusedError(
            f"{node} lacks {' and '.join(missing)}, a bridge that VM {vm} needs",
            hint="make it there; 'cxm check' lists what is missing",
        )
