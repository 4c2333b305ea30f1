# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""A VM of a cluster that is off without OpenNebula's doing: exactly one node says so, while it is.

OpenNebula takes a VM of which nobody speaks for missing, and makes it UNKNOWN.
"""

import os
from dataclasses import replace
from xml.etree.ElementTree import Element

import pytest

from cxm.cluster import basis, cib, orders, poweredoff, watch
from cxm.cluster.cib import Resource
from cxm.cluster.pacemaker import Placed, Status
from cxm.errors import CxmError, RefusedError
from cxm.names import CloudId, VmId
from cxm.node import guests
from cxm.node.guests import Guest, Life
from cxm.node.verbs import Call
from tests.fakes.call import request, send
from tests.fakes.domains import NAME
from tests.fakes.machine import CLOUD
from tests.fakes.pair import RID, Pair
from tests.fakes.scheduler import Order

OFF = {NAME: "poweroff"}


@pytest.fixture
def pair() -> Pair:
    """VM 7 runs on node1, where OpenNebula ordered it to, and has done so for a while."""
    made = Pair()
    made.start("node1")
    later(made)
    return made


def later(pair: Pair, seconds: float = 31.0) -> None:
    """Nothing happens for so long; what was at work on a VM is then no longer of interest."""
    for xen in pair.xens.values():
        xen.clock += seconds


def told(pair: Pair) -> dict[str, dict[str, str]]:
    """What each node says, but one that is dead."""
    return {node: pair.observe(node) for node in pair.xens if node not in pair.dead}


def switch_off(pair: Pair) -> None:
    """The guest switches itself off, wherever it runs, and Pacemaker notices."""
    (node,) = pair.runs_on()
    pair.xens[node].guest(7, "off")
    pair.monitor()
    later(pair)


def said_meanwhile(pair: Pair) -> list[dict[str, str]]:
    """What node1 says at each thing that Pacemaker is about to do from now on."""
    said: list[dict[str, str]] = []
    act = pair.pacemaker._act

    def say_and_act(order: Order) -> tuple[int, str]:
        said.append(pair.observe("node1"))
        return act(order)

    pair.pacemaker._act = say_and_act
    return said


def call(pair: Pair, node: str) -> Call:
    """What ``cxm`` orders on a node."""
    return Call(pair.xens[node].machine(), CLOUD)


def ordered_off(pair: Pair, node: str, how: str) -> None:
    """``cxm shutdown`` or ``cxm destroy`` on a node."""
    orders.stop(
        call(pair, node), vm=VmId(7), how=how, timeout_s=30, life=Life.OFF, reason="root did"
    )
    later(pair)


def asked(pair: Pair, node: str = "node1") -> list[str]:
    """The programs that a look at the guests starts."""
    before = len(pair.xens[node].node.ran)
    pair.observe(node)
    return [argv[0] for argv in pair.xens[node].node.ran[before:]]


class TestWhoSaysIt:
    """The node that it was last ordered to, and as soon as it is off."""

    def test_running(self, pair: Pair) -> None:
        """The node that it is on."""
        assert told(pair) == {"node1": {NAME: "running"}, "node2": {}}

    def test_switched_off_by_its_guest(self, pair: Pair) -> None:
        """Before anybody has noticed, and after all of it is gone."""
        pair.xens["node1"].guest(7, "off")
        assert told(pair) == {"node1": OFF, "node2": {}}
        pair.monitor()
        assert pair.xens["node1"].of_vm(7) is None
        assert told(pair) == {"node1": OFF, "node2": {}}
        later(pair, 3600.0)
        assert told(pair) == {"node1": OFF, "node2": {}}

    @pytest.mark.parametrize("how", ["shutdown", "destroy"])
    @pytest.mark.parametrize("node", ["node1", "node2"])
    def test_ordered_by_an_operator(self, pair: Pair, node: str, how: str) -> None:
        """On whatever node."""
        told(pair)
        ordered_off(pair, node, how)
        assert told(pair) == {"node1": OFF, "node2": {}}

    def test_another_is_damaged_in_the_cib(self, pair: Pair) -> None:
        """Of that one nobody can say anything; it hides none."""
        pair.damage(6)
        switch_off(pair)
        assert told(pair) == {"node1": OFF, "node2": {}}

    def test_moved_before(self, pair: Pair) -> None:
        """It was ordered to the other one last."""
        pair.move("node1", "node2")
        switch_off(pair)
        assert told(pair) == {"node1": {}, "node2": OFF}

    def test_failed_over_before(self, pair: Pair) -> None:
        """OpenNebula looks for it where it was: that node says it, as soon as it is back."""
        pair.fail("node1")
        switch_off(pair)
        assert told(pair) == {"node2": {}}
        pair.come_back("node1")
        assert told(pair) == {"node1": OFF, "node2": {}}

    def test_start_that_nobody_waits_for_is_called_off(self, pair: Pair) -> None:
        """Its order is dead, its driver has been given up: cxm-watch ends it."""
        pair.stop("node1")
        ordered_in_vain(pair, "node2")
        assert told(pair) == {"node1": {}, "node2": {}}
        assert watch.look_after(pair.xens["node1"].machine()) == 1
        assert told(pair) == {"node1": {}, "node2": OFF}


def ordered_in_vain(pair: Pair, node: str) -> None:
    """What an order to start leaves that was killed: the node that it named takes no VMs."""
    known = pair.resource()
    assert known is not None
    wanted = replace(known, started=True, life=Life.RUNNING, host=node, preferred=node)

    def edit(root: Element) -> None:
        basis.edit_facts(root, node, {"standby": "on"}, {})
        cib.put(root, wanted)
        cib.confine(root, RID, node, until="2099-01-01T00:00:00Z")

    pair.pacemaker.edit(edit)
    pair.pacemaker.go_on()


class TestNoLonger:
    """What is not off, or not any more."""

    def test_stopped_by_opennebula(self, pair: Pair) -> None:
        """Its own action says how that ended."""
        pair.stop("node1")
        later(pair)
        assert told(pair) == {"node1": {}, "node2": {}}

    def test_saved(self, pair: Pair) -> None:
        """Neither is what OpenNebula suspends."""
        pair.ask("node1", "domain-save", vm=7)
        later(pair)
        assert told(pair) == {"node1": {}, "node2": {}}

    @pytest.mark.parametrize("node", ["node1", "node2"])
    def test_ended_by_opennebula_after_that(self, pair: Pair, node: str) -> None:
        """Terminated while it is off: at once nothing is said of it."""
        switch_off(pair)
        assert told(pair)["node1"] == OFF
        pair.stop(node)
        later(pair)
        assert told(pair) == {"node1": {}, "node2": {}}

    @pytest.mark.parametrize("node", ["node1", "node2"])
    def test_deleted(self, pair: Pair, node: str) -> None:
        """On whatever node its volumes were removed."""
        switch_off(pair)
        assert told(pair)["node1"] == OFF
        pair.ask(node, "vm-remove", vm=7, dir=pair.directory(node))
        assert told(pair) == {"node1": {}, "node2": {}}

    @pytest.mark.parametrize("node", ["node1", "node2"])
    def test_started_by_opennebula(self, pair: Pair, node: str) -> None:
        """Resumed where it was, or elsewhere: the node that it was on has nothing to say."""
        switch_off(pair)
        told(pair)
        pair.start(node)
        later(pair)
        assert told(pair) == {"node1": {}, "node2": {}} | {node: {NAME: "running"}}

    def test_started_by_an_operator(self, pair: Pair) -> None:
        """The node where OpenNebula looks for it says that it runs, until the sync has told."""
        switch_off(pair)
        told(pair)
        orders.begin(call(pair, "node1"), vm=VmId(7), node="node2", reason="root started it")
        later(pair)
        assert told(pair) == {"node1": {NAME: "elsewhere"}, "node2": {NAME: "running"}}

    def test_not_running_yet(self, pair: Pair) -> None:
        """An operator has it started elsewhere: until it runs, nobody says so."""
        switch_off(pair)
        assert told(pair)["node1"] == OFF
        seen = said_meanwhile(pair)
        orders.begin(call(pair, "node2"), vm=VmId(7), node="node2", reason="root started it")
        assert seen
        assert not any(seen)

    def test_start_that_failed(self, pair: Pair) -> None:
        """An operator's leaves it off, and that is still said."""
        switch_off(pair)
        pair.xens["node2"].free_mib = 1
        with pytest.raises(CxmError, match="start failed"):
            orders.begin(call(pair, "node2"), vm=VmId(7), node="node2", reason="root started it")
        later(pair)
        assert told(pair) == {"node1": OFF, "node2": {}}

    def test_still_being_stopped_elsewhere(self, pair: Pair) -> None:
        """Its guest runs on until it is gone: then it is said, with no change of the CIB."""
        pair.fail("node1")
        pair.come_back("node1")
        assert pair.runs_on() == ["node2"]
        seen = said_meanwhile(pair)
        ordered_off(pair, "node1", "destroy")
        assert seen == [{}]
        assert told(pair) == {"node1": OFF, "node2": {}}

    def test_another_clouds_vm(self, pair: Pair) -> None:
        """Two clouds may share a cluster."""
        switch_off(pair)
        machine, other = pair.xens["node1"].machine(), CloudId("othercloud")
        shared = replace(machine, config=replace(machine.config, clouds=(CLOUD, other)))
        sent = request({"detail": "state"}, cloud=other)
        assert send(shared, "observe", sent).result["guests"] == []
        assert pair.observe("node1") == OFF

    def test_record_of_the_time_before_the_cluster(self, pair: Pair) -> None:
        """The host was standalone once; what it noted then says nothing any more."""
        machine = pair.xens["node1"].machine()
        guests.write(machine, Guest(CLOUD, VmId(9), "old", Life.OFF, "long ago", 0.0))
        assert pair.observe("node1") == {NAME: "running"}


