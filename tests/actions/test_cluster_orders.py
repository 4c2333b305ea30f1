# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Orders about a VM of a cluster, on two modelled nodes and Pacemaker's real scheduler."""

import os
from dataclasses import replace
from xml.etree.ElementTree import Element, fromstring

import pytest

from cxm.cluster import basis, cib, elements, orders
from cxm.cluster.pacemaker import Node, Status
from cxm.cluster.view import View, ready
from cxm.errors import CxmError, RefusedError
from cxm.names import VmId
from cxm.node.guests import Life
from cxm.node.verbs import Call
from tests.fakes.domains import NAME, checkpoint
from tests.fakes.machine import CLOUD, KilledError
from tests.fakes.pair import DISK, RID, Pair, kills
from tests.fakes.scheduler import Order


@pytest.fixture
def pair() -> Pair:
    """Two nodes, and the disk of VM 7."""
    return Pair()


def state(pair: Pair) -> tuple[bool, Life, str]:
    """What the cluster knows of the VM."""
    known = pair.resource()
    assert known is not None
    return known.started, known.life, known.reason


def _status(*, online: bool = True) -> Status:
    """Two nodes, node1 up."""
    both = (Node("node1", online=True), Node("node2", online=online))
    return Status(both, quorate=True, fencing_enabled=True)


