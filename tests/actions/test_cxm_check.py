# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""What ``cxm check`` finds: one thing wrong at a time, and nothing else is said to be."""

import io
import json
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import SubElement

import pytest

from cxm import __version__
from cxm.cli import main
from cxm.cluster import cib as documents
from cxm.cluster import nodes, peerserver
from cxm.cluster.guestdisks import needs
from cxm.cluster.nodefindings import ahead
from cxm.errors import UsageError
from cxm.names import VmId
from cxm.setup.report import Check, failed, warning
from tests.fakes.clusternode import SBD, running_sbd
from tests.fakes.crm import NOW, VERSIONS, FakeCluster, Place, two_nodes
from tests.fakes.machine import CLOUD

HEALTHY = {
    "state": "ok",
    "fencing node1": "ok",
    "fencing node2": "ok",
    "N+1": "ok",
    "quorum": "warning",
    "domains": "ok",
    "memory": "ok",
    "bridges": "ok",
    "kernels": "ok",
    "volumes": "ok",
    "connections": "ok",
    "clock": "ok",
    "xendomains": "ok",
    "cxm-tend": "ok",
    "versions": "ok",
}


@pytest.fixture
def crm(tmp_path: Path) -> FakeCluster:
    """node1 and node2, a VM on each, one that is off."""
    return two_nodes(str(tmp_path / "n"))


def test_pair_with_sbd_needs_no_human(crm: FakeCluster) -> None:
    """A message on its disk is an answer also when a node has lost its power."""
    _sbd(crm)
    _sbd_runs(crm, SBD)
    _code, found = _check(crm)
    levels = {each["name"]: each["level"] for each in found}
    assert levels["sbd"] == "ok"
    assert "quorum" not in levels


def _check(crm: FakeCluster) -> tuple[int, list[dict[str, str]]]:
    crm.said.truncate(0)
    crm.said.seek(0)
    code = main.main(["check", "--json"], crm.world())
    return code, json.loads(crm.text)


def test_healthy_cluster_has_no_errors(crm: FakeCluster) -> None:
    """Everything that was looked at is a line."""
    code, found = _check(crm)
    assert code == 0
    assert {each["name"]: each["level"] for each in found} == HEALTHY
    assert main.main(["check"], crm.world()) == 0
    assert "  ok       state" in crm.text
    assert "Seen from node1" in crm.text


def _lv(crm: FakeCluster, vm: int, state: str, *, active: bool = False) -> None:
    tags = [f"cxm.cloud={CLOUD}", f"cxm.vm={vm}", "cxm.disk=0", f"cxm.state={state}"]
    crm.node.add_lv(f"lv-one-{vm}-0", 4, tags=tags, content=b"")
    if not active:
        crm.deactivate(f"lv-one-{vm}-0")


def _device(crm: FakeCluster, _: object = None) -> None:
    resources = crm.cib.find("configuration/resources")
    assert resources is not None
    resources.remove(next(each for each in resources if each.get("id") == "fence-node2"))


def _sbd(crm: FakeCluster) -> None:
    resources = crm.cib.find("configuration/resources")
    assert resources is not None
    device = SubElement(resources, "primitive", {"id": "fence-sbd", "class": "stonith"})
    group = SubElement(device, "instance_attributes", {"id": "fence-sbd-p"})
    SubElement(group, "nvpair", {"id": "fence-sbd-d", "name": "devices", "value": SBD})


def _sbd_runs(crm: FakeCluster, disk: str) -> None:
    crm.units["sbd.service"], crm.sbd_pid = "active", 700
    running_sbd(crm.node, disk)


def _other_disk(crm: FakeCluster) -> None:
    _sbd(crm)
    _sbd_runs(crm, f"{SBD}2")


def _config(crm: FakeCluster, text: str) -> None:
    known = documents.find(crm.cib, CLOUD, VmId(7))
    assert known is not None
    documents.put(crm.cib, replace(known, config=text))


