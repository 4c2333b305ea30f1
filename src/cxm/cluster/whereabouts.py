# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the answer to "where are all VMs of this cloud, and how certain is that?".

The frontend asks one live node of a cluster, and brings OpenNebula's record in line with what that
says (docs/design/0011). So only what is certain counts: this node has a quorum, no node waits to be
fenced, Pacemaker has the VM at rest on one node, and Xen there shows its domain under its final
name, running. Changes nothing, and never calls LVM, which stands still while a node is lost.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final
from xml.etree.ElementTree import Element

from cxm.cluster import cib, nodes, pacemaker, peer
from cxm.cluster.cib import Resource
from cxm.cluster.pacemaker import Placed, Status
from cxm.errors import CxmError, RefusedError
from cxm.names import CloudId, VmId, vm_of_uuid
from cxm.node.guests import Life
from cxm.node.machine import Machine
from cxm.node.verbs import Call
from cxm.xen import xl

# A node that hangs must not keep the others' VMs from being told.
_PEER_S: Final = 15.0


class Face(StrEnum):
    """What Xen shows of a VM on a node."""

    RUNNING = "running"
    PAUSED = "paused"
    MOVING = "moving"  # half of a migration
    ENDED = "ended"  # what is left of a guest that has stopped


@dataclass(frozen=True, slots=True)
class Seat:
    """Where a VM is: ``node`` is empty where it is nowhere; ``doubt`` is why that may be wrong."""

    vm: VmId
    name: str
    node: str
    doubt: str
    wanted: bool  # whether it should run
    told: str = ""  # the host where OpenNebula takes it to be, as far as the cluster knows


# --- what is seen ---------------------------------------------------------------------------------


def faces(cloud: CloudId, domains: list[xl.Domain]) -> dict[VmId, Face]:
    """The VMs of a cloud that have a domain on a node; what is half of a migration wins."""
    found: dict[VmId, Face] = {}
    for domain in domains:
        vm = vm_of_uuid(cloud, domain.uuid)
        if vm is None or domain.domid == 0:
            continue
        face = _face(domain)
        if found.get(vm) is not Face.MOVING:
            found[vm] = face
    return found


def _face(domain: xl.Domain) -> Face:
    if domain.moving:
        return Face.MOVING
    if not domain.alive:
        return Face.ENDED
    return Face.PAUSED if domain.paused else Face.RUNNING


def distrust(status: Status) -> str:
    """Why nothing that this node says of others is certain; empty where it may be."""
    if not status.quorate:
        return "it has no quorum, so it cannot know what the other nodes do"
    if not status.fencing_enabled:
        return "the cluster's fencing is switched off"
    dark = [node.name for node in status.nodes if node.unclean]
    dark += [each.target for each in status.fencing if each.status == "pending"]
    if dark:
        return f"{' and '.join(sorted(set(dark)))} waits to be fenced"
    return ""


def seat(
    resource: Resource, placed: Placed | None, seen: Mapping[str, Mapping[VmId, Face] | str]
) -> Seat:
    """Where a VM is; ``seen`` is what each node's Xen shows, or why that is not known."""
    node, doubt = stands(resource.vm, placed, seen, wanted=resource.started)
    return Seat(resource.vm, resource.name, node, doubt, resource.started, resource.host)


def stands(
    vm: VmId, placed: Placed | None, seen: Mapping[str, Mapping[VmId, Face] | str], *, wanted: bool
) -> tuple[str, str]:
    """On which node a VM is, as Pacemaker has it, and why that may be wrong."""
    where = () if placed is None else tuple(dict.fromkeys(placed.nodes))
    if placed is not None and placed.blocked:
        return "", "a failed move or stop has left it blocked"
    if placed is not None and (not placed.at_rest or len(where) > 1):
        what = "is on its way" if len(where) > 1 else "is being started, stopped or moved"
        return "", f"it {what}"
    if not where:
        return "", "it should run, and is nowhere yet" if wanted else ""
    node = where[0]
    shown = seen.get(node, "it is not online")
    if isinstance(shown, str):
        return node, f"{node} does not say what runs there: {shown}"
    face = shown.get(vm)
    if face is not Face.RUNNING:
        what = "no domain of it" if face is None else f"it {face}"
        return node, f"Xen on {node} shows {what}"
    others = [
        name
        for name, theirs in seen.items()
        if name != node
        and not isinstance(theirs, str)
        and theirs.get(vm) in (Face.RUNNING, Face.PAUSED)
    ]
    return node, f"Xen shows it on {' and '.join(others)} too" if others else ""


# --- asking ---------------------------------------------------------------------------------------


