# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""``cxm fence``, what proves that fencing works, and nodes that wait for others to be fenced."""

import json
from pathlib import Path
from xml.etree.ElementTree import fromstring

import pytest

from cxm.cli import main
from cxm.cluster import nodes
from cxm.errors import CommandError, LockTimeoutError, RefusedError, UnreachableError, UsageError
from tests.actions.test_cxm_orders import _changed, _run
from tests.fakes.crm import NOW, FakeCluster, two_nodes

GO_ON = ("corosync-cmapctl", "-s", "quorum.cancel_wait_for_all", "u8", "1")


@pytest.fixture
def crm(tmp_path: Path) -> FakeCluster:
    """node1 and node2, a VM on each, one that is off."""
    return two_nodes(str(tmp_path / "n"))


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


def test_vm_that_cannot_move_is_ejected_first(
    crm: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the command that can do it; then the test goes on from there."""
    crm.add_vm(9, "node2", name="pv", migratable=False)
    assert _run(crm, "fence --test --yes node2") == RefusedError.code
    said = capsys.readouterr().err
    assert "cannot move while they run: pv ('cxm eject node2 --restart' first:" in said
    assert _run(crm, "eject node2 --restart") == 0
    assert _run(crm, "fence --test --yes node2") == 0
    assert crm.attribute("node2", "standby") == "on"
    assert _run(crm, "eject --back node2") == 0


def _two_devices(crm: FakeCluster, levels: str) -> None:
    """The nodes have a device more, and the levels say which one comes first."""
    configuration = crm.cib.find("configuration")
    resources = crm.cib.find("configuration/resources")
    assert configuration is not None
    assert resources is not None
    resources.insert(0, fromstring('<primitive id="fence-sbd" class="stonith"/>'))
    configuration.append(fromstring(f"<fencing-topology>{levels}</fencing-topology>"))


def test_what_comes_after_the_first_level_is_not_proven(crm: FakeCluster) -> None:
    """The second is tried only when the first fails, which it did not."""
    _two_devices(
        crm,
        '<fencing-level id="a" target="node2" index="2" devices="fence-sbd"/>'
        '<fencing-level id="b" target="node2" index="1" devices="fence-node2"/>',
    )
    assert _run(crm, "fence --test --yes node2") == 0
    assert "node2: being reset by fence-node2 ..." in crm.text
    assert "node2: was reset, and is back; not tried: fence-sbd\n" in crm.text
    _run(crm, "infos")
    assert "node2 proven 0 s ago (first level only)" in crm.text
    _run(crm, "check")
    assert "fence-node2, proven 0 s ago; not tried, for it comes after that: fence-sbd" in crm.text


def test_without_levels_one_of_the_devices_is_proven(crm: FakeCluster) -> None:
    """Which one comes first is Pacemaker's choice."""
    _two_devices(crm, "")
    _run(crm, "check")
    assert "fence-sbd or fence-node2, proven 5 h ago\n" in crm.text


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
    crm.lies, crm.fast = True, fast
    assert _run(crm, "fence --test --yes node2") == CommandError.code
    said = capsys.readouterr().err
    assert "the fencing of node2 was reported as done, but 90 s later it is in the same" in said
    assert "IT WAS NOT RESET" in said
    assert crm.attribute("node2", "cxm-fencing") is None  # nor does what was proven before hold
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


def test_a_node_that_is_back_meanwhile_is_not_confirmed_to_be_off(
    crm: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever was asked has switched it on, and then types the word."""
    crm.members["node2"].online, crm.members["node2"].unclean = False, True

    def typed(_prompt: str) -> str:
        crm.members["node2"].online, crm.members["node2"].unclean = True, False
        return "node2"

    assert main.main(["fence", "--confirmed", "node2"], crm.world(typed=typed)) == RefusedError.code
    assert "node2 is online: it is alive" in capsys.readouterr().err
    assert ("stonith_admin", "--confirm", "node2") not in crm.node.ran


def test_a_proof_that_was_cut_off_is_given_back(crm: FakeCluster) -> None:
    """The second one finds the node in standby, and says who took its VMs away."""
    nodes.set_attribute(crm.cib, "node2", nodes.STANDBY, "on")
    assert _run(crm, "fence --test --yes node2") == 0
    assert "by another order: 'cxm eject --back node2'" in crm.text
    assert crm.attribute("node2", "standby") == "on"


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
    for node in ("node2", "node3"):
        assert crm.attribute(node, "cxm-fencing") is None


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


@pytest.mark.parametrize(
    ("state", "found"),
    [
        ({"pending": True}, "node2 is joining"),
        ({"unclean": True}, "node2 is UNCLEAN (online)"),
        ({"unclean": True, "online": False, "heard": True}, "node2 is UNCLEAN"),
        ({"online": False, "heard": True}, "node2 is offline"),
    ],
)
def test_nobody_says_of_a_node_that_is_heard_that_it_is_off(
    crm: FakeCluster,
    state: dict[str, bool],
    found: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its Pacemaker does not work, its guests may: they would run twice."""
    for name, value in state.items():
        setattr(crm.members["node2"], name, value)
    assert _run(crm, "fence --confirmed --yes node2") == RefusedError.code
    said = capsys.readouterr().err
    assert f"{found}, and the Corosync of node1 hears it: it is not off" in said
    assert "'cxm fence node2' resets it" in said
    assert ("stonith_admin", "--confirm", "node2") not in crm.node.ran


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
    allowed = crm.node.ran.index(GO_ON)
    assert allowed < ran.index("stonith_admin", allowed)
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