def _strange_tags(crm: FakeCluster) -> None:
    crm.node.add_lv("lv-one-9-0", 4, tags=["cxm.vm=9"], content=b"")


def _found(crm: FakeCluster, *findings: Check) -> None:
    crm.answers["check"]["findings"] = [asdict(each) for each in findings]


ERRORS: list[tuple[Callable[[FakeCluster], object], str, str]] = [
    (lambda crm: setattr(crm, "quorate", False), "state", "NOT QUORATE"),
    (lambda crm: crm.places.update({"cxm-cloudone1-7": Place((), "Stopped")}), "state",
     "VM web.home.net (VM 7) is DOWN"),
    (lambda crm: crm.places.update({"cxm-cloudone1-42": Place(("node1", "node2"))}),
     "duplicates", "VM db.home.net (VM 42) is on node1 and node2 at once"),
    (lambda crm: crm.xen.vm(42, 99), "duplicates",
     "VM db.home.net (VM 42) runs here, and the cluster says it is on node2"),
    (lambda crm: crm.xen.vm(7, 99), "duplicates", "VM web.home.net (VM 7) has 2 domains here"),
    (lambda crm: crm.xen.vm(66, 99), "domains", "one-66 (VM 66) is here, but the cluster does not"),
    (_device, "fencing node2", "no device can fence it"),
    (lambda crm: nodes.set_attribute(crm.cib, "node2", "cxm-fencing", None), "fencing node2",
     "fence-node2, never proven"),
    (lambda crm: crm.add_node("node3", memory=0, cxm_fencing=f"{NOW:.0f}"), "size of node3",
     "its memory is not known"),
    (lambda crm: setattr(crm.xen, "room_mib", 4000), "memory",
     "the cluster plans with 4096 MiB, but guests can have only 4000 MiB"),
    (lambda crm: os.rmdir(crm.node.path("sys/class/net/xenbr0")), "bridges",
     "xenbr0 is missing here; old.home.net, web.home.net, db.home.net need it"),
    (lambda crm: _config(crm, "kernel = '/boot/vmlinuz-6.1'\n"), "kernels",
     "/boot/vmlinuz-6.1 is missing here; web.home.net boot it"),
    (lambda crm: nodes.set_attribute(crm.cib, "node2", "cxm-host", "node1"), "hosts",
     "'node1' may mean node1 or node2"),
    (lambda crm: crm.node.state.lvs.pop("lv-one-42-0"), "volumes",
     "VM db.home.net (VM 42) has lost lv-one-42-0"),
    (lambda crm: crm.deactivate("lv-one-7-0"), "volumes",
     "VM web.home.net (VM 7) runs here without lv-one-7-0"),
    (_strange_tags, "volumes", "lv-one-9-0: the tags cxm.vm=9 are incomplete or damaged"),
    (lambda crm: crm.broken.add("fence-node2"), "state",
     "THE FENCING DEVICE OF node2 DOES NOT ANSWER: no answer"),
    (lambda crm: crm.broken.add("node2"), "state", "NODE node2 HAS NO LOCKS"),
    (lambda crm: setattr(crm.node, "has_vg", False), "volumes", "LVM_XEN does not exist"),
    (lambda crm: setattr(crm.node, "shared", False), "volumes", "LVM_XEN is not shared"),
    (lambda crm: _config(crm, "name is"), "configuration", "not a 'key = value' of xl.cfg"),
    (lambda crm: setattr(crm, "unreachable", True), "connections",
     "the node node2 cannot be reached from node1: Connection timed out"),
    (lambda crm: nodes.set_attribute(crm.cib, "node2", "cxm-hostkey", None), "connections",
     "the node node2 has not told its address and host key"),
    (lambda crm: crm.units.update({"xendomains.service": "enabled"}), "xendomains", "enabled"),
    (lambda crm: crm.units.update({"cxm-tend.service": "enabled"}), "cxm-tend", "enabled"),
    (_sbd, "sbd", "inactive: nobody reads its disk here"),
    (_other_disk, "sbd", f"it does not read {SBD}, which messages are written to"),
    (lambda crm: _found(crm, failed("bridges", "xenbr1 is missing here", "make it")), "bridges",
     "node2: xenbr1 is missing here"),
    (lambda crm: crm.answers.update({"check": {"versions": {}}}), "connections",
     "node2 does not tell what it found as this node does"),
]  # fmt: skip

