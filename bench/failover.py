# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the benchmark of a failover: what passes between a node's death and its VM's answer.

Beside it, in the same round, the same VM is ended and begun on the surviving node: what a failover
costs above a cold start is detection, fencing, and what Pacemaker takes to decide.
"""

import json
import time
from dataclasses import dataclass, field
from typing import Any, Final

from bench import figures
from bench.figures import Series
from cxm.errors import CxmError
from lab import town as towns
from lab import visit
from lab.guest_image import GuestImage
from lab.lab import Lab
from lab.machine import Machine
from lab.town import Town

HEADING: Final = """\
The power of a node with a VM is cut: seconds from that moment, median (min-max) of the rounds. The
answer is seen over the network, the rest is the cluster's own timeline. Both nodes are emulated on
this machine; the token is 6 s, and 5 s of the fencing are the delay by which one of two nodes wins
that have equally many VMs (15 s where it had more)."""

_STEPS: Final = {
    "lost": "the other node notices",
    "fenced": "it is fenced",
    "started": "its VM is started",
    "answered": "its VM answers",
}
_COLD: Final = "cold start to answer"
_ORDER_S: Final = 600.0


@dataclass(slots=True)
class Failovers:
    """Cuts a node's power again and again."""

    lab: Lab
    guest: GuestImage
    taken: dict[str, list[float]] = field(default_factory=dict)

    def round(self) -> None:
        """One failover, and one cold start of the same VM."""
        town = towns.bring_up(self.lab, self.guest)
        first, second = town.nodes
        before = town.web.answers()
        cut = time.time()
        first.power_off()
        after = town.web.booted_again(before)
        self._put("answered", time.time() - cut)
        for step, at in _moments(second, first.name).items():
            self._put(step, at - cut)
        town.await_places(second, {0: (second.name,), 1: (second.name,)})
        self._put(_COLD, _cold(town, second, after))

    def _put(self, what: str, value: float) -> None:
        self.taken.setdefault(what, []).append(value)

    def report(self) -> "Report":
        """All rounds so far."""
        return Report({what: figures.series(values) for what, values in self.taken.items()})


def _moments(node: Machine, dead: str) -> dict[str, float]:
    """When the dead node was lost and fenced, and its VM was started, by a node's timeline."""
    argv = ["cxm", "timeline", "--since", "15min", "--json"]
    events = json.loads(node.run(argv, timeout_s=120.0).stdout)
    words = {
        "lost": (dead, "left the cluster or died"),
        "fenced": (dead, "was fenced"),
        "started": (node.name, "web (VM 0) was started"),
    }
    found = {}
    for step, (where, text) in words.items():
        times = [each["at"] for each in events if each["node"] == where and text in each["what"]]
        if not times:
            raise CxmError(f"the timeline of {node.name} does not say when {dead} was {step}")
        found[step] = float(times[-1])
    return found


def _cold(town: Town, node: Machine, before: visit.Status) -> float:
    node.run(["cxm", "destroy", "web"], timeout_s=_ORDER_S)
    begun = time.monotonic()
    node.run(["cxm", "create", "web", node.name], timeout_s=_ORDER_S)
    town.web.booted_again(before)
    return time.monotonic() - begun


@dataclass(frozen=True, slots=True)
class Report:
    """What was measured."""

    taken: dict[str, Series]

    def text(self) -> str:
        """A table, and how many cold starts a failover takes."""
        rows = [(words, self.taken[step].shown(1)) for step, words in _STEPS.items()]
        rows.append((_COLD, self.taken[_COLD].shown(1)))
        times = figures.ratio(self.taken["answered"], self.taken[_COLD])
        rows.append(("failover / cold start", f"{times.shown(2)} x"))
        return f"{HEADING}\n\n{figures.table(('what', 'seconds'), rows)}"

    def to_json(self) -> dict[str, Any]:
        """The same, with every round."""
        return {what: values.to_json() for what, values in self.taken.items()}
