# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Live migration in a cluster, cut in every phase and at every step (docs/design/0010)."""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any
from xml.etree.ElementTree import Element

import pytest

from cxm.cluster import basis
from cxm.errors import CommandError, CxmError, RefusedError
from cxm.run import Result
from tests.fakes.machine import Fault, How, KilledError
from tests.fakes.pair import CUTS, PHASES, Pair, kills
from tests.fakes.scheduler import Order

# The guest goes on in these; in the others its memory is lost, and it is started afresh.
_LIVES = {
    "connected": ("xl", "ssh", "receiver", "agent", "target"),
    "precopy": ("xl", "ssh", "receiver", "agent", "target"),
    "suspended": ("ssh", "receiver", "target"),
    "ready": (),
    "go": ("xl", "ssh", "agent"),
    "unpaused": ("xl", "ssh", "receiver", "agent"),
    "reported": ("xl", "ssh", "receiver", "agent"),
}


@pytest.fixture
def pair() -> Pair:
    """VM 7 runs on node1."""
    made = Pair()
    made.start("node1")
    made.pacemaker.done.clear()
    return made


def assert_well(pair: Pair, *, ordered: bool = True) -> str:
    """The VM runs once, its disk is that node's alone, nothing is left; returns the node."""
    (node,) = pair.runs_on()
    assert pair.where() == (node,)
    assert pair.locks() == {node: "ex"}
    names = [domain.name for xen in pair.xens.values() for domain in xen.state.domains]
    assert names == ["user-vm7.home.net"]
    # An order that died with its node leaves a rule that expires.
    assert set(pair.constraints()) <= ({"prefer"} if ordered else {"prefer", "place"})
    assert not os.path.exists(pair.xens[node].node.path("run", "moving", "cloudone1-7"))
    return node


def memory(pair: Pair) -> str:
    """What the guest knows; a cold start has nothing of it."""
    found = [xen.of_vm(7) for xen in pair.xens.values()]
    return "".join(each.memory for each in found if each is not None)


def test_there_and_back(pair: Pair) -> None:
    """The guest goes on, its disk is one node's alone, and it is wished to where it was sent."""
    before = memory(pair)
    for source, target in (("node1", "node2"), ("node2", "node1")):
        assert pair.move(source, target).result == {"node": target, "moved": True}
        assert assert_well(pair) == target
        assert pair.constraints() == {"prefer": target}
        assert memory(pair) == before
        left = pair.xens[source].node
        assert not os.path.exists(left.path("run", "moving", "cloudone1-7"))
        assert os.listdir(left.path("cfg")) == []
        pair.monitor()
    assert pair.move("node2", "node1").result == {"node": "node1", "moved": False}


@pytest.mark.parametrize(
    "what", [CUTS[0], *(pytest.param(each, marks=pytest.mark.extensive) for each in CUTS[1:])]
)
@pytest.mark.parametrize(
    "phase",
    [
        pytest.param(each, marks=() if each in ("suspended", "go") else pytest.mark.extensive)
        for each in PHASES
    ],
)
def test_cut_in_any_phase(pair: Pair, phase: str, what: str) -> None:
    """The guest goes on, or is started afresh; never two, and the order says where it is."""
    before = memory(pair)
    pair.xens["node1"].clock = pair.xens["node2"].clock = 100.0
    pair.cut = (phase, what)
    failure = None
    try:
        pair.move("node1", "node2")
    except CxmError as error:
        failure = error
    except KilledError:
        assert what == "source"
    for node in sorted(pair.dead):
        pair.fail(node)
        pair.come_back(node)
    pair.monitor()
    node = assert_well(pair, ordered=what != "source")
    assert (memory(pair) == before) == (what in _LIVES[phase]), (pair.reached, pair.pacemaker.done)
    if what not in ("source", "target"):
        assert (failure is None) == (pair.move("node1", "node2").result["moved"] is False) or (
            what == "agent"
        )
        assert assert_well(pair) == "node2"
    assert node in pair.xens


