# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""The basis of a cluster's CIB makes Pacemaker's own scheduler decide as the design says."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from xml.etree.ElementTree import Element, SubElement, fromstring, tostring

import pytest

from cxm.cluster import basis, difference, nodes
from cxm.cluster.basis import Basis, FenceDevice, Sbd
from cxm.cluster.cib import pairs
from cxm.cluster.elements import put_pair
from cxm.errors import NotFoundError
from tests.fakes.cib import BMC, EMPTY, Cluster, Step, of_nodes, section, vm_id, waits_for

VMS = {1: "node1", 2: "node2", 3: "node2"}


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    """Two nodes, three VMs."""
    return Cluster(str(tmp_path), VMS)


def _what(steps: Sequence[Step], *words: str) -> list[tuple[str, str]]:
    """The steps that begin with one of the words, each with its node."""
    return sorted((each.what, each.node) for each in steps if each.what.startswith(words))


def _one(steps: Sequence[Step], what: str, node: str) -> Step:
    (found,) = (each for each in steps if (each.what, each.node) == (what, node))
    return found


_GUESTS = ("start cxm-lab", "stop cxm-lab", "migrate_to cxm-lab")
_LOCKS = tuple(f"start cxm-{each}" for each in ("storage", "dlm", "lvmlockd", "lockspace"))


@pytest.mark.parametrize("nodes", [("node1", "node2"), ("a", "b", "c")])
def test_pacemaker_finds_nothing_to_complain_of(tmp_path: Path, nodes: tuple[str, ...]) -> None:
    """Neither without a VM nor with one."""
    assert Cluster(str(tmp_path), {}, *nodes).verify() == ""
    assert Cluster(str(tmp_path), {1: nodes[0]}, *nodes).verify() == ""


@pytest.mark.parametrize("is_cold", [True, False])
def test_no_start_waits_for_the_locks_of_a_node(tmp_path: Path, *, is_cold: bool) -> None:
    """A VM waits for its own node's by itself; an order waits for all that are being started."""
    cluster = Cluster(str(tmp_path), VMS, start=not is_cold)
    if not is_cold:
        # A node is lost, one of its VMs could not be started yet when it is back.
        cluster.go_on("--node-fail", "node2", "--op-fail", "cxm-lab-3_start_0@node1=1")
    steps = cluster.ask() if is_cold else cluster.ask("--node-up", "node2")
    locks = {each.number for each in steps if each.what.startswith("start cxm-lock")}
    assert ("start cxm-lockspace", "node2") in _what(steps, "start")
    starts = [each for each in steps if each.what.startswith("start cxm-lab")]
    assert [each.node for each in starts] == (["node1", "node2", "node2"] if is_cold else ["node1"])
    for each in starts:
        assert not locks & waits_for(steps, each)


def test_locks_are_given_out_before_what_waits_for_them(tmp_path: Path) -> None:
    """A node does six things at once: so many VMs that wait would keep its locks from starting.

    Pacemaker gives out what is ready in the order of its graph.
    """
    vms = {vm: ("node1", "node2")[vm % 2] for vm in range(8)}
    steps = Cluster(str(tmp_path), vms, start=False).ask()
    locks = [n for n, each in enumerate(steps) if each.what.startswith(_LOCKS)]
    guests = [n for n, each in enumerate(steps) if each.what.startswith("start cxm-lab")]
    assert len(locks) == 2 * len(_LOCKS)
    assert max(locks) < min(guests)


def test_locks_of_one_node_that_never_start_hold_up_nobody_else(tmp_path: Path) -> None:
    """A VM whose start there fails three times, for it waited in vain, goes elsewhere."""
    cluster = Cluster(str(tmp_path), {1: "node1", 2: "node2"}, start=False)
    failed = ("--op-fail", "cxm-lockspace_start_0@node2=1")
    # The simulation does no more once something has failed: one of both in each turn.
    for turn in range(8):
        cluster.go_on(*failed, "--op-fail", "cxm-lab-2_start_0@node2=1")
        assert turn < 1 or cluster.runs_on(1) == {"node1"}
    assert cluster.runs_on(2) == {"node1"}
    steps = cluster.go_on()
    assert cluster.where("cxm-lockspace") == {"node1", "node2"}
    assert not _what(steps, *_GUESTS)


def test_guest_that_cannot_leave_is_stopped_before_the_locks(cluster: Cluster) -> None:
    """Nor can the node, with a volume that is active."""
    for vm in (2, 3):
        (found,) = cluster.cib.iterfind(f".//primitive[@id='{vm_id(vm)}']/meta_attributes")
        put_pair(found, "allow-migrate", "false")
    basis.edit_facts(cluster.cib, "node2", {"standby": "on"}, {})
    steps = cluster.go_on()
    last = waits_for(steps, _one(steps, "stop cxm-lockspace", "node2"))
    for vm in (2, 3):
        assert _one(steps, f"stop {vm_id(vm)}", "node2").number in last
        assert cluster.runs_on(vm) == {"node1"}


