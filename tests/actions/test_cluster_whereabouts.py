# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""What a node of a cluster tells the frontend: where VMs are, how certain; what it promises it."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import pytest

from cxm import lvm
from cxm.cluster import claims, nodes, orders, relocate, whereabouts
from cxm.cluster.cib import Resource
from cxm.cluster.pacemaker import Fencing, Node, Placed, Status
from cxm.cluster.whereabouts import Face, Seat
from cxm.errors import NotFoundError, RefusedError
from cxm.names import CloudId, VmId
from cxm.node import adopted
from cxm.node import directory as directories
from cxm.node.guests import Life
from cxm.node.verbs import Call
from cxm.node.volumes import Owner
from tests.fakes.call import ask
from tests.fakes.domains import NAME, new_xen
from tests.fakes.machine import CLOUD, Outcome
from tests.fakes.pair import DISK, RID, Pair


@pytest.fixture
def pair() -> Pair:
    """VM 7 runs on node1."""
    made = Pair()
    made.start("node1")
    return made


def told(pair: Pair, node: str = "node1") -> dict[str, Any]:
    """The verb's answer."""
    return pair.ask(node, "whereabouts").result


def only(pair: Pair, node: str = "node1") -> tuple[str, str]:
    """Where VM 7 is, and why that may be wrong."""
    (row,) = told(pair, node)["vms"]
    return row["host"], row["doubt"]


def operator(pair: Pair, node: str) -> Call:
    """What ``cxm`` orders on a node."""
    return Call(pair.xens[node].machine(), CLOUD)


def status(**changes: Any) -> Status:
    """Two nodes that are well."""
    both = (Node("node1", online=True), Node("node2", online=True))
    return replace(Status(both, quorate=True, fencing_enabled=True), **changes)


class TestCertain:
    """Every node of the cluster says the same, and says it for certain."""

    @pytest.mark.parametrize("asked", ["node1", "node2"])
    def test_running(self, pair: Pair, asked: str) -> None:
        """Whichever is asked."""
        answer = told(pair, asked)
        assert answer["clustered"]
        assert (answer["hosts"], answer["unclear"], answer["doubt"]) == (["node1", "node2"], [], "")
        row = {"vm": 7, "name": NAME, "host": "node1", "doubt": "", "wanted": True}
        assert answer["vms"] == [row | {"told": "node1"}]

    def test_failed_over(self, pair: Pair) -> None:
        """Its node was fenced: the survivor knows."""
        pair.fail("node1")
        assert only(pair, "node2") == ("node2", "")

    def test_named_as_opennebula_names_hosts(self, pair: Pair) -> None:
        """The node's attribute is the map."""
        pair.pacemaker.edit(lambda root: nodes.set_attribute(root, "node1", nodes.HOST, "xen-a"))
        assert only(pair, "node2") == ("xen-a", "")

    def test_two_nodes_of_one_name(self, pair: Pair) -> None:
        """Neither is a host that anything could be said of."""
        pair.pacemaker.edit(lambda root: nodes.set_attribute(root, "node1", nodes.HOST, "node2"))
        answer = told(pair)
        assert (answer["hosts"], answer["unclear"]) == ([], ["node2"])
        assert answer["vms"][0]["doubt"] == "'node2' may mean two nodes of the cluster"

    def test_off(self, pair: Pair) -> None:
        """Nowhere, for certain."""
        pair.stop("node1")
        assert only(pair) == ("", "")

    def test_standalone_host(self, tmp_path: Any) -> None:
        """Nothing of it can be elsewhere."""
        machine = new_xen(tmp_path / "solo1").machine()
        assert not ask(machine, "whereabouts").result["clustered"]

    def test_calls_no_lvm(self, pair: Pair) -> None:
        """It stands still while a node is lost."""
        for xen in pair.xens.values():
            xen.node.ran.clear()
        told(pair)
        ran = {argv[0] for xen in pair.xens.values() for argv in xen.node.ran}
        assert ran == {"crm_mon", "cibadmin", "xl", "ssh"}


