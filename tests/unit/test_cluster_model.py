# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""The picture of the cluster: states, capacity, what would fit, and what is wrong."""

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from cxm.cluster import cpus, nodes
from cxm.cluster.alarms import alarms, n_plus_one
from cxm.cluster.model import (
    Cluster,
    NodeState,
    VmState,
    build,
    find_vm,
    find_vms,
)
from cxm.cluster.pacemaker import Failure, parse_status
from cxm.cluster.placement import losses, place, without
from cxm.errors import NotFoundError, UsageError
from cxm.names import CloudId
from tests.fakes.crm import FakeCluster, Place, two_nodes
from tests.fakes.machine import FakeNode

DATA = Path(__file__).parents[1] / "data/pacemaker"


@pytest.fixture
def crm(tmp_path: Path) -> FakeCluster:
    """node1 and node2, a VM on each."""
    return two_nodes(str(tmp_path / "n"))


def _three(tmp_path: Path, memory: int = 1000) -> FakeCluster:
    made = FakeCluster(FakeNode(str(tmp_path / "n")))
    for name in ("node1", "node2", "node3"):
        made.add_node(name, memory=memory, cpu=1000)
    return made


def _look(crm: FakeCluster) -> Cluster:
    return crm.world().cluster()


# --- what is ------------------------------------------------------------------------------------


def test_recorded_cluster_in_the_midst_of_a_move() -> None:
    """Pacemaker calls the end of a move 'Stopping' on two nodes; the VM moves, and is not lost."""
    status = parse_status((DATA / "crm_mon-2.1.5-moving.xml").read_text())
    found = build(status, ET.fromstring((DATA / "cib-2.1.5-moving.xml").read_text()))
    (vm,) = found.vms
    assert (vm.name, vm.state, set(vm.nodes)) == ("vm1", VmState.MIGRATING, {"node1", "node2"})
    assert [(each.name, each.state, each.memory) for each in found.nodes] == [
        ("node1", NodeState.ONLINE, 480),
        ("node2", NodeState.ONLINE, 480),
    ]
    assert found.counts_memory
    assert [each.device for each in found.nodes] == ["fence-node1", "fence-node2"]


def test_recorded_node_whose_pacemaker_was_stopped() -> None:
    """Pacemaker calls it online, standby and pending, as one that joins: all is not well."""
    status = parse_status((DATA / "crm_mon-2.1.5-not-joined.xml").read_text())
    found = build(status, ET.fromstring((DATA / "cib-2.1.5-locks.xml").read_text()))
    assert found.node("node2").state is NodeState.PENDING
    (alarm,) = alarms(found)
    assert alarm.text == "node node2 has not joined Pacemaker: no VM can start on it"
    assert "'systemctl start pacemaker'" in alarm.advice


def test_node_is_as_full_as_its_vms_make_it(crm: FakeCluster) -> None:
    """Of memory and CPU, as Pacemaker counts them."""
    node1, node2 = _look(crm).nodes
    assert (node1.memory_used, node1.memory_free, node1.cpu_used, node1.vms) == (1024, 3072, 100, 1)
    assert (node2.memory_used, node2.facts.number("memory")) == (2048, 4096)


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({}, NodeState.ONLINE),
        ({"unclean": True}, NodeState.UNCLEAN),
        ({"online": False}, NodeState.OFFLINE),
        ({"pending": True}, NodeState.PENDING),
    ],
)
def test_states_of_nodes(crm: FakeCluster, changes: dict[str, bool], state: NodeState) -> None:
    """The worst that is true of a node is its state."""
    for key, value in changes.items():
        setattr(crm.members["node2"], key, value)
    assert _look(crm).node("node2").state is state


def test_standby_is_seen(crm: FakeCluster) -> None:
    """It takes no VMs."""
    crm.members["node2"].online = True
    nodes.set_attribute(crm.cib, "node2", "standby", "on")
    member = _look(crm).node("node2")
    assert member.state is NodeState.STANDBY
    assert not member.takes_vms


@pytest.mark.parametrize(
    ("place_", "state"),
    [
        (Place(("node1",)), VmState.RUNNING),
        (Place(("node1",), "Starting"), VmState.STARTING),
        (Place(("node1",), "Stopping"), VmState.STOPPING),
        (Place(("node1", "node2"), "Stopping"), VmState.MIGRATING),
        (Place(("node1",), "Migrating"), VmState.MIGRATING),
        (Place(("node1",), blocked=True), VmState.BLOCKED),
        (Place(("node1",), failed=True), VmState.FAILED),
        (Place((), "Stopped"), VmState.DOWN),
    ],
)
def test_states_of_vms_that_should_run(crm: FakeCluster, place_: Place, state: VmState) -> None:
    """What is wrong is in capitals."""
    crm.places["cxm-cloudone1-7"] = place_
    assert find_vm(_look(crm), "7").state is state