class TestStart:
    """domain-start."""

    @pytest.mark.parametrize("node", ["node1", "node2"])
    def test_placed_where_it_was_ordered(self, pair: Pair, node: str) -> None:
        """The VM runs there, its disk is that node's alone, and it is wished there."""
        answer = pair.start(node)
        assert answer.result == {"name": "user-vm7.home.net", "type": "pvh", "adopted": False}
        assert pair.runs_on() == [node]
        assert pair.where() == (node,)
        assert pair.locks() == {node: "ex"}
        assert pair.constraints() == {"prefer": node}
        assert state(pair) == (True, Life.RUNNING, "OpenNebula started it")

    @pytest.mark.parametrize("half", [True, False])
    def test_half_of_a_guest_whose_sender_has_died_is_not_waited_for(
        self, pair: Pair, *, half: bool
    ) -> None:
        """Its receiver would sit there until the connection is given up, its disk in use."""
        pair.start("node1")
        there, domain = pair.xens["node2"], pair.xens["node1"].of_vm(7)
        assert domain is not None
        pair.stop("node1", "destroy")
        there.node.run(["lvchange", "-a", "sy", f"{there.node.vg}/{DISK}"])
        name, life = (f"{NAME}--incoming", "half") if half else (NAME, "gap")
        unit = f"unit:cxm-{CLOUD}-7-4711"
        volumes = (DISK,) if half else ()
        coming = replace(domain, name=name, life=life, ran=False, volumes=volumes)
        there.put(replace(coming, keeper=4000, config=unit))
        begun = there.clock
        assert not pair.start("node2").result["adopted"]
        assert there.clock - begun < 10
        assert pair.runs_on() == ["node2"]
        assert pair.locks() == {"node2": "ex"}
        (made,) = there.state.domains
        assert made.keeper != 4000

    def test_refused_by_the_scheduler_before_anything_is_written(self, pair: Pair) -> None:
        """A node without memory, though the other has some."""
        with pytest.raises(RefusedError, match="Pacemaker would not run VM 7 on node1"):
            pair.start("node1", memory_mib=2000)
        assert pair.resource() is None
        assert pair.pacemaker.done == []

    def test_withdrawn_when_the_agent_fails(self, pair: Pair) -> None:
        """It runs nowhere, not on the other node either, and the cluster forgets it."""
        pair.xens["node1"].free_mib = 1
        with pytest.raises(CxmError, match=r"node1: VM 7: start failed: .* can't .*Out of memory"):
            pair.start("node1")
        assert pair.runs_on() == []
        assert pair.locks() == {}
        assert pair.resource() is None
        assert pair.constraints() == {}
        assert "<failure " not in pair.mon()
        pair.xens["node1"].free_mib = 100
        pair.start("node1")
        assert pair.runs_on() == ["node1"]

    def test_failed_start_of_a_known_vm_leaves_it_as_it_was(self, pair: Pair) -> None:
        """Stopped, that is."""
        pair.start("node1")
        pair.stop("node1")
        pair.xens["node1"].free_mib = 1
        with pytest.raises(CxmError, match="start failed"):
            pair.start("node1")
        assert state(pair) == (False, Life.STOPPED, "OpenNebula stopped it")
        assert pair.runs_on() == []

    def test_adopted_where_it_runs(self, pair: Pair) -> None:
        """A second order changes nothing."""
        pair.start("node1")
        before = pair.xens["node1"].of_vm(7)
        assert pair.start("node1").result["adopted"]
        assert pair.xens["node1"].of_vm(7) == before

    def test_refused_when_it_runs_elsewhere(self, pair: Pair) -> None:
        """The sentence says where."""
        pair.start("node1")
        with pytest.raises(RefusedError, match="VM 7 runs on node1, so it is not started on node2"):
            pair.start("node2")
        assert pair.runs_on() == ["node1"]

    def test_guest_that_has_just_ended_is_started_not_adopted(self, pair: Pair) -> None:
        """The cluster has not looked yet, and believes that it runs."""
        pair.start("node1")
        pair.xens["node1"].guest(7, "off")
        assert not pair.start("node1").result["adopted"]
        assert pair.runs_on() == ["node1"]
        pair.monitor()
        assert pair.runs_on() == ["node1"]

    def test_domain_that_the_cluster_does_not_know(self, pair: Pair) -> None:
        """Pacemaker finds it and looks after it."""
        pair.start("node1")
        before = pair.xens["node1"].of_vm(7)
        pair.pacemaker.edit(_forget)
        assert pair.start("node1").result["name"] == "user-vm7.home.net"
        assert pair.xens["node1"].of_vm(7) == before

    @pytest.mark.parametrize(
        ("name", "value", "what"),
        [
            ("stonith-enabled", "false", "the cluster's fencing is switched off"),
            ("cxm-fencing", None, "it was never proven that node1 can be fenced"),
            ("quorum", None, "node1 has no quorum"),
        ],
    )
    def test_refused_where_it_would_not_be_safe(
        self, pair: Pair, name: str, value: str | None, what: str
    ) -> None:
        """Nothing is started that could run twice or be lost."""

        def change(root: Element) -> None:
            if name == "quorum":
                root.set("have-quorum", "0")
            for holder in root.iter():
                for each in list(holder):
                    if each.get("name") == name and value is None:
                        holder.remove(each)
                    elif each.get("name") == name:
                        each.set("value", value or "")

        pair.pacemaker.edit(change)
        with pytest.raises(RefusedError, match=what):
            pair.start("node1")
        assert pair.resource() is None

    @pytest.mark.parametrize("gone", ["removed", "switched off"])
    def test_proof_of_a_device_that_is_not_there_any_more_counts_for_nothing(
        self, pair: Pair, gone: str
    ) -> None:
        """Somebody has taken it away, or switched it off, with Pacemaker's own tools."""
        root = fromstring(pair.pacemaker.text)
        ready(View(RID, _status(), root, None), "node1")
        if gone == "removed":
            cib.remove(root, "fence-node2")
        else:
            (device,) = root.iterfind(".//primitive[@id='fence-node2']")
            device.append(elements.attributes("meta", "x", {"target-role": "Stopped"}))
        with pytest.raises(RefusedError, match="no device can fence node2 any more"):
            ready(View(RID, _status(), root, None), "node1")

    def test_refused_where_pacemaker_does_not_answer(self, pair: Pair) -> None:
        """A node of a cluster never falls back to acting alone."""
        pair.pacemaker.runs = False
        with pytest.raises(RefusedError, match="Pacemaker does not run here, so nothing is done"):
            pair.start("node1")
        assert pair.runs_on() == []


def _forget(root: Element) -> None:
    for holder in root.iter():
        for each in list(holder):
            if each.get("id") == RID or each.get("rsc") == RID:
                holder.remove(each)


class TestBegin:
    """``cxm create``."""

    @staticmethod
    def begin(pair: Pair, node: str) -> None:
        """Have the VM start."""
        call = Call(pair.xens["node1"].machine(), CLOUD)
        orders.begin(call, vm=VmId(7), node=node, reason="root started it")

    def test_saved_memory_is_not_thrown_away(self, pair: Pair) -> None:
        """OpenNebula resumes the VM with it."""
        pair.start("node1")
        pair.ask("node1", "domain-save", vm=7)
        with pytest.raises(RefusedError, match="the memory of VM 7 is saved"):
            self.begin(pair, "node2")
        assert checkpoint(pair.xens["node1"]) == "ready"
        assert pair.runs_on() == []

    def test_memory_that_cannot_be_restored_is_no_obstacle(self, pair: Pair) -> None:
        """OpenNebula cannot resume the VM with it either: nothing could start it."""
        pair.start("node1")
        pair.ask("node1", "domain-save", vm=7)
        change = ["lvchange", "--deltag", "cxm.state=ready", "--addtag", "cxm.state=filling"]
        pair.xens["node1"].node.run([*change, "LVM_XEN/lv-one-7-checkpoint"])
        self.begin(pair, "node2")
        assert pair.runs_on() == ["node2"]
        assert checkpoint(pair.xens["node2"]) is None