class TestDoubt:
    """What is not certain is told as such."""

    @pytest.mark.parametrize(
        ("changes", "why"),
        [
            ({"quorate": False}, "no quorum"),
            ({"fencing_enabled": False}, "switched off"),
            ({"nodes": (Node("node1", online=True), Node("node2", online=False, unclean=True))},
             "node2 waits to be fenced"),
            ({"fencing": (Fencing("node2", "reboot", "pending", "", ""),)}, "node2 waits to be"),
        ],
    )  # fmt: skip
    def test_of_a_cluster_in_trouble(self, changes: dict[str, Any], why: str) -> None:
        """A minority, and both halves of a pair before one has fenced the other."""
        assert why in whereabouts.distrust(status(**changes))
        assert whereabouts.distrust(status()) == ""

    def test_minority_is_not_believed(self, pair: Pair) -> None:
        """All that it says is in doubt."""
        pair.pacemaker.edit(lambda root: root.set("have-quorum", "0"))
        answer = told(pair)
        assert "no quorum" in answer["doubt"]
        assert "no quorum" in answer["vms"][0]["doubt"]

    def test_xen_shows_no_domain(self, pair: Pair) -> None:
        """Pacemaker has not noticed that the guest is gone."""
        pair.xens["node1"].drop()
        assert only(pair, "node2") == ("node1", "Xen on node1 shows no domain of it")

    def test_node_does_not_answer(self, pair: Pair) -> None:
        """Pacemaker believes it to be there; nobody has seen it."""
        pair.dead.add("node1")
        host, doubt = only(pair, "node2")
        assert host == "node1"
        assert doubt.startswith("node1 does not say what runs there: ")

    @pytest.mark.parametrize(
        ("placed", "seen", "expected"),
        [
            (Placed(RID, "Started", ("n1",)), {"n1": {7: Face.RUNNING}}, ("n1", "")),
            (Placed(RID, "Started", ("n1",)), {"n1": {7: Face.PAUSED}}, ("n1", "shows it paused")),
            (Placed(RID, "Started", ("n1",)), {"n1": {7: Face.MOVING}}, ("n1", "shows it moving")),
            (Placed(RID, "Started", ("n1",)), {"n1": {7: Face.ENDED}}, ("n1", "shows it ended")),
            (Placed(RID, "Started", ("n1",)), {"n1": {}}, ("n1", "no domain of it")),
            (Placed(RID, "Started", ("n1",)), {}, ("n1", "not online")),
            (Placed(RID, "Started", ("n1",)), {"n1": {7: Face.RUNNING}, "n2": {7: Face.RUNNING}},
             ("n1", "shows it on n2 too")),
            (Placed(RID, "Started", ("n1",)), {"n1": {7: Face.RUNNING}, "n2": "no route"},
             ("n1", "")),
            (Placed(RID, "Migrating", ("n1",)), {"n1": {7: Face.RUNNING}}, ("", "being started")),
            (Placed(RID, "Started", ("n1",), pending="Monitoring"), {"n1": {7: Face.RUNNING}},
             ("", "being started")),
            (Placed(RID, "Started", ("n1", "n2")), {"n1": {7: Face.RUNNING}}, ("", "on its way")),
            (Placed(RID, "Started", ("n1",), blocked=True), {"n1": {7: Face.RUNNING}},
             ("", "blocked")),
            (Placed(RID, "Stopped"), {}, ("", "nowhere yet")),
            (None, {}, ("", "nowhere yet")),
        ],
    )  # fmt: skip
    def test_of_one_vm(self, placed: Placed | None, seen: Any, expected: tuple[str, str]) -> None:
        """Only at rest, on one node, whose Xen shows it running, and no other's does."""
        node, doubt = expected
        found = whereabouts.seat(_resource(), placed, seen)
        assert found.node == node
        assert doubt in found.doubt
        assert bool(doubt) is bool(found.doubt)

    def test_no_doubt_that_a_vm_is_off(self) -> None:
        """It should not run, and does not."""
        off = replace(_resource(), started=False)
        assert whereabouts.seat(off, Placed(RID, "Stopped"), {}) == Seat(
            VmId(7), "web", "", "", wanted=False
        )