class TestAtRest:
    """What Pacemaker has to say before a VM counts as off."""

    @pytest.fixture
    def off(self, pair: Pair) -> Resource:
        """VM 7, which shall be off."""
        known = pair.resource()
        assert known is not None
        return replace(known, started=False, life=Life.OFF)

    @pytest.mark.parametrize(
        ("placed", "expected"),
        [
            (None, ({7: NAME}, False)),
            (Placed(RID, "Stopped"), ({7: NAME}, False)),
            (Placed(RID, "Started", ("node2",)), ({}, True)),
            (Placed(RID, "Stopping", ("node2",), "Stopping"), ({}, True)),
            (Placed(RID, "Stopped", pending="Starting"), ({}, True)),
            (Placed(RID, "Started", ("node2",), blocked=True), ({}, False)),
        ],
    )
    def test_where_it_is(
        self, off: Resource, placed: Placed | None, expected: tuple[dict[int, str], bool]
    ) -> None:
        """Nowhere; one that is blocked waits for a human, and need not be looked at each time."""
        found = {} if placed is None else {RID: placed}
        status = Status((), quorate=True, fencing_enabled=True, resources=found)
        assert poweredoff.at_rest([off], status) == expected

    def test_no_quorum(self, off: Resource) -> None:
        """The others may have begun something with it."""
        status = Status((), quorate=False, fencing_enabled=True)
        assert poweredoff.at_rest([off], status) == ({}, False)