def test_order_of_former_clusters_goes() -> None:
    """With the next run of cxm-setup cluster; --dry-run says so."""
    cib = _cib()
    former = {"id": "cxm-locks-then-domain", "first": basis.LOCKS, "then": "cxm-domain"}
    SubElement(section(cib, "constraints"), "rsc_order", former)
    before = fromstring(tostring(cib))
    basis.edit(cib, of_nodes("node1", "node2"))
    assert difference.told(before, cib) == ["- rsc_order cxm-locks-then-domain"]


def test_lost_node_is_fenced_before_its_guests_start(cluster: Cluster) -> None:
    """A fencing that never succeeds is a start that never happens."""
    steps = cluster.ask("--node-fail", "node2")
    fence = _one(steps, "fence", "node2")
    assert _what(steps, *_GUESTS) == [("start cxm-lab-2", "node1"), ("start cxm-lab-3", "node1")]
    for vm in (2, 3):
        assert fence.number in waits_for(steps, _one(steps, f"start {vm_id(vm)}", "node1"))


def test_node_that_comes_back_touches_nothing(cluster: Cluster) -> None:
    """It gets its locks; guests that run elsewhere now stay there."""
    cluster.go_on("--node-fail", "node2")
    steps = cluster.go_on("--node-up", "node2")
    assert ("start cxm-lockspace", "node2") in _what(steps, "start")
    assert not _what(steps, *_GUESTS)
    assert cluster.runs_on(2) == {"node1"}


def test_standby_migrates_and_then_ends_the_locks(cluster: Cluster) -> None:
    """Guests leave alive; the locks go when nobody needs them."""
    basis.edit_facts(cluster.cib, "node2", {"standby": "on"}, {})
    steps = cluster.go_on()
    moves = ["migrate_to cxm-lab-2", "migrate_to cxm-lab-3"]
    assert _what(steps, "migrate_to", "start cxm-lab") == [(each, "node2") for each in moves]
    last = waits_for(steps, _one(steps, "stop cxm-lockspace", "node2"))
    for vm in (2, 3):
        assert _one(steps, f"stop {vm_id(vm)}", "node2").number in last
        assert cluster.runs_on(vm) == {"node1"}


@pytest.mark.parametrize("failure", ["cxm-lvmlockd_monitor_15000", "cxm-lockspace_monitor_30000"])
def test_dead_lock_daemon_is_started_again_and_no_guest_stops(
    cluster: Cluster, failure: str
) -> None:
    """It adopts its locks; also after more failures than anything else is allowed."""
    for _time in range(5):
        steps = cluster.go_on("--op-inject", f"{failure}@node2=7")
        assert ("start cxm-lockspace", "node2") in _what(steps, "start")
        assert not _what(steps, *_GUESTS, "fence")
    assert cluster.runs_on(2) == {"node2"}


def test_dead_dlm_is_fenced(cluster: Cluster) -> None:
    """Its locks cannot be known any more."""
    steps = cluster.ask("--op-inject", "cxm-dlm_monitor_60000@node2=7")
    fence = _one(steps, "fence", "node2")
    assert fence.number in waits_for(steps, _one(steps, "start cxm-lab-2", "node1"))


def test_guest_that_does_not_leave_keeps_its_locks(cluster: Cluster) -> None:
    """A failed migration is blocked: the guest goes on, so the node keeps what it needs."""
    basis.edit_facts(cluster.cib, "node2", {"standby": "on"}, {})
    cluster.go_on("--op-fail", "cxm-lab-2_migrate_to_0@node2=1")
    cluster.go_on()  # the other guest leaves
    assert "node2" in cluster.runs_on(2)
    assert cluster.runs_on(3) == {"node1"}
    assert not _what(cluster.ask(), "stop", "start", "fence")


def test_placeholder_is_never_looked_for(tmp_path: Path) -> None:
    """It keeps the template's constraints valid, and no agent is ever called for it."""
    steps = Cluster(str(tmp_path), {}, start=False).go_on()
    assert not [each for each in steps if "cxm-nothing" in each.what]


def test_failed_start_is_tried_again(cluster: Cluster) -> None:
    """On the same node, and elsewhere from the third failure on."""
    for place in ("node1", "node1", "node2"):
        cluster.go_on(
            "--op-inject", "cxm-lab-1_start_0@node1=1", "--op-fail", "cxm-lab-1_monitor_10000@x=1"
        )
        assert cluster.runs_on(1) == {place}


