# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""A cluster gets a third node, and loses it again, while it runs: nothing of it is restarted."""

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final
from xml.etree.ElementTree import SubElement, tostring

import pytest

from cxm.cluster import nodes
from cxm.errors import RefusedError
from cxm.setup import cluster, corosync, jointoken, sbd
from cxm.setup.cluster import Options
from cxm.setup.corosync import CONF
from tests.fakes.administration import Said
from tests.fakes.clusternode import SBD, FakeClusterNode
from tests.fakes.forming import GIVEN, Pair

THREE: Final = replace(
    GIVEN,
    nodes=[*GIVEN.nodes, "node3=10.0.0.3"],
    fencing=[*GIVEN.fencing, "node3=fence_ipmilan,ip=10.0.1.3,username=u,password=secret3"],
)
_BOTH: Final[dict[str, Any]] = {"sbd": SBD, "datastore": "gfs2,id=100"}


class Three(Pair):
    """A formed pair, and the machine that becomes its third node."""

    def __init__(self, top: Path, given: Options = GIVEN, more: Options = THREE) -> None:
        super().__init__(top)
        self.given, self.more = given, more
        self.third = FakeClusterNode(str(top / "node3"), "node3", "10.0.0.3", self.san)
        self.form(*((self.mounted,) if given.datastore else ()))

    def mounted(self) -> None:
        """The system datastore, wherever the cluster is."""
        os.makedirs(self.first.node.path("var/lib/one/datastores/100"))
        self.pacemaker.started.update(["cxm-datastore-volume", "cxm-datastore-mount"])

    def token_of(self, given: Options) -> str:
        """What the first node prints."""
        host = self.first.host()
        membership, told = cluster._first(host, given)
        membership = cluster._with_secrets(host, membership)
        if membership.cluster.sbd:
            disk = sbd.look(host, membership.cluster, is_first=True)
            membership, _told = cluster._with_sbd(membership, told, disk)
        return jointoken.pack(membership)

    def join(self, node: FakeClusterNode, token: str) -> str:
        """The line on another node, which is in the cluster at once."""
        return self.run(node, Options(join=token))

    def grow(self) -> str:
        """The first node's call; the others' while it waits."""
        said: list[str] = []

        def old_one() -> None:
            said.append(self.join(self.second, self.token_of(self.more)))
            assert set(corosync.members(self.second.loaded)) == {"node1", "node2"}

        def new_one() -> None:
            assert {"node3"} <= set(corosync.members(self.second.loaded)), "not let in yet"
            steps = (lambda: self.pacemaker.come("node3"),)
            said.append(self.run(self.third, Options(join=self.token_of(self.more)), *steps))

        started = self.pacemaker.started
        said.append(
            self.run(self.first, self.more, old_one, new_one, lambda: started.add("fence-node3"))
        )
        return "\n".join(said)

    def go_away(self) -> None:
        """The third node's services are stopped."""
        self.pacemaker.online.discard("node3")

    def shrink(self) -> str:
        """The first node's call, the second's while it waits."""
        token = self.token_of(self.given)
        return self.run(self.first, self.given, lambda: _none(self.join(self.second, token)))


def _none(_said: str) -> None:
    pass


def ids(node: FakeClusterNode) -> dict[str, int]:
    """The numbers in a node's corosync.conf."""
    return {name: each.number for name, each in corosync.members(node.text(CONF)).items()}


def cib(three: Three) -> str:
    """What Pacemaker has."""
    return tostring(three.pacemaker.cib, encoding="unicode")


@pytest.fixture
def three(tmp_path: Path) -> Three:
    """Two nodes that are a cluster, and a third machine."""
    return Three(tmp_path)