@pytest.mark.extensive
@pytest.mark.parametrize("how", ["killed", "failed"])
@pytest.mark.parametrize(
    ("action", "node"), [("migrate_to", "node1"), ("migrate_from", "node2"), ("stop", "node1")]
)
def test_agent_cut_at_any_step(action: str, node: str, how: str) -> None:
    """One action of the agent is cut at each of its commands; Pacemaker puts that right."""
    ran = _cut_once(action, node, None)
    failures = [Fault(step, How.FAIL) for step in range(len(ran))]
    for fault in kills(ran) if how == "killed" else failures:
        _cut_once(action, node, fault)


def _cut_once(action: str, node: str, fault: Fault | None) -> list[tuple[str, ...]]:
    """A move in which an action fails the first time; returns the steps that it took."""
    pair = Pair()
    pair.start("node1")
    act, host = pair.pacemaker._act, pair.xens[node].node
    steps: list[list[tuple[str, ...]]] = []

    def cut(order: Order) -> tuple[int, str]:
        if steps or (order.action, order.node) != (action, node):
            return act(order)
        host.ran.clear()
        host.fault = fault
        steps.append([])
        try:
            return act(order)
        finally:
            steps[0] = list(host.ran)
            host.fault = None

    pair.pacemaker._act = cut
    with suppress(CxmError, KilledError):
        pair.move("node1", "node2")
    for dead in sorted(pair.dead):
        # Its stop failed, so it was fenced, and the order with it.
        assert (action, dead) == ("stop", node)
        pair.come_back(dead)
    pair.monitor()
    assert_well(pair, ordered=action != "stop")
    return steps[0]


def test_a_guest_that_has_come_is_kept_though_its_name_cannot_be_told(pair: Pair) -> None:
    """The name is for the frontend only: a failed migrate_from would have the guest destroyed."""
    before, act, host = memory(pair), pair.pacemaker._act, pair.xens["node2"].node
    steps: list[int] = []

    def arrives(order: Order) -> tuple[int, str]:
        if (order.action, order.node) != ("migrate_from", "node2"):
            return act(order)
        host.ran.clear()
        host.fault = Fault(steps[0], How.FAIL) if steps else None
        try:
            return act(order)
        finally:
            steps[:] = [step for step, argv in enumerate(host.ran) if argv[:2] == ("xl", "list")]
            steps.reverse()
            host.fault = None

    pair.pacemaker._act = arrives
    pair.move("node1", "node2")
    pair.move("node2", "node1")
    pair.move("node1", "node2")
    assert assert_well(pair) == "node2"
    assert memory(pair) == before


def test_lock_left_shared_is_repaired_by_the_monitor(pair: Pair) -> None:
    """Both nodes share the disk, and the target knows nothing of it any more."""
    pair.cut = ("connected", "agent")
    assert pair.agent("node1", "migrate_to", migrate_target="node2", timeout="900000") == 1
    assert pair.locks() == {"node1": "sh", "node2": "sh"}
    os.unlink(pair.xens["node2"].node.path("run", "moving", "cloudone1-7"))
    pair.monitor()
    assert assert_well(pair) == "node1"


def test_lock_stays_shared_while_the_other_node_cannot_be_asked(pair: Pair) -> None:
    """The guest goes on; the next monitor tries again."""
    pair.cut = ("connected", "agent")
    pair.agent("node1", "migrate_to", migrate_target="node2", timeout="900000")
    pair.dead.add("node2")
    assert pair.agent("node1", "monitor", interval="10000") == 0
    assert pair.locks() == {"node1": "sh", "node2": "sh"}
    pair.dead.clear()
    assert pair.agent("node1", "monitor", interval="10000") == 0
    assert assert_well(pair) == "node1"


