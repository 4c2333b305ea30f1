# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what ``cxm check`` finds wrong with the cluster as a whole. Pure."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from cxm.cluster import balancer, nodefindings, nodes
from cxm.cluster.alarms import alarms, keeps_quorum, n_plus_one
from cxm.cluster.amounts import ago
from cxm.cluster.balancing import is_managed
from cxm.cluster.basis import SBD
from cxm.cluster.model import RESTING, Cluster, Vm, VmState
from cxm.cluster.nodefindings import Here
from cxm.cluster.placement import losses
from cxm.setup.report import Check, Level, failed, ok, warning

_OLD_S: Final = 365 * 86400.0
_ATTENDED: Final = 2  # nodes: with so few, a vote decides nothing


def judge(cluster: Cluster, here: Here, lost: Mapping[str, list[Vm]]) -> list[Check]:
    """Everything that was looked at; ``lost`` is what would stay down, by the node that died."""
    return [
        *_state(cluster),
        *_failures(cluster),
        *_watch(cluster),
        *_balancer(cluster, here.now),
        *_fencing(cluster, here.now),
        *_hosts(cluster),
        *_constraints(cluster),
        *_capacity(cluster, lost),
        *nodefindings.judge(cluster, here),
    ]


# --- the cluster ----------------------------------------------------------------------------------


def _state(cluster: Cluster) -> Iterator[Check]:
    found = alarms(cluster)
    for alarm in found:
        yield (failed if alarm.wrong else warning)("state", alarm.text, alarm.advice)
    if not found:
        yield ok("state", "quorate, all nodes are there, every VM is as it should be")
    for member in cluster.nodes:
        if member.state in RESTING:
            advice = f"{nodes.give_back(member.facts)} when that is over"
            yield warning("state", f"{member.name} takes no VMs: {member.state}", advice)
    for vm in cluster.vms:
        if len(vm.nodes) > 1 and vm.state is not VmState.MIGRATING:
            yield failed(
                "duplicates",
                f"VM {vm.label} is on {' and '.join(vm.nodes)} at once",
                "switch it off on all but one at once: its disk is being damaged",
            )


def _failures(cluster: Cluster) -> Iterator[Check]:
    """What went wrong with a service of the cluster, and may have been put right since."""
    known = {vm.resource.id for vm in cluster.vms}
    for each in cluster.failures:
        if each.resource not in known:
            found = f"{each.resource}: {each.operation} on {each.node} failed: {each.reason}"
            advice = f"once it is understood: 'crm_resource --cleanup --resource {each.resource}'"
            yield warning("failures", f"{found} ({each.when})", advice)


def _watch(cluster: Cluster) -> Iterator[Check]:
    if cluster.quorate and not cluster.is_watched:
        advice = "'crm_resource --cleanup --resource cxm-watch'; or 'cxm-setup cluster' once more"
        yield warning(
            "watch", "cxm-watch runs nowhere: a VM that a failed move blocks stays so", advice
        )


def _balancer(cluster: Cluster, now: float) -> Iterator[Check]:
    """Only where the cluster balances itself, which it does not unless somebody says so."""
    own = cluster.balancer
    if own is None or not own.on:
        return
    said = balancer.told(own, now)
    if not own.node and cluster.quorate:
        advice = f"'crm_resource --cleanup --resource {balancer.RESOURCE}'; to switch it off: "
        advice += "'cxm loadbalance --auto off'"
        yield warning("balancer", said, advice)
    elif own.bad:
        advice = "'cxm timeline' tells what it did; it tries again when its VMs have rested"
        yield warning("balancer", said, advice)
    else:
        yield ok("balancer", said)


def _fencing(cluster: Cluster, now: float) -> Iterator[Check]:
    if not cluster.fencing_enabled:
        return  # an alarm says so
    for member in cluster.nodes:
        name = f"fencing {member.name}"
        proven = member.facts.proven
        if not member.device:
            advice = "cxm-setup cluster: without it, a dead node's VMs stay down"
            yield failed(name, "no device can fence it", advice)
        elif proven is None:
            advice = f"'cxm fence --test {member.name}' on another node; until then its VMs are "
            yield failed(name, f"{member.device}, never proven", f"{advice}not highly available")
        elif now - proven > _OLD_S:
            advice = f"'cxm fence --test {member.name}' on another node"
            yield warning(name, f"proven {ago(proven, now)}", advice)
        else:
            found = f"{member.tried}, proven {ago(proven, now)}"
            if member.untried:
                found += f"; not tried, for it comes after that: {member.untried}"
            yield ok(name, found)


def _hosts(cluster: Cluster) -> Iterator[Check]:
    """OpenNebula's names of the nodes: one that may mean two is refused by every order."""
    for name, meant in nodes.ambiguous({each.name: each.facts for each in cluster.nodes}).items():
        advice = f"'cxm-setup node --host NAME' on the one that OpenNebula does not call {name}"
        yield failed("hosts", f"'{name}' may mean {' or '.join(meant)}", advice)


def _constraints(cluster: Cluster) -> Iterator[Check]:
    """What an administrator's say that cannot be meant, and whom plans leave alone for them."""
    advice = "'pcs constraint' or 'crm configure' shows and changes them"
    for sentence in cluster.constraints.odd:
        yield warning("constraints", sentence, advice)
    for vm in cluster.vms:
        if not is_managed(cluster, vm):
            advice = f"'crm_resource --resource {vm.resource.id} --meta --delete-parameter "
            advice += "is-managed', or the end of a maintenance, gives it back"
            found = f"VM {vm.label} is not managed: nothing starts it when it or its node dies"
            yield warning("state", found, advice)


def _capacity(cluster: Cluster, lost: Mapping[str, list[Vm]]) -> Iterator[Check]:
    fine, sentence = n_plus_one(cluster, lost)
    if fine:
        yield ok("N+1", sentence)
    else:
        if not keeps_quorum(cluster):
            advice = "start the nodes that are away; 'cxm-setup cluster' without one takes it out"
        elif cluster.damaged:
            advice = "whether the others fit is known when that is put right"
        elif lost and not losses(cluster):
            advice = (
                "they would fit if the others were packed more tightly: migrate some so that one "
                "node has the room for the largest"
            )
        else:
            advice = "add memory or a node, or switch VMs off"
        yield warning("N+1", sentence, advice)
    for member in cluster.nodes:
        if not member.memory:
            advice = "cxm-setup cluster writes it: without it no VM is placed there"
            yield failed(f"size of {member.name}", "its memory is not known", advice)
    # A message on SBD's disk needs no power where it is sent to.
    sure = all(SBD in each.devices or len(each.devices) > 1 for each in cluster.nodes)
    if len(cluster.nodes) == _ATTENDED and not sure:
        yield warning(
            "quorum",
            "two nodes: when one is lost without power, its own fencing device may be lost too",
            "then nothing moves until 'cxm fence --confirmed NODE'; a second --fence, or --sbd",
        )


def errors(checks: Iterable[Check]) -> bool:
    """Whether something is wrong, not merely to be known."""
    return any(check.level is Level.FAILED for check in checks)