def test_third_node_is_taken_up_while_the_pair_runs(three: Three) -> None:
    """All files are the same before one is loaded; what is for pairs goes."""
    assert 'name="priority-fencing-delay"' in cib(three)
    said = three.grow()
    texts = {node.text(CONF) for node in three.san.machines.values()}
    assert len(texts) == 1
    assert {node.loaded for node in three.san.machines.values()} == texts
    assert "two_node" not in texts.pop()
    assert ids(three.first) == {"node1": 1, "node2": 2, "node3": 3}
    assert corosync.version(three.first.text(CONF)) == 2
    assert "waiting for node2: run there" in said
    assert "The cluster lab is formed" in said
    assert "stopped:" not in said
    assert 'id="fence-node3"' in cib(three)
    assert "priority-fencing-delay" not in cib(three)
    assert "pcmk_delay_base" not in cib(three)
    assert "Nothing to change" in three.run(three.first, THREE)


def test_dry_run_says_how_a_node_comes_and_goes(three: Three) -> None:
    """Corosync's new members, the devices; what is for pairs goes and comes."""
    said = three.run(three.first, replace(THREE, dry_run=True))
    assert "\nwhen all nodes have this corosync.conf: corosync-cfgtool -R\n" in said
    assert "  + primitive fence-node3: " in said
    assert "  ~ properties: priority-fencing-delay is taken away\n" in said
    three.grow()
    three.go_away()
    before = cib(three)
    said = three.run(three.first, replace(GIVEN, dry_run=True))
    assert "\ncrm_node --remove node3 --force\n" in said
    assert "  - primitive fence-node3\n" in said
    assert "  ~ properties: priority-fencing-delay 15s\n" in said
    assert cib(three) == before


def test_node_is_taken_out_and_the_rest_is_a_pair_again(three: Three) -> None:
    """Its fence device, preferences for it and its name go; numbers stay."""
    three.grow()
    constraints = three.pacemaker.cib.find("configuration/constraints")
    assert constraints is not None
    wish = {"id": "vm-prefer", "rsc": "cxm-cloudone1-7", "node": "node3", "score": "100"}
    SubElement(constraints, "rsc_location", wish)
    three.go_away()
    said = three.shrink()
    assert "taken out: node3" in said
    assert three.first.text(CONF) == three.second.text(CONF) == three.second.loaded
    assert "two_node: 1" in three.first.text(CONF)
    assert corosync.version(three.first.text(CONF)) == 3
    assert "node3" not in cib(three)
    assert 'name="priority-fencing-delay" value="15s"' in cib(three)
    assert 'value="node1:5s"' in cib(three)


@pytest.fixture
def both(tmp_path: Path) -> Three:
    """The same, with SBD and a system datastore."""
    return Three(tmp_path, replace(GIVEN, **_BOTH), replace(THREE, **_BOTH))


def _sbd(three: Three) -> str:
    found = three.pacemaker.cib.find(".//primitive[@id='fence-sbd']//*[@name='pcmk_host_list']")
    assert found is not None
    return found.get("value", "")


def test_third_node_comes_and_goes_with_sbd_and_datastore(both: Three) -> None:
    """It says that it has both; its slot stays on the disk, and keeps nobody out."""
    both.grow()
    said = nodes.facts(both.pacemaker.cib)["node3"].attributes
    assert (said[nodes.SBD], said[nodes.DATASTORE]) == (SBD, "/var/lib/one/datastores/100")
    assert _sbd(both) == "node1 node2 node3"
    assert 'id="cxm-node3-2"' in cib(both)
    assert len(both.san.made) == 1
    assert "Nothing to change" in both.run(both.first, both.more)
    both.go_away()
    both.shrink()
    assert "node3" not in cib(both)
    assert both.san.slots == ["node1", "node2", "node3"]
    assert "Nothing to change" in both.run(both.first, both.given)
    assert "Nothing to change" in both.join(both.second, both.token_of(both.given))


