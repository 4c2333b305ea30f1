# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns how the cluster is shown: as tables for people, as JSON for programs. Pure."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final

from cxm.cli.text import Cell, Style, Tint
from cxm.cluster import balancer, balancing
from cxm.cluster.alarms import alarms, n_plus_one
from cxm.cluster.amounts import ago, count, mib
from cxm.cluster.balancer import Balancer
from cxm.cluster.balancing import Bound
from cxm.cluster.model import WRONG, Cluster, Member, NodeState, Vm, VmState

_NODE_TINTS: Final = {
    NodeState.ONLINE: Tint.GOOD,
    NodeState.UNCLEAN: Tint.BAD,
    NodeState.OFFLINE: Tint.BAD,
}
_VM_TINTS: Final = {VmState.RUNNING: Tint.GOOD} | dict.fromkeys(WRONG, Tint.BAD)


def banner(cluster: Cluster, style: Style) -> str:
    """What is wrong, in a box; empty when all is well."""
    lines = []
    for alarm in alarms(cluster):
        lines += [alarm.text, f"  -> {alarm.advice}"]
    return style.box(lines) if lines else ""


def summary(cluster: Cluster, style: Style, now: float) -> str:
    """The cluster in a few lines."""
    fine, sentence = n_plus_one(cluster)
    dc = next((member.name for member in cluster.nodes if member.dc), "")
    states = Counter(vm.state for vm in cluster.vms)
    words = [f"{states[state]} {state}" for state in VmState if states[state]]
    if cluster.damaged:
        words.append(style.paint(f"{len(cluster.damaged)} DAMAGED", Tint.BAD))
    counted = ", ".join(words) or "none"
    good, bad = style.paint("quorate", Tint.GOOD), style.paint("NOT QUORATE", Tint.BAD)
    parts = (
        count(len(cluster.nodes), "node"),
        good if cluster.quorate else bad,
        f"{dc} decides" if dc else "nobody decides at the moment",
    )
    rows = [
        ("Cluster", ", ".join(parts)),
        ("Fencing", _fencing(cluster, style, now)),
        ("N+1", style.paint(sentence, Tint.GOOD if fine else Tint.NOTICE)),
        ("VMs", counted),
    ]
    if cluster.balancer is not None and cluster.balancer.on:
        rows.append(("Balancer", balancer.told(cluster.balancer, now)))
    return "".join(f"{style.paint(f'{key:<8}', Tint.HEAD)} {value}\n" for key, value in rows)


def _fencing(cluster: Cluster, style: Style, now: float) -> str:
    if not cluster.fencing_enabled:
        return style.paint("off", Tint.BAD)
    parts = []
    for member in cluster.nodes:
        if not member.device:
            parts.append(style.paint(f"{member.name} has no device", Tint.BAD))
        elif member.facts.proven is None:
            parts.append(style.paint(f"{member.name} never proven", Tint.NOTICE))
        else:
            only = " (first level only)" if member.untried else ""
            parts.append(f"{member.name} proven {ago(member.facts.proven, now)}{only}")
    return ", ".join(parts)


def balancer_json(own: Balancer | None) -> dict[str, Any] | None:
    """What there is to know of it; ``at`` is in seconds since 1970."""
    if own is None:
        return None
    last = None if own.at is None else {"at": own.at, "what": own.last, "failed": own.bad}
    return {"on": own.on, "node": own.node or None, "last": last}


def nodes(cluster: Cluster, style: Style) -> str:
    """The nodes, and how full they are."""
    head = ("NODE", "STATE", "VMS", "MEMORY", "USED", "OF", "CPU", "USED", "OF")
    return style.table(head, [_node(member, style) for member in cluster.nodes])


def _node(member: Member, style: Style) -> tuple[Cell, ...]:
    return (
        Cell(member.name),
        Cell(member.state.value, _NODE_TINTS.get(member.state, Tint.NOTICE)),
        Cell(str(member.vms), right=True),
        style.bar(member.memory_used, member.memory),
        Cell(mib(member.memory_used), right=True),
        Cell(mib(member.memory) if member.memory else "?", right=True),
        style.bar(member.cpu_used, member.cpu, 8),
        Cell(f"{member.cpu_used}%", right=True),
        Cell(f"{member.cpu}%" if member.cpu else "?", right=True),
    )


