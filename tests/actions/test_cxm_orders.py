# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""What ``cxm`` does to nodes and volumes, on a model of a cluster."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from cxm.cli import ctl, main
from cxm.cluster import cib as documents
from cxm.cluster import nodes
from cxm.errors import CommandError, LockTimeoutError, NotFoundError, RefusedError
from cxm.names import VmId
from tests.fakes.crm import FakeCluster, two_nodes
from tests.fakes.machine import CLOUD, Outcome

NOTHING = ("crm_diff", "cibadmin --patch", "stonith_admin", "lvchange")


@pytest.fixture
def crm(tmp_path: Path) -> FakeCluster:
    """node1 and node2, a VM on each, one that is off."""
    return two_nodes(str(tmp_path / "n"))


def _run(crm: FakeCluster, line: str) -> int:
    return main.main(line.split(), crm.world())


def _changed(crm: FakeCluster) -> list[tuple[str, ...]]:
    lines = [argv for argv in crm.node.ran if " ".join(argv).startswith(NOTHING)]
    return [argv for argv in lines if argv[1:2] != ("--history",)]


# --- eject ----------------------------------------------------------------------------------------


def test_eject_empties_a_node_and_tells_how(crm: FakeCluster) -> None:
    """Each change of each VM is a line; the node stays in standby until it is given back."""
    assert _run(crm, "eject node2") == 0
    assert crm.text.splitlines() == [
        "1 VM of node2 to move:",
        "  db.home.net (VM 42): running on node2",
        "  db.home.net (VM 42): migrating on node2 to node1",
        "  db.home.net (VM 42): running on node1",
        "node2 is empty and takes no VMs until 'cxm eject --back node2'",
    ]
    assert crm.attribute("node2", "standby") == "on"
    assert _run(crm, "eject --back node2") == 0
    assert crm.attribute("node2", "standby") is None
    assert _run(crm, "eject --back node2") == 0
    assert crm.text.endswith("node2 takes VMs already\n")


BY_HAND = {
    ("standby", "reboot"): "'crm_standby --node node2 --lifetime reboot --delete'",
    ("maintenance", "reboot"):
        "'crm_attribute --node node2 --name maintenance --lifetime reboot --delete'",
    ("maintenance", "forever"): "'crm_attribute --node node2 --name maintenance --delete'",
}  # fmt: skip


