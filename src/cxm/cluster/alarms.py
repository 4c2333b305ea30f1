# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what is wrong with the cluster at this moment, and what to do about it. Pure.

What is not urgent is the business of ``cxm check`` (:mod:`cxm.cli.findings`).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from cxm.cluster import history
from cxm.cluster.model import UP, Cluster, NodeState, Vm, VmState
from cxm.cluster.placement import losses

_PAIR: Final = 2  # one to die, one to live


@dataclass(frozen=True, slots=True)
class Alarm:
    """One sentence, and what to do next."""

    text: str
    advice: str
    wrong: bool = True  # else it may be meant so, and is only to be known


def alarms(cluster: Cluster) -> list[Alarm]:
    """The worst first; empty when all is well."""
    return [*_quorum(cluster), *_fencing(cluster), *_nodes(cluster), *_vms(cluster)]


def _quorum(cluster: Cluster) -> Iterator[Alarm]:
    if cluster.quorate:
        return
    if other := cluster.awaited:
        yield Alarm(
            f"NOT QUORATE: this node waits for {other}, which it has not seen since it started",
            f"start {other}; if it is OFF and stays off, 'cxm fence --confirmed {other}' lets this "
            "node go on alone",
        )
        return
    total = len(cluster.nodes)
    here, needed = total - len(cluster.away), total // 2 + 1
    text = "NOT QUORATE: this part of the cluster may start nothing"
    advice = lacks_majority(cluster)
    if cluster.short_of:
        text += f": {here} of {total} nodes, {needed} are needed; away: {', '.join(cluster.away)}"
        advice += (
            "; 'cxm fence --confirmed' does not help: that a node is off makes no majority of "
            "those that are left"
        )
    yield Alarm(text, advice)


def lacks_majority(cluster: Cluster) -> str:
    """What gives its quorum back to a cluster of which too few nodes are here."""
    short = cluster.short_of
    if not short:
        return "bring more nodes back; 'corosync-quorumtool -s' counts the votes"
    if short == 1:
        return f"start {' or '.join(cluster.away)}: one is enough"
    return f"start {short} of {', '.join(cluster.away)}"


def _fencing(cluster: Cluster) -> Iterator[Alarm]:
    healthy = {member.name for member in cluster.nodes if member.state in UP}
    for target in dict.fromkeys(event.target for event in cluster.fencing):
        events = [event for event in cluster.fencing if event.target == target]
        pending = next((event for event in events if event.status == "pending"), None)
        ended = [event for event in events if event.status != "pending"]
        last = max(ended, key=lambda event: history.seconds(event.when) or 0.0, default=None)
        if last is not None and last.status == "failed":
            why = f": {last.reason}" if last.reason else ""
            again = ", and is tried again" if pending else ""
            if target in healthy:  # who would say that it is off is refused, and it is not
                yield Alarm(
                    f"FENCING OF {target} DOES NOT WORK{again}{why}",
                    f"if {target} dies now, its VMs stay down: repair its fencing, then "
                    f"'cxm fence --test {target}' on another node",
                )
            else:
                yield Alarm(
                    f"FENCING OF {target} FAILED{again}{why}",
                    f"its VMs stay down: repair its fencing, or switch it off by hand and run "
                    f"'cxm fence --confirmed {target}'",
                )
        elif pending:
            yield Alarm(
                f"FENCING IN PROGRESS: {target} ({pending.action}, by {pending.by or '?'})",
                "nothing of it is started elsewhere until that is done",
            )
    if not cluster.fencing_enabled:
        yield Alarm(
            "FENCING IS SWITCHED OFF: a dead node's VMs could come to run twice",
            "cxm-setup cluster sets it up",
        )

    for member in cluster.nodes:
        if member.device and not member.device_works:
            why = next(
                (f": {f.reason}" for f in cluster.failures if f.resource in member.devices), ""
            )
            yield Alarm(
                f"THE FENCING DEVICE OF {member.name} DOES NOT ANSWER{why}",
                f"if {member.name} dies now, its VMs stay down; repair {member.device}, then "
                f"'crm_resource --cleanup --resource {member.devices[0]}'",
            )