def _resource() -> Resource:
    return Resource(
        cloud=CloudId(CLOUD), vm=VmId(7), name="web", config="", memory_mib=1, cpu=1,
        migratable=True, started=True,
    )  # fmt: skip


class TestClaim:
    """While it lasts, nothing is started here for OpenNebula but what runs already."""

    def test_confirms_and_claims(self, pair: Pair) -> None:
        """The VM that runs here is adopted as ever."""
        assert pair.ask("node1", "domain-claim", vms=[7], timeout_s=60).result == {"refused": {}}
        assert pair.start("node1").result["adopted"]

    def test_refused_where_it_does_not_run(self, pair: Pair) -> None:
        """It has moved on since the sync has looked."""
        refused = pair.ask("node2", "domain-claim", vms=[7], timeout_s=60).result["refused"]
        assert "not certain that VM 7 runs on node2: it is on node1" in refused["7"]
        assert not claims.is_claimed(pair.xens["node2"].machine(), CLOUD, VmId(7))

    def test_one_that_is_refused_does_not_stop_the_others(self, pair: Pair) -> None:
        """The cluster has no VM 8; VM 7 is claimed all the same."""
        refused = pair.ask("node1", "domain-claim", vms=[8, 7], timeout_s=60).result["refused"]
        assert list(refused) == ["8"]
        assert "the cluster knows no VM 8" in refused["8"]
        assert claims.is_claimed(pair.xens["node1"].machine(), CLOUD, VmId(7))

    def test_nothing_is_claimed_without_a_quorum(self, pair: Pair) -> None:
        """Whatever Xen shows here, the others may have begun something."""
        pair.pacemaker.edit(lambda root: root.set("have-quorum", "0"))
        refused = pair.ask("node1", "domain-claim", vms=[7], timeout_s=60).result["refused"]
        assert "it has no quorum" in refused["7"]
        assert not claims.is_claimed(pair.xens["node1"].machine(), CLOUD, VmId(7))

    def test_a_guest_that_ends_meanwhile_is_not_started(self, pair: Pair) -> None:
        """It switched itself off between the sync's call and the driver's: that stays so."""
        pair.ask("node1", "domain-claim", vms=[7], timeout_s=60)
        pair.xens["node1"].guest(7, "off")
        pair.monitor()
        with pytest.raises(RefusedError, match="does not run on node1 any more, and is not start"):
            pair.start("node1")
        with pytest.raises(RefusedError, match="is not started"):
            pair.restore("node1")
        assert pair.runs_on() == []

    def test_a_guest_that_crashed_meanwhile_is_pacemakers(self, pair: Pair) -> None:
        """Pacemaker has not noticed yet: the order must not end what the cluster starts again."""
        pair.ask("node1", "domain-claim", vms=[7], timeout_s=60)
        pair.xens["node1"].guest(7, "vanished")
        with pytest.raises(RefusedError, match="is not started"):
            pair.start("node1")
        known = pair.resource()
        assert known is not None
        assert known.started
        pair.monitor()
        assert pair.runs_on() == ["node1"]

    def test_ends_by_itself(self, pair: Pair) -> None:
        """A sync that died keeps nobody off for long."""
        pair.ask("node1", "domain-claim", vms=[7], timeout_s=60)
        pair.xens["node1"].guest(7, "off")
        pair.monitor()
        pair.xens["node1"].clock += 61
        pair.start("node1")
        assert pair.runs_on() == ["node1"]

    def test_ends_when_opennebula_ends_the_vm(self, pair: Pair) -> None:
        """A user switches it off and on again."""
        pair.ask("node1", "domain-claim", vms=[7], timeout_s=600)
        pair.stop("node1")
        pair.start("node1")
        assert pair.runs_on() == ["node1"]

    def test_damaged_is_a_claim(self, pair: Pair) -> None:
        """What cannot be read allows nothing."""
        machine = pair.xens["node1"].machine()
        claims.note(machine, CLOUD, VmId(7), 60)
        with open(claims._path(machine, CLOUD, VmId(7)), "w", encoding="ascii") as file:
            file.write("{")
        assert claims.is_claimed(machine, CLOUD, VmId(7))