WARNINGS: list[tuple[Callable[[FakeCluster], object], str, str]] = [
    (lambda crm: nodes.set_attribute(crm.cib, "node2", "standby", "on"), "state",
     "node2 takes no VMs: standby"),
    (lambda crm: setattr(crm.members["node2"], "online", False), "state", "node2 is offline"),
    (lambda crm: setattr(crm.members["node2"], "pending", True), "state",
     "node node2 has not joined Pacemaker: no VM can start on it"),
    (lambda crm: nodes.set_attribute(crm.cib, "node2", "cxm-fencing", "1700000000"),
     "fencing node2", "proven 1108 days ago"),
    (lambda crm: crm.add_vm(8, "node1", memory=3000), "N+1",
     "if node1 dies, no place is left for one-8 (3000 MiB)"),
    (lambda crm: crm.xen.vm(42, 99, "--ps--", name="db.home.net--migratedaway"), "domains",
     "db.home.net--migratedaway is a remainder of VM db.home.net (VM 42)"),
    (lambda crm: setattr(crm.xen, "room_mib", 8192), "memory",
     "the cluster plans with 4096 MiB, and guests can have 8192 MiB"),
    (lambda crm: crm.xen.rows.pop(), "domains",
     "VM web.home.net (VM 7) should be running here and has no domain"),
    (lambda crm: crm.xen.add("hand-made", 50, "-b----", uuid=f"{'1' * 8}{'-1111' * 3}-{'1' * 12}"),
     "domains", "not the cluster's: hand-made"),
    (lambda crm: crm.node.run(["lvchange", "-a", "ey", "LVM_XEN/lv-one-42-0"]), "volumes",
     "active here without their VM: lv-one-42-0"),
    (lambda crm: _lv(crm, 5, "delete-requested"), "volumes", "to be deleted: lv-one-5-0"),
    (lambda crm: _lv(crm, 5, "filling", active=True), "volumes", "incomplete: lv-one-5-0"),
    (lambda crm: _lv(crm, 5, "ready"), "volumes", "VMs that the cluster does not know: lv-one-5"),
    (lambda crm: setattr(crm, "clock", "no"), "clock", "not synchronised"),
    (lambda crm: crm.broken.add("cxm-watch"), "watch", "cxm-watch runs nowhere"),
    (lambda crm: crm.answers["check"]["versions"].update({"xen": "4.19.1"}), "versions",
     "xen is 4.17.5-pre on node1, 4.19.1 on node2"),
    (lambda crm: crm.answers["check"]["versions"].pop("cxm"), "versions",
     f"cxm is {__version__} on node1, none on node2"),
    (lambda crm: crm.answers["check"].update({"began": NOW - 9, "ended": NOW - 9}), "clock",
     "the clock of node2 is 9 s behind that of node1"),
    (lambda crm: crm.answers["check"].update({"began": NOW + 60, "ended": NOW + 61}), "clock",
     "the clock of node2 is 61 s ahead of that of node1"),
    (lambda crm: _found(crm, warning("volumes", "active here without their VM: lv-one-5-0", "x")),
     "volumes", "node2: active here without their VM: lv-one-5-0"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "name", "text"), ERRORS)
def test_errors(
    crm: FakeCluster, spoil: Callable[[FakeCluster], object], name: str, text: str
) -> None:
    """Exit code 1, a sentence and what to do about it."""
    spoil(crm)
    code, found = _check(crm)
    assert code == 1
    wrong = [each for each in found if each["level"] == "failed" and text in each["found"]]
    assert [each["name"] for each in wrong] == [name], found
    assert wrong[0]["advice"]


