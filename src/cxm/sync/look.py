# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the look at both sides: what oned believes, and what a node of each cluster says.

Of a cluster one node speaks for the others. Changes nothing but what is remembered.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

from cxm import together
from cxm.errors import CxmError, NotFoundError
from cxm.names import VmId
from cxm.node.client import Node
from cxm.one.api import Recorder
from cxm.one.version import OneVersion
from cxm.sync import views
from cxm.sync.memory import Memory
from cxm.sync.views import Answer, Host, Record, World

ASK_S: Final = 60.0  # a node asks its peers, and Pacemaker
AT_ONCE: Final = 32  # hosts that are asked, or VMs that are under way, at the same time


@dataclass(frozen=True, slots=True)
class Tools:
    """What a run may use of the world."""

    oned: Recorder
    node: Callable[[str], Node]  # by OpenNebula's name of the host
    confirms: Callable[[str], bool]  # whether a VM driver's migrate runs on the frontend
    connect: Callable[[str, str], None]  # by VM's XML and host: its network step, cxm.one.vnm
    place: str  # of claims
    version: OneVersion
    now: Callable[[], float]
    sleep: Callable[[float], None]


@dataclass(frozen=True, slots=True)
class Seen:
    """Both views of a moment."""

    world: World
    records: Mapping[VmId, Record]
    hosts: Mapping[str, Host]


def look(tools: Tools, memory: Memory, *, everybody: bool) -> Seen:
    """Ask oned, and of each cluster a node; raises CxmError where oned does not answer.

    Others than the known clusters' nodes are asked when ``everybody`` is: they have no news, or do
    not answer, and no cluster's VMs are to wait for that.
    """
    hosts = {
        host.name: replace(host, confirms=tools.confirms(host.vm_mad))
        for host in views.hosts(tools.oned.hosts_info())
    }
    known = set(memory.clustered)
    asked = [host for host in hosts.values() if host.ours and (everybody or host.name in known)]
    world = _world(tools, _order(asked, memory.answered), memory.answered)
    memory.answered = [answer.asked for answer in world.answers if answer.counts]
    learn(memory, world.answers, hosts)
    # Last, so that what OpenNebula has begun meanwhile is seen.
    records = {each.vm: each for each in views.records(tools.oned.vms_info())}
    for vm in world.sightings.keys() - records.keys():
        with suppress(NotFoundError):
            records[vm] = record_of(tools, vm)
    return Seen(world, records, hosts)


def learn(memory: Memory, answers: Iterable[Answer], hosts: Collection[str]) -> None:
    """Remember which of the hosts are nodes of clusters, as these answers tell."""
    known = set(memory.clustered)
    for answer in answers:
        if answer.clustered:
            known |= set(answer.hosts)
        else:
            known.discard(answer.asked)
    memory.clustered = sorted(known & set(hosts))


def _order(hosts: Sequence[Host], answered: Sequence[str]) -> list[str]:
    """Who is likely to answer first: one that is dead costs seconds."""
    order = sorted(hosts, key=lambda host: (host.name not in answered, not host.monitored, host.id))
    return [host.name for host in order]


def _world(tools: Tools, hosts: Sequence[str], answered: Sequence[str]) -> World:
    """All clusters, by three waves: a dozen dead hosts must not cost more time than one."""
    answers: list[Answer] = []
    silent: dict[str, str] = {}
    likely = [name for name in hosts if name in answered]
    others = [name for name in hosts if name not in answered]
    # Of a cluster that has not answered lately one may speak for the others: that one first.
    for wave in (likely, others[:1], others[1:]):
        asked = [name for name in wave if not _is_covered(name, answers)]
        for name, answer in whereabouts(tools, asked).items():
            if isinstance(answer, CxmError):
                silent[name] = answer.sentence()
                continue
            # One of the same cluster that was not sure gives way to one that is.
            if answer.counts:
                answers = [each for each in answers if not _same_cluster(each, answer)]
            elif any(_same_cluster(each, answer) for each in answers):
                continue
            answers.append(answer)
    return World(tuple(answers), silent)


def _is_covered(host: str, answers: Sequence[Answer]) -> bool:
    return any(each.clustered and each.counts and host in each.hosts for each in answers)


def whereabouts(tools: Tools, names: Iterable[str]) -> dict[str, Answer | CxmError]:
    """What each of these hosts says, or why it says nothing; all are asked at the same time."""

    def one(name: str) -> Answer:
        return views.answer(name, tools.node(name).call("whereabouts", {}, timeout_s=ASK_S))

    return together.ask(names, one, at_once=AT_ONCE)


def _same_cluster(one: Answer, other: Answer) -> bool:
    return bool(set(one.hosts) & set(other.hosts)) or one.asked in other.hosts


def record_of(tools: Tools, vm: VmId) -> Record:
    """What oned believes of a VM; raises NotFoundError for one that it does not know."""
    return views.record_in(tools.oned.vm_info(vm))