@pytest.mark.parametrize(("limit_s", "reboot_s"), [(60, 39), (20, 4)])
def test_monitor_ends_in_its_time_whatever_it_waits_for(
    pair: Pair, limit_s: int, reboot_s: int
) -> None:
    """A guest that reboots slowly, then a lock that nobody gives: both at once are no failure."""
    pair.cut = ("connected", "agent")
    pair.agent("node1", "migrate_to", migrate_target="node2", timeout="900000")
    xen = pair.xens["node1"]
    domain, begun, feed = xen.of_vm(7), xen.clock, xen.node.feed
    assert domain is not None
    xen.put(replace(domain, life="building", ran=False, until=begun + reboot_s))
    pair._quiet = 0

    def hangs(argv: Sequence[str], *args: Any, timeout_s: float = 60.0, **more: Any) -> Result:
        if argv[0] not in ("ssh", "lvchange"):
            return feed(argv, *args, timeout_s=timeout_s, **more)
        xen.sleep(timeout_s)
        raise CommandError(f"'{argv[0]}' did not finish within {timeout_s:g} s and was ended")

    xen.node.feed = hangs  # type: ignore[method-assign]
    code = pair.agent("node1", "monitor", interval="10000", timeout=f"{limit_s}000")
    assert (code, pair.runs_on()) == (0, ["node1"])
    assert reboot_s < xen.clock - begun < limit_s
    assert pair.locks() == {"node1": "sh", "node2": "sh"}


def test_failed_order_leaves_the_guest_where_it_was_and_unblocked(pair: Pair) -> None:
    """Its wish, its rule and its failure are gone: the cluster looks after it again."""
    pair.cut = ("precopy", "ssh")
    with pytest.raises(CxmError, match="VM 7: migrate_to failed: VM 7 did not move to node2"):
        pair.move("node1", "node2")
    assert assert_well(pair) == "node1"
    assert pair.constraints() == {"prefer": "node1"}
    assert "<failure " not in pair.mon()
    pair.fail("node1")
    assert pair.runs_on() == ["node2"]


def test_target_that_dies_before_the_guest_leaves(pair: Pair) -> None:
    """The guest is not stopped where it runs, and does not follow when the target is back."""
    before, sleep = memory(pair), pair.sleep

    def die(seconds: float) -> None:
        assert seconds
        pair.sleep = sleep  # type: ignore[method-assign]
        pair.fail("node2")

    pair.sleep = die  # type: ignore[method-assign]
    with pytest.raises(CxmError, match="VM 7 stays on node1: node2 has left the cluster"):
        pair.move("node1", "node2")
    pair.come_back("node2")
    assert assert_well(pair) == "node1"
    assert memory(pair) == before


def test_order_killed_while_it_waits_can_be_given_again(pair: Pair) -> None:
    """Nobody has put the failure right: the VM is blocked, until the next order does."""
    pair.cut = ("precopy", "ssh")
    act = pair.pacemaker._act

    def kill(order: Order) -> tuple[int, str]:
        done = act(order)
        if order.action == "migrate_to":
            host = pair.xens["node1"].node
            host.fault = Fault(len(host.ran), How.KILL)
        return done

    pair.pacemaker._act = kill
    with pytest.raises(KilledError):
        pair.move("node1", "node2")
    pair.pacemaker._act = act
    pair.xens["node1"].node.revive()
    pair.pacemaker.go_on()
    assert pair.where() == ("node2", "node1")
    assert pair.move("node1", "node2").result["node"] == "node2"
    assert assert_well(pair) == "node2"


def test_standby_moves_what_runs(pair: Pair) -> None:
    """Pacemaker moves a guest by itself, too; nobody waits for it."""
    pair.pacemaker.edit(lambda root: basis.edit_facts(root, "node1", {"standby": "on"}, {}))
    pair.pacemaker.go_on()
    assert assert_well(pair) == "node2"


