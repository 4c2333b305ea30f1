# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""A VM of a cluster that OpenNebula deletes where it is not: all of it goes, when that is safe."""

import os
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import pytest

from cxm import lvm
from cxm.cluster import orders
from cxm.errors import RefusedError
from cxm.names import VmId
from cxm.node import adopted
from cxm.node import directory as directories
from cxm.node.guests import Life
from cxm.node.volumes import Owner
from tests.actions.test_cluster_whereabouts import operator
from tests.fakes.call import ask
from tests.fakes.domains import NAME
from tests.fakes.machine import CLOUD, Outcome
from tests.fakes.pair import DISK, RID, Pair


@pytest.fixture
def pair() -> Pair:
    """VM 7 runs on node1."""
    made = Pair()
    made.start("node1")
    return made


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

    def _not_made_anew(self, pair: Pair, why: str) -> None:
        """OpenNebula creates the VM again, on whatever host."""
        before = self._tags(pair)
        for node in pair.xens:
            with pytest.raises(RefusedError, match=why):
                pair.ask(
                    node, "disk-blank", vm=7, disk=0, dir=pair.directory(node), name=NAME,
                    size_mib=4, format="raw",
                )  # fmt: skip
        assert self._tags(pair) == before

    def test_its_disk_is_not_made_anew(self, rescued: Pair) -> None:
        """After it was given up."""
        self._give_up(rescued, "node1")
        self._not_made_anew(rescued, "and it runs on node2: it is kept")

    def test_nor_is_that_of_a_vm_that_is_off(self, pair: Pair) -> None:
        """It has run in the cluster: a VM that is made anew must not boot what the old one left."""
        pair.stop("node1")
        self._not_made_anew(pair, "VM 7 has run with it; its content is kept")

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