class TestWhatItCosts:
    """A node looks at its guests every five seconds."""

    def test_nothing_is_asked_while_nothing_changes(self, pair: Pair) -> None:
        """Whether VMs are off or not."""
        pair.observe("node1")
        assert asked(pair) == ["xl"]
        switch_off(pair)
        assert asked(pair) == ["xl", "cibadmin", "crm_mon"]
        for _look in range(3):
            later(pair, 5.0)
            assert asked(pair) == ["xl"]
        assert pair.observe("node1") == OFF

    def test_only_who_answers_for_one_asks_where_it_is(self, pair: Pair) -> None:
        """The CIB's copy says that nobody's state matters here."""
        switch_off(pair)
        assert asked(pair, "node2") == ["xl", "cibadmin"]
        assert asked(pair, "node2") == ["xl"]

    def test_answer_grows_old(self, pair: Pair) -> None:
        """A minute later it is asked for anew, whatever the file says."""
        switch_off(pair)
        pair.observe("node1")
        later(pair, 60.0)
        assert asked(pair) == ["xl", "cibadmin", "crm_mon"]

    def test_file_that_is_never_written(self, pair: Pair) -> None:
        """Pacemaker gives up writing when that has failed once: then it takes a minute."""
        pair.pacemaker.file = ""
        pair.observe("node1")
        switch_off(pair)
        assert pair.observe("node1") == {NAME: "running"}  # as far as it is known
        later(pair)
        assert pair.observe("node1") == OFF

    def test_standalone_host_asks_nobody(self, pair: Pair) -> None:
        """It has no Pacemaker."""
        xen = pair.xens["node1"]
        os.unlink(xen.node.path("state", "cluster"))
        assert asked(pair) == ["xl"]


class TestWithoutPacemaker:
    """Monitoring goes on."""

    def test_it_does_not_run(self, pair: Pair) -> None:
        """Nothing is said of VMs that are off; it is asked again, though not with each look."""
        switch_off(pair)
        assert pair.observe("node1") == OFF
        pair.pacemaker.runs = False
        later(pair, 60.0)
        assert pair.observe("node1") == {}
        assert asked(pair) == ["xl"]
        pair.pacemaker.runs = True
        later(pair, 60.0)
        assert pair.observe("node1") == OFF

    def test_guest_runs_on(self, pair: Pair) -> None:
        """What xl says needs no Pacemaker."""
        pair.pacemaker.runs = False
        later(pair, 60.0)
        assert pair.observe("node1") == {NAME: "running"}
        with pytest.raises(RefusedError):
            pair.stop("node1")