def test_vm_on_an_unclean_node_is_not_called_running(crm: FakeCluster) -> None:
    """Pacemaker goes on saying Started; nobody knows."""
    crm.members["node2"].unclean = True
    assert find_vm(_look(crm), "42").state is VmState.UNKNOWN


# --- who is meant -------------------------------------------------------------------------------


def test_vm_is_meant_exactly(crm: FakeCluster) -> None:
    """VM 4 is never mistaken for VM 42."""
    cluster = _look(crm)
    assert find_vm(cluster, "4").name == "old.home.net"
    assert find_vm(cluster, "web.home.net").resource.vm == 7
    assert find_vm(cluster, "cloudone1/42").name == "db.home.net"
    assert [vm.resource.vm for vm in find_vms(cluster, "HOME")] == [4, 7, 42]
    with pytest.raises(NotFoundError) as failure:
        find_vm(cluster, "web")
    assert failure.value.hint == "did you mean web.home.net?"


def test_two_clouds_may_have_the_same_number(crm: FakeCluster) -> None:
    """The sentence says how to name each."""
    crm.add_vm(7, "node2", cloud=CloudId("cloudtwo2"), name="other")
    with pytest.raises(UsageError) as failure:
        find_vm(_look(crm), "7")
    assert "cloudone1/7 is web.home.net" in str(failure.value.hint)
    assert "cloudtwo2/7 is other" in str(failure.value.hint)
    assert find_vm(_look(crm), "cloudtwo2/7").name == "other"


# --- what fits ----------------------------------------------------------------------------------


def test_largest_first_where_it_fits_tightest(tmp_path: Path) -> None:
    """A first fit in the order of numbers would leave the largest without a place."""
    crm = _three(tmp_path)
    crm.add_vm(1, "node1", memory=300)
    crm.add_vm(2, "node1", memory=600)
    crm.add_vm(3, "node2", memory=400)  # 600 free there
    crm.add_vm(4, "node3", memory=700)  # 300 free there
    placed, left = without(_look(crm), "node1")
    assert {vm.resource.vm: node for vm, node in placed} == {2: "node2", 1: "node3"}
    assert not left


def test_what_stays_down_is_said(tmp_path: Path) -> None:
    """By node and by VM."""
    crm = _three(tmp_path)
    crm.add_vm(1, "node1", memory=700, name="big")
    crm.add_vm(2, "node2", memory=400)
    crm.add_vm(3, "node3", memory=400)
    cluster = _look(crm)
    assert {node: [vm.name for vm in left] for node, left in losses(cluster).items()} == {
        "node1": ["big"]
    }
    fine, text = n_plus_one(cluster)
    assert (fine, text) == (False, "if node1 dies, no place is left for big (700 MiB)")


def test_cpu_counts_too(tmp_path: Path) -> None:
    """Pacemaker places nothing where one of both is missing."""
    crm = _three(tmp_path)
    crm.add_vm(1, "node1", memory=10, cpu=600)
    crm.add_vm(2, "node2", memory=10, cpu=600)
    crm.add_vm(3, "node3", memory=10, cpu=600)
    assert set(losses(_look(crm))) == {"node1", "node2", "node3"}


def test_vm_that_is_down_takes_room_and_is_nobodys_loss(tmp_path: Path) -> None:
    """It would be started there first."""
    crm = _three(tmp_path)
    crm.places[crm.add_vm(1, "node1", memory=900)] = Place((), "Stopped")
    crm.add_vm(2, "node2", memory=900)
    crm.add_vm(3, "node3", memory=900)
    assert [vm.resource.vm for vm in losses(_look(crm))["node2"]] == [2]
    assert "node1" not in losses(_look(crm))


def test_place_leaves_its_input_alone(crm: FakeCluster) -> None:
    """It is asked many times about one picture."""
    cluster = _look(crm)
    first = place(cluster.vms, cluster.nodes)
    assert place(cluster.vms, cluster.nodes) == first


