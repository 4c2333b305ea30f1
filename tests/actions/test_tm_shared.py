# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Between two nodes of a cluster a VM changes its host without the host that it leaves.

That one may be dead: then its VMs that are off or suspended must come up elsewhere.
"""

import logging
import re
import shutil
from pathlib import Path

import pytest

from cxm.errors import RefusedError, UnreachableError
from tests.fakes.hosts import Cloud, run, tree
from tests.fakes.transfers import DISK, MEMORY, NOISE, between, new_cluster, volume

# LCM states: a VM is moved after its memory was saved, while it is off, while it is suspended.
_MOVES = {
    "saved": 8,
    "poweroff": 43,
    "poweroff, again": 44,
    "suspended": 45,
    "suspended, again": 46,
}
_LOST = {"unknown": 60, "unknown, again": 61}
LEFT = "VM 42: its old directory stays: node1 cannot be reached by ssh"


@pytest.fixture
def cluster(cloud_root: Path) -> Cloud:
    """VM 42 is on node1, with two disks, its context and its saved memory."""
    made = new_cluster(cloud_root)
    for disk, content in (("0", DISK), ("1", NOISE * 4), ("11", NOISE * 4), ("checkpoint", MEMORY)):
        volume(made, "node1", disk, content=content.ljust(4 << 20, b"\0"))
    return made


def volumes(cluster: Cloud) -> dict[str, bytes]:
    """All volumes of the SAN, with their content."""
    node = cluster.hosts["node2"]
    return {name: node.content(name) for name in node.state.lvs}


def moves(cluster: Cloud, lcm: int) -> None:
    """What oned does to move the VM from node1 to node2: each disk, then the rest."""
    text = cluster.vms[42]
    cluster.vms[42] = re.sub(r"<LCM_STATE>\d+<", f"<LCM_STATE>{lcm}<", text)
    for name in ("disk.0", "disk.1", ""):
        run(cluster, "mv", *between("node1", "node2", name)(cluster))


def migrates(cluster: Cloud, action: str) -> None:
    """What surrounds a live migration from node1 to node2."""
    directory = str(cluster.directory("front"))
    run(cluster, action, "node1", "node2", directory, "42", "0", stdin="<VM/>")


def is_on(cluster: Cloud, node: str) -> bool:
    """Whether the VM's directory is on a node, with a link to each disk."""
    found = tree(str(cluster.directory(node)))
    links = {f"disk.{disk}": f"-> lv-one-42-{disk}" for disk in ("0", "1", "11")}
    assert found in ({}, links)
    return bool(found)


