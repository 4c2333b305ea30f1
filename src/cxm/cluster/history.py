# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what the cluster did and why, as a list of sentences. Pure: records in, events out.

Three sources: who was fenced; the last operations of each resource in the CIB's status; the nodes'
logs. Times are seconds since 1970.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Final
from xml.etree.ElementTree import Element

from cxm.cluster.pacemaker import Fencing

# What is started so soon after a fencing was probably started because of it.
_AFTER_FENCING_S: Final = 300.0
_SAME_S: Final = 2.0
_WARNING: Final = 4  # syslog's number
CONTROLLER: Final = "pacemaker-controld"
HELPER: Final = "cxm-helper"  # what OpenNebula's drivers have done on a node
BALANCER: Final = "cxm-balance"  # what the cluster has done by itself, to be evenly busy
_BY: Final = {HELPER: "for OpenNebula", BALANCER: "by the balancer"}
_MEMBERSHIP: Final = re.compile(r"\s*\w+:\s+Node (?P<node>\S+) state is now (?P<state>lost|member)")
_MEMBER_WORDS: Final = {"lost": "left the cluster or died", "member": "joined the cluster"}
_WHO: Final = {
    CONTROLLER: "Pacemaker decided so: the node had failed or not stopped what it should",
    "stonith_admin": "asked for by hand",
    "stonith-api": "asked for by the DLM: the node held locks when it vanished",
    "dlm_controld": "asked for by the DLM: the node held locks when it vanished",
    "dlm_stonith": "asked for by the DLM: the node held locks when it vanished",
}


class Kind(StrEnum):
    """What an event is about."""

    FENCING = "fencing"
    VM = "vm"
    RESOURCE = "resource"
    NODE = "node"
    LOG = "log"


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the timeline."""

    at: float
    node: str
    what: str
    why: str = ""
    kind: Kind = Kind.LOG
    bad: bool = False


def seconds(text: str) -> float | None:
    """A time as Pacemaker writes it, for example ``2026-11-25 23:59:08.123456 +01:00``."""
    compact = re.sub(r"\s+(?=[+-]\d\d:\d\d$)", "", text.strip())
    try:
        return datetime.fromisoformat(compact).timestamp()
    except ValueError:
        return None


# --- fencing --------------------------------------------------------------------------------------


def of_fencing(records: Iterable[Fencing], now: float) -> Iterator[Event]:
    """Who was fenced, by whom, and who wanted it."""
    for each in records:
        client = each.client.partition(".")[0]
        why = _WHO.get(client, f"asked for by {client}" if client else "")
        if each.origin and client != CONTROLLER and why:
            why += f" on {each.origin}"
        how = {"off": "switched off", "on": "switched on"}.get(each.action, "rebooted")
        at = seconds(each.when)
        if each.status == "pending":
            what, at = f"is being fenced ({each.action})", now
        elif each.status == "success":
            by = f" by {each.by}" if each.by else ""
            what = f"was fenced{by}: {how}"
        else:
            what = f"could NOT be fenced ({each.action})"
            why = "; ".join(filter(None, (each.reason, why)))
        if at is not None:
            bad = each.status != "success"
            yield Event(at, each.target, what, why, Kind.FENCING, bad)


# --- operations -----------------------------------------------------------------------------------


def _vm_words(operation: Element) -> str:
    task, code = operation.get("operation", ""), operation.get("rc-code", "")
    if code != "0":
        return ""
    words = {
        "start": "was started",
        "stop": "was stopped",
        "migrate_to": f"was sent to {operation.get('migrate_target', 'another node')}",
        "migrate_from": f"came, running, from {operation.get('migrate_source', 'another node')}",
    }
    return words.get(task, "")


def _expected(operation: Element) -> str:
    """The exit code that the cluster expected: ``rc`` in ``rc:...;action:transition:rc:uuid``."""
    parts = operation.get("transition-key", "").split(":")
    return parts[2] if len(parts) > 2 else "0"  # noqa: PLR2004 - see above


def _failed(operation: Element) -> bool:
    """Whether an operation went wrong: not what a mere look at a node found."""
    if operation.get("op-status") in ("-1", "5", "7", "8"):  # pending, not there, nothing to tell
        return False
    code, task = operation.get("rc-code", "0"), operation.get("operation", "")
    probe = task == "monitor" and operation.get("interval") == "0"
    if probe and code in ("0", "7"):
        return False
    return code not in ("0", _expected(operation)) or operation.get("op-status") == "2"


_TASKS: Final = {
    "monitor": "was found not working",
    "start": "could not be started",
    "stop": "could not be stopped",
    "migrate_to": "could not be sent to another node",
    "migrate_from": "did not come from the other node",
}
_CODES: Final = {"7": "it did not run", "1": "an error", "5": "something is not installed"}


def of_operations(cib: Element, names: Mapping[str, str]) -> Iterator[Event]:
    """The last operations on each node. ``names`` are what resources are called that are VMs."""
    for state in cib.iterfind("status/node_state"):
        node = state.get("uname", "")
        for resource in state.iterfind("lrm/lrm_resources/lrm_resource"):
            rid = resource.get("id", "")
            subject = names.get(rid, rid)
            kind = Kind.VM if rid in names else Kind.RESOURCE
            operations = resource.findall("lrm_rsc_op")
            gone = {_transition(each) for each in operations if _moved_away(each)}
            for operation in operations:
                is_stop = operation.get("operation") == "stop"
                if is_stop and _transition(operation) in gone and not _failed(operation):
                    continue  # the end of its move: it runs elsewhere
                event = _operation(operation, node, subject, kind)
                if event is not None:
                    yield event


def _moved_away(operation: Element) -> bool:
    return operation.get("operation") == "migrate_to" and operation.get("rc-code") == "0"


def _transition(operation: Element) -> str:
    """Which of Pacemaker's plans an operation was a part of: ``action:PLAN:rc:uuid``."""
    return operation.get("transition-key", "").partition(":")[2].partition(":")[0]


