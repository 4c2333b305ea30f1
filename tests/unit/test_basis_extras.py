# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""A system datastore and SBD leave Pacemaker's decisions about VMs as they are without them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from xml.etree.ElementTree import fromstring, tostring

import pytest

from cxm.cluster import basis
from cxm.cluster.basis import Basis, Sbd
from cxm.cluster.cib import pairs
from cxm.cluster.datastore import Datastore, Kind
from cxm.errors import RefusedError
from tests.fakes.cib import EMPTY, Cluster, Step, of_nodes, vm_id, waits_for

VMS = {1: "node1", 2: "node2", 3: "node2"}
MOUNT = "cxm-datastore-mount"
LOST = f"{MOUNT}_monitor_30000@node2=7"
STUCK = f"{MOUNT}_stop_0@node2=1"
_GUESTS = ("start cxm-lab", "stop cxm-lab", "migrate_to cxm-lab")
_OURS = (*_GUESTS, "fence", "start cxm-lock", "stop cxm-lock")
_BOTH = pytest.mark.parametrize("kind", [Kind.GFS2, Kind.NFS])


def _given(kind: Kind, *nodes: str) -> Basis:
    source = "cxm-system-datastore" if kind is Kind.GFS2 else "nas:/one"
    shared = Datastore(kind, source, "/var/lib/one/datastores/100")
    return replace(of_nodes(*nodes), datastore=shared, sbd=Sbd("/dev/disk/by-id/sbd", 30))


def _cluster(path: Path, kind: Kind) -> Cluster:
    return Cluster(str(path), VMS, given=_given(kind, "node1", "node2"))


def _what(steps: Sequence[Step], *words: str) -> list[tuple[str, str]]:
    return sorted((each.what, each.node) for each in steps if each.what.startswith(words))


def _one(steps: Sequence[Step], what: str, node: str) -> Step:
    (found,) = (each for each in steps if (each.what, each.node) == (what, node))
    return found


@_BOTH
def test_pacemaker_finds_nothing_to_complain_of(tmp_path: Path, kind: Kind) -> None:
    """Three nodes, SBD as their second level."""
    given = _given(kind, "a", "b", "c")
    assert Cluster(str(tmp_path), {1: "a"}, given=given, start=False).verify() == ""


def test_lost_node_touches_no_mount_elsewhere(tmp_path: Path) -> None:
    """Its guests start after it was fenced, and wait for nothing of the datastore."""
    steps = _cluster(tmp_path, Kind.GFS2).ask("--node-fail", "node2")
    assert _what(steps, "start cxm", "stop") == [
        ("start cxm-lab-2", "node1"),
        ("start cxm-lab-3", "node1"),
    ]
    assert _one(steps, "fence", "node2").number in waits_for(
        steps, _one(steps, "start cxm-lab-2", "node1")
    )


@pytest.mark.extensive
def test_failed_fencing_starts_nothing_and_stops_nothing(tmp_path: Path) -> None:
    """What Pacemaker orders besides it: nothing. It also holds up the guests of other lost nodes.

    So a BMC that is dead with its node needs a second device.
    """
    five = Cluster(str(tmp_path), {1: "a", 2: "b", 3: "c"}, "a", "b", "c", "d", "e")
    steps = five.ask("--node-fail", "b", "--node-fail", "c")
    fences = {each.number for each in steps if each.what == "fence"}
    at_once = [each for each in steps if not fences & {each.number, *waits_for(steps, each)}]
    assert not _what(at_once, "start cxm", "stop cxm", "migrate_to")
    for vm in (2, 3):
        (start,) = (each for each in steps if each.what == f"start {vm_id(vm)}")
        assert fences <= waits_for(steps, start)


@pytest.mark.extensive
@_BOTH
def test_lost_mount_is_made_again_and_nothing_else(tmp_path: Path, kind: Kind) -> None:
    """Somebody has unmounted it."""
    steps = _cluster(tmp_path, kind).ask("--op-inject", LOST)
    assert (f"start {MOUNT}", "node2") in _what(steps, "start")
    assert not _what(steps, *_OURS)


@pytest.mark.extensive
@_BOTH
def test_mount_that_does_not_go_fences_nobody(tmp_path: Path, kind: Kind) -> None:
    """Its guests go on, and those of the other node are started here when that dies."""
    cluster = _cluster(tmp_path, kind)
    steps = cluster.go_on("--op-inject", LOST, "--op-fail", STUCK)
    assert not _what(steps, *_OURS)
    assert not _what(cluster.go_on(), *_OURS)
    later = cluster.ask("--node-fail", "node1")
    assert (f"start {vm_id(1)}", "node2") in _what(later, "start")
    assert _what(later, "fence") == [("fence", "node1")]
    restart = cluster.ask("--op-inject", "cxm-lvmlockd_monitor_15000@node2=7")
    assert ("start cxm-lvmlockd", "node2") in _what(restart, "start")
    assert not _what(restart, *_GUESTS, "fence")


