# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""What nobody waits for any more is put right by one node that looks (docs/design/0010)."""

import logging
from dataclasses import replace
from functools import partial
from xml.etree.ElementTree import Element

import pytest

from cxm.cluster import basis, cib, pacemaker, watch
from cxm.cluster.pacemaker import Placed
from cxm.cluster.view import iso
from cxm.errors import CxmError
from cxm.names import VmId
from cxm.node.guests import Life
from tests.actions.test_cluster_moves import assert_well
from tests.fakes.machine import CLOUD, Fault, How, KilledError
from tests.fakes.pair import RID, Pair
from tests.fakes.scheduler import Order


@pytest.fixture
def pair() -> Pair:
    """VM 7 runs on node1."""
    made = Pair()
    made.start("node1")
    return made


def look(pair: Pair, node: str = "node2") -> int:
    """The watch of a node has a look, and Pacemaker does what follows."""
    done = watch.look_after(pair.xens[node].machine())
    pair.pacemaker.go_on()
    return done


def kill_the_order(pair: Pair, operation: str, node: str) -> None:
    """From now on: when this operation is done, the process that ordered it on a node is killed."""
    act, host = pair.pacemaker._act, pair.xens[node].node

    def kill(order: Order) -> tuple[int, str]:
        done = act(order)
        if order.key == f"{RID}_{operation}":
            host.fault = Fault(len(host.ran), How.KILL)
            pair.pacemaker._act = act
        return done

    pair.pacemaker._act = kill


def move_and_kill(pair: Pair) -> None:
    """The order is dead, and what Pacemaker had begun is done."""
    kill_the_order(pair, "migrate_to_0", "node1")
    with pytest.raises(KilledError):
        pair.move("node1", "node2")
    pair.xens["node1"].node.revive()
    pair.pacemaker.go_on()


def start_and_kill(pair: Pair, node: str) -> None:
    """The order to start is dead as soon as the VM was started."""
    kill_the_order(pair, "monitor_10000", node)
    with pytest.raises(KilledError):
        pair.start(node)
    pair.xens[node].node.revive()
    pair.pacemaker.go_on()


