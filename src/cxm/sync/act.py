# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns one run of the sync: both sides are asked, it is decided, oned is told, and that verified.

Before a call the VM is claimed twice: on the node where it runs, which confirms just then that it
does, and here, for the drivers that oned is about to call (:mod:`cxm.sync.claims`).
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from cxm.errors import CxmError, NotFoundError, UnreachableError
from cxm.names import VmId
from cxm.node.client import Node
from cxm.one import xml
from cxm.one.api import Recorder
from cxm.one.version import OneVersion
from cxm.sync import claims, views
from cxm.sync.claims import Claim
from cxm.sync.decide import Call, Decision, Kind, decide
from cxm.sync.memory import Memory
from cxm.sync.views import Answer, Host, Record, World

_log = logging.getLogger(__name__)

_ASK_S: Final = 60.0  # a node asks its peers, and Pacemaker
_AT_ONCE: Final = 32  # hosts that are asked at the same time
# How long a node starts nothing but what runs already: from the claim to a driver's call.
_CLAIM_S: Final = 120
# How long a claim stays after OpenNebula has come to rest: oned may not have begun yet.
_GRACE_S: Final = 30.0
_PATIENCE_S: Final = 120.0
_POLL_S: Final = 1.0
_BEGINS_S: Final = 5.0
_RESTING: Final = ("RUNNING", "UNKNOWN", "POWEROFF", "SUSPENDED", "DONE", "FAILED")


@dataclass(frozen=True, slots=True)
class Tools:
    """What a run may use of the world."""

    oned: Recorder
    node: Callable[[str], Node]  # by OpenNebula's name of the host
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


# --- looking --------------------------------------------------------------------------------------


def look(tools: Tools, memory: Memory, *, everybody: bool = True) -> Seen:
    """Ask oned, and of each cluster a node; raises CxmError where oned does not answer.

    Hosts that are in no cluster have no news; they are asked when ``everybody`` is.
    """
    hosts = {host.name: host for host in views.hosts(tools.oned.hosts_info())}
    alone = set(memory.alone) & hosts.keys()
    asked = [host for host in hosts.values() if host.ours and (everybody or host.name not in alone)]
    world = _world(tools, _order(asked, memory.answered), memory.answered)
    memory.answered = [answer.asked for answer in world.answers if answer.counts]
    clustered = {host for answer in world.answers if answer.clustered for host in answer.hosts}
    alone |= {answer.asked for answer in world.answers if not answer.clustered}
    memory.alone = sorted(alone - clustered)
    # Last, so that what OpenNebula has begun meanwhile is seen.
    records = {each.vm: each for each in views.records(tools.oned.vms_info())}
    for vm in world.sightings.keys() - records.keys():
        try:
            text = tools.oned.vm_info(vm)
        except NotFoundError:
            continue
        records[vm] = views.record(xml.parse(text, "VM"))
    return Seen(world, records, hosts)


def _order(hosts: Sequence[Host], answered: Sequence[str]) -> list[Host]:
    """Who is likely to answer first: one that is dead costs seconds."""
    return sorted(hosts, key=lambda host: (host.name not in answered, not host.monitored, host.id))


def _world(tools: Tools, hosts: Sequence[Host], answered: Sequence[str]) -> World:
    """All clusters, by three waves: a dozen dead hosts must not cost more time than one."""
    answers: list[Answer] = []
    silent: dict[str, str] = {}
    likely = [host.name for host in hosts if host.name in answered]
    others = [host.name for host in hosts if host.name not in answered]
    # Of a cluster that has not answered lately one may speak for the others: that one first.
    for wave in (likely, others[:1], others[1:]):
        asked = [name for name in wave if not _is_covered(name, answers)]
        for name, answer in zip(asked, _asked(tools, asked), strict=True):
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


