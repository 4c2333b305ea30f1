# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""What a node of a cluster tells the frontend: where VMs are, how certain; what it promises it."""

from dataclasses import replace
from typing import Any

import pytest

from cxm.cluster import claims, nodes, poweredoff, relocate, whereabouts
from cxm.cluster.cib import Resource
from cxm.cluster.pacemaker import Fencing, Node, Placed, Status
from cxm.cluster.whereabouts import Face, Seat
from cxm.errors import NotFoundError, RefusedError
from cxm.names import CloudId, VmId
from cxm.node.verbs import Call
from tests.fakes.call import ask
from tests.fakes.domains import NAME, new_xen
from tests.fakes.machine import CLOUD, Outcome
from tests.fakes.pair import RID, Pair


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

    def test_in_the_gap_between_two_steps_of_a_move(self, pair: Pair) -> None:
        """Pacemaker still calls it Started on the source, whose domain has gone: it should run."""
        assert pair.observe("node1") == {NAME: "running"}
        pair.xens["node1"].guest(7, "vanished")
        self._later(pair)
        assert pair.observe("node1") == {NAME: "running"}
        self._later(pair)
        assert pair.observe("node1") == {NAME: "vanished"}

    def test_not_of_one_that_was_not_here(self, pair: Pair) -> None:
        """After a boot nobody knows whether it will be started here."""
        pair.xens["node1"].guest(7, "vanished")
        assert pair.observe("node1") == {}

    @pytest.mark.parametrize(
        ("placed", "is_elsewhere"),
        [
            # As crm_mon of Pacemaker 2.1.5 says it, from the first step of a move to its last.
            (Placed(RID, "Migrating"), True),
            (Placed(RID, "Started", ("node1",)), False),
            (Placed(RID, "Migrating", ("node1",)), True),
            (Placed(RID, "Started", ("node2",)), True),
            (Placed(RID, "Stopping", ("node2",)), True),
            (Placed(RID, "Stopped"), False),
        ],
    )
    def test_what_pacemaker_calls_a_move(self, placed: Placed, is_elsewhere: bool) -> None:
        """Of VM 7, which leaves node1 for node2."""
        seen = status(resources={RID: placed})
        found = poweredoff.run_elsewhere([VmId(7)], CloudId(CLOUD), seen, "node1")
        assert found == ([7] if is_elsewhere else [])

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
