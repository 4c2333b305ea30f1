# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the subcommand ``timeline``: what the cluster did and why, the newest last."""

import re
from collections.abc import Mapping
from typing import Any, Final
from xml.etree.ElementTree import Element

from cxm.cli.text import Style, Tint, moment
from cxm.cli.world import World
from cxm.cluster import cib as documents
from cxm.cluster import history, journal, pacemaker
from cxm.cluster.history import Event
from cxm.cluster.pacemaker import Status
from cxm.errors import CxmError, UsageError

_UNITS: Final = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


def since(text: str, now: float) -> float:
    """The moment that a person means: ``90min``, ``2h``, ``3d``, or a date; raises UsageError."""
    match = re.fullmatch(r"(\d{1,6})\s*([a-z]+)", text)
    if match and match[2] in _UNITS:
        return now - int(match[1]) * _UNITS[match[2]]
    at = history.seconds(text)
    if at is None:
        raise UsageError(f"'{text}' is no time", hint="for example 90min, 2h, 3d or 2026-11-25")
    return at


def _others(
    world: World, status: Status, cib: Element, start: float
) -> tuple[list[Event], list[str]]:
    """What the other nodes' cxm has done, and notes: of whom it is told, what is missing."""
    here = world.here()
    up = [node.name for node in status.nodes if node.online and node.name != here]
    answers = world.ask(cib, up, lambda other: other.journal(start))
    events: list[Event] = []
    notes = [f"Messages of cxm are those of {' and '.join([here, *_answered(answers)])}"]
    for node, said in answers.items():
        if isinstance(said, CxmError):
            notes.append(f"those of {node} are not known: {said.message}")
            continue
        events += said
        if len(said) >= journal.MOST:
            notes.append(f"of {node} only the last {journal.MOST} are told")
    away = [node.name for node in status.nodes if not node.online]
    if away:
        notes.append(f"those of {' and '.join(away)} are in the log there")
    return events, notes


def _answered(answers: Mapping[str, list[Event] | CxmError]) -> list[str]:
    return [node for node, said in answers.items() if not isinstance(said, CxmError)]


def collect(world: World, start: float) -> tuple[list[Event], str]:
    """Everything that is known since a moment, and a sentence on where it is from."""
    status = pacemaker.status(world.runner)
    cib = pacemaker.cib(world.runner, local=not status.quorate)
    found, damaged = documents.readable(cib)
    names = {each.id: f"{each.name} (VM {each.vm})" for each in found}
    names |= {each.id: each.label for each in damaged}
    told, notes = _others(world, status, cib, start)
    events = history.timeline(
        [
            *history.of_fencing(pacemaker.fencing_history(world.runner), world.now()),
            *history.of_operations(cib, names),
            *journal.read(world.runner, start, journal.ALL),
            *told,
        ],
        since=start,
    )
    return events, f"{'; '.join(notes)}."


def table(events: list[Event], style: Style) -> str:
    """The events as text."""
    if not events:
        return "nothing is known of that time\n"
    width = max(4, *(len(event.node) for event in events))
    head = f"{'WHEN':<19}  {'NODE':<{width}}  WHAT (WHY)"
    lines = [style.paint(head, Tint.HEAD)]
    for event in events:
        when = style.paint(moment(event.at), Tint.FAINT)
        what = style.paint(event.what, Tint.BAD if event.bad else Tint.PLAIN)
        why = f" ({event.why})" if event.why else ""
        lines.append(f"{when}  {event.node:<{width}}  {what}{why}")
    return "\n".join(lines) + "\n"


def _json(event: Event) -> dict[str, Any]:
    return {
        "at": event.at,
        "node": event.node,
        "kind": event.kind.value,
        "what": event.what,
        "why": event.why,
        "bad": event.bad,
    }


def run(world: World, *, since_: str) -> int:
    """The subcommand."""
    events, told_by = collect(world, since(since_, world.now()))
    if world.as_json:
        world.show_json([_json(event) for event in events])
    else:
        world.show(table(events, world.looks()))
    world.say(told_by)
    return 0