def _asked(tools: Tools, names: Sequence[str]) -> list[Answer | CxmError]:
    """What each of these hosts says, or why it says nothing; all are asked at the same time."""

    def one(name: str) -> Answer | CxmError:
        try:
            said = tools.node(name).call("whereabouts", {}, timeout_s=_ASK_S)
            return views.answer(name, said)
        except CxmError as error:
            return error

    if len(names) <= 1:
        return [one(name) for name in names]
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - one cluster needs none

    with ThreadPoolExecutor(min(len(names), _AT_ONCE)) as pool:
        return list(pool.map(one, names))


def _same_cluster(one: Answer, other: Answer) -> bool:
    return bool(set(one.hosts) & set(other.hosts)) or one.asked in other.hosts


def judge(tools: Tools, seen: Seen, memory: Memory) -> list[Decision]:
    """What is to be done about each VM, by number; what failed a moment ago waits."""
    now = tools.now()
    ages = {claim.vm: now - claim.made_at for claim in claims.all_of(tools.place, now)}
    found = []
    for vm, sighting in sorted(seen.world.sightings.items()):
        record = seen.records.get(vm)
        if record is None:
            unknown = Record(vm, "unknown", "unknown", "")
            why = f"the cluster has it{_on(sighting.host)}, and OpenNebula knows no such VM"
            found.append(Decision(unknown, Kind.STUCK, why, sighting.host))
            continue
        each = decide(record, sighting, seen.hosts, tools.version, claimed_s=ages.get(vm))
        failed = memory.blocked(vm, key_of(each), now) if each.kind is Kind.ACT else None
        if failed is not None:
            each = replace(each, kind=Kind.STUCK, calls=(), why=f"{each.why}; {failed.why}")
        found.append(each)
    return found


def _on(host: str) -> str:
    return f" on {host}" if host else ""


def key_of(decision: Decision) -> str:
    """What is tried: something else need not wait until this may be tried again."""
    record = decision.record
    return f"{record.state} {record.host} {decision.host} {' '.join(decision.calls)}"


def end_claims(tools: Tools, seen: Seen) -> None:
    """End claims of runs that died, once OpenNebula has nothing under way for them."""
    now = tools.now()
    for claim in claims.all_of(tools.place, now):
        record = seen.records.get(claim.vm)
        is_over = record is None or record.state in _RESTING or record.state.endswith("_FAILURE")
        if is_over and not 0 <= now - claim.made_at <= _GRACE_S:
            claims.end(tools.place, claim.vm)


def confirm(tools: Tools, seen: Seen, decisions: Sequence[Decision]) -> None:
    """Tell clusters where OpenNebula takes VMs to be, if they do not know and it is right.

    That host speaks of a VM which is off or elsewhere, and oned listens to no other. Of the calls
    that bring a record in line only a live migration asks a driver, which tells it.
    """
    sightings = seen.world.sightings
    for decision in decisions:
        sighting, host = sightings.get(decision.record.vm), decision.host
        if sighting is None or not host or sighting.doubt or sighting.told == host:
            continue
        if decision.kind in (Kind.AGREED, Kind.LEFT) and decision.record.host == host:
            try:
                arguments = {"vm": decision.record.vm}
                tools.node(host).call("domain-confirm", arguments, timeout_s=_ASK_S)
            except CxmError as error:
                _log.debug("%s", error.sentence())


# --- acting ---------------------------------------------------------------------------------------


def act(tools: Tools, seen: Seen, decisions: Sequence[Decision], memory: Memory) -> list[Decision]:
    """Do what was decided and wait for it; returns the decisions with what came of them."""
    done: list[Decision] = []
    begun: list[Decision] = []
    for decision in decisions:
        if decision.kind is not Kind.ACT:
            done.append(decision)
            continue
        failure = _begin(tools, seen, decision)
        if failure is None:
            begun.append(decision)
        elif failure.kind is Kind.STUCK:
            done.append(_noted(tools, decision, memory, failure))
        else:
            done.append(failure)
    done += _ended(tools, begun, memory)
    return sorted(done, key=lambda each: each.record.vm)


