# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns a node's own log as the timeline tells it, and how another node is told of it."""

from collections.abc import Iterable
from dataclasses import asdict, replace
from typing import Any, Final

from cxm.cluster import history
from cxm.cluster.history import Event, Kind
from cxm.errors import CommandError, DataError
from cxm.run import Runner

_TIMEOUT_S: Final = 60.0
# Who came and went is in every node's log: of another one only what cxm did there is of interest.
OWN: Final = ("cxm", history.HELPER, history.BALANCER)
ALL: Final = (*OWN, history.CONTROLLER)
MOST: Final = 500  # messages that one node tells another, the newest
_CHARS: Final = 300  # of each


def read(runner: Runner, since: float, idents: Iterable[str], *, most: int = 0) -> list[Event]:
    """What a node's log holds since a moment, the newest ``most``; nothing where it keeps none."""
    chosen = [word for ident in idents for word in ("-t", ident)]
    argv = ["journalctl", *chosen, "-o", "json", "--no-pager", "--since", f"@{since:.0f}"]
    argv += ["-n", str(most)] if most else []
    try:
        return list(history.of_journal(runner.run(argv, timeout_s=_TIMEOUT_S, ok=(0, 1)).stdout))
    except CommandError:
        return []


def told(runner: Runner, since: float) -> dict[str, Any]:
    """What this node tells another one, bounded in number and length."""
    events = read(runner, since, OWN, most=MOST)
    return {"events": [asdict(replace(each, what=each.what[:_CHARS])) for each in events]}


def heard(answer: Any, node: str) -> list[Event]:
    """What another node has told; raises DataError where that is no such answer."""
    try:
        return [
            Event(
                float(row["at"]),
                str(row["node"]),
                str(row["what"]),
                str(row["why"]),
                Kind(row["kind"]),
                bool(row["bad"]),
            )
            for row in answer["events"]
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{node} does not tell its log as this node does: {error!r}") from error