def _operation(operation: Element, node: str, subject: str, kind: Kind) -> Event | None:
    at = operation.get("last-rc-change", "")
    if not at.isdecimal():
        return None
    moment, task = float(at), operation.get("operation", "")
    if _failed(operation):
        code = operation.get("rc-code", "")
        why = operation.get("exit-reason") or _CODES.get(code, f"exit code {code}")
        if operation.get("op-status") == "2":
            why = operation.get("exit-reason") or "it took too long"
        words = _TASKS.get(task, f"failed at '{task}'")
        return Event(moment, node, f"{subject} {words}", why, kind, bad=True)
    words = _vm_words(operation) if kind is Kind.VM else ""
    # The end of an operation is told, not its begin: that is when it had its effect.
    took = int(operation.get("exec-time", "0") or 0) / 1000
    return Event(moment + took, node, f"{subject} {words}", "", kind) if words else None


# --- the log --------------------------------------------------------------------------------------


def of_journal(text: str) -> Iterator[Event]:
    """The lines of ``journalctl -o json``: cxm's own, and who came and went."""
    for line in text.splitlines():
        try:
            row = json.loads(line)
            message, at = row["MESSAGE"], int(row["__REALTIME_TIMESTAMP"]) / 1e6
            node = str(row.get("_HOSTNAME", ""))
            bad = int(row.get("PRIORITY", "6")) <= _WARNING
        except (ValueError, KeyError, TypeError):
            continue  # a line that was cut off tells nothing
        if not isinstance(message, str):
            continue  # bytes that are no text
        if row.get("SYSLOG_IDENTIFIER") == CONTROLLER:
            found = _MEMBERSHIP.match(message)
            if found is not None:
                words = _MEMBER_WORDS[found["state"]]
                yield Event(at, found["node"], words, "", Kind.NODE, found["state"] == "lost")
        else:
            why = _BY.get(str(row.get("SYSLOG_IDENTIFIER", "")), "")
            yield Event(at, node, message, why, Kind.LOG, bad)


# --- together -------------------------------------------------------------------------------------


def timeline(events: Iterable[Event], *, since: float) -> list[Event]:
    """All events since a moment, the newest last; why what followed a fencing, where it did."""
    found = sorted((each for each in events if each.at >= since), key=lambda each: each.at)
    return [_with_reason(each, found) for each in _once(found)]


def _once(events: Sequence[Event]) -> Iterator[Event]:
    """The events without those that a second source tells in the same words."""
    last: dict[tuple[str, str], float] = {}
    for event in events:
        key = (event.node, event.what)
        if key in last and event.at - last[key] <= _SAME_S:
            continue
        last[key] = event.at
        yield event


def _with_reason(event: Event, events: Sequence[Event]) -> Event:
    if event.why or event.kind is not Kind.VM or not event.what.endswith("was started"):
        return event
    for other in reversed(events):
        gap = event.at - other.at
        is_fencing = other.kind is Kind.FENCING and not other.bad and other.node != event.node
        if is_fencing and 0 <= gap <= _AFTER_FENCING_S:
            return replace(event, why=f"{other.node} had been fenced {gap:.0f} s before")
    return event