def _nodes(cluster: Cluster) -> Iterator[Alarm]:
    for member in cluster.nodes:
        if member.state is NodeState.UNCLEAN:
            yield Alarm(
                f"NODE {member.name} IS UNCLEAN: nobody knows what it does",
                "it must be fenced before its VMs are started elsewhere",
            )
        elif member.state is NodeState.OFFLINE:
            text = f"node {member.name} is offline"
            yield Alarm(text, "start it, and its Pacemaker", wrong=False)
        elif member.state is NodeState.PENDING:
            # Corosync there is heard. Pacemaker's status is the same while it starts, after it was
            # stopped, and when it has ended itself because it heard that its node was fenced.
            yield Alarm(
                f"node {member.name} has not joined Pacemaker: no VM can start on it",
                "if it does not within minutes, 'journalctl -u pacemaker' on it says why: after "
                "'allegedly just fenced' it was not reset, so reset it by hand, else "
                "'systemctl start pacemaker'",
                wrong=False,
            )
        elif member.state is NodeState.ONLINE and not member.has_locks:
            yield Alarm(
                f"NODE {member.name} HAS NO LOCKS: no VM can start on it",
                f"'cxm timeline' says why; 'crm_resource --cleanup' on {member.name} tries again",
            )


def _vms(cluster: Cluster) -> Iterator[Alarm]:
    reasons = {failure.resource: failure for failure in cluster.failures}
    for each in cluster.damaged:
        where = f" (it is on {' and '.join(each.nodes)})" if each.nodes else ""
        yield Alarm(
            f"VM {each.label} IS DAMAGED IN THE CIB{where}: {each.error.message}",
            f"no order can be given about it, and it is not started when it or its node dies; "
            f"{each.error.hint}",
        )
    for vm in cluster.vms:
        failure = reasons.get(vm.resource.id)
        why = f": {failure.operation} on {failure.node}, {failure.reason}" if failure else ""
        where = f" on {', '.join(vm.nodes)}" if vm.nodes else ""
        if vm.state is VmState.BLOCKED:
            advice = f"see what it does, then 'crm_resource --cleanup --resource {vm.resource.id}'"
            if failure and failure.operation == "migrate_to":
                advice = "it goes on; it is looked after again within a minute, when no order waits"
            yield Alarm(f"VM {vm.label} IS BLOCKED{where}{why}", advice)
        elif vm.state in (VmState.DOWN, VmState.FAILED):
            says = "is DOWN" if vm.state is VmState.DOWN else f"has FAILED{where}"
            yield Alarm(f"VM {vm.label} {says}{why}", "'cxm timeline' tells what happened")


def keeps_quorum(cluster: Cluster) -> bool:
    """Whether the rest still has a majority if one more node dies; a pair does without one."""
    votes = sum(each.state in (*UP, NodeState.PENDING) for each in cluster.nodes)
    return len(cluster.nodes) <= _PAIR or (votes - 1) * 2 > len(cluster.nodes)


def n_plus_one(cluster: Cluster, known: Mapping[str, list[Vm]] | None = None) -> tuple[bool, str]:
    """Whether everything is started again if any one node dies, and that as a sentence.

    ``known`` is what Pacemaker says would stay down, by node, where it was asked.
    """
    alive = [each for each in cluster.nodes if each.takes_vms]
    if len(alive) < _PAIR:
        return False, "there is no second node that takes VMs"
    if not keeps_quorum(cluster):  # Pacemaker's simulation of a death does not count votes
        return False, "if one more node dies, the rest has no quorum and starts nothing"
    if not cluster.counts_memory:
        return False, "unknown: Pacemaker does not count memory (placement-strategy)"
    if cluster.damaged:
        names = ", ".join(each.label for each in cluster.damaged)
        return False, f"unknown: the CIB is damaged where it describes {names}"
    found = losses(cluster) if known is None else known
    if not found:
        text = "every VM still fits if any one node dies"
        if known is not None:
            text = "Pacemaker starts every VM again if any one node dies (simulated)"
        elif cluster.constraints.binding:
            text = f"by room {text}; what constraints forbid, 'cxm check' asks Pacemaker"
        return True, text
    parts = []
    for node, left in found.items():
        names = ", ".join(f"{vm.name} ({vm.resource.memory_mib} MiB)" for vm in left)
        parts.append(f"if {node} dies, no place is left for {names}")
    return False, "; ".join(parts)
