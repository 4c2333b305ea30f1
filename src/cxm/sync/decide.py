# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the decision what OpenNebula is to be told of a VM, and by which calls. Pure.

Level-triggered: it looks at what is, never at what happened. It decides nothing where the two views
agree, where the cluster's is not certain, or while OpenNebula itself is at work on the VM. Each
decision has a sentence. Which calls a version takes is in one table (:func:`calls`), from which the
guide's table is made too (:func:`table`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from cxm.one.version import OneVersion
from cxm.sync.views import Host, Record, Sighting

RECOVERS: Final = OneVersion(4, 0)  # one.vm.recover
MOVES_AT_REST: Final = OneVersion(4, 14)  # one.vm.migrate of what is off or suspended
BOOT_FAILURES: Final = OneVersion(4, 14)  # before, such a VM is FAILED
GOES_BACK: Final = OneVersion(5, 2)  # one.vm.recover, failure, of a move of files that failed
# Since when oned takes a host's word that a VM in such a state runs (source).
_HEARD: Final = {"POWEROFF": OneVersion(4, 10), "SUSPENDED": OneVersion(5, 12)}
# How long a migration of our own may take before it counts as one that nobody works on any more:
# oned was restarted meanwhile, for example.
STUCK_S: Final = 900.0
# How long nothing may change about a VM that OpenNebula is at work on where it is not, or whose
# migration has come to its host, until nobody works on that any more.
IDLE_S: Final = 300.0

_FAILED_BOOTS: Final = (
    "BOOT_FAILURE", "BOOT_MIGRATE_FAILURE", "BOOT_UNDEPLOY_FAILURE", "BOOT_STOPPED_FAILURE",
)  # fmt: skip
_AT_REST: Final = ("POWEROFF", "SUSPENDED")
# Moves of files that failed: of ours, and of others'. From those of ours the way back calls no
# driver; from the others oned would start the VM anew.
OUR_FAILED_MOVES: Final = ("PROLOG_MIGRATE_POWEROFF_FAILURE", "PROLOG_MIGRATE_SUSPEND_FAILURE")
_FAILED_MOVES: Final = (
    *OUR_FAILED_MOVES, "PROLOG_MIGRATE_FAILURE", "PROLOG_MIGRATE_UNKNOWN_FAILURE",
)  # fmt: skip
# States in which OpenNebula is not at work on a VM: it takes it to be on a host, or not to run.
RESTING: Final = ("RUNNING", "UNKNOWN", *_AT_REST, *_FAILED_BOOTS)
# What a VM driver does on a host: oned's own (5.10 to 7.4) may never answer where that is dead.
# Not what is saved to be moved: that runs where it comes from.
_ON_A_HOST: Final = ("BOOT", "SAVE_S", "SHUTDOWN", "CANCEL", "CLEANUP")
# Of these a success is told, by which the VM is RUNNING, or deleted; of the others a failure.
_SUCCEEDS: Final = ("BOOT", "CLEANUP")
_NOT_RUNNING: Final = ("PENDING", "HOLD", "STOPPED", "UNDEPLOYED", "FAILED", "PROLOG_FAILURE")


class Call(StrEnum):
    """A call of oned's API, as the guide's table names it."""

    LIVE = "one.vm.migrate, live"
    RECOVER = "one.vm.recover, success"
    MOVE = "one.vm.migrate"
    FAIL = "one.vm.recover, failure"


class Kind(StrEnum):
    """What comes of looking at a VM."""

    AGREED = "agreed"  # nothing to say
    ACT = "act"
    WAIT = "wait"  # what is to be done shows within moments
    LEFT = "left"  # somebody else's business: OpenNebula's own, or probes'
    STUCK = "stuck"  # a human must look


@dataclass(frozen=True, slots=True)
class Decision:
    """What is to be done about a VM, and why."""

    record: Record
    kind: Kind
    why: str
    host: str = ""  # where it runs
    calls: tuple[Call, ...] = ()

    @property
    def sentence(self) -> str:
        """For people."""
        return f"{self.record.label}: {self.why}"