def test_dead_node_costs_nothing_more(crm: FakeCluster) -> None:
    """What was on it is down already; and one node alone has no N+1."""
    crm.members["node2"].online = False
    cluster = _look(crm)
    assert "node2" not in losses(cluster)
    assert n_plus_one(cluster) == (False, "there is no second node that takes VMs")


@pytest.mark.parametrize(
    ("away", "of", "fine"),
    [(0, 2, True), (0, 3, True), (1, 3, False), (0, 4, True), (1, 4, False), (1, 5, True),
     (2, 5, False)],
)  # fmt: skip
def test_last_majority_is_no_n_plus_one(tmp_path: Path, away: int, of: int, fine: bool) -> None:
    """However much room there is: those who are too few start nothing."""
    crm = FakeCluster(FakeNode(str(tmp_path / "n")))
    for number in range(of):
        crm.add_node(f"node{number}")
        crm.members[f"node{number}"].online = number >= away
    sentence = "if one more node dies, the rest has no quorum and starts nothing"
    found = n_plus_one(_look(crm), {})
    assert found[0] is fine
    assert (found[1] == sentence) is not fine


def test_node_that_only_corosync_hears_has_a_vote(tmp_path: Path) -> None:
    """Pacemaker goes by Corosync's quorum."""
    crm = _three(tmp_path)
    crm.members["node1"].pending = True
    assert n_plus_one(_look(crm), {})[0]


def test_without_counting_nothing_is_promised(crm: FakeCluster) -> None:
    """Pacemaker's default strategy ignores memory."""
    pair = crm.cib.find("configuration/crm_config/cluster_property_set/nvpair")
    assert pair is not None
    pair.set("value", "default")
    assert "placement-strategy" in n_plus_one(_look(crm))[1]


# --- what is wrong --------------------------------------------------------------------------------


def test_well_cluster_has_no_alarm(crm: FakeCluster) -> None:
    """The box is not shown."""
    assert alarms(_look(crm)) == []


def test_every_alarm(crm: FakeCluster) -> None:
    """The worst first, each with what to do."""
    crm.quorate, crm.fencing = False, False
    crm.members["node2"].unclean = True
    crm.places["cxm-cloudone1-7"].blocked = True
    crm.fence_events = [
        {"target": "node2", "action": "reboot", "status": "pending", "origin": "node1"},
        {"target": "node3", "action": "off", "status": "success", "completed": "2026-01-01 00:00Z"},
        {"target": "node3", "action": "off", "status": "failed", "exit-reason": "No route",
         "completed": "2026-01-02 00:00Z"},
    ]  # fmt: skip
    crm.broken = {"fence-node1", "node1"}
    texts = [each.text for each in alarms(_look(crm))]
    assert texts == [
        "NOT QUORATE: this node waits for node2, which it has not seen since it started",
        "FENCING IN PROGRESS: node2 (reboot, by node1)",
        "FENCING OF node3 FAILED: No route",
        "FENCING IS SWITCHED OFF: a dead node's VMs could come to run twice",
        "THE FENCING DEVICE OF node1 DOES NOT ANSWER: no answer",
        "NODE node1 HAS NO LOCKS: no VM can start on it",
        "NODE node2 IS UNCLEAN: nobody knows what it does",
        "VM web.home.net (VM 7) IS BLOCKED on node1",
    ]
    assert all(each.advice for each in alarms(_look(crm)))


def test_lost_majority_is_told(crm: FakeCluster) -> None:
    """Of three, two make it; a pair is another matter."""
    crm.add_node("node3")
    crm.members["node2"].online, crm.quorate = False, False
    text = "NOT QUORATE: this part of the cluster may start nothing"
    assert alarms(_look(crm))[0].text == text


def test_failed_fencing_is_told_while_it_is_tried_again(crm: FakeCluster) -> None:
    """Pacemaker tries again at once, and for ever; both it and the DLM ask for it."""
    crm.members["node2"].unclean = True
    pending = {"target": "node2", "action": "reboot", "status": "pending"}
    crm.fence_events = [
        pending,
        pending,
        {"target": "node2", "status": "failed", "exit-reason": "No route",
         "completed": "2026-01-01 00:00:00Z"},
    ]  # fmt: skip
    alarm = alarms(_look(crm))[0]
    assert alarm.text == "FENCING OF node2 FAILED, and is tried again: No route"
    assert "'cxm fence --confirmed node2'" in alarm.advice