class TestConfirm:
    """The driver's migrate under a claim: it moves nothing and writes nothing."""

    def _claimed(self, pair: Pair) -> None:
        """VM 7 was rescued, and is claimed on node2."""
        pair.fail("node1")
        pair.ask("node2", "domain-claim", vms=[7], timeout_s=60)

    def test_where_it_runs(self, pair: Pair) -> None:
        """By two commands of this node alone; the claim is over then."""
        self._claimed(pair)
        before, node = pair.pacemaker.text, pair.xens["node2"].node
        node.ran.clear()
        assert pair.ask("node2", "domain-confirm", vm=7).result == {"node": "node2"}
        assert [argv[0] for argv in node.ran] == ["crm_mon", "xl"]
        assert pair.pacemaker.text == before
        assert not claims.is_claimed(pair.xens["node2"].machine(), CLOUD, VmId(7))

    def test_without_a_claim(self, pair: Pair) -> None:
        """It has ended meanwhile, or a user asks for the same: the whole cluster is looked at."""
        node = pair.xens["node1"].node
        node.ran.clear()
        pair.ask("node1", "domain-confirm", vm=7)
        assert sorted(argv[0] for argv in node.ran) == ["cibadmin", "crm_mon", "ssh", "xl"]

    def test_refused_elsewhere(self, pair: Pair) -> None:
        """It is not there, and is not moved there."""
        with pytest.raises(RefusedError, match="not certain that VM 7 runs on node2"):
            pair.ask("node2", "domain-confirm", vm=7)
        assert pair.runs_on() == ["node1"]

    def test_refused_when_it_has_moved_since_the_claim(self, pair: Pair) -> None:
        """The claim is no proof of that, and stays: nothing is started here by it."""
        pair.ask("node1", "domain-claim", vms=[7], timeout_s=60)
        pair.move("node1", "node2")
        with pytest.raises(RefusedError, match="runs on node1: it is on node2"):
            pair.ask("node1", "domain-confirm", vm=7)
        assert claims.is_claimed(pair.xens["node1"].machine(), CLOUD, VmId(7))

    @pytest.mark.parametrize(
        ("old", "new", "why"),
        [
            (' role="Started"', ' role="Started" pending="Migrating"', "started, stopped or moved"),
            (' role="Started"', ' role="Migrating"', "started, stopped or moved"),
            ('with_quorum="true"', 'with_quorum="false"', "no quorum"),
            ('unclean="false"', 'unclean="true"', "waits to be fenced"),
        ],
    )
    def test_refused_from_the_first_step_of_a_move_on(
        self, pair: Pair, old: str, new: str, why: str
    ) -> None:
        """Xen shows it running here for as long as its memory is copied: Pacemaker knows better."""
        pair.ask("node1", "domain-claim", vms=[7], timeout_s=60)
        said = pair.mon()
        assert old in said
        for xen in pair.xens.values():
            xen.node.model("crm_mon", lambda _argv, _data: Outcome(said.replace(old, new)))
        with pytest.raises(RefusedError, match=why):
            pair.ask("node1", "domain-confirm", vm=7)

    def test_refused_for_a_guest_that_has_ended(self, pair: Pair) -> None:
        """Pacemaker has not noticed yet; Xen has."""
        pair.ask("node1", "domain-claim", vms=[7], timeout_s=60)
        pair.xens["node1"].guest(7, "off")
        with pytest.raises(RefusedError, match="Xen on node1 shows it ended"):
            pair.ask("node1", "domain-confirm", vm=7)

    def test_standalone_host(self, tmp_path: Any) -> None:
        """Nothing has moved there by itself."""
        machine = new_xen(tmp_path / "solo1").machine()
        for verb, more in (
            ("domain-confirm", {"vm": 7}),
            ("domain-claim", {"vms": [7], "timeout_s": 60}),
            ("domain-told", {"hosts": {"7": "solo1"}}),
        ):
            with pytest.raises(RefusedError, match="is in no cluster, so VM 7 has not moved there"):
                ask(machine, verb, **more)