class TestStop:
    """domain-stop."""

    def test_guest_is_asked(self, pair: Pair) -> None:
        """It switches itself off; its disk is nobody's then, and the VM stays known."""
        pair.start("node1")
        assert pair.stop("node1").result == {"was": "running"}
        assert pair.runs_on() == []
        assert pair.locks() == {}
        assert state(pair) == (False, Life.STOPPED, "OpenNebula stopped it")
        asked = [each for each in pair.xens["node1"].node.ran if each[:2] == ("xl", "shutdown")]
        assert len(asked) == 1
        assert os.listdir(pair.xens["node1"].node.path("cfg")) == []

    def test_guest_that_does_not_listen_is_destroyed(self, pair: Pair) -> None:
        """After its time, and it was asked now and then, not all the time."""
        pair.start("node1")
        pair.xens["node1"].listens = False
        began = pair.xens["node1"].clock
        pair.stop("node1", timeout_s=60)
        assert pair.runs_on() == []
        assert 60 <= pair.xens["node1"].clock - began < 120
        asked = [each for each in pair.xens["node1"].node.ran if each[:2] == ("xl", "shutdown")]
        assert 3 <= len(asked) <= 6

    def test_vm_of_another_node(self, pair: Pair) -> None:
        """The guest is asked over there."""
        pair.start("node2")
        assert pair.stop("node1", "shutdown").result == {"was": "running"}
        assert pair.runs_on() == []
        assert pair.locks() == {}

    def test_vm_of_another_node_is_not_destroyed(self, pair: Pair) -> None:
        """A hook that cleans up after a lost host would end what the cluster has rescued."""
        pair.start("node2")
        with pytest.raises(RefusedError, match="VM 7 runs on node2, so it is not destroyed on"):
            pair.stop("node1", "destroy")
        assert pair.runs_on() == ["node2"]

    def test_stopped_already(self, pair: Pair) -> None:
        """Is success; so is a VM that nobody knows."""
        assert pair.stop("node1").result == {"was": "absent"}
        pair.start("node1")
        pair.stop("node1")
        assert pair.stop("node2").result == {"was": "absent"}

    def test_leftovers_that_the_cluster_does_not_know(self, pair: Pair) -> None:
        """A domain that is here without a resource is ended, its disk released."""
        pair.start("node1")
        pair.pacemaker.edit(_forget)
        pair.stop("node1")
        assert pair.runs_on() == []
        assert pair.locks() == {}

    def test_crash_of_some_minutes_ago_is_no_failure_of_the_stop(self, pair: Pair) -> None:
        """Pacemaker remembers it for ten minutes."""
        pair.start("node1")
        pair.xens["node1"].guest(7, "crashed")
        pair.monitor()
        assert "<failure " in pair.mon()
        pair.stop("node1")
        assert pair.runs_on() == []

    def test_failed_stop_fences(self, pair: Pair) -> None:
        """The agent cannot say that the VM is off, so its node is made sure to be."""
        pair.start("node2")
        act = pair.pacemaker._act

        def fail(order: Order) -> tuple[int, str]:
            return (1, "no") if order.action == "stop" else act(order)

        pair.pacemaker._act = fail
        pair.xens["node2"].listens = False
        pair.stop("node1", timeout_s=5)
        assert pair.dead == {"node2"}
        assert pair.runs_on() == []


