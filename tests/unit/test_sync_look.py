# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Whom the sync asks: one node of each cluster, and what hosts that are dead or alone cost."""

from threading import Barrier
from typing import Any

import pytest

from cxm.errors import UnreachableError
from cxm.node.client import Node
from cxm.one.version import OneVersion
from cxm.sync.look import Seen, Tools, look
from cxm.sync.memory import Memory
from tests.fakes.answering import Answering

DEAD = [f"dead{number}" for number in range(6)]
CLUSTER = ["a", "b", "c"]
ALONE = ["x", "y"]


class Oned:
    """It knows hosts, and no VM."""

    def hosts_info(self) -> str:
        """Those that are dead are in ERROR."""
        rows = [
            f"<HOST><ID>{number}</ID><NAME>{name}</NAME><IM_MAD>cxm</IM_MAD>"
            f"<STATE>{3 if name in DEAD else 2}</STATE></HOST>"
            for number, name in enumerate([*CLUSTER, *ALONE, *DEAD])
        ]
        return f"<HOST_POOL>{''.join(rows)}</HOST_POOL>"

    def vms_info(self) -> str:
        """None."""
        return "<VM_POOL></VM_POOL>"


class World:
    """The hosts, and who was asked."""

    def __init__(self, *, lost: str = "") -> None:
        self.asked: list[str] = []
        self.lost = lost
        # Who is dead answers nobody before all who are dead have been asked.
        self.silence = Barrier(len(DEAD), timeout=20)

    def look(self, memory: Memory, *, everybody: bool) -> Seen:
        """A look."""
        self.asked.clear()
        oned: Any = Oned()
        tools = Tools(
            oned, self.node, lambda _vm_mad: True, lambda _text, _host: None, "",
            OneVersion(7, 4), lambda: 0.0, lambda _seconds: None,
        )  # fmt: skip
        return look(tools, memory, everybody=everybody)

    def node(self, host: str) -> Node:
        """A host that answers or not."""

        def asked(verb: str, _args: dict[str, Any]) -> dict[str, Any]:
            assert verb == "whereabouts"
            self.asked.append(host)
            if host in DEAD:
                self.silence.wait()
            if host in (self.lost, *DEAD):
                raise UnreachableError(f"{host} cannot be reached by ssh")
            if host in ALONE:
                return {"clustered": False}
            return {
                "clustered": True, "doubt": "", "hosts": CLUSTER, "unclear": [], "away": [],
                "vms": [],
            }  # fmt: skip

        return Answering(host, asked)


def test_dead_hosts_cost_the_time_of_one() -> None:
    """Each makes ssh wait for ten seconds: a dozen must not keep a cluster's VMs from being told.

    A host that waits for the others would break the barrier, were they asked in turn.
    """
    world, memory = World(), Memory()
    seen = world.look(memory, everybody=True)
    assert sorted(seen.world.silent) == sorted(DEAD)
    assert sorted(world.asked) == sorted(["a", *ALONE, *DEAD])
    assert sorted(memory.answered) == ["a", *ALONE]


@pytest.mark.parametrize(("lost", "asked"), [("", ["a"]), ("a", ["a", "b"])])
def test_one_node_of_a_cluster(lost: str, asked: list[str]) -> None:
    """Who answered the last time; where that one has died, one other."""
    world, memory = World(lost=lost), Memory(answered=["a"], clustered=CLUSTER)
    world.look(memory, everybody=False)
    assert world.asked == asked
    assert memory.answered == asked[-1:]


def test_no_turn_waits_for_who_is_in_no_cluster() -> None:
    """Standalone hosts have no news, and one that hangs must not keep the clusters' VMs waiting."""
    world, memory = World(), Memory()
    world.look(memory, everybody=True)
    assert memory.clustered == CLUSTER
    world.look(memory, everybody=False)
    assert world.asked == ["a"]


def test_a_host_that_joins_a_cluster() -> None:
    """The others say so, and may be gone when it is the only one left."""
    world, memory = World(), Memory(clustered=["a"])
    world.look(memory, everybody=False)
    assert memory.clustered == CLUSTER


def test_a_host_that_left_its_cluster() -> None:
    """It says so itself; and one that OpenNebula knows no more is forgotten."""
    world, memory = World(), Memory(clustered=["x", "gone", *CLUSTER])
    world.look(memory, everybody=False)
    assert memory.clustered == CLUSTER