class TestTold:
    """Where OpenNebula takes VMs to be is noted by one change, on whichever node."""

    def test_noted(self, pair: Pair) -> None:
        """What the cluster has no word of is no obstacle."""
        pair.fail("node1")
        pair.ask("node2", "domain-told", hosts={"7": "node2", "8": "node1"})
        known = pair.resource()
        assert known is not None
        assert (known.host, known.preferred) == ("node2", "node2")
        assert pair.runs_on() == ["node2"]

    def test_a_host_of_another_name(self, pair: Pair) -> None:
        """The preference is for the node that OpenNebula calls so."""
        pair.pacemaker.edit(lambda root: nodes.set_attribute(root, "node2", nodes.HOST, "xen-b"))
        pair.ask("node1", "domain-told", hosts={"7": "xen-b"})
        known = pair.resource()
        assert known is not None
        assert (known.host, known.preferred, pair.runs_on()) == ("xen-b", "node2", ["node1"])

    def test_no_host_of_this_cluster(self, pair: Pair) -> None:
        """Is refused, and nothing of it is written."""
        before = pair.pacemaker.text
        with pytest.raises(NotFoundError, match="no node of this cluster is called 'other'"):
            pair.ask("node1", "domain-told", hosts={"7": "other"})
        assert pair.pacemaker.text == before


class TestVouching:
    """The host where OpenNebula looks for a VM says that it runs, until OpenNebula knows."""

    def _later(self, pair: Pair) -> None:
        for xen in pair.xens.values():
            xen.clock += 61

    def test_after_a_failover_the_old_host_is_back(self, pair: Pair) -> None:
        """It remembers nothing: the cluster does."""
        pair.fail("node1")
        pair.come_back("node1")
        self._later(pair)
        assert pair.observe("node1") == {NAME: "elsewhere"}
        assert pair.observe("node2") == {NAME: "running"}
        pair.ask("node2", "domain-told", hosts={"7": "node2"})
        self._later(pair)
        assert pair.observe("node1") == {}

    def test_after_an_operators_move(self, pair: Pair) -> None:
        """OpenNebula has not ordered it; when it asks for just that, nothing is to be done."""
        self._later(pair)
        relocate.migrate(operator(pair, "node1"), vm=VmId(7), node="node2", by_opennebula=False)
        pair.pacemaker.go_on()
        self._later(pair)
        assert pair.observe("node1") == {NAME: "elsewhere"}
        assert not pair.move("node2", "node2").result["moved"]
        self._later(pair)
        assert pair.observe("node1") == {}

    def test_not_after_opennebulas_own_move(self, pair: Pair) -> None:
        """It knows."""
        pair.move("node1", "node2")
        self._later(pair)
        assert pair.observe("node1") == {}

    def test_not_of_a_vm_that_opennebula_has_stopped(self, pair: Pair) -> None:
        """Wherever it was."""
        pair.fail("node1")
        pair.come_back("node1")
        pair.stop("node1")
        self._later(pair)
        assert pair.observe("node1") == {}

    def test_not_without_a_quorum(self, pair: Pair) -> None:
        """It cannot know."""
        pair.fail("node1")
        pair.come_back("node1")
        self._later(pair)
        pair.pacemaker.edit(lambda root: root.set("have-quorum", "0"))
        assert pair.observe("node1") == {}


