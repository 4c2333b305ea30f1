# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""``cxm-sync`` and what OpenNebula's deletions have left: volumes that were in use then."""

import threading

import pytest

from cxm import lock
from cxm.cluster import cib
from cxm.errors import CxmError
from cxm.names import VmId
from cxm.sync import main, memory, turns
from cxm.sync.memory import Memory
from cxm.sync.turns import Here, Turn
from tests.actions.test_sync import fail_over, quietly
from tests.fakes.believing import Believing
from tests.fakes.pair import DISK, RID


class TestRemoval:
    """Volumes that were in use when OpenNebula deleted their VM."""

    def _requested(self, world: Believing) -> None:
        with pytest.raises(CxmError, match="it runs on node1"):
            world.pair.ask("node1", "disk-remove", vm=7, disk=0, dir=world.pair.directory("node1"))

    def _has_disk(self, world: Believing) -> bool:
        return DISK in world.pair.xens["node1"].node.state.lvs

    def test_removed_when_the_vm_is_done(self, world: Believing) -> None:
        """And not before."""
        self._requested(world)
        world.pair.stop("node1")
        world.state = "POWEROFF"
        assert "OpenNebula says POWEROFF" in quietly(world).removals[0].sentence
        world.state = "DONE"
        assert quietly(world).removals == []  # not at every turn
        world.now += 301
        assert quietly(world).removals[0].removed
        assert not self._has_disk(world)
        assert world.pair.resource() is None

    def test_kept_while_it_runs(self, world: Believing) -> None:
        """OpenNebula's clean-up of a lost host has deleted a VM that was rescued."""
        self._requested(world)
        world.state = "DONE"
        done = quietly(world)
        assert not done.removals[0].removed
        assert self._has_disk(world)
        assert "given it up (DONE), and it runs on node1" in done.decisions[0].sentence

    def test_kept_for_a_vm_that_oned_does_not_know(self, world: Believing) -> None:
        """It does not say DONE."""
        self._requested(world)
        world.pair.stop("node1")
        world.is_known = False
        assert "OpenNebula knows no such VM" in quietly(world).removals[0].sentence
        assert self._has_disk(world)

    def test_a_human_says_that_nobody_needs_it(self, world: Believing) -> None:
        """OpenNebula gave it up, its clean-up reached no host, and it has been shut down since."""
        world.state = "DONE"
        here = world.here()
        assert quietly(world).removals == []  # that it runs is said already
        assert "it runs on node1" in main.remove(here, VmId(7)).removals[0].why
        world.pair.stop("node1")
        assert "--remove 7" in quietly(world).decisions[0].sentence
        assert self._has_disk(world)
        assert main.remove(here, VmId(7)).removals[0].removed
        assert not self._has_disk(world)
        assert quietly(world).decisions == []

    def test_no_deletion_has_reached_them(self, world: Believing) -> None:
        """The node was dead, or its LVM stood still: they are named, and a human says."""
        world.pair.stop("node1")
        world.pair.pacemaker.edit(lambda root: cib.remove(root, RID))
        world.state = "POWEROFF"
        assert quietly(world).removals == []
        world.now += 301
        world.state = "DONE"
        (only,) = quietly(world).removals
        assert only.sentence == (
            f"VM 7: {DISK} on node1: OpenNebula says DONE, and they stay: "
            "'cxm-sync --remove 7' removes them"
        )
        assert self._has_disk(world)
        assert main.remove(world.here(), VmId(7)).removals[0].removed
        assert not self._has_disk(world)

    def test_no_turn_waits_for_them(self, world: Believing) -> None:
        """LVM may stand still, and a host in no cluster may take a connection and never answer."""
        world.hosts["solo1"] = 2
        world.cut_off = {"solo1"}
        quietly(world)
        world.asked.clear()
        world.now += 301
        fail_over(world)
        free: list[str] = []

        def slow(host: str, verb: str) -> None:
            if host == "solo1" or verb in ("requested", "nudge-key"):
                assert world.belief() == ("RUNNING", "node2")
                assert not lock.is_held(world.here().place, "sync")
                free.append(verb)

        world.before = slow
        quietly(world)
        assert sorted(set(free)) == ["nudge-key", "requested", "whereabouts"]
        world.asked.clear()
        quietly(world)
        assert world.asked == [("node2", "whereabouts")]

    def test_turns_go_on_beside_them(
        self, world: Believing, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The timer waits for this process to end: a failover meanwhile is told by it."""
        monkeypatch.setattr(main, "_EVERY_S", 0.05)
        told, real = threading.Event(), turns.turn
        failing = iter((None, fail_over))

        def counted(here: Here, *, dry_run: bool) -> Turn:
            if (fails := next(failing, None)) is not None:
                fails(world)
            done = real(here, dry_run=dry_run)
            if world.host == "node2":
                monkeypatch.setattr(main, "_EVERY_S", 60.0)
                told.set()
            return done

        def hangs(_host: str, verb: str) -> None:
            assert verb != "requested" or told.wait(20)

        monkeypatch.setattr(main, "turn", counted)
        world.before = hangs
        world.sync()
        assert told.is_set()
        assert world.belief() == ("RUNNING", "node2")

    def test_two_do_not_look_around_at_once(self, world: Believing) -> None:
        """One hangs there: the others' turns go on without."""
        with lock.hold(world.here().place, "around", timeout_s=0.0):
            quietly(world)
        assert "requested" not in [verb for _host, verb in world.asked]

    def test_a_cluster_that_is_new(self, world: Believing) -> None:
        """It is found by the look around, and from then on each turn asks it."""
        here = world.here()
        memory.store(here.place, Memory(around_at=world.now - 400))
        fail_over(world)
        assert quietly(world).decisions == []
        quietly(world)
        assert world.belief() == ("RUNNING", "node2")