# State, whether OpenNebula has the right host -> the first version with these calls, and the calls.
_WAYS: Final[Mapping[tuple[str, bool], tuple[OneVersion, tuple[Call, ...]]]] = {
    ("RUNNING", False): (OneVersion(3, 6), (Call.LIVE,)),
    ("UNKNOWN", False): (RECOVERS, (Call.RECOVER, Call.LIVE)),
    **{(state, False): (MOVES_AT_REST, (Call.MOVE,)) for state in _AT_REST},
    **{(state, False): (BOOT_FAILURES, (Call.RECOVER, Call.LIVE)) for state in _FAILED_BOOTS},
    **{(state, True): (BOOT_FAILURES, (Call.RECOVER,)) for state in _FAILED_BOOTS},
}


def calls(version: OneVersion, state: str, *, same_host: bool) -> tuple[Call, ...] | None:
    """The calls that bring a VM's record in line, by its state; None where there is no way.

    None of them starts or moves anything: a live migration is confirmed by our driver where the VM
    runs already; a recover calls no driver; one that is off for OpenNebula has its files moved,
    which nothing is done for on a SAN, and then its host's probe says that it runs.
    """
    known = _WAYS.get((state, same_host))
    if known is None:
        return () if same_host else None
    since, way = known
    return way if version >= since else None


def is_heard(version: OneVersion, state: str) -> bool:
    """Whether a host's report that a VM runs ends this state, where no call does."""
    return version >= _HEARD.get(state, version)


def resumed_by(version: OneVersion, state: str) -> str:
    """The command by which a user has OpenNebula start what is off or suspended."""
    return "onevm restart" if version < RECOVERS and state == "POWEROFF" else "onevm resume"


def decide(
    record: Record,
    seen: Sighting,
    hosts: Mapping[str, Host],
    version: OneVersion,
    *,
    claimed_s: float | None = None,
    is_owed: bool = False,
    unchanged_s: float = 0.0,
) -> Decision:
    """What is to be done about a VM that a cluster knows.

    ``claimed_s`` is the age of our claim; ``is_owed`` that OpenNebula's driver, which should have
    ended a move that ours has confirmed, has not; ``unchanged_s`` for how long both views have been
    as they are.
    """

    def made(kind: Kind, why: str, *way: Call) -> Decision:
        return Decision(record, kind, why, seen.host, way)

    if record.state == "DONE":
        return made(*_done(seen))
    if record.state in _NOT_RUNNING:
        return made(*_not_running(record, seen, version))
    if record.state not in RESTING:
        is_idle = unchanged_s > IDLE_S
        return _under_way(record, seen, version, claimed_s, is_owed=is_owed, is_idle=is_idle)
    if seen.doubt or not seen.host:
        return made(*_unplaced(record, seen))
    return _misplaced(record, seen, hosts, version)


def _under_way(
    record: Record,
    seen: Sighting,
    version: OneVersion,
    claimed_s: float | None,
    *,
    is_owed: bool,
    is_idle: bool,
) -> Decision:
    """About a VM that OpenNebula is at work on, or has left in the middle of it."""
    is_late = claimed_s is not None and claimed_s > STUCK_S
    # A user's own migration may have lost its driver as ours may.
    is_left = is_owed or (is_idle and claimed_s is None)
    if record.state == "MIGRATE" and (is_late or (is_left and seen.host == record.host)):
        return _stuck(record, seen, version, is_late=is_late)
    if record.state in _FAILED_MOVES:
        return _unmoved(record, seen, version, is_ours=claimed_s is not None)
    return _at_work(record, seen, version, is_idle=is_idle)


def _at_work(record: Record, seen: Sighting, version: OneVersion, *, is_idle: bool) -> Decision:
    what = f"OpenNebula is at work on it ({record.state})"
    is_elsewhere = seen.host not in ("", record.host) and not seen.doubt
    is_stuck = is_idle and is_elsewhere and record.state.startswith(_ON_A_HOST)
    if not is_stuck or version < RECOVERS:
        return Decision(record, Kind.LEFT, what, seen.host)
    word = "success" if record.state.startswith(_SUCCEEDS) else "failure"
    what = f"{what} on {record.host}, and it runs on {seen.host}"
    what = f"{what}: that does not end by itself, 'onevm recover --{word} {record.vm}' ends it"
    return Decision(record, Kind.STUCK, what, seen.host)


