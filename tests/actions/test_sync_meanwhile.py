# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Whatever happens while ``cxm-sync`` acts: the VM moves on, a user acts first, a program dies."""

from pathlib import Path

import pytest

from cxm.errors import DataError, UnreachableError
from cxm.names import VmId
from cxm.sync import claims, turns
from cxm.sync.decide import Kind
from tests.actions.test_sync import fail_over, moved, quietly, starts
from tests.fakes.believing import Believing


class TestNoEffect:
    """Whatever happens while it acts: nothing is started, moved or ended by it."""

    def test_the_vm_moves_again_before_the_claim(self, world: Believing) -> None:
        """The node says that it is not there; the next turn sees where it is."""
        moved(world)

        def back(_host: str, verb: str) -> None:
            if verb == "domain-claim":
                world.before = lambda _host, _verb: None
                world.pair.move("node2", "node1")

        world.before = back
        assert world.sync().decisions[0].kind is Kind.WAIT
        assert world.told == []
        assert world.belief() == ("RUNNING", "node1")

    def test_the_vm_moves_again_before_the_driver(self, world: Believing) -> None:
        """The driver confirms nothing, and does not move it: OpenNebula keeps what it believed."""
        moved(world)

        def back(call: str) -> None:
            if call == "migrate":
                world.pair.move("node2", "node1")

        world.before_call = back
        before = starts(world)
        world.sync()
        assert world.belief() == ("RUNNING", "node1")
        assert world.pair.runs_on() == ["node1"]
        assert starts(world)[len(before) :] == [("node2", "migrate")]  # the operator's

    def test_the_guest_ends_and_oned_takes_it_for_lost(self, world: Believing) -> None:
        """Then a live migration is a cold one, which deploys: the claim on the node forbids it."""
        moved(world)

        def ends(call: str) -> None:
            if call == "migrate":
                world.state = "UNKNOWN"
                world.pair.xens["node2"].guest(7, "off")
                world.pair.monitor()

        world.before_call = ends
        (only,) = world.sync().decisions
        assert world.pair.runs_on() == []
        assert world.state == "BOOT_FAILURE"
        assert "is not started" in world.error
        assert only.kind is Kind.STUCK
        assert "OpenNebula says BOOT_FAILURE on node2 now: " in only.sentence

    def test_a_user_acts_first(self, world: Believing) -> None:
        """OpenNebula is at work when the claim is made: nothing is called."""
        moved(world)

        def user(_host: str, verb: str) -> None:
            if verb == "domain-claim":
                world.state = "SHUTDOWN_POWEROFF"

        world.before = user
        (only,) = world.sync().decisions
        assert (only.kind, world.told) == (Kind.WAIT, [])
        assert "OpenNebula has changed it meanwhile" in only.sentence

    def test_a_user_migrates_a_claimed_vm(self, world: Believing) -> None:
        """Elsewhere: refused for the moment. To where it runs: confirmed."""
        moved(world)
        claims.make(world.here().place, claims.Claim(VmId(7), "node2", world.now))
        assert not world.action("vmm", "migrate", "name", "node1", "node2", "7", "node2")
        assert "is telling OpenNebula that it runs on node2" in world.error
        assert world.action("vmm", "migrate", "name", "node2", "node1", "7", "node1")
        claims.end(world.here().place, VmId(7))

    def test_a_claim_that_cannot_be_read(self, world: Believing) -> None:
        """It keeps drivers from moving the VM for as long as OpenNebula is at it, and no longer."""
        moved(world)
        place = Path(world.here().place)
        place.mkdir(exist_ok=True)
        (place / "claim-7").write_text("{", encoding="ascii")
        world.now += 60
        world.state = "MIGRATE"
        quietly(world)
        assert not world.action("vmm", "migrate", "name", "node1", "node2", "7", "node2")
        assert "the claim cannot be read" in world.error
        turns.turn(world.here(), dry_run=True)
        assert (place / "claim-7").exists()
        world.state = "RUNNING"
        quietly(world)
        assert world.belief() == ("RUNNING", "node2")

    def test_a_claim_that_nobody_ended_for_a_day(self, world: Believing) -> None:
        """A migration of today is not the one that it was made for: it is left to its end."""
        place = world.here().place
        claims.make(place, claims.Claim(VmId(7), "node1", world.now - 90000))
        world.state, world.host = "MIGRATE", "node2"
        (only,) = quietly(world).decisions
        assert (only.kind, world.told) == (Kind.LEFT, [])
        assert list(claims.all_of(place)) == []
        world.state = "RUNNING"
        quietly(world)

    def test_nobody_knows_what_oned_has_heard(self, world: Believing) -> None:
        """Its answer was damaged: the claim stays until OpenNebula is seen to be at rest."""
        moved(world)

        def damaged(call: str) -> None:
            if call == "migrate":
                raise DataError("oned answered nonsense")

        world.before_call = damaged
        assert "nonsense" in world.sync().decisions[0].sentence
        assert [each.vm for each in claims.all_of(world.here().place)] == [7]
        world.before_call = lambda _call: None
        world.now += 60
        quietly(world)
        assert world.belief() == ("RUNNING", "node2")

    def test_a_vm_that_is_deleted_meanwhile(self, world: Believing) -> None:
        """Even its row in the database: the others' turn goes on."""
        moved(world)

        def begins(vm: VmId, host: int, *, live: bool) -> None:
            assert (vm, host, live) == (7, 1, True)
            world.is_known = False

        world.migrate = begins  # type: ignore[method-assign]
        (only,) = world.sync().decisions
        assert only.kind is Kind.STUCK
        assert "oned refused one.vm.info(7)" in only.sentence

    def test_killed_after_the_claim(self, world: Believing) -> None:
        """The next run ends the claim of one that died, and does its work."""
        fail_over(world)
        claims.make(world.here().place, claims.Claim(VmId(7), "node2", world.now))
        world.now += 60
        quietly(world)
        assert world.belief() == ("RUNNING", "node2")

    def _stuck(self, world: Believing) -> None:
        """Oned dies in the middle of a migration of ours, and restarts: nobody works on it."""

        def dies(_call: str) -> None:
            world.state, world.host, world.is_up = "MIGRATE", "node2", False
            raise UnreachableError("oned does not answer")

        world.before_call = dies
        with pytest.raises(UnreachableError):
            world.sync()
        world.is_up, world.before_call = True, lambda _call: None
        assert quietly(world).decisions[0].kind is Kind.LEFT
        world.now += 1000

    def test_oned_dies_in_the_middle(self, world: Believing) -> None:
        """It is told what came of it."""
        fail_over(world)
        self._stuck(world)
        (only,) = quietly(world).decisions
        assert (only.kind, world.told[-1]) == (Kind.AGREED, "recover success")
        assert world.belief() == ("RUNNING", "node2")

    def test_oned_dies_in_the_middle_and_the_vm_goes_back(self, world: Believing) -> None:
        """It is told that nothing came of it."""
        moved(world)
        self._stuck(world)
        world.pair.move("node2", "node1")
        (only,) = quietly(world).decisions
        assert (only.kind, world.told[-1]) == (Kind.AGREED, "recover failure")
        assert world.belief() == ("RUNNING", "node1")

    def test_oned_does_not_want_to_be_told(self, world: Believing) -> None:
        """The migration stays ours, so that it is tried again."""
        fail_over(world)
        self._stuck(world)
        world.refuses = "not now"
        assert "not now" in quietly(world).decisions[0].sentence
        world.refuses = ""
        world.now += 1000
        quietly(world)
        assert world.belief() == ("RUNNING", "node2")

    def test_oneds_own_migration_needs_no_claim(self, world: Believing) -> None:
        """The driver on the frontend has the target move it."""
        world.migrate(VmId(7), 1, live=True)
        assert world.pair.runs_on() == ["node2"]
        assert world.belief() == ("RUNNING", "node2")