@pytest.mark.parametrize(("spoil", "name", "text"), WARNINGS)
def test_warnings(
    crm: FakeCluster, spoil: Callable[[FakeCluster], object], name: str, text: str
) -> None:
    """To be known; the exit code stays 0."""
    spoil(crm)
    code, found = _check(crm)
    assert code == 0, found
    wrong = [each for each in found if each["level"] == "warning" and text in each["found"]]
    assert [each["name"] for each in wrong] == [name], found
    assert wrong[0]["advice"]


@pytest.mark.parametrize(("field", "value"), [("online", False), ("pending", True)])
def test_cluster_that_lacks_a_node_is_not_well(crm: FakeCluster, field: str, value: bool) -> None:
    """Dead, or heard by Corosync only: nothing of it may read as if all were there."""
    setattr(crm.members["node2"], field, value)
    _code, found = _check(crm)
    assert [each["level"] for each in found if each["name"] == "state"] == ["warning"]


def test_what_a_node_finds_is_found_from_every_other(crm: FakeCluster) -> None:
    """Each looks at itself, also for what is wrong with all; what all see alike is said once."""
    os.rmdir(crm.node.path("sys/class/net/xenbr0"))
    crm.xen.vm(66, 99)
    crm.node.run(["lvchange", "-a", "ey", "LVM_XEN/lv-one-42-0"])
    _lv(crm, 5, "delete-requested")
    answer = _asked_of(crm, "check")
    assert answer["versions"] == VERSIONS
    assert answer["began"] <= answer["ended"]
    crm.xen.rows.pop()
    crm.deactivate("lv-one-42-0")
    crm.answers["check"] = answer
    code, found = _check(crm)
    assert code == 1
    lacks = "xenbr0 is missing here; old.home.net, web.home.net, db.home.net need it"
    assert [each["found"] for each in found if each["level"] != "ok"][1:] == [
        lacks,
        "to be deleted: lv-one-5-0",
        "node2: one-66 (VM 66) is here, but the cluster does not know it",
        f"node2: {lacks}",
        "node2: active here without their VM: lv-one-42-0",
    ]
    assert "on node2: no other node can use it" in found[-1]["advice"]
    assert main.main(["check"], crm.world()) == 1
    assert crm.text.endswith("\nSeen from node1 and node2.\n")


@pytest.mark.parametrize(
    ("began", "ended", "off"),
    [(100, 130, 0), (90, 120, -10), (110, 150, 10), (99, 131, -1)],
)
def test_clocks_are_compared_while_a_node_looks(began: float, ended: float, off: float) -> None:
    """It takes long, so only what cannot be otherwise is said: asked at 100, answered at 140."""
    assert ahead(100, began, ended, 140) == off


def test_a_vlan_of_open_vswitch_is_its_bridge(crm: FakeCluster) -> None:
    """As the move of a guest sees it."""
    _config(crm, "vif = ['bridge=xenbr0.42', 'bridge=xenbr0:1,2']\n")
    _code, found = _check(crm)
    assert {each["level"] for each in found if each["name"] == "bridges"} == {"ok"}


def test_pacemaker_itself_is_asked_what_fits(crm: FakeCluster) -> None:
    """It takes VMs in the order of their ids, and may leave down what would fit."""
    crm.add_node("node3", memory=2100, cxm_fencing=f"{NOW:.0f}")
    crm.add_vm(8, "node1", memory=2000)
    crm.add_vm(1, "node1", memory=1000)
    _code, found = _check(crm)
    (about,) = [each for each in found if each["name"] == "N+1"]
    assert about["level"] == "warning"
    assert about["found"] == "if node1 dies, no place is left for one-8 (2000 MiB)"
    assert "packed more tightly" in about["advice"]


def test_death_that_costs_the_quorum_is_told(crm: FakeCluster) -> None:
    """Pacemaker's simulation starts all again: it does not know of votes."""
    crm.add_node("node3", cxm_fencing=f"{NOW:.0f}")
    crm.members["node3"].online = False
    _code, found = _check(crm)
    (about,) = [each for each in found if each["name"] == "N+1"]
    assert about["level"] == "warning"
    assert "the rest has no quorum" in about["found"]
    assert about["advice"].startswith("start the nodes that are away")