def test_guests_go_on_where_there_is_no_majority(tmp_path: Path) -> None:
    """But nothing is started or fenced by those who are few: the many fence them, if there are."""
    cluster = Cluster(str(tmp_path), {1: "a"}, "a", "b", "c")
    steps = cluster.ask("--quorum", "false", "--node-fail", "b", "--node-fail", "c")
    assert _what(steps, "start", "fence", "stop cxm-lab") == []


def test_node_with_more_guests_wins_a_duel(cluster: Cluster) -> None:
    """Both nodes of a pair want to fence the other: who attacks the fuller one waits."""
    assert _one(cluster.ask("--node-fail", "node2"), "fence", "node2").delay == 15
    assert _one(cluster.ask("--node-fail", "node1"), "fence", "node1").delay == 0


def test_capacity_counts(tmp_path: Path) -> None:
    """More guests than have room are not started on the node that is left."""
    cluster = Cluster(str(tmp_path), {vm: ("node1", "node2")[vm % 2] for vm in range(8)})
    cluster.go_on("--node-fail", "node2")
    assert sum(bool(cluster.runs_on(vm)) for vm in range(8)) == 600 // 112


# --- the tree -------------------------------------------------------------------------------------


def _cib(given: Basis | None = None) -> Element:
    cib = fromstring(EMPTY)
    basis.edit(cib, given or of_nodes("node1", "node2"))
    return cib


def _value(cib: Element, name: str) -> str | None:
    return next(
        (each.get("value") for each in cib.iter("nvpair") if each.get("name") == name), None
    )


def test_second_time_changes_nothing() -> None:
    """Also with Pacemaker's own additions."""
    cib = _cib()
    before = tostring(cib)
    basis.edit(cib, of_nodes("node1", "node2"))
    assert tostring(cib) == before


def test_what_an_administrator_tuned_stays() -> None:
    """What cxm cannot work without is put right."""
    cib = _cib()
    for pair in cib.iter("nvpair"):
        if pair.get("name") in ("migration-limit", "stonith-enabled", "resource-stickiness"):
            pair.set("value", "false" if pair.get("name") == "stonith-enabled" else "5")
    operation = next(each for each in cib.iter("op") if each.get("id") == "cxm-domain-start")
    operation.set("timeout", "900s")
    SubElement(section(cib, "resources"), "primitive", {"id": "theirs"})
    basis.edit(cib, of_nodes("node1", "node2"))
    assert _value(cib, "migration-limit") == "5"
    assert _value(cib, "resource-stickiness") == "5"
    assert _value(cib, "stonith-enabled") == "true"
    assert operation.get("timeout") == "900s"
    assert section(cib, "resources").find("primitive[@id='theirs']") is not None


def test_new_password_of_a_bmc_arrives() -> None:
    """The same command with another parameter changes that device."""
    cib = _cib()
    given = of_nodes("node1", "node2")
    changed = replace(given.fencing[1], parameters={**given.fencing[1].parameters, "password": "n"})
    basis.edit(cib, replace(given, fencing=[given.fencing[0], changed]))
    found = section(cib, "resources").find("primitive[@id='fence-node2']")
    assert found is not None
    assert _value(found, "password") == "n"


def _proven(given: Basis) -> Element:
    """A CIB with these devices; the fencing of all nodes is proven."""
    cib = fromstring(EMPTY)
    for number, name in enumerate(given.nodes, 1):
        SubElement(section(cib, "nodes"), "node", {"id": str(number), "uname": name})
    basis.edit(cib, given)
    for name in given.nodes:
        nodes.set_attribute(cib, name, nodes.FENCING, "1700000000")
    return cib


def _proofs(cib: Element) -> set[str]:
    return {name for name, each in nodes.facts(cib).items() if each.proven}


def _with(device: FenceDevice) -> Basis:
    """The basis of two nodes, the second with this device."""
    given = of_nodes("node1", "node2")
    return replace(given, fencing=[given.fencing[0], device])


SWITCH = FenceDevice("node2", "fence_apc", {"pcmk_host_map": "node2:7"})


@pytest.mark.parametrize(
    "changed",
    [
        _with(FenceDevice("node2", "fence_ipmilan", {**BMC, "ip": "10.0.0.9"})),
        _with(FenceDevice("node2", "fence_ipmilan", {**BMC, "password": "n"})),
        _with(FenceDevice("node2", "fence_redfish", BMC)),
        replace(_with(SWITCH), fencing=[*of_nodes("node1", "node2").fencing, SWITCH]),
    ],
)
def test_proof_goes_with_the_device_that_it_proved(changed: Basis) -> None:
    """Another BMC, agent, password, one device more: only that node's, and only once."""
    cib = _proven(of_nodes("node1", "node2"))
    before = fromstring(tostring(cib))
    basis.edit(cib, changed)
    assert _proofs(cib) == {"node1"}
    assert nodes.unproven(before, cib) == ["node2"]
    nodes.set_attribute(cib, "node2", nodes.FENCING, "1800000000")
    basis.edit(cib, changed)
    assert _proofs(cib) == {"node1", "node2"}