def test_the_dead_nodes_directory_goes_when_its_vm_is_deleted(pair: Pair) -> None:
    """OpenNebula deletes the VM where it was rescued, and never asks the old node again."""
    made = pair.directory("node1")
    pair.fail("node1")
    pair.come_back("node1")
    machine = pair.xens["node1"].machine()
    group = lvm.group(machine.runner, machine.config.vg_name)
    assert directories.sweep_unasked(machine, group, root=-1) == []
    pair.ask("node2", "domain-confirm", vm=7)
    pair.stop("node2")
    pair.ask("node2", "vm-remove", vm=7, dir=pair.directory("node2"))
    group = lvm.group(machine.runner, machine.config.vg_name)
    config = Path(machine.config.cfg_dir, NAME)
    assert config.exists()
    assert directories.sweep_unasked(machine, group, root=os.stat(made).st_uid) == [str(config)]
    assert directories.sweep_unasked(machine, group, root=-1) == [made]
    assert not os.path.exists(made)
    assert directories.sweep_unasked(machine, group, root=-1) == []


def test_a_directory_of_others_is_no_vms(pair: Pair, tmp_path: Path) -> None:
    """Whoever makes the VMs' directories may plant a link above one, to what is not theirs."""
    made = pair.directory("node1")
    pair.stop("node1")
    pair.ask("node1", "vm-remove", vm=7, dir=made)
    (tmp_path / "theirs" / "7").mkdir(parents=True)
    os.symlink(tmp_path / "theirs", tmp_path / "0")
    machine = pair.xens["node1"].machine()
    adopted.note(machine, Owner(CLOUD, VmId(7)), str(tmp_path / "0" / "7"))
    group = lvm.group(machine.runner, machine.config.vg_name)
    theirs = os.getuid() + 1
    ours = os.stat
    noted = adopted._path(machine, Owner(CLOUD, VmId(7)))

    def stat(path: Any, **more: Any) -> os.stat_result:
        found = ours(path, **more)
        return os.stat_result((*found[:4], theirs, *found[5:])) if path == noted else found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "stat", stat)
        assert directories.sweep_unasked(machine, group, root=-1) == []
    assert (tmp_path / "theirs" / "7").exists()


