# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""The balancer in Pacemaker's own scheduler: it is on one node, and nothing else notices it."""

from pathlib import Path
from xml.etree.ElementTree import Element, fromstring, tostring

import pytest

from cxm.cluster import balancer, basis, difference
from cxm.cluster.pacemaker import Placed, Status
from tests.fakes.cib import EMPTY, Cluster, Step, of_nodes, section, waits_for

OWN = balancer.RESOURCE
VMS = {1: "node1", 2: "node2", 3: "node2"}


@pytest.fixture(scope="module")
def at_rest(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two nodes and three VMs; the balancer is on."""
    cluster = Cluster(str(tmp_path_factory.mktemp("cib")), VMS, start=False)
    balancer.switch(cluster.cib, on=True)
    cluster.go_on()
    assert len(cluster.where(OWN)) == 1
    return tostring(cluster.cib, encoding="unicode")


@pytest.fixture
def cluster(at_rest: str, tmp_path: Path) -> Cluster:
    """The same, for one test."""
    made = Cluster(str(tmp_path), {}, start=False)
    made.cib = fromstring(at_rest)
    return made


def _others(steps: list[Step]) -> list[str]:
    """What is done with anything else, or to a node."""
    real = [each.what for each in steps if not each.what.startswith("pseudo")]
    return [what for what in real if OWN not in what]


def test_it_is_off_until_it_is_switched_on(tmp_path: Path) -> None:
    """Then it starts on one node, and nothing else is touched or waits; so it stops."""
    cluster = Cluster(str(tmp_path), VMS)
    assert cluster.where(OWN) == set()
    for on in (True, False):
        balancer.switch(cluster.cib, on=on)
        steps = cluster.go_on()
        assert steps
        assert not _others(steps)
        assert len(cluster.where(OWN)) == int(on)


@pytest.mark.parametrize(
    ("code", "times"),
    [("1", 1), *(pytest.param(code, 4, marks=pytest.mark.extensive) for code in "17")],
)
def test_its_failure_is_its_own(cluster: Cluster, code: str, times: int) -> None:
    """No node is fenced and no VM touched, however often."""
    for _time in range(times):
        (here,) = cluster.where(OWN)
        steps = cluster.go_on("--op-inject", f"{OWN}_monitor_300000@{here}={code}")
        assert steps
        assert not _others(steps)


def test_a_stop_that_fails_fences_nobody(cluster: Cluster) -> None:
    """It is taken for done, for it holds nothing."""
    (here,) = cluster.where(OWN)
    balancer.switch(cluster.cib, on=False)
    for _time in range(2):
        assert not _others(cluster.go_on("--op-fail", f"{OWN}_stop_0@{here}=1"))


def test_it_goes_on_elsewhere_when_its_node_dies(cluster: Cluster) -> None:
    """After that is fenced; the VMs that are started again do not wait for it."""
    (here,) = cluster.where(OWN)
    (other,) = set(VMS.values()) - {here}
    steps = cluster.ask("--node-fail", here)
    (start,) = (each for each in steps if each.what == f"start {OWN}")
    assert start.node == other
    (fence,) = (each for each in steps if each.what == "fence")
    assert fence.number in waits_for(steps, start)
    for each in steps:
        if each.what.startswith("start cxm-lab"):
            assert start.number not in waits_for(steps, each)


@pytest.mark.extensive
def test_a_node_that_comes_back_does_not_get_it_back(cluster: Cluster) -> None:
    """It stays where it counts its rounds."""
    (here,) = cluster.where(OWN)
    cluster.go_on("--node-fail", here)
    steps = cluster.go_on("--node-up", here)
    assert not [each for each in steps if each.what in (f"start {OWN}", f"stop {OWN}")]


def test_what_it_notes_restarts_nothing(cluster: Cluster) -> None:
    """Meta attributes: the scheduler has nothing to do."""
    balancer.note_moved(cluster.cib, {"cxm-lab-1": 1.0})
    balancer.note_last(cluster.cib, 1.0, "1 move", bad=False)
    assert all(each.what.startswith("pseudo") for each in cluster.ask())


# --- the tree -------------------------------------------------------------------------------------


def _cib() -> Element:
    cib = fromstring(EMPTY)
    basis.edit(cib, of_nodes("node1", "node2"))
    return cib


def test_a_former_cluster_gets_it_off() -> None:
    """With the next run of cxm-setup cluster; --dry-run says so."""
    cib = _cib()
    for each in section(cib, "resources").findall(f"primitive[@id='{OWN}']"):
        section(cib, "resources").remove(each)
    before = fromstring(tostring(cib))
    basis.edit(cib, of_nodes("node1", "node2"))
    told = difference.told(before, cib)
    assert any(OWN in line and "target-role Stopped" in line for line in told), told
    assert all(OWN in line for line in told)


def _state(cib: Element) -> balancer.Balancer:
    placed = {OWN: Placed(OWN, "Started", ("node1",))}
    found = balancer.of(cib, Status((), quorate=True, fencing_enabled=True, resources=placed))
    assert found is not None
    return found


def test_the_same_command_once_more_leaves_it_switched_on() -> None:
    """With its interval and what it has noted; to another tool 'on' is no word at all."""
    cib = _cib()
    balancer.switch(cib, on=True)
    balancer.note_moved(cib, {"cxm-lab-1": 7.0})
    (monitor,) = (each for each in cib.iter("op") if each.get("id") == f"{OWN}-monitor")
    monitor.set("interval", "900s")
    before = tostring(cib)
    basis.edit(cib, of_nodes("node1", "node2"))
    assert tostring(cib) == before
    for holder in cib.iter("meta_attributes"):
        for pair in holder.findall("nvpair[@name='target-role']"):
            holder.remove(pair)
    basis.edit(cib, of_nodes("node1", "node2"))
    assert _state(cib).on


def test_what_is_noted_is_read_back() -> None:
    """Damaged words tell nothing."""
    cib = _cib()
    assert _state(cib) == balancer.Balancer(on=False, node="node1")
    balancer.note_moved(cib, {"cxm-lab-1": 7.0, "cxm-lab-2": 8.9})
    balancer.note_last(cib, 12.0, "VM 1\nstays", bad=True)
    assert balancer.moved(cib) == {"cxm-lab-1": 7.0, "cxm-lab-2": 9.0}
    assert _state(cib) == balancer.Balancer(
        on=False, node="node1", at=12.0, last="VM 1 stays", bad=True
    )
    for pair in cib.iter("nvpair"):
        if pair.get("name") in ("cxm-moved", "cxm-last"):
            pair.set("value", "cxm-lab-1=x y")
    assert balancer.moved(cib) == {}
    assert _state(cib).at is None