def test_device_in_anothers_place_has_its_own_parameters_only() -> None:
    """An old port beside a new plug would be another node's outlet; what an expert tuned stays."""
    cib = _proven(of_nodes("node1", "node2"))
    (held,) = cib.iterfind(".//primitive[@id='fence-node2']/instance_attributes")
    put_pair(held, "port", "3")
    put_pair(held, "pcmk_monitor_timeout", "90s")
    basis.edit(cib, _with(FenceDevice("node2", "fence_apc", {"ip": "10.0.0.9", "plug": "5"})))
    (device,) = cib.iterfind(".//primitive[@id='fence-node2']")
    assert pairs(device, "instance_attributes") == {
        "ip": "10.0.0.9",
        "plug": "5",
        "pcmk_host_list": "node2",
        "pcmk_monitor_timeout": "90s",
    }


def test_sbd_is_a_device_of_every_node_that_has_to_be_proven() -> None:
    """Its message must reach each of them; the same command once more changes nothing."""
    given = of_nodes("node1", "node2")
    cib = _proven(given)
    basis.edit(cib, replace(given, sbd=Sbd("/dev/disk/by-id/sbd", 30)))
    assert not _proofs(cib)
    cib = _proven(replace(given, sbd=Sbd("/dev/disk/by-id/sbd", 30)))
    basis.edit(cib, replace(given, sbd=Sbd("/dev/disk/by-id/sbd", 30)))
    assert _proofs(cib) == {"node1", "node2"}
    basis.edit(cib, replace(given, sbd=Sbd("/dev/disk/by-id/other", 30)))
    assert not _proofs(cib)


def test_node_that_comes_or_goes_costs_nobody_his_proof() -> None:
    """Whom else SBD is for, and the delays of pairs, say nothing about what a device does."""
    sbd = Sbd("/dev/disk/by-id/sbd", 30)
    cib = _proven(replace(of_nodes("node1", "node2"), sbd=sbd))
    SubElement(section(cib, "nodes"), "node", {"id": "3", "uname": "node3"})
    basis.edit(cib, replace(of_nodes("node1", "node2", "node3"), sbd=sbd))
    assert _proofs(cib) == {"node1", "node2"}
    basis.edit_gone(cib, "node3")
    basis.edit(cib, replace(of_nodes("node1", "node2"), sbd=sbd))
    assert _proofs(cib) == {"node1", "node2"}


def test_device_that_was_taken_out_with_another_node_proves_nothing() -> None:
    """A switch that was kept off one node and was for both."""
    cib = _proven(of_nodes("node1", "node2"))
    for pair in section(cib, "resources").iterfind(".//nvpair[@name='pcmk_host_list']"):
        pair.set("value", "node1 node2")
    basis.edit_gone(cib, "node2")
    assert "node1" not in _proofs(cib)


def test_nothing_is_left_of_a_node_that_is_gone() -> None:
    """Both its fence devices, their order, and who preferred it; the others' stay."""
    nodes = ("node1", "node2", "node3")
    given = of_nodes(*nodes)
    switch = FenceDevice("node3", "fence_apc", {"pcmk_host_map": "node3:7"})
    cib = _cib(replace(given, fencing=[*given.fencing, switch]))
    wish = {"id": "cxm-c-1-prefer", "rsc": "cxm-c-1", "node": "node3", "score": "100"}
    SubElement(section(cib, "constraints"), "rsc_location", wish)
    basis.edit_gone(cib, "node3")
    assert "node3" not in tostring(cib, encoding="unicode")
    assert cib.find("configuration/fencing-topology") is None
    assert section(cib, "resources").find("primitive[@id='fence-node2']") is not None


def test_second_device_of_a_node_is_tried_second(tmp_path: Path) -> None:
    """A power switch for when the BMC has no power either."""
    given = of_nodes("node1", "node2")
    switch = FenceDevice("node2", "fence_apc", {"pcmk_host_map": "node2:7"})
    cib = _cib(replace(given, fencing=[*given.fencing, switch]))
    levels = [
        (each.get("target"), each.get("index"), each.get("devices"))
        for each in cib.iter("fencing-level")
    ]
    assert levels == [("node2", "1", "fence-node2"), ("node2", "2", "fence-node2-2")]


def test_facts_of_a_node_that_pacemaker_does_not_know_are_an_error() -> None:
    """It has to be seen once."""
    with pytest.raises(NotFoundError, match="does not know the node node9"):
        basis.edit_facts(_cib(), "node9", {}, {})
    assert not basis.has_facts(_cib(), "node9")