def _begin(tools: Tools, seen: Seen, decision: Decision) -> Decision | None:
    """Claim the VM and make the calls; what kept that from being done, or None."""
    vm = decision.record.vm
    try:
        arguments = {"vm": vm, "timeout_s": _CLAIM_S}
        tools.node(decision.host).call("domain-claim", arguments, timeout_s=_ASK_S)
    except CxmError as error:
        return replace(decision, kind=Kind.WAIT, why=error.sentence())
    lost = decision.record.host in seen.world.away
    claims.make(tools.place, Claim(vm, decision.host, tools.now(), lost))
    try:
        now = _record(tools, vm)
        if now.moving or (now.state, now.host) != (decision.record.state, decision.record.host):
            claims.end(tools.place, vm)
            what = f"OpenNebula has changed it meanwhile: {now.state} on {now.host}"
            return replace(decision, kind=Kind.WAIT, why=what)
        for call in decision.calls:
            _call(tools, call, vm, seen.hosts[decision.host])
    except UnreachableError:
        raise  # nobody knows whether oned has heard it: the claim stays
    except CxmError as error:
        claims.end(tools.place, vm)
        return replace(decision, kind=Kind.STUCK, why=f"{decision.why}; {error.sentence()}")
    _log.info("%s", decision.sentence)
    return None


def _record(tools: Tools, vm: VmId) -> Record:
    return views.record(xml.parse(tools.oned.vm_info(vm), "VM"))


def _call(tools: Tools, call: Call, vm: VmId, host: Host) -> None:
    if call in (Call.RECOVER, Call.FAIL):
        tools.oned.recover(vm, success=call is Call.RECOVER)
    else:
        # Live in any case: what is off is moved the same, and what runs again is never saved.
        tools.oned.migrate(vm, host.id, live=True)


def _ended(tools: Tools, begun: Sequence[Decision], memory: Memory) -> Iterator[Decision]:
    """Wait until OpenNebula has done what it was told, or the patience is over."""
    waiting = list(begun)
    begun_at = tools.now()
    while waiting:
        still: list[Decision] = []
        for decision in waiting:
            text = tools.oned.vm_info(decision.record.vm)
            now = views.record(xml.parse(text, "VM"))
            if not _is_over(now, decision, tools.now() - begun_at):
                still.append(decision)
                continue
            yield _verified(tools, decision, now, _error_of(text), memory)
        waiting = still
        # A clock that was set back must not make it wait for longer.
        if waiting and not 0 <= tools.now() - begun_at < _PATIENCE_S:
            break
        if waiting:
            tools.sleep(_POLL_S)
    for decision in waiting:
        yield replace(decision, kind=Kind.WAIT, why=f"{decision.why}; OpenNebula is still at it")


def _is_over(now: Record, decision: Decision, seconds: float) -> bool:
    """Whether OpenNebula has done, or given up, what it was told; it begins some moments later."""
    rests = now.state in _RESTING or now.state.endswith("_FAILURE")
    return rests and not now.moving and (now.host == decision.host or seconds > _BEGINS_S)


def _verified(
    tools: Tools, decision: Decision, now: Record, error: str, memory: Memory
) -> Decision:
    vm = decision.record.vm
    claims.end(tools.place, vm)
    if now.host == decision.host or decision.calls == (Call.FAIL,):
        memory.failures.pop(vm, None)
        why = f"{decision.why}; OpenNebula says {now.state} on {now.host} now"
        return replace(decision, record=now, kind=Kind.AGREED, why=why)
    why = f"{decision.why}; OpenNebula says {now.state} on {now.host} still: {error or 'no reason'}"
    return _noted(tools, decision, memory, replace(decision, kind=Kind.STUCK, why=why))


def _error_of(text: str) -> str:
    """What OpenNebula shows as the reason of a VM's last failure."""
    vm = xml.parse(text, "VM")
    return xml.text_of(vm, "USER_TEMPLATE/ERROR") or xml.text_of(vm, "TEMPLATE/ERROR")


def _noted(tools: Tools, decision: Decision, memory: Memory, failure: Decision) -> Decision:
    """Remember what failed, so that it is tried again later and later."""
    memory.failed(decision.record.vm, key_of(decision), tools.now(), failure.why)
    return failure
