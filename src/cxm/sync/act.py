# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what a turn of the sync does: it is decided, claimed, oned is told, and that verified.

Before a call the VM is claimed twice: on the node where it runs, which confirms just then that it
does, and here, for the drivers that oned is about to call (:mod:`cxm.sync.claims`).
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from cxm import together
from cxm.errors import CxmError, DataError, NotFoundError, UnreachableError
from cxm.names import VmId
from cxm.one import vnm, xml
from cxm.sync import claims, views
from cxm.sync.claims import Claim
from cxm.sync.decide import OUR_FAILED_MOVES, RECOVERS, RESTING, Call, Decision, Kind, decide
from cxm.sync.look import ASK_S, AT_ONCE, Seen, Tools, record_of
from cxm.sync.memory import Memory
from cxm.sync.views import Record

_log = logging.getLogger(__name__)

# How long a node starts nothing but what runs already: from the claim to a driver's call.
_CLAIM_S: Final = 120
# How long a claim stays after OpenNebula has come to rest: oned may not have begun yet.
_GRACE_S: Final = 30.0
_PATIENCE_S: Final = 120.0
_POLL_S: Final = 1.0
_BEGINS_S: Final = 5.0
# How long a failed boot may take to be RUNNING: the last VM of a batch waits for all before it.
_RECOVERS_S: Final = 3.0
_SOON_S: Final = 0.1
_RESTING: Final = ("RUNNING", "UNKNOWN", "POWEROFF", "SUSPENDED", "DONE", "FAILED")
# States that only the claim says to be ours, so that it lives as long as they.
_CLAIMED: Final = ("MIGRATE", *OUR_FAILED_MOVES)


def judge(tools: Tools, seen: Seen, memory: Memory) -> list[Decision]:
    """What is to be done about each VM, by number; what failed a moment ago waits."""
    now = tools.now()
    claimed = list(claims.all_of(tools.place))
    owed = {claim.vm for claim in claimed if claim.is_owed(now)}
    ages = {claim.vm: now - claim.made_at for claim in claimed}
    ages = {vm: age for vm, age in ages.items() if age < claims.LONGEST_S}
    lasts = memory.lasts(_said_of(seen), now)
    found = []
    for vm, sighting in sorted(seen.world.sightings.items()):
        record = seen.records.get(vm)
        if record is None:
            unknown = Record(vm, "unknown", "unknown", "")
            why = f"the cluster has it{_on(sighting.host)}, and OpenNebula knows no such VM"
            found.append(Decision(unknown, Kind.STUCK, why, sighting.host))
            continue
        each = decide(
            record,
            sighting,
            seen.hosts,
            tools.version,
            claimed_s=ages.get(vm),
            is_owed=vm in owed,
            unchanged_s=lasts[vm],
        )
        failed = memory.blocked(vm, key_of(each), now) if each.kind is Kind.ACT else None
        if failed is not None:
            each = replace(each, kind=Kind.STUCK, calls=(), why=f"{each.why}; {failed.why}")
        found.append(each)
    return found


def _said_of(seen: Seen) -> dict[int, str]:
    """What both views say of each VM, so that it can be compared with what they said before."""
    known = ((vm, seen.records.get(vm), each) for vm, each in seen.world.sightings.items())
    return {
        vm: f"{record.state} {record.host} {each.host} {each.doubt}"
        for vm, record, each in known
        if record is not None
    }


def _on(host: str) -> str:
    return f" on {host}" if host else ""


def key_of(decision: Decision) -> str:
    """What is tried: something else need not wait until this may be tried again."""
    record = decision.record
    return f"{record.state} {record.host} {decision.host} {' '.join(decision.calls)}"


def end_claims(tools: Tools, seen: Seen) -> None:
    """End claims of runs that died, once OpenNebula has nothing under way for them."""
    now = tools.now()
    for claim in claims.all_of(tools.place):
        record, age = seen.records.get(claim.vm), now - claim.made_at
        is_over = record is None or (_rests(record) and record.state not in _CLAIMED)
        if (is_over and not 0 <= age <= _GRACE_S) or age > claims.LONGEST_S:
            claims.end(tools.place, claim.vm)