def _not_running(record: Record, seen: Sighting, version: OneVersion) -> tuple[Kind, str]:
    if seen.doubt:
        what = f"OpenNebula says {record.state}, and whether it runs is not certain"
        return Kind.WAIT, f"{what}: {seen.doubt}"
    if not seen.host:
        return Kind.AGREED, f"{record.state} in OpenNebula, and it runs nowhere"
    what = f"OpenNebula says {record.state}, but it runs on {seen.host}"
    if record.state == "FAILED" and version < BOOT_FAILURES:
        what = f"{what}, and OpenNebula {version} has no way back to RUNNING"
    return Kind.STUCK, f"{what}; 'cxm shutdown {record.vm}' on a node ends it"


def _unplaced(record: Record, seen: Sighting) -> tuple[Kind, str]:
    if seen.doubt:
        return Kind.WAIT, f"where it runs is not certain: {seen.doubt}"
    what = f"OpenNebula says {record.state} on {record.host}"
    return Kind.LEFT, f"{what}, and it runs nowhere: its host's reports tell it"


def _done(seen: Sighting) -> tuple[Kind, str]:
    what = "OpenNebula has given it up (DONE)"
    if seen.doubt:
        return Kind.STUCK, f"{what}, and the cluster keeps it: {seen.doubt}"
    if seen.host:
        what = f"{what}, and it runs on {seen.host}: nothing of it is removed"
        return Kind.STUCK, f"{what}; 'cxm shutdown {seen.vm}' on a node ends it"
    if seen.wanted:
        return Kind.STUCK, f"{what}, and the cluster keeps it: it runs nowhere at the moment"
    what = "it has ended in OpenNebula (DONE), and the cluster still knows it"
    return Kind.STUCK, f"{what}: what stays of its volumes goes by 'cxm-sync --remove {seen.vm}'"


def _misplaced(
    record: Record, seen: Sighting, hosts: Mapping[str, Host], version: OneVersion
) -> Decision:
    """About a VM that certainly runs on a host."""
    same, host = seen.host == record.host, hosts.get(seen.host)
    way = calls(version, record.state, same_host=same)
    where = f"it runs on {seen.host}"
    says = f"OpenNebula says {record.state} on {record.host}"

    def made(kind: Kind, why: str, *more: Call) -> Decision:
        return Decision(record, kind, why, seen.host, more)

    if host is None:
        what = f"{where}, which is no host of OpenNebula: add it (onehost create)"
        return made(Kind.STUCK, f"{what}, or tell its name by 'cxm-setup node --host'")
    if not way:
        return made(*_uncalled(record, seen, version, same=same))
    if refusal := _refusal(record, host, same_host=same):
        return made(Kind.STUCK, f"{says}, but {where}; {refusal}")
    return made(Kind.ACT, f"{says}, but {where}: {' and '.join(way)}", *way)


def _uncalled(
    record: Record, seen: Sighting, version: OneVersion, *, same: bool
) -> tuple[Kind, str]:
    """About a VM that runs on a host, and of which this version is told nothing by a call."""
    if same and record.state == "RUNNING":
        return Kind.AGREED, f"RUNNING on {seen.host}"
    what = f"OpenNebula says {record.state} on {record.host}"
    what += f", and it runs on {seen.host}" if same else f", but it runs on {seen.host}"
    if not is_heard(version, record.state):
        back = "" if same else f"'cxm migrate {record.vm} {record.host}' on a node, then "
        again = f"{back}'{resumed_by(version, record.state)} {record.vm}' adopts it"
        return Kind.STUCK, f"{what}; OpenNebula {version} does not find out by itself: {again}"
    if same:
        return Kind.LEFT, f"{what}: that host's next report tells it"
    what = f"{what}: OpenNebula {version} takes no call that says where it is"
    return Kind.LEFT, f"{what}; {record.host} vouches for it"


def _locked(record: Record) -> str:
    return f"it is locked in OpenNebula: 'onevm unlock {record.vm}'"