@pytest.mark.parametrize(
    ("lacks", "why"),
    [
        ("bridge", "node2 lacks xenbr0, a bridge that VM 7 needs"),
        ("processor", "the processor of node2 lacks 1 feature of that of node1"),
    ],
)
def test_standby_moves_nothing_where_it_cannot_go_on(pair: Pair, lacks: str, why: str) -> None:
    """Nobody has checked; the move fails, the guest runs on, and the VM says why."""
    if lacks == "bridge":
        os.rmdir(pair.xens["node2"].node.path("sys", "class", "net", "xenbr0"))
    before = memory(pair)

    def edit(root: Element) -> None:
        for node, caps in (("node1", "07:1f"), ("node2", "07:0f")):
            facts = {"cxm-cpu": caps} if lacks == "processor" else {}
            basis.edit_facts(root, node, facts, {})
        basis.edit_facts(root, "node1", {"standby": "on"}, {})

    pair.pacemaker.edit(edit)
    pair.pacemaker.go_on()
    assert pair.runs_on() == ["node1"]
    assert memory(pair) == before
    assert pair.locks() == {"node1": "ex"}
    known = pair.resource()
    assert known is not None
    assert known.reason.startswith(f"VM 7 did not move to node2, it runs on here: {why}")
    assert "<failure " in pair.mon()


class TestRefused:
    """Nothing is changed."""

    def test_pv_guest(self) -> None:
        """Debian's Xen cannot move it."""
        pair = Pair()
        pair.start("node1", guest_type="pv")
        with pytest.raises(RefusedError, match="cannot move while it runs: it is a PV guest"):
            pair.move("node1", "node2")
        assert assert_well(pair) == "node1"

    def test_unknown_node(self, pair: Pair) -> None:
        """It names those that are known."""
        with pytest.raises(CxmError, match="no node of this cluster is called 'node9'"):
            pair.move("node1", "node9")

    def test_vm_that_does_not_run(self, pair: Pair) -> None:
        """It has no memory to move."""
        pair.stop()
        with pytest.raises(RefusedError, match="VM 7 does not run, so it cannot move"):
            pair.move("node1", "node2")

    def test_node_in_standby(self, pair: Pair) -> None:
        """It takes nothing."""
        pair.pacemaker.edit(lambda root: basis.edit_facts(root, "node2", {"standby": "on"}, {}))
        with pytest.raises(RefusedError, match="node2 takes no VMs at the moment"):
            pair.move("node1", "node2")

    def test_node_without_the_bridge(self, pair: Pair) -> None:
        """Looked for on the target, before Pacemaker is asked."""
        os.rmdir(pair.xens["node2"].node.path("sys", "class", "net", "xenbr0"))
        with pytest.raises(RefusedError, match="node2 lacks xenbr0, a bridge that VM 7 needs"):
            pair.move("node1", "node2")
        assert assert_well(pair) == "node1"

    def test_node_with_another_processor(self, pair: Pair) -> None:
        """A guest goes on using what its first processor could do."""
        for node, caps in (("node1", "07:1f"), ("node2", "07:0f")):
            pair.pacemaker.edit(
                lambda root, node=node, caps=caps: basis.edit_facts(  # type: ignore[misc]
                    root, node, {"cxm-cpu": caps}, {}
                )
            )
        with pytest.raises(RefusedError, match="node2 lacks 1 feature of that of node1"):
            pair.move("node1", "node2")
        assert assert_well(pair) == "node1"

    def test_domain_that_is_there_already(self, pair: Pair) -> None:
        """A domain of the VM on the target: nothing is received."""
        domain = pair.xens["node1"].of_vm(7)
        assert domain is not None
        pair.xens["node2"].put(replace(domain, life="off", name="user-vm7.home.net", volumes=()))
        with pytest.raises(CxmError, match="migrate_to failed"):
            pair.move("node1", "node2")
        assert pair.runs_on() == ["node1"]
        assert pair.locks() == {"node1": "ex"}