def _rests(record: Record) -> bool:
    """Whether OpenNebula is not at work on a VM."""
    return record.state in _RESTING or record.state.endswith("_FAILURE")


def tell(tools: Tools, seen: Seen, decisions: Iterable[Decision]) -> None:
    """Tell clusters where OpenNebula takes VMs to be, where they do not know: one call for each.

    That host speaks of a VM which is off or elsewhere, and oned listens to no other.
    """
    records = {each.record.vm: each.record for each in decisions if each.record.state in RESTING}
    for answer in seen.world.answers:
        if not answer.clustered or answer.doubt:
            continue
        news = {
            str(each.vm): records[each.vm].host
            for each in answer.vms
            if each.vm in records
            and not each.doubt
            and records[each.vm].host in answer.hosts
            and records[each.vm].host != each.told
        }
        try:
            if news:
                asked = tools.node(answer.asked)
                asked.call("domain-told", {"hosts": news}, timeout_s=ASK_S)
        except CxmError as error:
            _log.warning("%s is not told where OpenNebula has VMs: %s", answer.asked, error)


# --- acting ---------------------------------------------------------------------------------------


def act(tools: Tools, seen: Seen, decisions: Sequence[Decision], memory: Memory) -> list[Decision]:
    """Do what was decided and wait for it; returns the decisions with what came of them.

    Many VMs are under way at the same time, as oned's drivers allow: not so many that one would
    outlast its claim while it waits for its turn.
    """
    done = [each for each in decisions if each.kind is not Kind.ACT]
    todo = [each for each in decisions if each.kind is Kind.ACT]
    for start in range(0, len(todo), AT_ONCE):
        begun: list[Decision] = []
        part = todo[start : start + AT_ONCE]
        refusals = _claimed(tools, part)
        # A follower hands calls on to the leader, whose drivers would find no claim.
        if not tools.oned.leads():
            why = "another frontend has come to lead this zone: it tells OpenNebula"
            done += [replace(each, kind=Kind.WAIT, why=why) for each in todo[start:]]
            break
        for decision, refusal in zip(part, refusals, strict=True):
            failure = refusal or _begin(tools, seen, decision, memory)
            if failure is None:
                begun.append(decision)
            else:
                done.append(failure)
        done += _ended(tools, begun, memory)
    return sorted(done, key=lambda each: each.record.vm)


def _claimed(tools: Tools, decisions: Sequence[Decision]) -> list[Decision | None]:
    """Claim VMs where they run, by one call of each host; of each what keeps it back, or None."""
    vms: dict[str, list[VmId]] = {}
    for decision in decisions:
        vms.setdefault(decision.host, []).append(decision.record.vm)

    def one(host: str) -> Mapping[str, str]:
        arguments = {"vms": vms[host], "timeout_s": _CLAIM_S}
        said = tools.node(host).call("domain-claim", arguments, timeout_s=ASK_S)["refused"]
        return {str(vm): str(why) for vm, why in said.items()}

    answers = together.ask(vms, one, at_once=AT_ONCE)

    def kept(decision: Decision) -> Decision | None:
        said = answers[decision.host]
        if isinstance(said, CxmError):
            return replace(decision, kind=Kind.WAIT, why=said.sentence())
        why = said.get(str(decision.record.vm))
        return replace(decision, kind=Kind.WAIT, why=why) if why else None

    return [kept(decision) for decision in decisions]


