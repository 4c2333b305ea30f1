# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""What ``cxm`` does to nodes and volumes, on a model of a cluster."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from cxm.cli import ctl, main
from cxm.cluster import cib as documents
from cxm.cluster import nodes
from cxm.errors import (
    CommandError,
    LockTimeoutError,
    NotFoundError,
    RefusedError,
    UnreachableError,
    UsageError,
)
from cxm.names import VmId
from tests.fakes.crm import NOW, FakeCluster, two_nodes
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
    assert _run(crm, "eject node1") == RefusedError.code
    said = capsys.readouterr().err
    assert "there is no place elsewhere for one-8 (3000 MiB)" in said
    assert "in this order: 'cxm migrate one-10 node2', 'cxm migrate one-8 node3'" in said
    assert not _changed(crm)


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


# --- fence ----------------------------------------------------------------------------------------


def test_fence_asks_first(crm: FakeCluster, capsys: pytest.CaptureFixture[str]) -> None:
    """The name of the node, typed; anything else does nothing."""
    crm.answer = "yes"
    assert _run(crm, "fence node2") == UsageError.code
    assert "not confirmed" in capsys.readouterr().err
    crm.answer = ""  # nobody is there
    assert _run(crm, "fence node2") == UsageError.code
    assert not _changed(crm)
    crm.answer = "node2"
    assert _run(crm, "fence node2") == 0
    assert "It has 1 VM: db.home.net" in crm.text
    assert (
        "stonith_admin",
        "--reboot",
        "node2",
        "--timeout",
        "300",
        "--tag",
        "cxm",
    ) in crm.node.ran
    assert _run(crm, "fence --off --yes node2") == 0
    assert ("stonith_admin", "--fence", "node2", "--timeout", "300", "--tag", "cxm") in crm.node.ran