@pytest.mark.parametrize(("what", "order"), BY_HAND.items())
def test_node_that_another_order_holds_is_not_given_back(
    crm: FakeCluster, what: tuple[str, str], order: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its own standby goes; that it takes VMs would not be true, and check says how to end it."""
    key, lifetime = what
    nodes.set_attribute(crm.cib, "node2", "standby", "on")
    if lifetime == "reboot":
        crm.until_reboot("node2", key)
    else:
        nodes.set_attribute(crm.cib, "node2", key, "on")
    for _again in range(2):
        assert _run(crm, "eject --back node2") == RefusedError.code
        said = capsys.readouterr().err
        assert f"node2 takes no VMs yet: it is in {key} by another order ({order} ends" in said
    assert crm.attribute("node2", "standby") is None
    assert "again" not in crm.text
    assert main.main(["check"], crm.world()) == 0
    assert f"{order} when that is over" in crm.text


def test_node_that_a_failure_holds_is_given_back_by_a_cleanup() -> None:
    """An operation with on-fail=standby leaves no attribute."""
    assert nodes.give_back(nodes.Facts("node2")) == "'crm_resource --cleanup --node node2'"


def test_eject_means_this_node(crm: FakeCluster) -> None:
    """Where none is given."""
    assert _run(crm, "eject") == 0
    assert crm.places["cxm-cloudone1-7"].nodes == ("node2",)


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        ("full", "there is no place elsewhere for huge (3500 MiB)"),
        ("bound", "these VMs cannot move while they run: pv"),
        ("quorum", "not quorate"),
        ("offline", "node2 is offline"),
    ],
)
def test_eject_refuses_before_anything_moves(
    crm: FakeCluster, prepare: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is changed, and the sentence names what is in the way."""
    if prepare == "full":
        crm.add_vm(9, "node2", name="huge", memory=3500)
    elif prepare == "bound":
        crm.add_vm(9, "node2", name="pv", migratable=False)
    elif prepare == "quorum":
        crm.quorate = False
    else:
        crm.members["node2"].online = False
    assert _run(crm, "eject node2") == RefusedError.code
    assert message in capsys.readouterr().err
    assert not _changed(crm)


def test_eject_tells_who_has_to_make_room(
    crm: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the VMs fit only if others go further first: which, and in which order."""
    crm.add_node("node3")
    crm.add_vm(8, "node1", memory=3000)
    crm.add_vm(10, "node3", memory=1500)
    # What bounds plans that even out bounds no evacuation.
    config = replace(crm.node.machine().config, lb_max_migration=1, lb_max_vm_per_node=1)
    assert main.main(["eject", "node1"], crm.world(settings=config)) == RefusedError.code
    said = capsys.readouterr().err
    assert "there is no place elsewhere for one-8 (3000 MiB)" in said
    assert "in this order: 'cxm migrate one-10 node2', 'cxm migrate one-8 node3'" in said
    assert not _changed(crm)


@pytest.mark.parametrize(("memory", "migratable"), [(1500, False), (3500, True)])
def test_eject_says_when_nobody_can_make_room(
    crm: FakeCluster, memory: int, migratable: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """It would take VMs that cannot move while they run, or there is too little in all."""
    crm.add_node("node3")
    crm.add_vm(8, "node1", memory=3000)
    crm.add_vm(10, "node3", memory=memory, migratable=migratable)
    known = documents.find(crm.cib, CLOUD, VmId(42))
    assert known is not None
    documents.put(crm.cib, replace(known, migratable=migratable))
    assert _run(crm, "eject node1") == RefusedError.code
    said = capsys.readouterr().err
    assert "switch VMs off, add a node, or migrate some by hand; nothing was changed" in said


def test_eject_asks_pacemaker_what_fits(
    crm: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    """It would stop a VM that fits only when the largest goes first."""
    crm.add_node("node3", memory=2100)
    crm.add_vm(8, "node1", memory=2000)
    crm.add_vm(1, "node1", memory=1000)
    assert _run(crm, "eject node1") == RefusedError.code
    said = capsys.readouterr().err
    assert "Pacemaker would find no place for one-8" in said
    assert "'cxm migrate one-8 node2'" in said
    assert not [argv for argv in _changed(crm) if argv[0] != "crm_simulate"]


@pytest.mark.parametrize("line", ["eject node1", "fence --test --yes node1"])
def test_nothing_is_sent_where_it_cannot_go_on(
    crm: FakeCluster, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Asked of the node that Pacemaker would choose, before anything is done."""
    world = crm.world(runner=crm.node)
    crm.node.model("crm_node", lambda _argv, _in: Outcome("node3\n"))
    crm.add_node("node3", memory=100)
    crm.answers["bridges"] = {"missing": ["xenbr1"]}
    assert main.main(line.split(), world) == RefusedError.code
    assert (
        "Pacemaker would send web.home.net (VM 7) to node2, but node2 lacks xenbr1, a bridge "
        "that VM 7 needs" in capsys.readouterr().err
    )
    crm.answers["bridges"] = {"missing": []}
    for node, caps in (("node1", "07:1f"), ("node2", "07:0f")):
        nodes.set_attribute(crm.cib, node, nodes.CPU, caps)
    assert main.main(line.split(), world) == RefusedError.code
    said = capsys.readouterr().err
    assert "the processor of node2 lacks 1 feature of that of node1" in said
    assert "or 'cxm migrate web.home.net NODE' first" in said
    assert not _changed(crm)


def test_vm_that_is_stopped_and_started_needs_only_its_bridges(
    crm: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    """A guest that boots there finds the processor that is there."""
    crm.add_vm(9, "node1", name="pv", migratable=False)
    crm.places["cxm-cloudone1-7"].nodes = ("node2",)
    for node, caps in (("node1", "07:1f"), ("node2", "07:0f")):
        nodes.set_attribute(crm.cib, node, nodes.CPU, caps)
    crm.answers["bridges"] = {"missing": ["xenbr1"]}
    assert _run(crm, "eject --restart") == RefusedError.code
    assert "Pacemaker would send pv (VM 9) to node2" in capsys.readouterr().err
    crm.answers["bridges"] = {"missing": []}
    assert _run(crm, "eject --restart") == 0


def test_eject_says_why_a_vm_is_stuck(crm: FakeCluster, capsys: pytest.CaptureFixture[str]) -> None:
    """What its agent has written since; not a reason of another day."""
    crm.stuck.add("cxm-cloudone1-42")

    def fail() -> None:
        known = documents.find(crm.cib, CLOUD, VmId(42))
        assert known is not None
        documents.put(crm.cib, replace(known, reason="VM 42 did not move to node1: no room"))
        crm.places["cxm-cloudone1-42"].blocked = True

    crm.node.later = fail
    assert _run(crm, "eject node2") == CommandError.code
    assert "stuck on node2: db.home.net (VM 42): VM 42 did not move" in capsys.readouterr().err


def test_eject_restarts_what_cannot_move_when_asked(crm: FakeCluster) -> None:
    """Never without."""
    crm.add_vm(9, "node2", name="pv", migratable=False)
    assert _run(crm, "eject node2 --restart") == 0


def test_eject_tells_of_a_vm_that_is_stuck(
    crm: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    """Blocked at once, or at the end of the time."""
    crm.stuck.add("cxm-cloudone1-42")
    assert _run(crm, "eject node2 --timeout 10") == LockTimeoutError.code
    assert "have not left node2 or do not run: db.home.net (VM 42)" in capsys.readouterr().err
    crm.places["cxm-cloudone1-42"].blocked = True
    assert _run(crm, "eject node2") == CommandError.code
    assert "stuck on node2: db.home.net" in capsys.readouterr().err


def test_unknown_node_is_said(crm: FakeCluster, capsys: pytest.CaptureFixture[str]) -> None:
    """With those there are."""
    assert _run(crm, "eject node3") == NotFoundError.code
    assert "the cluster has no node 'node3' (it has node1, node2)" in capsys.readouterr().err


# --- VMs ------------------------------------------------------------------------------------------


def test_console_is_where_the_vm_is(crm: FakeCluster, capsys: pytest.CaptureFixture[str]) -> None:
    """Here by xl, elsewhere by a line to copy."""
    assert _run(crm, "console 7") == 0
    assert crm.attached == [["xl", "console", "17"]]
    assert _run(crm, "console db.home.net") == RefusedError.code
    assert "ssh -t node2 cxm console db.home.net" in capsys.readouterr().err
    assert _run(crm, "console 4") == RefusedError.code
    assert "runs nowhere: it is stopped" in capsys.readouterr().err
    crm.xen.rows.pop()
    assert _run(crm, "console 7") == NotFoundError.code


def test_volumes_of_a_vm_that_is_off(crm: FakeCluster) -> None:
    """For a look at them by hand, and back."""
    assert _run(crm, "activate 4") == 0
    assert crm.node.state.lvs["lv-one-4-0"].active
    assert crm.node.path("dev/LVM_XEN/lv-one-4-0") in crm.text
    assert ("lvchange", "-a", "ey", "LVM_XEN/lv-one-4-0") in crm.node.ran
    assert _run(crm, "deactivate old.home.net") == 0
    assert not crm.node.state.lvs["lv-one-4-0"].active
    assert crm.text.endswith("lv-one-4-0 was active here\n")


def test_volumes_of_a_vm_that_the_cluster_does_not_know(
    crm: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    """It has disks, and a number."""
    tags = ["cxm.cloud=cloudone1", "cxm.vm=88", "cxm.disk=0", "cxm.state=ready"]
    crm.node.add_lv("lv-one-88-0", 4, tags=tags, content=b"")
    assert _run(crm, "deactivate cloudone1/88") == 0
    assert not crm.node.state.lvs["lv-one-88-0"].active
    assert _run(crm, "activate 88") == 0
    assert _run(crm, "activate 99") == NotFoundError.code
    assert "VM 99 has no volume" in capsys.readouterr().err
    assert _run(crm, "activate nobody") == NotFoundError.code


def test_volumes_of_a_running_vm_are_its_own(
    crm: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither activated nor taken away."""
    assert _run(crm, "activate 42") == RefusedError.code
    assert "is on node2" in capsys.readouterr().err
    crm.node.state.opened.add("lv-one-7-0")
    assert _run(crm, "deactivate 7") == RefusedError.code
    assert "in use on this node: lv-one-7-0" in capsys.readouterr().err


# --- cxmd_ctl -------------------------------------------------------------------------------------


def test_original_scripts_ask_as_before(
    crm: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    """--ping is the test of every script: 0 in a working, quorate cluster."""
    assert ctl.main(["--ping"], crm.world()) == 0
    assert crm.text == ""
    assert ctl.main(["-l"], crm.world()) == 0
    assert crm.text == "node1\nnode2\n"
    assert ctl.main(["--status"], crm.world()) == 0
    assert crm.text.endswith("node1: online, role active, state normal\n")
    crm.fence_events = [{"target": "node2", "action": "off", "status": "pending"}]
    ctl.main(["-s"], crm.world())
    assert crm.text.endswith("state recovery\n")
    crm.members["node1"].pending = True
    assert ctl.main(["-p"], crm.world()) == 1
    crm.members["node1"].pending = False
    crm.quorate = False
    assert ctl.main(["-p"], crm.world()) == 1
    assert ctl.main(["-s"], crm.world()) == 1
    crm.dead = True
    assert ctl.main(["-p"], crm.world()) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_an_order_goes_on_when_nobody_reads(crm: FakeCluster) -> None:
    """What it exits with is what has happened."""
    read, write = os.pipe()
    os.close(read)
    with open(write, "w", encoding="utf-8") as out:
        assert main.main(["migrate", "42", "node1"], crm.world(out=out)) == 0
        (place,) = (each for rid, each in crm.places.items() if rid.endswith("-42"))
        assert place.nodes == ("node1",)
    read, write = os.pipe()
    os.close(read)
    crm.stuck.update(crm.places)
    with open(write, "w", encoding="utf-8") as out:
        assert main.main(["migrate", "42", "node2"], crm.world(out=out)) != 0