def test_nodes_of_different_versions(crm: FakeCluster) -> None:
    """While one is upgraded."""
    status = crm.cib.find("status")
    assert status is not None
    for number, version in enumerate(("3.16.1", "3.17.4")):
        group = crm.cib.makeelement("node_state", {"id": str(number)})
        status.append(group)
        inner = group
        for tag in ("transient_attributes", "instance_attributes"):
            made = inner.makeelement(tag, {})
            inner.append(made)
            inner = made
        inner.append(inner.makeelement("nvpair", {"name": "#feature-set", "value": version}))
    code, found = _check(crm)
    assert code == 0
    assert "nodes run different Pacemakers" in found[-1]["found"]


def test_vm_whose_move_is_under_way_is_no_duplicate(crm: FakeCluster) -> None:
    """It is on both nodes, and half of it here."""
    crm.places["cxm-cloudone1-42"] = Place(("node2", "node1"), "Migrating")
    crm.xen.vm(42, 99, "--p---", name="db.home.net--incoming")
    code, found = _check(crm)
    assert code == 0, found


def test_needs_of_a_configuration(crm: FakeCluster) -> None:
    """Volumes in our group, in each of xl's ways to write a disk; bridges of all interfaces."""
    known = documents.find(crm.cib, CLOUD, VmId(7))
    assert known is not None
    text = """disk = ['phy:/dev/LVM_XEN/lv-one-7-0,xvda,w',
      'vdev=xvdb,target=/dev/LVM_XEN/lv-one-7-1',
      '/dev/other/lv-one-7-2,raw,xvdc,rw', '/srv/cd.iso,raw,hdc:cdrom,r']
kernel = '/boot/k'
vif = ['bridge=br0', 'mac=02:00:00:00:00:07, bridge=br1 ,script=x']
"""
    found = needs(replace(known, config=text), "LVM_XEN")
    assert found.volumes == {"lv-one-7-0", "lv-one-7-1"}
    assert found.bridges == {"br0", "br1"}
    assert found.files == {"/boot/k"}
    with pytest.raises(UsageError, match="the configuration of web"):
        needs(replace(known, config="disk = [foo("), "LVM_XEN")


def test_processors_of_nodes_are_compared(crm: FakeCluster) -> None:
    """This node's own is noted; one that has not told is not called equal."""
    assert main.main(["check-cpu"], crm.world()) == 1
    assert crm.attribute("node1", "cxm-cpu") == "078bf3fd:80982201:20100800:00000005"
    assert "not known: run 'cxm check-cpu' on node2" in crm.text
    nodes.set_attribute(crm.cib, "node2", "cxm-cpu", "078bf3fd:80982201:20100800:00000005")
    assert main.main(["check-cpu"], crm.world()) == 0
    nodes.set_attribute(crm.cib, "node2", "cxm-cpu", "078bf3fd:80982201:20100800:00000001")
    crm.said.truncate(0)
    crm.said.seek(0)
    assert main.main(["check-cpu", "--json"], crm.world()) == 1
    assert "lacks 1 feature of node1" in json.loads(crm.text)[1]["text"]


