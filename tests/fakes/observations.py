# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns observations made up for tests, and a node that gives them."""

from dataclasses import asdict, dataclass, field
from typing import Any

from cxm.config import FrontendConfig
from cxm.errors import CxmError
from cxm.node.sight import GuestState
from cxm.one.action import Context
from cxm.one.im.observation import Guest, NodeFacts, Observation, Space, Usage
from cxm.one.version import OneVersion
from cxm.run import System
from tests.fakes.answering import NoTransfers

NODE = NodeFacts(
    hostname="solo1",
    arch="x86_64",
    model="Intel(R) Core(TM) i7, 2.80GHz",
    xen="4.17.5",
    mhz=2800,
    total_cpu=800,
    used_cpu=35,
    free_cpu=765,
    total_memory_kib=8000000,
    used_memory_kib=1000000,
    free_memory_kib=7000000,
    net_rx=1111,
    net_tx=2222,
)
VG = Space("vg0", total_mib=100000, used_mib=40000, free_mib=60000, shared=False)
USAGE = Usage(12.5, 524288, 1, 2, 3, 4, 5, 6)


def guest(vm: int, state: str = "running", **changes: Any) -> Guest:
    """A guest with usage and one disk."""
    given: dict[str, Any] = {"name": f"one-{vm}", "usage": USAGE, "disks": {"0": 1024}}
    return Guest(vm=vm, state=GuestState(state), **(given | changes))


def observation(*guests: Guest, **changes: Any) -> Observation:
    """A whole observation."""
    given: dict[str, Any] = {"foreign": (), "node": NODE, "vg": VG, "held": ()}
    return Observation(guests=guests, **(given | changes))


def as_result(seen: Observation) -> dict[str, Any]:
    """What the verb would have returned."""
    guests = []
    for each in seen.guests:
        row = {"vm": each.vm, "name": each.name, "state": each.state.value, "disks": each.disks}
        guests.append(row | asdict(each.usage))
    result: dict[str, Any] = {"guests": guests, "foreign": list(seen.foreign)}
    result["held"] = list(seen.held)
    if seen.node is not None:
        result["node"] = asdict(seen.node)
    if seen.vg is not None:
        result["vg"] = asdict(seen.vg)
    return result


class FakeObserver(NoTransfers):
    """A node that only observes; ``seen`` is what, or the error with which it fails."""

    def __init__(self, seen: Observation | CxmError) -> None:
        self.seen = seen
        self.asked: list[str] = []

    @property
    def name(self) -> str:
        return "this node"

    def call(self, verb: str, args: dict[str, Any], *, timeout_s: float = 120.0) -> dict[str, Any]:
        assert verb == "observe"
        self.asked.append(args["detail"])
        if isinstance(self.seen, CxmError):
            raise self.seen
        return as_result(self.seen)


@dataclass(frozen=True, slots=True)
class ObservingContext(Context):
    """A context whose node, the machine itself, only observes."""

    observer: FakeObserver = field(default_factory=lambda: FakeObserver(observation()))

    def node(self, host: str | None) -> FakeObserver:
        """The observer; probes never ask another machine."""
        assert host is None
        return self.observer


def context(remotes: str, version: OneVersion, *guests: Guest, **changes: Any) -> ObservingContext:
    """A context of a version whose node sees these guests."""
    if version >= (4, 4):
        with open(f"{remotes}/VERSION", "w", encoding="ascii") as file:
            file.write(f"{version}\n")
    observer = FakeObserver(observation(*guests, **changes))
    return ObservingContext(FrontendConfig(), version, System(), remotes, observer=observer)