def test_new_node_is_told_whose_slots_are_left(both: Three) -> None:
    """To it a slot of a node that has left would be one of another cluster."""
    both.san.slots.append("old1")
    token = both.token_of(both.more)
    assert jointoken.unpack(token).cluster.former == ["old1"]
    both.grow()
    both.san.slots.append("web7")
    both.third.write("etc/corosync/corosync.conf", "")
    said = Said()
    with pytest.raises(RefusedError, match="SBD disk"):
        cluster.work(both.third.world(both.pacemaker, said), Options(join=token))
    assert "is used by web7" in said.text


@pytest.mark.parametrize("left_out", [{"sbd": None}, {"datastore": None}])
def test_new_node_gets_what_the_others_have(both: Three, left_out: dict[str, Any]) -> None:
    """Else the cluster would mount over its files, or think that it reads SBD's disk."""
    before = both.first.text(CONF)
    with pytest.raises(RefusedError, match="must say it when its members change"):
        both.run(both.first, replace(both.more, **left_out))
    assert both.first.text(CONF) == before


@pytest.mark.parametrize("more", [{"sbd": SBD}, {"datastore": "gfs2,id=100"}])
def test_members_and_options_are_not_changed_at_once(three: Three, more: dict[str, Any]) -> None:
    """The new node would wait without fencing for a restart of the others."""
    with pytest.raises(RefusedError, match="are not changed at once"):
        three.run(three.first, replace(THREE, **more))


def test_numbers_of_nodes_never_change(three: Three) -> None:
    """The first of three leaves; the second stays number 2 to Corosync, DLM and Pacemaker."""
    three.grow()
    rest = replace(THREE, nodes=THREE.nodes[1:], fencing=THREE.fencing[1:])
    membership, _basis = cluster._first(three.second.host(), rest)
    assert dict(membership.cluster.ids) == {"node2": 2, "node3": 3}


def _running(three: Three) -> None:
    three.pacemaker.come("node3")


def _other_away(three: Three) -> None:
    three.pacemaker.online.discard("node2")


@pytest.mark.parametrize(
    ("fault", "message"),
    [(_running, "node3 is online"), (_other_away, "node2 is not there")],
)
def test_node_is_not_taken_out_where_that_is_not_safe(
    three: Three, fault: Callable[[Three], None], message: str
) -> None:
    """Nothing is written."""
    three.grow()
    three.go_away()
    fault(three)
    before = three.first.text(CONF)
    with pytest.raises(RefusedError, match=message):
        three.run(three.first, GIVEN)
    assert three.first.text(CONF) == before


def test_old_token_takes_nobody_out(three: Three) -> None:
    """Nor lets anybody in: this node knows newer members."""
    old = three.token()
    three.grow()
    three.go_away()
    said = Said()
    with pytest.raises(RefusedError, match="corosync"):
        cluster.work(three.second.world(three.pacemaker, said), Options(join=old))
    assert "this node knows newer members than the token" in said.text


def test_token_of_another_cluster_of_the_same_name_is_refused(three: Three) -> None:
    """Its keys would cut the node off."""
    token = jointoken.unpack(three.token())
    other = jointoken.pack(replace(token, authkey=corosync.new_key()))
    with pytest.raises(RefusedError, match="token is of another cluster 'lab'"):
        three.join(three.second, other)


def test_two_nodes_at_once_are_refused(three: Three) -> None:
    """Two of four are no majority until both are there."""
    four = replace(
        THREE, nodes=[*THREE.nodes, "node4=10.0.0.4"], fencing=[*THREE.fencing, "node4=fence_x,a=b"]
    )
    said = Said()
    with pytest.raises(RefusedError, match="corosync"):
        cluster.work(three.first.world(three.pacemaker, said), four)
    assert "node3, node4 would change at once" in said.text


def test_broken_off_it_goes_on(three: Three) -> None:
    """The file is written, and not loaded: the same command sees that and waits again."""

    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        three.run(three.first, THREE, interrupted)
    assert set(corosync.members(three.first.loaded)) == {"node1", "node2"}
    said = three.grow()
    assert re.search(r"loaded on all nodes: the members are node1, node2, node3", said)