@pytest.mark.parametrize("standby", ["on", None])
def test_failed_fencing_of_a_healthy_node_is_no_death(
    crm: FakeCluster, standby: str | None
) -> None:
    """After a test that failed: nothing of it is down, and who says that it is off is refused."""
    nodes.set_attribute(crm.cib, "node2", "standby", standby)
    crm.fence_events = [
        {"target": "node2", "status": "failed", "exit-reason": "No route",
         "completed": "2026-01-01 00:00:00Z"},
    ]  # fmt: skip
    (alarm,) = alarms(_look(crm))
    assert alarm.text == "FENCING OF node2 DOES NOT WORK: No route"
    assert "'cxm fence --test node2' on another node" in alarm.advice
    assert "--confirmed" not in alarm.advice


def test_failed_fencing_that_worked_later_is_no_alarm(crm: FakeCluster) -> None:
    """Whatever the order that Pacemaker tells them in."""
    failed = {"target": "node2", "status": "failed", "completed": "2026-01-01 00:00:00Z"}
    crm.fence_events = [
        failed,
        {"target": "node2", "status": "success", "completed": "2026-01-01 00:00:09.5Z"},
    ]
    assert alarms(_look(crm)) == []


# --- nodes in the CIB -----------------------------------------------------------------------------


def test_attribute_of_another_tool_is_changed_in_place(crm: FakeCluster) -> None:
    """'pcs node standby' has ids of its own; twice would be an invalid document."""
    node = crm.cib.findall("configuration/nodes/node")[1]
    group = ET.SubElement(node, "instance_attributes", {"id": "pcs"})
    ET.SubElement(group, "nvpair", {"id": "pcs-standby", "name": "standby", "value": "off"})
    nodes.set_attribute(crm.cib, "node2", "standby", "on")
    pairs = [each for each in node.iter("nvpair") if each.get("name") == "standby"]
    assert [(each.get("id"), each.get("value")) for each in pairs] == [("pcs-standby", "on")]
    nodes.set_attribute(crm.cib, "node2", "standby", None)
    nodes.set_attribute(crm.cib, "node2", "standby", None)
    assert nodes.facts(crm.cib)["node2"].attributes.get("standby") is None
    with pytest.raises(NotFoundError):
        nodes.set_attribute(crm.cib, "node9", "standby", "on")


def test_devices_say_whom_they_fence() -> None:
    """By a list, by a map, or by themselves; one that is switched off fences nobody."""
    cib = ET.fromstring(
        """<cib><configuration><resources>
        <primitive id="list" class="stonith"><instance_attributes id="a">
          <nvpair id="a1" name="pcmk_host_list" value="node1,node2"/>
        </instance_attributes></primitive>
        <primitive id="map" class="stonith"><instance_attributes id="b">
          <nvpair id="b1" name="pcmk_host_map" value="node3:7;node4:8"/>
        </instance_attributes></primitive>
        <clone id="c"><primitive id="sbd" class="stonith"/></clone>
        <primitive id="off" class="stonith"><meta_attributes id="d">
          <nvpair id="d1" name="target-role" value="Stopped"/></meta_attributes></primitive>
        </resources></configuration></cib>"""
    )
    found = {each.id: each for each in nodes.devices(cib)}
    assert found["list"].targets == ("node1", "node2")
    assert found["map"].targets == ("node3", "node4")
    assert found["sbd"].fences("anybody")
    assert "off" not in found


def test_abilities_of_processors() -> None:
    """One bit more on one node, and a guest started there may not live on the other."""
    rows = {each.node: each for each in cpus.compare({"a": "0f:01", "b": "07:01", "c": None})}
    assert "lacks 1 feature of a" in rows["b"].text
    assert not rows["a"].same
    assert not rows["c"].known
    assert all(each.same for each in cpus.compare({"a": "0f:01", "b": "0f:01"}))
    assert cpus.lacking("nonsense", "nonsense") == 0


def test_vm_that_a_failed_move_left_blocked_is_nobodys_work(crm: FakeCluster) -> None:
    """The cluster looks after it by itself; one that is blocked by anything else is a human's."""
    rid = "cxm-cloudone1-7"
    crm.places[rid].blocked = True
    advice = {}
    for operation in ("migrate_to", "stop"):
        failure = Failure(rid, operation, "node1", "no", "today")
        (alarm,) = alarms(replace(_look(crm), failures=(failure,)))
        advice[operation] = alarm.advice
    assert "it is looked after again within a minute" in advice["migrate_to"]
    assert "--cleanup" in advice["stop"]