def _refusal(record: Record, host: Host, *, same_host: bool) -> str:
    """Why oned would refuse the calls, as far as that is known before; empty for nothing."""
    if record.locked:
        return _locked(record)
    if not host.confirms and not same_host:
        what = f"oned.conf does not have VM_MAD '{host.vm_mad}' run migrate on the frontend (-l)"
        what = f"{what}, so telling OpenNebula could move the VM"
        return f"{what}: 'cxm-setup frontend --apply' there adds it, then restart oned"
    if host.offline and not same_host:
        what = f"{host.name} is OFFLINE in OpenNebula, which sends no VM there"
        return f"{what}: 'onehost enable {host.name}'"
    return ""


def _stuck(record: Record, seen: Sighting, version: OneVersion, *, is_late: bool) -> Decision:
    """About a migration that does not end: what it came to is what is true."""
    says = "OpenNebula has been recording its move for too long"
    if version < RECOVERS or seen.doubt or not seen.host:
        why = seen.doubt or f"OpenNebula {version} has no recover"
        kind = Kind.WAIT if seen.doubt and not is_late else Kind.STUCK
        return Decision(record, kind, f"{says}: {why}", seen.host)
    way = Call.RECOVER if seen.host == record.host else Call.FAIL
    return Decision(record, Kind.ACT, f"{says}, it runs on {seen.host}: {way}", seen.host, (way,))


def _unmoved(record: Record, seen: Sighting, version: OneVersion, *, is_ours: bool) -> Decision:
    """About a VM whose files OpenNebula could not move to the host that it takes it to be on."""
    says = f"OpenNebula says {record.state} on {record.host}"

    def made(kind: Kind, why: str, *way: Call) -> Decision:
        return Decision(record, kind, why, seen.host, way)

    if seen.doubt:
        return made(Kind.WAIT, f"{says}, and where it runs is not certain: {seen.doubt}")
    what = f"{says}, and it runs {f'on {seen.host}' if seen.host else 'nowhere'}"
    is_back = is_ours and record.state in OUR_FAILED_MOVES and version >= GOES_BACK
    if is_back and seen.host:
        if record.locked:
            return made(Kind.STUCK, f"{what}; {_locked(record)}")
        return made(Kind.ACT, f"{what}: {Call.FAIL}", Call.FAIL)
    if seen.host in ("", record.host):
        return made(
            Kind.STUCK, f"{what}: 'onevm recover --retry {record.vm}' moves its files again"
        )
    # Before 5.2 that a move failed is not taken for an answer; that it went well starts nothing.
    word = "failure" if version >= GOES_BACK else "success"
    advice = f"'onevm recover --{word} {record.vm}' ends it, and cxm-sync goes on from there"
    return made(Kind.STUCK, f"{what}: {advice}")


# --- the guide's table ----------------------------------------------------------------------------

_AGES: Final = (
    ("3.6, 3.8", OneVersion(3, 8)),
    ("4.0 to 4.8", OneVersion(4, 8)),
    ("4.10, 4.12", OneVersion(4, 12)),
    ("4.14 to 5.10", OneVersion(5, 10)),
    ("5.12 to 7.4", OneVersion(7, 4)),
)
_SHOWN: Final = (
    ("RUNNING", False), ("UNKNOWN", False), ("POWEROFF", False), ("SUSPENDED", False),
    ("BOOT_FAILURE", False), ("BOOT_FAILURE", True), ("UNKNOWN", True), ("POWEROFF", True),
    ("SUSPENDED", True),
)  # fmt: skip


def table() -> str:
    """The calls by version and state, as a table for the guide."""
    head = "".join(f" {name} |" for name, _version in _AGES)
    lines = [f"| OpenNebula says |{head}", f"|---|{'---|' * len(_AGES)}"]
    for state, same in _SHOWN:
        cells = [_cell(version, state, same_host=same) for _name, version in _AGES]
        where = "on the host where it runs" if same else "on another host"
        lines.append(f"| {state} {where} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(version: OneVersion, state: str, *, same_host: bool) -> str:
    if state in _FAILED_BOOTS and version < BOOT_FAILURES:
        return "it is FAILED there"
    way = calls(version, state, same_host=same_host)
    if not way and not is_heard(version, state):
        return f"none: `{resumed_by(version, state)}`"
    if way is None:
        return "none"
    return "; ".join(way) if way else "none: the host's report tells it"