class TestMv:
    """Each action of a cold move."""

    @pytest.mark.parametrize("lcm", _MOVES.values(), ids=_MOVES)
    def test_copies_nothing(self, cluster: Cloud, lcm: int) -> None:
        """Links are made where it goes to, and its directory goes where it was."""
        before = volumes(cluster)
        moves(cluster, lcm)
        assert cluster.steps == [*[("node2", "dir-adopt")] * 3, ("node1", "dir-drop")]
        assert volumes(cluster) == before
        assert (is_on(cluster, "node1"), is_on(cluster, "node2")) == (False, True)

    @pytest.mark.parametrize("lcm", _MOVES.values(), ids=_MOVES)
    def test_dead_source(self, cluster: Cloud, lcm: int, caplog: pytest.LogCaptureFixture) -> None:
        """Is tried once, not for long, and only told."""
        cluster.dead.add("node1")
        before = volumes(cluster)
        moves(cluster, lcm)
        assert volumes(cluster) == before
        assert is_on(cluster, "node2")
        assert [step for step in cluster.steps if step[0] == "node1"] == [("node1", "dir-drop")]
        warned = [each for each in caplog.records if each.levelno >= logging.WARNING]
        assert [each.getMessage() for each in warned] == [LEFT]

    def test_source_that_hangs(self, cluster: Cloud) -> None:
        """Its drop has a short limit: oned and its user wait for the action."""
        moves(cluster, _MOVES["poweroff"])
        assert cluster.steps[-1] == ("node1", "dir-drop")
        assert cluster.limit_s <= 30.0

    def test_source_that_cannot_drop_it(
        self, cluster: Cloud, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Whatever the reason is, the VM has moved."""
        directory = cluster.directory("node1")
        shutil.rmtree(directory)
        directory.write_text("not a directory")
        moves(cluster, _MOVES["suspended"])
        assert is_on(cluster, "node2")
        assert "VM 42: its old directory stays: node1: dir-drop" in caplog.text

    @pytest.mark.parametrize("lcm", _LOST.values(), ids=_LOST)
    def test_source_that_oned_knows_to_be_lost(self, cluster: Cloud, lcm: int) -> None:
        """Is not tried at all."""
        cluster.dead.add("node1")
        moves(cluster, lcm)
        assert {host for host, _verb in cluster.steps} == {"node2"}
        assert is_on(cluster, "node2")

    def test_dead_target(self, cluster: Cloud) -> None:
        """The VM stays where it is, and oned is told."""
        cluster.dead.add("node2")
        with pytest.raises(UnreachableError, match="node2 cannot be reached"):
            moves(cluster, _MOVES["poweroff"])
        assert is_on(cluster, "node1")

    def test_back_again(self, cluster: Cloud) -> None:
        """The directory that stayed on the dead node is in nobody's way."""
        cluster.dead.add("node1")
        moves(cluster, _MOVES["poweroff"])
        cluster.dead.clear()
        for name in ("disk.0", "disk.1", ""):
            run(cluster, "mv", *between("node2", "node1", name)(cluster))
        assert (is_on(cluster, "node1"), is_on(cluster, "node2")) == (True, False)


class TestAroundALiveMigration:
    """premigrate, postmigrate and failmigrate."""

    def test_there(self, cluster: Cloud) -> None:
        """Its directory is on both while it moves, then where it is."""
        migrates(cluster, "premigrate")
        assert (is_on(cluster, "node1"), is_on(cluster, "node2")) == (True, True)
        migrates(cluster, "postmigrate")
        assert (is_on(cluster, "node1"), is_on(cluster, "node2")) == (False, True)

    def test_not_there(self, cluster: Cloud) -> None:
        """It has not moved: the target keeps nothing."""
        migrates(cluster, "premigrate")
        migrates(cluster, "failmigrate")
        assert (is_on(cluster, "node1"), is_on(cluster, "node2")) == (True, False)

    def test_dead_source(self, cluster: Cloud, caplog: pytest.LogCaptureFixture) -> None:
        """So is the VM told to have moved that was started afresh on the target."""
        cluster.dead.add("node1")
        migrates(cluster, "premigrate")
        assert {host for host, _verb in cluster.steps} == {"node2"}
        assert caplog.text == ""
        migrates(cluster, "postmigrate")
        assert is_on(cluster, "node2")
        assert cluster.steps[-1] == ("node1", "dir-drop")
        assert LEFT in caplog.text

    def test_dead_source_of_a_move_that_failed(self, cluster: Cloud) -> None:
        """What was made on the target goes without it."""
        migrates(cluster, "premigrate")
        cluster.dead.add("node1")
        cluster.steps.clear()
        migrates(cluster, "failmigrate")
        assert cluster.steps == [("node2", "dir-drop")]
        assert not is_on(cluster, "node2")

    def test_dead_target(self, cluster: Cloud, caplog: pytest.LogCaptureFixture) -> None:
        """Nothing begins; and what fails with it stays there until it is back."""
        cluster.dead.add("node2")
        with pytest.raises(UnreachableError, match="node2 cannot be reached"):
            migrates(cluster, "premigrate")
        migrates(cluster, "failmigrate")
        assert "VM 42: its old directory stays: node2 cannot be reached" in caplog.text
        assert cluster.limit_s <= 30.0
        assert is_on(cluster, "node1")

    def test_hosts_that_share_nothing(self, cloud: Cloud) -> None:
        """A live migration between them is refused before it begins."""
        volume(cloud, "solo1")
        directory = str(cloud.directory("front"))
        with pytest.raises(RefusedError, match="cannot move to solo2 while it runs"):
            run(cloud, "premigrate", "solo1", "solo2", directory, "42", "0", stdin="<VM/>")