class TestDeletion:
    """What OpenNebula wants removed goes when that is safe, and not before."""

    def _tags(self, pair: Pair) -> tuple[str, ...]:
        lvs = pair.xens["node2"].node.state.lvs
        return tuple(lvs[DISK].tags) if DISK in lvs else ()

    def _give_up(self, pair: Pair, node: str) -> None:
        """What the host_error hook with -r or -d has OpenNebula do on a host that is back."""
        with pytest.raises(RefusedError, match="is not destroyed on"):
            pair.stop(node, "destroy")
        for verb, more in (("disk-remove", {"disk": 0}), ("vm-remove", {})):
            with pytest.raises(RefusedError, match="is not removed: it runs on node2"):
                pair.ask(node, verb, vm=7, dir=pair.directory(node), **more)

    @pytest.fixture
    def rescued(self, pair: Pair) -> Pair:
        """VM 7 was rescued, and its old node is back."""
        pair.fail("node1")
        pair.come_back("node1")
        return pair

    def test_a_rescued_vm_survives_its_deletion(self, rescued: Pair) -> None:
        """Its domain, its disk, and the next failover."""
        self._give_up(rescued, "node1")
        assert rescued.runs_on() == ["node2"]
        assert "cxm.state=delete-requested" in self._tags(rescued)
        with pytest.raises(RefusedError, match="it runs on node2"):
            rescued.ask("node1", "vm-purge", vm=7, forced=True)
        rescued.fail("node2")
        assert rescued.runs_on() == ["node1"]

    def test_its_disk_is_not_made_anew(self, rescued: Pair) -> None:
        """OpenNebula creates it again, on whatever host."""
        self._give_up(rescued, "node1")
        before = self._tags(rescued)
        for node in rescued.xens:
            with pytest.raises(RefusedError, match="and it runs on node2: it is kept"):
                rescued.ask(
                    node, "disk-blank", vm=7, disk=0, dir=rescued.directory(node), name=NAME,
                    size_mib=4, format="raw",
                )  # fmt: skip
        assert self._tags(rescued) == before

    def test_nor_removed_before_it_is_rescued(self, pair: Pair) -> None:
        """Between the fencing and its start it is nowhere."""

        def nowhere(root: Element) -> None:
            for group in root.iterfind(f".//primitive[@id='{RID}']/meta_attributes/nvpair"):
                if group.get("name") == "target-role":
                    group.set("value", "Started")

        pair.stop("node1")
        pair.pacemaker.edit(nowhere)
        with pytest.raises(RefusedError, match="the cluster is to run it"):
            pair.ask("node2", "vm-remove", vm=7, dir=pair.directory("node2"))
        assert self._tags(pair)

    def test_removed_when_opennebula_had_stopped_it(self, pair: Pair) -> None:
        """Its resource, too: nobody else would take it away."""
        machine = pair.xens["node1"].machine()
        with pytest.raises(RefusedError, match="it runs on node1"):
            pair.ask("node1", "disk-remove", vm=7, disk=0, dir=pair.directory("node1"))
        pair.stop("node1")
        assert ask(machine, "requested").result["vms"] == [
            {"vm": 7, "asked": True, "volumes": [DISK]}
        ]
        assert pair.ask("node2", "vm-purge", vm=7, forced=False).result["removed"] == [RID, DISK]
        assert self._tags(pair) == ()
        assert pair.resource() is None
        assert pair.ask("node2", "vm-purge", vm=7, forced=False).result["removed"] == []
        assert ask(machine, "requested").result["vms"] == []

    def test_kept_when_it_had_gone_on(self, rescued: Pair) -> None:
        """A rescued guest that ends later may be somebody's work: a human says."""
        self._give_up(rescued, "node1")
        orders.stop(
            operator(rescued, "node2"), vm=VmId(7), how="destroy", timeout_s=5, life=Life.OFF,
            reason="root ordered its destroy",
        )  # fmt: skip
        with pytest.raises(RefusedError, match="it went on after OpenNebula had given it up"):
            rescued.ask("node1", "vm-purge", vm=7, forced=False)
        assert self._tags(rescued)
        assert rescued.ask("node1", "vm-purge", vm=7, forced=True).result["removed"]
        assert self._tags(rescued) == ()

    @pytest.mark.parametrize("verb", ["vm-remove", "disk-remove"])
    def test_marked_where_pacemaker_is_down(self, pair: Pair, verb: str) -> None:
        """OpenNebula asks once; whether the VM lives the sync finds out on another node."""
        pair.stop("node1")
        more = {"disk": 0} if verb == "disk-remove" else {}
        down = Outcome(stderr="crm_mon: Error: cluster is not available: not connected\n", code=102)
        working = pair.pacemaker.handlers()["crm_mon"]
        pair.xens["node1"].node.model("crm_mon", lambda _argv, _data: down)
        with pytest.raises(RefusedError, match="Pacemaker does not run here"):
            pair.ask("node1", verb, vm=7, dir=pair.directory("node1"), **more)
        assert "cxm.state=delete-requested" in self._tags(pair)
        pair.xens["node1"].node.model("crm_mon", working)
        assert pair.ask("node2", "vm-purge", vm=7, forced=False).result["removed"] == [RID, DISK]

    def test_what_was_not_asked_for_stays(self, pair: Pair) -> None:
        """A VM that is off has disks, too."""
        pair.stop("node1")
        assert pair.ask("node1", "vm-purge", vm=7, forced=False).result["removed"] == []
        assert self._tags(pair)

    def test_a_human_says_so(self, pair: Pair) -> None:
        """OpenNebula's clean-up never reached a host: nothing is marked, and nobody owns it."""
        pair.stop("node1")
        assert pair.ask("node1", "vm-purge", vm=7, forced=True).result["removed"] == [RID, DISK]
        assert self._tags(pair) == ()