@pytest.mark.extensive
@_BOTH
def test_mount_that_does_not_come_holds_up_no_failover(tmp_path: Path, kind: Kind) -> None:
    """It is given up after some times; guests are started as if there were none."""
    cluster = _cluster(tmp_path, kind)
    for _time in range(4):
        steps = cluster.go_on("--op-inject", LOST, "--op-fail", f"{MOUNT}_start_0@node2=1")
        assert not _what(steps, *_OURS)
    later = cluster.ask("--node-fail", "node1")
    start = waits_for(later, _one(later, f"start {vm_id(1)}", "node2"))
    assert not {each.number for each in later if "datastore" in each.what and each.node} & start


@pytest.mark.extensive
def test_node_that_comes_back_delays_nothing(tmp_path: Path) -> None:
    """It mounts after it has its locks; on the other node nothing happens."""
    cluster = _cluster(tmp_path, Kind.GFS2)
    cluster.go_on("--node-fail", "node2")
    steps = cluster.go_on("--node-up", "node2")
    mount = waits_for(steps, _one(steps, f"start {MOUNT}", "node2"))
    assert _one(steps, "start cxm-lockspace", "node2").number in mount
    assert not _what(steps, *_GUESTS, "fence")
    assert not [each for each in steps if each.node == "node1" and each.what.startswith("s")]


@pytest.mark.extensive
def test_lock_daemon_is_started_again_below_the_mount(tmp_path: Path) -> None:
    """As below a guest: what is mounted needs DLM, not lvmlockd."""
    steps = _cluster(tmp_path, Kind.GFS2).ask("--op-inject", "cxm-lvmlockd_monitor_15000@node2=7")
    assert ("start cxm-lockspace", "node2") in _what(steps, "start")
    assert not [each for each in steps if "datastore" in each.what and each.node]


@pytest.mark.extensive
def test_standby_unmounts_before_the_locks_end(tmp_path: Path) -> None:
    """And the locks end after the guests have left: fenced because they do not, it has none."""
    cluster = _cluster(tmp_path, Kind.GFS2)
    basis.edit_facts(cluster.cib, "node2", {"standby": "on"}, {})
    steps = cluster.ask()
    locks = waits_for(steps, _one(steps, "stop cxm-lockspace", "node2"))
    for what in (f"stop {MOUNT}", "stop cxm-datastore-volume", "stop cxm-lab-2", "stop cxm-lab-3"):
        assert _one(steps, what, "node2").number in locks


def test_sbd_is_the_last_level_of_a_node() -> None:
    """A BMC is faster; the disk answers when it has no power."""
    cib = fromstring(EMPTY)
    basis.edit(cib, _given(Kind.NFS, "node1", "node2"))
    levels = [
        (each.get("target"), each.get("index"), each.get("devices"))
        for each in cib.iter("fencing-level")
    ]
    assert levels == [
        ("node1", "1", "fence-node1"),
        ("node1", "2", "fence-sbd"),
        ("node2", "1", "fence-node2"),
        ("node2", "2", "fence-sbd"),
    ]


def test_sbd_has_three_nodes_and_forgets_the_one_that_left() -> None:
    """A slot that nobody reads must not count as a way to fence; the others keep theirs."""
    cib = fromstring(EMPTY)
    basis.edit(cib, _given(Kind.NFS, "node1", "node2"))
    basis.edit(cib, _given(Kind.NFS, "node1", "node2", "node3"))

    def sbd() -> dict[str, str]:
        found = cib.find(".//primitive[@id='fence-sbd']")
        assert found is not None
        return pairs(found, "instance_attributes")

    assert sbd()["pcmk_host_list"] == "node1 node2 node3"
    assert "pcmk_delay_base" not in sbd()
    basis.edit_gone(cib, "node3")
    assert sbd()["pcmk_host_list"] == "node1 node2"
    assert b"node3" not in tostring(cib)
    assert len(cib.findall(".//fencing-level")) == 4
    basis.edit(cib, _given(Kind.NFS, "node1", "node2"))
    assert sbd()["pcmk_delay_base"] == "node1:5s"


def test_nothing_is_said_of_what_is_not_wanted() -> None:
    """Neither SBD nor a datastore by default."""
    cib = fromstring(EMPTY)
    basis.edit(cib, of_nodes("node1", "node2"))
    ids = [each.get("id", "") for each in cib.iter("primitive")]
    assert not [each for each in ids if "datastore" in each or "sbd" in each]
    assert cib.find(".//fencing-level") is None


def test_other_datastore_is_refused() -> None:
    """A second one would be mounted over the first."""
    cib = fromstring(EMPTY)
    basis.edit(cib, _given(Kind.NFS, "node1", "node2"))
    with pytest.raises(RefusedError, match="is nas:/one on"):
        basis.edit(cib, _given(Kind.GFS2, "node1", "node2"))