def _begin(tools: Tools, seen: Seen, decision: Decision, memory: Memory) -> Decision | None:
    """Claim the VM here and make the calls; what kept that from being done, or None."""
    vm = decision.record.vm
    lost = decision.record.host in seen.world.away
    # What ends a migration calls no driver, and is tried again while its claim says that it is due.
    if decision.record.state not in _CLAIMED:
        claims.make(tools.place, Claim(vm, decision.host, tools.now(), lost))
    try:
        text = tools.oned.vm_info(vm)
        now = views.record_in(text)
        # A migration's own two records are open until it has ended.
        begins = now.moving and now.state != "MIGRATE"
        if begins or (now.state, now.host) != (decision.record.state, decision.record.host):
            claims.end(tools.place, vm)
            what = f"OpenNebula has changed it meanwhile: {now.state} on {now.host}"
            return replace(decision, kind=Kind.WAIT, why=what)
        for call in decision.calls:
            if call is not decision.calls[0]:
                _await_running(tools, decision)
            _call(tools, seen, call, vm, decision.host)
        if decision.record.state == "MIGRATE" and decision.calls == (Call.RECOVER,):
            _connect(tools, {vm: _Owed(decision.host, text)})
    except UnreachableError:
        raise  # nobody knows whether oned has heard it: the claim stays
    except CxmError as error:
        # The same of a damaged answer.
        if not isinstance(error, DataError) and decision.record.state not in _CLAIMED:
            claims.end(tools.place, vm)
        return _failed(tools, decision, memory, error.sentence())
    _log.info("%s", decision.sentence)
    return None


def _call(tools: Tools, seen: Seen, call: Call, vm: VmId, host: str) -> None:
    if call in (Call.RECOVER, Call.FAIL):
        tools.oned.recover(vm, success=call is Call.RECOVER)
    else:
        # Live in any case: what is off is moved the same, and what runs again is never saved.
        tools.oned.migrate(vm, seen.hosts[host].id, live=True)


def _await_running(tools: Tools, decision: Decision) -> None:
    """Wait until a recover has made the VM RUNNING; raises CxmError where it does not.

    oned does that within the call for UNKNOWN, which must be moved at once. For a failed boot it
    only puts it into a queue, and would refuse to move what has failed.
    """
    if decision.record.state == "UNKNOWN":
        return
    began = tools.now()
    while (now := record_of(tools, decision.record.vm)).state != "RUNNING":
        if not 0 <= tools.now() - began < _RECOVERS_S:
            what = f"OpenNebula says {now.state} on {now.host} {_RECOVERS_S:g} s after"
            raise CxmError(f"{what} {decision.calls[0]}", hint="oned.log on the frontend says why")
        tools.sleep(_SOON_S)


@dataclass(frozen=True, slots=True)
class _Owed:
    """A VM whose migration OpenNebula's driver has not ended, and so did not connect."""

    host: str
    text: str  # the VM, as its driver would have been told of it


def _ended(tools: Tools, begun: Sequence[Decision], memory: Memory) -> Iterator[Decision]:
    """Wait until OpenNebula has done what it was told, or the patience is over."""
    waiting = list(begun)
    recovered: dict[VmId, _Owed] = {}
    begun_at = tools.now()
    while waiting:
        known, seconds = set(recovered), tools.now() - begun_at
        try:
            looked = [_looked(tools, each, seconds, recovered, memory) for each in waiting]
        finally:
            # Now, and whatever becomes of the others: later nobody would know that it is due.
            _connect(tools, {vm: owed for vm, owed in recovered.items() if vm not in known})
        yield from (done for done in looked if done is not None)
        waiting = [each for each, done in zip(waiting, looked, strict=True) if done is None]
        # A clock that was set back must not make it wait for longer.
        if waiting and not 0 <= tools.now() - begun_at < _PATIENCE_S:
            break
        if waiting:
            tools.sleep(_POLL_S)
    for decision in waiting:
        yield replace(decision, kind=Kind.WAIT, why=f"{decision.why}; OpenNebula is still at it")