def _interrupted() -> None:
    raise KeyboardInterrupt


def _half(three: Three, given: Options, *, joined: bool) -> None:
    """The first node has written its file and is broken off; then its Corosync starts again."""
    with pytest.raises(KeyboardInterrupt):
        three.run(three.first, given, _interrupted)
    if joined:
        three.join(three.second, three.token_of(given))
    three.first.restart()


def test_first_node_that_started_again_half_way_tells_the_others(three: Three) -> None:
    """It has the new members in mind, and the other neither has them nor was given them."""
    _half(three, THREE, joined=False)
    assert set(corosync.members(three.first.loaded)) == {"node1", "node2", "node3"}
    dry = three.run(three.first, replace(THREE, dry_run=True))
    assert "when all nodes have this corosync.conf: corosync-cfgtool -R" in dry
    said = three.grow()
    assert "waiting for node2: run there" in said
    assert "loaded on all nodes: the members are node1, node2, node3" in said
    assert three.second.loaded == three.first.loaded


def test_file_that_another_node_has_and_not_loaded_is_loaded(three: Three) -> None:
    """All files are the same: it is the version of what runs that tells."""
    _half(three, THREE, joined=True)
    assert three.second.text(CONF) == three.first.text(CONF) != three.second.loaded

    def new_one() -> None:
        assert three.second.loaded == three.first.loaded
        steps = (lambda: three.pacemaker.come("node3"),)
        three.run(three.third, Options(join=three.token_of(THREE)), *steps)

    said = three.run(
        three.first, THREE, new_one, lambda: three.pacemaker.started.add("fence-node3")
    )
    assert "loaded on all nodes" in said
    assert "Nothing to change" in three.run(three.first, THREE)


def test_node_less_is_not_done_where_the_others_still_have_it(three: Three) -> None:
    """All that stay are there: nothing else would be waited for."""
    three.grow()
    three.go_away()
    _half(three, GIVEN, joined=False)
    said = three.shrink()
    assert f"cxm-setup cluster --join {three.token_of(GIVEN)}" in said
    assert "waiting for node2: run there" in said
    assert three.first.loaded == three.second.loaded == three.second.text(CONF)
    assert "taken out: node3" in said


def test_same_version_with_another_text_is_waited_for(three: Three) -> None:
    """Edited by hand on one node: nobody knows what the other has loaded."""
    text = three.second.text(CONF)
    three.second.write(CONF, f"{text}# by hand\n")
    said = three.run(three.first, GIVEN, lambda: three.second.write(CONF, text))
    assert "waiting for node2: run there" in said
    assert "loaded on all nodes: the members are node1, node2" in said


def test_node_that_cannot_be_asked_is_waited_for_with_the_reason(three: Three) -> None:
    """To run the line there again would help nobody."""
    three.first.unreachable = "Host key verification failed"
    said = three.run(three.first, GIVEN, lambda: setattr(three.first, "unreachable", ""))
    assert "waiting for node2: run there" in said
    assert "; the node node2 cannot be reached: Host key verification failed" in said
    assert "loaded on all nodes" not in said


def test_member_that_is_away_keeps_the_new_members_from_being_loaded(three: Three) -> None:
    """It would come back with others in mind; that the first started again changes nothing."""
    three.grow()
    four = replace(
        THREE, nodes=[*THREE.nodes, "node4=10.0.0.4"], fencing=[*THREE.fencing, "node4=fence_x,a=b"]
    )
    FakeClusterNode(os.path.join(three.first.node.root, "../node4"), "node4", "10.0.0.4", three.san)
    _half(three, four, joined=True)
    three.go_away()
    before = three.second.loaded
    with pytest.raises(RefusedError, match="node3 is not there"):
        three.run(three.first, four)
    assert three.second.loaded == before