@pytest.mark.parametrize(
    ("line", "prepare", "message"),
    [
        ("fence --yes node1", "", "a node does not fence itself"),
        ("fence --yes node2", "off", "fencing is switched off"),
        ("fence --yes node2", "quorum", "not quorate"),
        ("fence --yes node2", "device", "no fencing device is for node2"),
        ("fence --test --yes", "full", "there is no place elsewhere for huge"),
        ("fence --test --yes", "offline", "node2 is offline: fencing is tried while all"),
        ("fence --confirmed --yes node2", "", "node2 is online: it is alive"),
    ],
)
def test_fence_refuses(
    crm: FakeCluster, line: str, prepare: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever could not work or would do harm."""
    if prepare == "off":
        crm.fencing = False
    elif prepare == "quorum":
        crm.quorate = False
    elif prepare == "device":
        resources = crm.cib.find("configuration/resources")
        assert resources is not None
        resources.remove(next(e for e in resources if e.get("id") == "fence-node2"))
    elif prepare == "full":
        crm.add_vm(9, "node2", name="huge", memory=3500)
    elif prepare == "offline":
        crm.members["node2"].online = False
    assert _run(crm, line) == RefusedError.code
    assert message in capsys.readouterr().err
    assert not _changed(crm)


def _third(crm: FakeCluster) -> None:
    crm.add_node("node3", cxm_address="10.0.0.3", cxm_hostkey="ssh-ed25519 BBBB")


def test_fencing_is_proven_by_a_node_that_comes_back_from_another_boot(crm: FakeCluster) -> None:
    """Emptied first, given back at the end; the time is noted where everybody sees it."""
    crm.answer = "node2"
    assert _run(crm, "fence --test node2") == 0
    assert crm.text.splitlines()[-4:] == [
        "node2: being reset by fence-node2 ...",
        "node2: was fenced; waiting until it is back ...",
        "node2: was reset, and is back",
        "fencing is proven: node2",
    ]
    proven = float(crm.attribute("node2", "cxm-fencing") or 0)
    assert NOW < proven <= NOW + crm.node.clock
    assert crm.attribute("node2", "standby") is None
    assert crm.places["cxm-cloudone1-42"].nodes == ("node1",)


def test_all_other_nodes_are_proven_one_by_one(crm: FakeCluster) -> None:
    """This one must be tried from another."""
    _third(crm)
    crm.answer = "all"
    assert _run(crm, "fence --test") == 0
    assert "fencing is proven: node2, node3" in crm.text
    assert "cxm fence --test node1" in crm.text


def test_node_that_boots_before_its_device_is_done_was_reset(crm: FakeCluster) -> None:
    """SBD waits for half a minute and more, and then a fast machine answers again."""
    crm.fast = True
    assert _run(crm, "fence --test --yes node2") == 0
    assert crm.members["node2"].online  # a member again, not only booted


@pytest.mark.parametrize("fast", [True, False])
def test_device_that_lies_proves_nothing(
    crm: FakeCluster, fast: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """It reports success, and the node goes on in the boot that it was in."""
    before = crm.attribute("node2", "cxm-fencing")
    crm.lies, crm.fast = True, fast
    assert _run(crm, "fence --test --yes node2") == CommandError.code
    said = capsys.readouterr().err
    assert "the fencing of node2 was reported as done, but 90 s later it is in the same" in said
    assert "IT WAS NOT RESET" in said
    assert crm.attribute("node2", "cxm-fencing") == before
    assert crm.attribute("node2", "standby") is None


def test_node_that_was_told_of_its_fencing_and_not_reset_is_found_out(
    crm: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its Pacemaker ends itself when it hears that; what runs there goes on."""
    crm.lies, crm.fast = True, True

    def told() -> None:
        crm.step()
        if crm.node.clock > 20:
            crm.members["node2"].pending = True

    crm.node.later = told
    assert _run(crm, "fence --test --yes node2") == CommandError.code
    assert "IT WAS NOT RESET" in capsys.readouterr().err


def test_fencing_is_proven_before_a_node_has_settings(crm: FakeCluster) -> None:
    """A new cluster's nodes get theirs by cxm-setup node, which comes later in the guide."""
    for rid in list(crm.places):
        crm.places[rid].nodes = ()
    assert main.main(["fence", "--test", "--yes", "node2"], crm.world(settings=None)) == 0
    assert "fencing is proven: node2" in crm.text


def test_device_that_is_changed_meanwhile_is_not_proven(
    crm: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    """cxm-setup has taken the old proof away, and this one is of the old device."""
    later = crm.node.later

    def changed() -> None:
        later()
        if "being reset" not in crm.text:
            return
        for primitive in crm.cib.iterfind(".//primitive[@id='fence-node2']"):
            primitive.set("type", "fence_other")
        nodes.set_attribute(crm.cib, "node2", "cxm-fencing", None)

    crm.node.later = changed
    assert _run(crm, "fence --test --yes node2") == RefusedError.code
    assert "the fence devices of node2 were changed" in capsys.readouterr().err
    assert crm.attribute("node2", "cxm-fencing") is None


def test_device_of_another_machine_is_noticed(
    crm: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    """The cables of two BMCs are changed round."""
    _third(crm)
    crm.hits = "node3"
    assert _run(crm, "fence --test --yes node2") == CommandError.code
    assert "while node2 was fenced, node3 became offline" in capsys.readouterr().err
    assert crm.attribute("node2", "cxm-fencing") == f"{NOW - 3600 * 5:.0f}"


def test_node_that_cannot_say_its_boot_is_not_emptied(
    crm: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing could be proven by its reset."""
    crm.unreachable = True
    assert _run(crm, "fence --test --yes node2") == UnreachableError.code
    assert "the node node2 cannot be reached from node1" in capsys.readouterr().err
    assert not _changed(crm)


def test_node_that_dies_together_with_the_fenced_one_is_noticed(
    crm: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    """One device for two machines, or a cable that both hang on."""
    _third(crm)

    def together() -> None:
        crm.step()
        crm.members["node3"].online = crm.members["node2"].online

    crm.node.later = together
    assert _run(crm, "fence --test --yes node2") == CommandError.code
    assert "while node2 was fenced, node3 became offline" in capsys.readouterr().err


def test_node_that_stays_away_is_not_proven(
    crm: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was reset, but a cluster whose nodes do not come back is not well."""
    assert _run(crm, "fence --test --yes node2 --boot-time 1") == LockTimeoutError.code
    assert "is not back after 1 s" in capsys.readouterr().err


def test_human_says_that_a_node_is_off(crm: FakeCluster) -> None:
    """The way out when the fencing device died with its node."""
    crm.members["node2"].online, crm.members["node2"].unclean = False, True
    crm.answer = "node2"
    assert _run(crm, "fence --confirmed node2") == 0
    assert ("stonith_admin", "--confirm", "node2") in crm.node.ran
    assert "Are you certain that node2 is OFF" in crm.text
    assert "under way" not in crm.text


def test_a_humans_word_waits_for_the_device(crm: FakeCluster) -> None:
    """Pacemaker goes on when its own try has failed; whoever looks at the clock is told."""
    crm.members["node2"].online, crm.members["node2"].unclean = False, True
    crm.fence_events = [{"target": "node2", "action": "reboot", "status": "pending"}]
    assert _run(crm, "fence --confirmed --yes node2") == 0
    assert "not before the try to fence it that is under way has failed" in crm.text


def test_node_that_starts_alone_says_what_it_waits_for(crm: FakeCluster) -> None:
    """After a power loss of both, one waits for the other; a human's word lets it go on alone."""
    crm.members["node2"].online, crm.quorate = False, False
    assert _run(crm, "infos") == 0
    assert "waits for node2, which it has not seen since it started" in crm.text
    assert "cxm fence --confirmed node2" in crm.text
    assert _run(crm, "fence --confirmed --yes node2") == 0
    ran = [argv[0] for argv in crm.node.ran]
    assert ran.index("corosync-cmapctl") < ran.index("stonith_admin", ran.index("corosync-cmapctl"))
    assert ("stonith_admin", "--confirm", "node2") in crm.node.ran


def test_one_node_of_many_does_not_make_a_majority(
    crm: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where three are needed, that one is off changes nothing, and nothing is done."""
    crm.add_node("node3")
    for name in ("node2", "node3"):
        crm.members[name].online = False
    crm.quorate = False
    assert _run(crm, "fence --confirmed --yes node2") == RefusedError.code
    assert "start node2 or node3: one is enough" in capsys.readouterr().err
    assert ("stonith_admin", "--confirm", "node2") not in crm.node.ran


@pytest.mark.parametrize(
    ("nodes_", "away", "text", "advice"),
    [
        (3, 2, "1 of 3 nodes, 2 are needed; away: node2, node3",
         "start node2 or node3: one is enough; 'cxm fence --confirmed' does not help"),
        (5, 4, "1 of 5 nodes, 3 are needed; away: node2, node3, node4, node5",
         "start 2 of node2, node3, node4, node5; 'cxm fence --confirmed' does not help"),
        (4, 2, "2 of 4 nodes, 3 are needed; away: node2, node3",
         "start node2 or node3: one is enough; 'cxm fence"),
        (3, 0, "this part of the cluster may start nothing", "'corosync-quorumtool -s'"),
    ],
)  # fmt: skip
def test_nodes_without_a_majority_say_whom_they_wait_for(
    crm: FakeCluster, nodes_: int, away: int, text: str, advice: str
) -> None:
    """And how many are enough; of a pair another sentence says it."""
    for number in range(3, nodes_ + 1):
        crm.add_node(f"node{number}")
    for number in range(2, away + 2):
        crm.members[f"node{number}"].online = False
    crm.quorate = False
    assert _run(crm, "infos --json") == 0
    alarm = json.loads(crm.text)["alarms"][0]
    assert alarm["text"].startswith("NOT QUORATE: ")
    assert alarm["text"].endswith(text)
    assert advice in alarm["advice"]


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