def test_timeline_of_everything(crm: FakeCluster) -> None:
    """Fencing, operations and the log, the newest last."""
    crm.fence_events = [
        {"target": "node2", "action": "reboot", "status": "success", "delegate": "node1",
         "client": "pacemaker-controld.1", "completed": "2026-11-26 11:00:00Z"}
    ]  # fmt: skip
    crm.journal = json.dumps(
        {"MESSAGE": "root: cxm eject node2", "__REALTIME_TIMESTAMP": f"{NOW - 20:.0f}000000",
         "_HOSTNAME": "node1", "PRIORITY": "5", "SYSLOG_IDENTIFIER": "cxm"}
    )  # fmt: skip
    assert main.main(["timeline", "--since", "1d"], crm.world()) == 0
    lines = crm.text.splitlines()
    assert lines[0].startswith("WHEN                 NODE   WHAT (WHY)")
    assert "node2  was fenced by node1: rebooted (Pacemaker decided so" in lines[1]
    assert lines[2].endswith("node1  root: cxm eject node2")
    crm.said.truncate(0)
    crm.said.seek(0)
    assert main.main(["timeline", "--json", "--since", "1min"], crm.world()) == 0
    assert [each["kind"] for each in json.loads(crm.text)] == ["log"]


def _told(message: str, node: str, at: float, ident: str = "cxm") -> str:
    row = {"MESSAGE": message, "__REALTIME_TIMESTAMP": f"{at:.0f}000000", "_HOSTNAME": node,
           "PRIORITY": "5", "SYSLOG_IDENTIFIER": ident}  # fmt: skip
    return json.dumps(row)


def _asked_of(crm: FakeCluster, text: str) -> dict[str, Any]:
    """What a node answers whose log, programs and files are those of the model."""
    machine = crm.world().machine()
    own = replace(machine, cluster_marker=crm.node.path("etc/cxm/cluster"))
    return peerserver.answered(lambda: own, text, lambda _argv: None, io.BytesIO())


def test_who_ordered_is_seen_from_every_node(
    crm: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is logged where the order was given; OpenNebula gives its own on the VM's node."""
    crm.journal = "\n".join(
        [
            _told("ann (as root): cxm migrate db node1", "node2", NOW - 60),
            _told("VM 42 moves from node2 to node1", "node2", NOW - 50, "cxm-helper"),
        ]
    )
    crm.answers["journal"] = _asked_of(crm, f"journal {NOW - 3600:.0f}")
    crm.journal = _told("root: cxm eject node2", "node1", NOW - 20)
    assert main.main(["timeline", "--since", "1d"], crm.world()) == 0
    *lines, told_by = crm.text.splitlines()
    assert [line[21:] for line in lines] == [
        "NODE   WHAT (WHY)",
        "node2  ann (as root): cxm migrate db node1",
        "node2  VM 42 moves from node2 to node1 (for OpenNebula)",
        "node1  root: cxm eject node2",
    ]
    assert told_by == "Messages of cxm are those of node1 and node2."
    crm.unreachable = True
    crm.said.truncate(0)
    crm.said.seek(0)
    assert main.main(["timeline", "--since", "1d", "--json"], crm.world()) == 0
    assert len(json.loads(crm.text)) == 1
    assert (
        "those of node2 are not known: the node node2 cannot be reached" in capsys.readouterr().err
    )


def test_what_is_not_known_is_said(crm: FakeCluster) -> None:
    """A node that is away, one that tells only its newest messages, one that tells nonsense."""
    crm.add_node("node3")
    crm.members["node3"].online = False
    event = {"at": NOW, "node": "node2", "what": "x", "why": "", "kind": "log", "bad": False}
    crm.answers["journal"] = {"events": [event] * 500}
    assert main.main(["timeline"], crm.world()) == 0
    assert (
        "; of node2 only the last 500 are told; those of node3 are in the log there.\n" in crm.text
    )
    crm.answers["journal"] = {"events": [{"at": NOW}]}
    assert main.main(["timeline"], crm.world()) == 0
    assert "those of node2 are not known: node2 does not tell its log" in crm.text


def test_what_a_node_tells_is_bounded(crm: FakeCluster) -> None:
    """In number and length; and the word takes a moment, nothing else."""
    crm.journal = _told("x" * 1000, "node2", NOW)
    (event,) = _asked_of(crm, "journal 0")["events"]
    assert len(event["what"]) == 300
    assert crm.node.ran[-1][-2:] == ("-n", "500")
    for text in ("journal", "journal yesterday", "journal 1 2"):
        assert "since a moment" in _asked_of(crm, text)["error"]