def _shown(machine: Machine, cloud: CloudId, status: Status, root: Element) -> dict[str, Any]:
    """What each node's Xen shows of the cloud's VMs, or why that is not known; and their keys."""
    found: dict[str, Any] = {machine.hostname: faces(cloud, xl.domains(machine.runner))}
    answers = peer.ask_all(
        machine,
        root,
        peer.others(machine, status),
        lambda other: other.domains(cloud, timeout_s=_PEER_S),
    )
    for name, answer in answers.items():
        if isinstance(answer, CxmError):
            found[name] = answer.message
        else:
            found[name] = {VmId(int(vm)): Face(face) for vm, face in answer["domains"].items()}
    return found


def look(machine: Machine, cloud: CloudId) -> tuple[Status, list[Seat], Element]:
    """The cluster; where the cloud's VMs are, if :func:`distrust` has nothing to say; the CIB."""
    status = pacemaker.status(machine.runner)
    root = pacemaker.cib(machine.runner, local=not status.quorate)
    why = distrust(status)
    shown = {} if why else _shown(machine, cloud, status, root)
    seats = [
        seat(each, status.resources.get(each.id), shown)
        for each in cib.readable(root)[0]
        if each.cloud == cloud
    ]
    return status, seats, root


def doubt_of(status: Status, node: str, doubt: str, here: str) -> str:
    """Why it is not certain that a VM, which seems to be on ``node``, runs ``here``."""
    where = "" if node == here else f"it is on {node}" if node else "it is nowhere"
    return distrust(status) or doubt or where


def glance(machine: Machine, cloud: CloudId, vm: VmId) -> str:
    """Why a VM that certainly ran here a moment ago may not any more; empty where it does.

    Only this node is asked: the VM cannot have come to another one but from here, and at its first
    step Pacemaker says that it moves.
    """
    me, status = machine.hostname, pacemaker.status(machine.runner)
    shown = {me: faces(cloud, xl.domains(machine.runner))}
    placed = status.resources.get(cib.resource_id(cloud, vm))
    node, doubt = stands(vm, placed, shown, wanted=True)
    return doubt_of(status, node, doubt if node in ("", me) else "", me)


def whereabouts(call: Call) -> dict[str, Any]:
    """The verb on a node of a cluster; names of nodes are those of OpenNebula's hosts."""
    machine = call.machine
    status, seats, root = look(machine, call.cloud)
    why = distrust(status)
    known = nodes.facts(root)
    hosts = {name: each.attributes.get(nodes.HOST, name) for name, each in known.items()}
    unclear = nodes.ambiguous(known)
    up = {each.name for each in status.nodes if each.online and not each.unclean}
    return {
        "node": machine.hostname,
        "clustered": True,
        "doubt": why,
        "hosts": sorted(host for host in hosts.values() if host not in unclear),
        "unclear": sorted(unclear),
        "away": sorted(hosts[name] for name in hosts if name not in up),
        "vms": [
            {
                "vm": each.vm,
                "name": each.name,
                "host": hosts.get(each.node, ""),
                "doubt": why or each.doubt or _unclear(hosts.get(each.node, ""), unclear),
                "wanted": each.wanted,
                "told": each.told,
            }
            for each in seats
        ],
    }


def _unclear(host: str, unclear: Collection[str]) -> str:
    return f"'{host}' may mean two nodes of the cluster" if host in unclear else ""


def require_nowhere(machine: Machine, cloud: CloudId, vm: VmId, *, forced: bool) -> None:
    """Raise RefusedError unless it is certain that the VM has no domain and may be forgotten."""
    status = pacemaker.status(machine.runner)
    why = distrust(status)
    root = pacemaker.cib(machine.runner)
    shown = {} if why else _shown(machine, cloud, status, root)
    for node, theirs in shown.items():
        if isinstance(theirs, str):
            why = why or f"{node} does not say what runs there: {theirs}"
        elif vm in theirs:
            why = why or f"{node} has a domain of it"
    known = cib.find(root, cloud, vm)
    if not why and known is not None and known.life is not Life.STOPPED and not forced:
        why = f"it went on after OpenNebula had given it up, and ended later ({known.reason})"
        raise RefusedError(
            f"VM {vm} is not removed: {why}",
            hint=f"if nobody needs its disks: 'cxm-sync --remove {vm}' on the frontend",
        )
    if why:
        raise RefusedError(f"VM {vm} is not removed: {why}")


def domains(machine: Machine, cloud: CloudId) -> dict[str, Any]:
    """What this node tells another one that was asked."""
    shown = faces(cloud, xl.domains(machine.runner))
    return {"domains": {str(vm): face.value for vm, face in shown.items()}}