def _looked(
    tools: Tools,
    decision: Decision,
    seconds: float,
    recovered: dict[VmId, _Owed],
    memory: Memory,
) -> Decision | None:
    """What came of a decision, or None for nothing yet; what is owed is in ``recovered``."""
    vm = decision.record.vm
    try:
        text = tools.oned.vm_info(vm)
    except NotFoundError as error:
        claims.end(tools.place, vm)
        return replace(decision, kind=Kind.STUCK, why=f"{decision.why}; {error.sentence()}")
    now = views.record_in(text)
    if _is_over(now, decision, seconds):
        return _verified(tools, decision, now, _error_of(text), memory)
    try:
        if vm not in recovered and _ends_for_its_driver(tools, now, decision):
            recovered[vm] = _Owed(decision.host, text)
    except CxmError as error:
        return replace(decision, kind=Kind.WAIT, why=f"{decision.why}; {error.sentence()}")
    return None


def _ends_for_its_driver(tools: Tools, now: Record, decision: Decision) -> bool:
    """End a move that our driver has confirmed and OpenNebula's does not end, where that is due.

    Not left to a later turn: it is the usual case where the old host is dead, and others wait.
    """
    vm = decision.record.vm
    if tools.version < RECOVERS or (now.state, now.host) != ("MIGRATE", decision.host):
        return False
    claim = claims.find(tools.place, vm, tools.now())
    if claim is None or not claim.is_owed(tools.now()):
        return False
    tools.oned.recover(vm, success=True)
    _log.info("VM %d: OpenNebula's driver does not end its move: %s", vm, Call.RECOVER)
    return True


def _connect(tools: Tools, owed: Mapping[VmId, _Owed]) -> None:
    """What OpenNebula's driver would have done next for VMs: they get their security groups."""
    if tools.version < vnm.SINCE:
        return

    def one(vm: VmId) -> None:
        tools.connect(owed[vm].text, owed[vm].host)

    answers = together.ask(owed, one, at_once=AT_ONCE)
    what = "its network's step 'post' is not done, so it may lack its security groups"
    for vm, answer in answers.items():
        if isinstance(answer, CxmError):
            _log.warning("VM %d on %s: %s: %s", vm, owed[vm].host, what, answer.sentence())


def _is_done(now: Record, decision: Decision) -> bool:
    """Whether OpenNebula is where it was told to go: the host alone does not make it so."""
    if decision.calls == (Call.FAIL,):
        return now.state in _RESTING
    states = (decision.record.state, "RUNNING") if decision.calls == (Call.MOVE,) else ("RUNNING",)
    return now.host == decision.host and now.state in states


def _is_over(now: Record, decision: Decision, seconds: float) -> bool:
    """Whether OpenNebula has done, or given up, what it was told; it begins some moments later."""
    return _rests(now) and not now.moving and (_is_done(now, decision) or seconds > _BEGINS_S)


def _verified(
    tools: Tools, decision: Decision, now: Record, error: str, memory: Memory
) -> Decision:
    was = decision.record
    if now.state not in _CLAIMED:
        claims.end(tools.place, was.vm)
    if _is_done(now, decision):
        # What is back where it was may fail again: that waits for its pause.
        if decision.calls != (Call.FAIL,):
            memory.failures.pop(was.vm, None)
        why = f"{decision.why}; OpenNebula says {now.state} on {now.host} now"
        return replace(decision, record=now, kind=Kind.AGREED, why=why)
    word = "still" if (now.state, now.host) == (was.state, was.host) else "now"
    why = f"OpenNebula says {now.state} on {now.host} {word}: {error or 'no reason'}"
    return _failed(tools, decision, memory, why)


def _error_of(text: str) -> str:
    """What OpenNebula shows as the reason of a VM's last failure."""
    vm = xml.parse(text, "VM")
    return xml.text_of(vm, "USER_TEMPLATE/ERROR") or xml.text_of(vm, "TEMPLATE/ERROR")


def _failed(tools: Tools, decision: Decision, memory: Memory, why: str) -> Decision:
    """What failed is remembered, so that it is tried again later and later."""
    memory.failed(decision.record.vm, key_of(decision), tools.now(), why)
    return replace(decision, kind=Kind.STUCK, why=f"{decision.why}; {why}")