def test_blocked_vm_of_a_killed_order_is_looked_after_again(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    """It stays where it runs, the log says so, and it survives its node as any other."""
    pair.cut = ("precopy", "ssh")
    move_and_kill(pair)
    assert 'blocked="true"' in pair.mon()
    with caplog.at_level(logging.INFO):
        assert look(pair) == 1
    assert assert_well(pair) == "node1"
    assert pair.constraints() == {"prefer": "node1"}
    assert 'blocked="true"' not in pair.mon()
    assert "VM 7: its move failed on node1 and left it blocked, and nobody puts" in caplog.text
    assert "VM 7 is on node1, and looked after again" in caplog.text
    assert look(pair) == 0
    pair.fail("node1")
    assert pair.runs_on() == ["node2"]


@pytest.mark.extensive
def test_vm_that_pacemaker_could_not_move_is_helped_after_growing_pauses(pair: Pair) -> None:
    """A node in standby tries again and again; each try sends the guest's memory."""
    cuts = pair.pacemaker._act

    def never(order: Order) -> tuple[int, str]:
        pair.cut = ("precopy", "ssh") if order.action == "migrate_to" else None
        return cuts(order)

    pair.pacemaker._act = never
    pair.pacemaker.edit(lambda root: basis.edit_facts(root, "node1", {"standby": "on"}, {}))
    pair.pacemaker.go_on()
    assert look(pair) == 1  # the next try has failed, too
    assert look(pair) == 0
    pair.xens["node2"].clock += 100.0
    pair.pacemaker._act = cuts
    assert look(pair) == 1
    assert assert_well(pair) == "node2"


def test_living_order_is_left_alone(pair: Pair) -> None:
    """Whoever waits on another node holds the order's lock there."""
    act, looked = pair.pacemaker._act, []

    def watched(order: Order) -> tuple[int, str]:
        if order.action == "migrate_to":
            looked.append((look(pair, "node2"), look(pair, "node1"), dict(pair.constraints())))
        return act(order)

    pair.pacemaker._act = watched
    pair.move("node1", "node2")
    assert looked == [(0, 0, {"prefer": "node2", "place": "rule"})]
    assert assert_well(pair) == "node2"


@pytest.mark.extensive
def test_nothing_is_done_while_a_node_cannot_be_asked(pair: Pair) -> None:
    """Its order may live; when its time is over, it does not."""
    until = iso(pair.xens["node1"].machine().now() + 600.0)
    pair.pacemaker.edit(lambda root: cib.attract(root, RID, "node2", until=until))
    pair.dead.add("node1")
    assert look(pair) == 0
    assert "place" in pair.constraints()
    pair.xens["node2"].clock += 601.0
    assert look(pair) == 1
    assert pair.constraints() == {"prefer": "node1"}


@pytest.mark.extensive
def test_move_that_came_off_after_its_order_had_died(pair: Pair) -> None:
    """The VM is wished where it is."""
    move_and_kill(pair)
    assert pair.constraints() == {"prefer": "node2", "place": "rule"}
    assert look(pair) == 1
    assert assert_well(pair) == "node2"


@pytest.mark.extensive
def test_start_that_came_off_after_its_order_had_died() -> None:
    """The VM is free to fail over."""
    pair = Pair()
    start_and_kill(pair, "node1")
    assert pair.constraints() == {"prefer": "node1", "place": "rule"}
    assert look(pair) == 1
    assert pair.constraints() == {"prefer": "node1"}
    pair.fail("node1")
    assert pair.runs_on() == ["node2"]


def test_start_whose_node_died_with_its_order_is_called_off() -> None:
    """OpenNebula has been told that it failed: it must not run later, on no node."""
    pair = Pair()
    start_and_kill(pair, "node1")
    pair.fail("node1")
    assert pair.runs_on() == []
    for xen in pair.xens.values():
        xen.clock += 6 * 3600.0  # nobody could fence it, or look
    pair.pacemaker.go_on()
    assert pair.runs_on() == []
    assert look(pair) == 1
    known = pair.resource()
    assert known is not None
    assert (known.started, known.life) == (False, Life.OFF)
    assert known.reason == "nobody waits for its start on node1"
    assert pair.constraints() == {"prefer": "node1"}
    pair.come_back("node1")
    assert pair.runs_on() == []


@pytest.mark.extensive
def test_dead_move_does_not_keep_a_vm_from_its_failover(pair: Pair) -> None:
    """Neither node's death: before the watch has looked, and with the rule still there."""
    for dead, left in (("node1", "node2"), ("node2", "node1")):
        until = iso(pair.xens["node1"].machine().now() + 600.0)
        pair.pacemaker.edit(partial(cib.attract, rid=RID, node="node2", until=until))
        pair.fail(dead)
        assert pair.runs_on() == [left]
        pair.come_back(dead)
        pair.pacemaker.edit(lambda root: cib.release(root, RID))
        pair.pacemaker.go_on()


@pytest.mark.extensive
def test_nothing_is_done_without_a_quorum(pair: Pair) -> None:
    """The others may be at work on it."""
    move_and_kill(pair)
    pair.pacemaker.edit(lambda root: root.set("have-quorum", "0"))
    assert watch.look_after(pair.xens["node2"].machine()) == 0


class TestFailedDeployOfAWantedVm:
    """Its node died and no other took it; OpenNebula deploys it, and is told that this failed."""

    @pytest.fixture
    def down(self, pair: Pair) -> Pair:
        """VM 7 should run, and no node takes it."""
        pair.stop("node1")
        self.standby(pair, "on", "node1", "node2")
        known = pair.resource()
        assert known is not None
        wanted = replace(known, started=True, life=Life.RUNNING)
        pair.pacemaker.edit(lambda root: cib.put(root, wanted))
        pair.pacemaker.go_on()
        assert pair.runs_on() == []
        return pair

    @staticmethod
    def standby(pair: Pair, value: str, *nodes: str) -> None:
        for node in nodes:
            facts = {"standby": value}
            edit = partial(basis.edit_facts, node=node, attributes=facts, utilization={})
            pair.pacemaker.edit(edit)

    @pytest.mark.parametrize(
        "fails",
        [
            "before it is ordered",
            pytest.param("when it is started", marks=pytest.mark.extensive),
        ],
    )
    def test_it_does_not_start_later(self, down: Pair, fails: str) -> None:
        """It is stopped, and says why."""
        if fails == "when it is started":
            down.xens["node1"].free_mib = 1
            self.standby(down, "off", "node1")
        with pytest.raises(CxmError, match=r"would not run VM 7|start failed"):
            down.start("node1")
        known = down.resource()
        assert known is not None
        assert (known.started, known.life) == (False, Life.STOPPED)
        assert known.reason == "OpenNebula's start of it on node1 failed"
        self.standby(down, "off", "node1", "node2")
        down.pacemaker.go_on()
        assert down.runs_on() == []
        assert set(down.constraints()) == {"prefer"}


def test_damaged_vm_does_not_keep_the_others_from_being_looked_after(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told, if it is one to be looked after; nothing is done about it."""
    until = iso(pair.xens["node1"].machine().now() + 600.0)

    def damage(root: Element) -> None:
        known = cib.find(root, CLOUD, VmId(7))
        assert known is not None
        cib.put(root, replace(known, vm=VmId(6), started=False))
        cib.confine(root, f"cxm-{CLOUD}-6", "node1", until=until)
        cib.attract(root, RID, "node1", until=until)
        for pair_ in root.iterfind(f".//primitive[@id='cxm-{CLOUD}-6']//nvpair"):
            if pair_.get("name") == "cxm-config":
                pair_.set("value", "nonsense")

    pair.pacemaker.edit(damage)
    assert look(pair) == 1
    assert pair.constraints() == {"prefer": "node1"}
    assert (
        f"VM 6 could not be looked after: the resource cxm-{CLOUD}-6 in the CIB is dam"
        in caplog.text
    )


def test_blocked_by_something_else_is_a_humans(pair: Pair) -> None:
    """A stop that failed without fencing, for example: a refresh would start it twice."""
    status = pacemaker.parse_status(pair.mon())
    placed = Placed(RID, "Started", ("node1",), blocked=True)
    known = pair.resource()
    assert known is not None
    case = watch.Case(CLOUD, known.vm, known, placed, None, None)
    assert watch.decide(case, status, 0.0) is None
