# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the subcommand ``timeline``: what the cluster did and why, the newest last."""

import re
from typing import Any, Final

from cxm.cli.text import Style, Tint, moment
from cxm.cli.world import World
from cxm.cluster import cib as documents
from cxm.cluster import history, pacemaker
from cxm.cluster.history import Event
from cxm.errors import CommandError, UsageError

_TIMEOUT_S: Final = 60.0
_UNITS: Final = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
_IDENTS: Final = ("cxm", "cxm-helper", history.CONTROLLER)


def since(text: str, now: float) -> float:
    """The moment that a person means: ``90min``, ``2h``, ``3d``, or a date; raises UsageError."""
    match = re.fullmatch(r"(\d{1,6})\s*([a-z]+)", text)
    if match and match[2] in _UNITS:
        return now - int(match[1]) * _UNITS[match[2]]
    at = history.seconds(text)
    if at is None:
        raise UsageError(f"'{text}' is no time", hint="for example 90min, 2h, 3d or 2026-11-25")
    return at


def _journal(world: World, start: float) -> str:
    """The log of this node; nothing where it keeps none."""
    chosen = [word for ident in _IDENTS for word in ("-t", ident)]
    argv = ["journalctl", *chosen, "-o", "json", "--no-pager", "--since", f"@{start:.0f}"]
    try:
        return world.runner.run(argv, timeout_s=_TIMEOUT_S, ok=(0, 1)).stdout
    except CommandError:
        return ""


def collect(world: World, start: float) -> list[Event]:
    """Everything that is known since a moment."""
    quorate = pacemaker.status(world.runner).quorate
    cib = pacemaker.cib(world.runner, local=not quorate)
    names = {each.id: f"{each.name} (VM {each.vm})" for each in documents.resources(cib)}
    return history.timeline(
        [
            *history.of_fencing(pacemaker.fencing_history(world.runner), world.now()),
            *history.of_operations(cib, names),
            *history.of_journal(_journal(world, start)),
        ],
        since=start,
    )


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
    events = collect(world, since(since_, world.now()))
    if world.as_json:
        world.show_json([_json(event) for event in events])
        return 0
    world.show(table(events, world.looks()))
    world.say(
        f"Messages of cxm are those of {world.here()}; the last operations and fencings are the "
        "cluster's."
    )
    return 0