class TestOthers:
    """Reboot, reset, and what concerns disks."""

    @pytest.mark.parametrize("asked", ["node1", "node2"])
    def test_reboot(self, pair: Pair, asked: str) -> None:
        """The guest is asked where it runs; the monitor waits for it."""
        pair.start("node1")
        pair.ask(asked, "domain-reboot", vm=7)
        domain = pair.xens["node1"].of_vm(7)
        assert domain is not None
        assert domain.life == "rebooting"
        pair.monitor()
        assert pair.runs_on() == ["node1"]
        assert "<failure " not in pair.mon()

    def test_reset(self, pair: Pair) -> None:
        """Another domain, on the same node."""
        pair.start("node2")
        before = pair.xens["node2"].of_vm(7)
        pair.ask("node2", "domain-reset", vm=7)
        after = pair.xens["node2"].of_vm(7)
        assert before is not None
        assert after is not None
        assert before.domid != after.domid
        assert pair.runs_on() == ["node2"]
        assert state(pair)[:2] == (True, Life.RUNNING)

    @pytest.mark.parametrize("verb", ["disk-remove", "vm-remove"])
    def test_removal_is_refused_while_it_runs_on_another_node(self, pair: Pair, verb: str) -> None:
        """The volumes are marked, so that they go when they can."""
        pair.start("node1")
        args = {"vm": 7, "dir": pair.directory("node2")}
        args |= {"disk": 0} if verb == "disk-remove" else {}
        with pytest.raises(RefusedError, match="VM 7 is not removed: it runs on node1"):
            pair.ask("node2", verb, **args)
        assert pair.runs_on() == ["node1"]
        assert "cxm.state=delete-requested" in pair.xens["node1"].node.state.lvs[DISK].tags
        pair.stop("node2")
        pair.ask("node2", verb, **args)
        assert DISK not in pair.xens["node1"].node.state.lvs

    def test_removed_vm_is_forgotten(self, pair: Pair) -> None:
        """The cluster has no trace of it."""
        pair.start("node1")
        pair.stop("node1")
        pair.ask("node2", "vm-remove", vm=7, dir=pair.directory("node2"))
        assert pair.resource() is None
        assert RID not in pair.pacemaker.text.partition("<status")[0]

    def test_directory_moves_and_the_disk_stays(self, pair: Pair) -> None:
        """dir-adopt on the new host and dir-drop on the old one copy nothing."""
        for verb, node in (("dir-adopt", "node2"), ("dir-drop", "node1")):
            pair.ask(node, verb, vm=7, dir=pair.directory(node))
        assert os.path.islink(os.path.join(pair.directory("node2"), "disk.0"))
        assert not os.path.exists(pair.directory("node1"))
        assert DISK in pair.xens["node2"].node.state.lvs
        pair.start("node2")
        assert pair.runs_on() == ["node2"]


def test_directory_of_a_move_that_was_given_up_goes_when_its_vm_has_gone() -> None:
    """OpenNebula never asks for it again on that node: the next removal or move there sees it."""
    pair = Pair()
    left = pair.directory("node2")
    pair.ask("node2", "dir-adopt", vm=7, dir=left)
    other = os.path.join(os.path.dirname(left), "8")
    assert pair.ask("node2", "vm-remove", vm=8, dir=other).result == {"removed": [other]}
    assert os.path.islink(f"{left}/disk.0")
    pair.ask("node1", "vm-remove", vm=7, dir=pair.directory("node1"))
    assert pair.ask("node2", "vm-remove", vm=8, dir=other).result == {"removed": [other, left]}
    assert not os.path.exists(left)
    assert pair.ask("node2", "vm-remove", vm=8, dir=other).result == {"removed": [other]}


def test_vanished_guest_is_started_on_the_other_node(pair: Pair) -> None:
    """Nobody has released its disk where it was: the node is asked for it."""
    pair.start("node1")
    pair.pacemaker.edit(lambda root: basis.edit_facts(root, "node1", {"standby": "on"}, {}))
    pair.xens["node1"].guest(7, "vanished")
    pair.monitor()
    assert pair.runs_on() == ["node2"]
    assert pair.locks() == {"node2": "ex"}


def test_node_that_dies_takes_no_vm_with_it(pair: Pair) -> None:
    """It is fenced, and its VM is started on the other; back again, it starts nothing."""
    pair.start("node1")
    pair.fail("node1")
    assert pair.runs_on() == ["node2"]
    assert pair.locks() == {"node2": "ex"}
    pair.come_back("node1")
    assert pair.runs_on() == ["node2"]


@pytest.mark.parametrize("verb", ["start", "stop"])
def test_order_killed_at_any_step(verb: str) -> None:
    """Given again it ends well; what Pacemaker had begun by then goes on."""

    def world() -> Pair:
        pair = Pair()
        if verb == "stop":
            pair.start("node1")
        pair.xens["node1"].node.ran.clear()
        pair.xens["node1"].node.own.clear()
        return pair

    def act(pair: Pair) -> None:
        if verb == "start":
            pair.start("node1")
        else:
            pair.stop("node1")

    whole = world()
    act(whole)
    done = whole.xens["node1"].node
    for kill in kills(done.ran, list(done.own)):
        pair = world()
        host = pair.xens["node1"].node
        host.fault = kill
        with pytest.raises(KilledError):
            act(pair)
        host.revive()
        pair.pacemaker.go_on()
        act(pair)
        pair.monitor()
        assert pair.runs_on() == (["node1"] if verb == "start" else [])
        assert set(pair.constraints()) == {"prefer"}
        assert pair.locks() == ({"node1": "ex"} if verb == "start" else {})