def vms(found: Iterable[Vm], style: Style, live: Mapping[str, float] | None = None) -> str:
    """VMs as a table; with ``live`` also what each uses of this node's processors, in percent."""
    chosen = sorted(found, key=lambda vm: (vm.resource.cloud, vm.resource.vm))
    many_clouds = len({vm.resource.cloud for vm in chosen}) > 1
    head = ["VM", "NAME", "STATE", "NODE", "MEMORY", "CPU", "PREFERS"]
    rows = []
    for vm in chosen:
        resource = vm.resource
        number = f"{resource.cloud}/{resource.vm}" if many_clouds else str(resource.vm)
        row = [
            Cell(number, right=True),
            Cell(vm.name),
            Cell(vm.state.value, _VM_TINTS.get(vm.state, Tint.NOTICE)),
            Cell(" > ".join(vm.nodes) or "-"),
            Cell(mib(resource.memory_mib), right=True),
            Cell(f"{resource.cpu}%", right=True),
            Cell(resource.preferred or "-"),
        ]
        if live is not None:
            used = live.get(resource.id)
            row.insert(6, Cell("-" if used is None else f"{used:.0f}%", right=True))
        rows.append([*row, Cell(resource.reason, Tint.FAINT)])
    if live is not None:
        head.insert(6, "NOW")
    return style.table([*head, "WHY"], rows) if rows else "no VM\n"


def infos(
    cluster: Cluster, style: Style, now: float, used: Mapping[str, float] | None = None
) -> str:
    """All of it; ``used`` is what VMs use, in percent of one processor."""
    return (
        banner(cluster, style)
        + summary(cluster, style, now)
        + "\n"
        + nodes(cluster, style)
        + "\n"
        + vms(cluster.vms, style, used)
    )


# --- for programs ---------------------------------------------------------------------------------


def who_json(vm: Vm) -> dict[str, Any]:
    """Which VM it is."""
    return {"cloud": vm.resource.cloud, "vm": vm.resource.vm, "name": vm.name}


def vms_json(cluster: Cluster, vms: Iterable[Vm]) -> list[dict[str, Any]]:
    """VMs, as :func:`cxm.balance.schema.parse` reads them too."""
    bounds = balancing.bounds(cluster)
    return [_vm_json(vm, bounds[vm.resource.id]) for vm in vms]


def _vm_json(vm: Vm, bound: Bound) -> dict[str, Any]:
    """A VM; ``memory_mib`` and ``cpu`` (percent) are what it takes of a node."""
    resource = vm.resource
    return {
        **who_json(vm),
        "state": vm.state.value.lower(),
        "node": vm.node or None,
        "nodes": list(vm.nodes),
        "wanted": resource.started,
        "reason": resource.reason,
        "memory_mib": resource.memory_mib,
        "cpu": resource.cpu,
        "live_migration": resource.migratable,
        "preferred": resource.preferred or None,
        "resource": resource.id,
        "only_on": None if bound.nodes is None else list(bound.nodes),
        "prefers": list(bound.prefers),
        "apart": list(bound.apart),
        "together": list(bound.together),
        "stays": bound.stays or None,
    }


def node_json(member: Member) -> dict[str, Any]:
    """A node; ``fencing_proven`` is in seconds since 1970."""
    return {
        "name": member.name,
        "state": member.state.value.lower(),
        "decides": member.dc,
        "vms": member.vms,
        "memory_mib": member.memory,
        "memory_used_mib": member.memory_used,
        "cpu": member.cpu,
        "cpu_used": member.cpu_used,
        "fencing_device": member.device or None,
        "fencing_proven": member.facts.proven,
    }


def infos_json(
    cluster: Cluster,
    used: Mapping[str, float] | None = None,
    limits: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """All of it; with ``used`` each VM has ``cpu_used``, percent of one processor or null.

    With ``limits``, what bounds plans, it is all that one is made of.
    """
    fine, sentence = n_plus_one(cluster)
    told = {
        "quorate": cluster.quorate,
        "fencing": cluster.fencing_enabled,
        "n_plus_one": {"ok": fine, "text": sentence},
        "balancer": balancer_json(cluster.balancer),
        "alarms": [{"text": each.text, "advice": each.advice} for each in alarms(cluster)],
        "nodes": [node_json(member) for member in cluster.nodes],
        "vms": [
            row if used is None else {**row, "cpu_used": used.get(row["resource"])}
            for row in vms_json(cluster, cluster.vms)
        ],
    }
    return told if limits is None else told | {"settings": dict(limits)}


def top_json(cluster: Cluster, live: Mapping[str, float]) -> dict[str, Any]:
    """The same, and what each VM of this node uses of one processor, in percent."""
    vms = [{**row, "cpu_now": live.get(row["resource"])} for row in vms_json(cluster, cluster.vms)]
    return infos_json(cluster) | {"vms": vms}
