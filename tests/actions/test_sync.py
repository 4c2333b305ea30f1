# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""``cxm-sync`` on a modelled pair of nodes and an oned that calls the real drivers.

What is never to happen is looked for after each run: a VM started, moved or ended by it, or one
that OpenNebula has no way out of.
"""

import pytest

from cxm.cluster import relocate
from cxm.errors import UnreachableError
from cxm.names import VmId
from cxm.node.verbs import Call
from cxm.one.version import OneVersion
from cxm.sync import claims, turns
from cxm.sync.decide import Kind
from cxm.sync.turns import Turn
from tests.fakes.believing import Believing
from tests.fakes.machine import CLOUD

V38, V412, V510, V74 = (
    OneVersion(3, 8), OneVersion(4, 12), OneVersion(5, 10), OneVersion(7, 4),
)  # fmt: skip
ALL = [V38, V412, V510, V74]


every_version = pytest.mark.parametrize("world", ALL, indirect=True, ids=str)


def starts(world: Believing) -> list[tuple[str, str]]:
    """What was done to the guest, on which node."""
    found = []
    for name, xen in world.pair.xens.items():
        doing = ("create", "migrate", "destroy", "shutdown", "restore", "save", "reboot")
        ran = [argv for argv in xen.node.ran if argv[0] == "xl" and argv[1] in doing]
        found += [(name, argv[1]) for argv in ran]
    return found


def quietly(world: Believing, *, nudged: bool = False) -> Turn:
    """A run that does nothing to any guest."""
    before, runs = starts(world), world.pair.runs_on()
    done = world.sync(nudged=nudged)
    assert starts(world) == before
    assert world.pair.runs_on() == runs
    return done


def fail_over(world: Believing) -> None:
    """Node1 dies, and is fenced; the VM runs on node2."""
    world.pair.fail("node1")
    assert world.pair.runs_on() == ["node2"]


def moved(world: Believing) -> None:
    """``cxm migrate`` by an operator."""
    machine = world.pair.xens["node1"].machine()
    relocate.migrate(Call(machine, CLOUD), vm=VmId(7), node="node2", by_opennebula=False)
    world.pair.pacemaker.go_on()


class TestConverges:
    """The record follows."""

    def test_nothing_to_say(self, world: Believing) -> None:
        """Both agree, and oned is told nothing."""
        (only,) = quietly(world).decisions
        assert (only.kind, world.told) == (Kind.AGREED, [])

    @every_version
    def test_after_a_failover(self, world: Believing) -> None:
        """By a migration that our driver confirms; nobody tries to reach the dead source."""
        fail_over(world)
        (only,) = quietly(world).decisions
        assert only.kind is Kind.AGREED
        assert world.belief() == ("RUNNING", "node2")
        assert world.told == ["migrate node2 live"]
        assert world.actions == ["tm/premigrate", "vmm/migrate", "tm/postmigrate"]
        assert "node1" not in [host for host, verb in world.asked if verb != "whereabouts"]
        assert quietly(world).decisions[0].kind is Kind.AGREED
        assert len(world.told) == 1

    @every_version
    def test_after_an_operators_move(self, world: Believing) -> None:
        """The source lives: its directory goes."""
        moved(world)
        quietly(world)
        assert world.belief() == ("RUNNING", "node2")
        assert ("node1", "dir-drop") in world.asked

    @pytest.mark.parametrize("world", [V412, V510, V74], indirect=True, ids=str)
    def test_unknown(self, world: Believing) -> None:
        """Recovered and moved in one go."""
        fail_over(world)
        world.state = "UNKNOWN"
        quietly(world)
        assert world.told == ["recover success", "migrate node2 live"]
        assert world.belief() == ("RUNNING", "node2")

    @pytest.mark.parametrize("state", ["POWEROFF", "SUSPENDED"])
    def test_taken_for_off(self, world: Believing, state: str) -> None:
        """Its record moves, and the host's next report says that it runs."""
        fail_over(world)
        world.state = state
        quietly(world)
        assert world.told == ["migrate node2 live"]
        assert world.belief() == (state, "node2")

    @pytest.mark.parametrize("state", ["POWEROFF", "SUSPENDED"])
    def test_taken_for_off_and_its_files_cannot_be_moved(
        self, world: Believing, state: str
    ) -> None:
        """The target has died in it, for example: OpenNebula takes it back, and it is tried again.

        Later and later, as whatever fails.
        """
        fail_over(world)
        world.state, world.moves_files = state, False
        (only,) = quietly(world).decisions
        assert only.kind is Kind.STUCK
        assert "_FAILURE on node2 now" in only.sentence
        (only,) = quietly(world).decisions
        assert (only.kind, world.told[-1]) == (Kind.AGREED, "recover failure")
        assert world.belief() == (state, "node1")
        assert list(claims.all_of(world.here().place)) == []
        world.moves_files = True
        assert quietly(world).decisions[0].kind is Kind.STUCK
        assert len(world.told) == 2
        world.now += 11
        quietly(world)
        assert world.belief() == (state, "node2")

    def test_files_that_cannot_be_moved_of_a_vm_on_no_host_of_opennebula(
        self, world: Believing
    ) -> None:
        """What is taken back names no host: the other VMs' turn goes on."""
        moved(world)
        claims.make(world.here().place, claims.Claim(VmId(7), "node2", world.now))
        del world.hosts["node2"]
        world.state = "PROLOG_MIGRATE_POWEROFF_FAILURE"
        assert quietly(world).decisions[0].kind is Kind.AGREED
        assert world.told == ["recover failure"]

    @pytest.mark.parametrize("state", ["POWEROFF", "SUSPENDED", "RUNNING"])
    def test_the_right_host_speaks_of_it_from_then_on(self, world: Believing, state: str) -> None:
        """No driver has told the cluster: a guest that goes off later would be nobody's report."""
        fail_over(world)
        world.pair.come_back("node1")
        world.state = "POWEROFF" if state == "RUNNING" else state
        quietly(world)
        world.state = state
        quietly(world)
        known = world.pair.resource()
        assert known is not None
        assert known.host == "node2"
        world.pair.xens["node2"].guest(7, "off")
        world.pair.monitor()
        world.sleep(120)
        assert world.pair.observe("node2") == {known.name: "poweroff"}
        assert world.pair.observe("node1") == {}

    def test_the_right_host_speaks_of_a_guest_that_goes_off_at_once(self, world: Believing) -> None:
        """OpenNebula had just been told where it is, and the cluster not yet that it was."""
        fail_over(world)

        def cut(_host: str, verb: str) -> None:
            if verb == "domain-told":
                raise UnreachableError("node2 cannot be reached by ssh")

        world.before = cut
        quietly(world)
        world.before = lambda _host, _verb: None
        assert world.belief() == ("RUNNING", "node2")
        known = world.pair.resource()
        assert known is not None
        assert known.host == "node1"
        world.pair.xens["node2"].guest(7, "off")
        world.pair.monitor()
        world.state = "UNKNOWN"
        world.sync()
        world.sleep(120)
        assert world.pair.observe("node2") == {known.name: "poweroff"}

    def test_the_cluster_takes_the_wrong_host_for_opennebulas(self, world: Believing) -> None:
        """A migration that failed in OpenNebula at the very end, for example."""
        world.pair.ask("node1", "domain-told", hosts={"7": "node2"})
        quietly(world)
        known = world.pair.resource()
        assert known is not None
        assert (known.host, world.told) == ("node1", [])

    def test_opennebula_has_it_on_a_host_of_no_cluster(self, world: Believing) -> None:
        """No node can be told that, and none is asked to speak for that host."""
        world.hosts["solo1"] = world.hosts["node1"] = 8
        world.cut_off = {"solo1"}
        world.host = "solo1"
        quietly(world)
        assert "domain-told" not in [verb for _host, verb in world.asked]

    def test_a_failed_boot_that_runs(self, world: Believing) -> None:
        """On its host, by one call without a driver."""
        world.state = "BOOT_FAILURE"
        quietly(world)
        assert (world.told, world.belief()) == (["recover success"], ("RUNNING", "node1"))

    @pytest.mark.parametrize("world", [V510, V74], indirect=True, ids=str)
    def test_a_failed_boot_that_runs_elsewhere(self, world: Believing) -> None:
        """Oned recovers it a moment after the call, and only then takes the migration."""
        fail_over(world)
        world.state = "BOOT_FAILURE"
        quietly(world)
        assert world.told == ["recover success", "migrate node2 live"]
        assert world.belief() == ("RUNNING", "node2")

    def test_a_failed_boot_elsewhere_that_stays(self, world: Believing) -> None:
        """It is not waited for any longer than its claim lasts."""
        fail_over(world)
        world.state, world.is_idle = "BOOT_FAILURE", True
        began = world.now
        (only,) = quietly(world).decisions
        assert (only.kind, world.told) == (Kind.STUCK, ["recover success"])
        assert "BOOT_FAILURE on node1 3 s after one.vm.recover, success" in only.sentence
        assert world.now - began < 10

    def test_a_failed_boot_that_stays(self, world: Believing) -> None:
        """Oned took the call, and nothing came of it: said, and tried again later and later."""
        world.state, world.is_idle = "BOOT_FAILURE", True
        (only,) = quietly(world).decisions
        assert only.kind is Kind.STUCK
        assert "OpenNebula says BOOT_FAILURE on node1 still: no reason" in only.sentence
        quietly(world)
        assert len(world.told) == 1
        world.is_idle = False
        world.now += 11
        assert quietly(world).decisions[0].kind is Kind.AGREED

    @pytest.mark.parametrize("world", [V38], indirect=True, ids=str)
    def test_3_8_has_no_way_out_of_unknown(self, world: Believing) -> None:
        """It is said; the old host's vouching brings it back to RUNNING, and then it is moved."""
        moved(world)
        world.state = "UNKNOWN"
        (only,) = quietly(world).decisions
        assert (only.kind, world.told) == (Kind.LEFT, [])
        assert "node1 vouches for it" in only.sentence
        world.state = "RUNNING"
        quietly(world)
        assert world.belief() == ("RUNNING", "node2")

    def test_oned_was_down(self, world: Believing) -> None:
        """It comes back later, and so does the truth."""
        fail_over(world)
        world.is_up = False
        with pytest.raises(UnreachableError):
            world.sync()
        world.is_up = True
        quietly(world)
        assert world.belief() == ("RUNNING", "node2")

    def test_and_back_again(self, world: Believing) -> None:
        """The old node is in service again, and the VM goes back."""
        fail_over(world)
        quietly(world)
        world.pair.come_back("node1")
        machine = world.pair.xens["node2"].machine()
        relocate.migrate(Call(machine, CLOUD), vm=VmId(7), node="node1", by_opennebula=False)
        world.pair.pacemaker.go_on()
        quietly(world)
        assert world.belief() == ("RUNNING", "node1")


class TestHoldsBack:
    """What is not certain, or not its business."""

    @pytest.mark.parametrize("state", ["PROLOG", "BOOT", "MIGRATE", "SHUTDOWN", "EPILOG"])
    def test_opennebulas_own_operation(self, world: Believing, state: str) -> None:
        """Whatever it is at."""
        fail_over(world)
        world.state = state
        assert quietly(world).decisions[0].kind is Kind.LEFT
        assert world.told == []

    def test_a_minority_is_not_believed(self, world: Believing) -> None:
        """Its opinion is told as such."""
        moved(world)
        world.pair.pacemaker.edit(lambda root: root.set("have-quorum", "0"))
        done = quietly(world)
        assert world.told == []
        assert "no quorum" in done.notes[0]
        assert done.decisions[0].kind is Kind.WAIT

    def test_no_node_answers(self, world: Believing) -> None:
        """Nothing is known, so nothing is done, and it is said."""
        moved(world)
        world.cut_off = {"node1", "node2"}
        done = quietly(world)
        assert (done.decisions, world.told) == ([], [])
        assert len(done.notes) == 2
        world.cut_off = set()
        quietly(world)
        assert world.belief() == ("RUNNING", "node2")

    def test_a_dead_node_is_not_waited_for_twice(self, world: Believing) -> None:
        """Who answered the last time is asked first, and answers for its cluster."""
        world.cut_off = {"node1"}
        quietly(world)
        world.asked.clear()
        quietly(world)
        assert [each for each in world.asked if each[1] == "whereabouts"] == [
            ("node2", "whereabouts")
        ]

    def test_only_the_leader_acts(self, world: Believing) -> None:
        """Of several frontends."""
        fail_over(world)
        world.leader = False
        done = quietly(world)
        assert (world.told, done.is_follower) == ([], True)

    def test_another_frontend_comes_to_lead(self, world: Believing) -> None:
        """Just then: a follower hands the call on, and the leader's driver would find no claim."""
        fail_over(world)

        def loses(_host: str, verb: str) -> None:
            if verb == "domain-claim":
                world.leader = False

        world.before = loses
        (only,) = quietly(world).decisions
        assert (only.kind, world.told) == (Kind.WAIT, [])
        assert "another frontend has come to lead this zone" in only.sentence

    @pytest.mark.parametrize("arguments", ["-t 15 -r 0 cxm", "-t 15 -l deploy,save cxm"])
    @pytest.mark.parametrize("state", ["RUNNING", "UNKNOWN", "POWEROFF"])
    def test_a_driver_that_does_not_see_the_claim(
        self, world: Believing, state: str, arguments: str
    ) -> None:
        """Its migrate, run on a host, could move the VM: what to change is said, nothing called."""
        moved(world)
        world.state = state
        world.config(arguments)
        (only,) = quietly(world).decisions
        assert (only.kind, world.told) == (Kind.STUCK, [])
        assert "VM_MAD 'vmm_cxm'" in only.sentence
        assert "'cxm-setup frontend --apply' there adds it, then restart oned" in only.sentence
        world.config("-t 15 -l deploy,migrate cxm")
        quietly(world)
        assert world.belief()[1] == "node2"

    @pytest.mark.parametrize("world", [V38, V74], indirect=True, ids=str)
    @pytest.mark.parametrize(
        "settings", ["PORT=2633\n", "VM_MAD=ARGUMENTS=-l migrate x,NAME=x\n", ""]
    )
    def test_oneds_settings_do_not_tell(self, world: Believing, settings: str) -> None:
        """Oned of any version writes them; a driver that finds no such file looks for no claim."""
        moved(world)
        path = world.remotes.parent / "config"
        path.write_text(settings, encoding="ascii")
        if not settings:
            path.unlink()
        (only,) = quietly(world).decisions
        assert (only.kind, world.told) == (Kind.STUCK, [])
        assert "then restart oned" in only.sentence

    def test_a_locked_vm_is_named(self, world: Believing) -> None:
        """With what to do."""
        fail_over(world)
        world.locked = True
        assert "onevm unlock 7" in quietly(world).decisions[0].sentence
        assert world.told == []

    def test_an_offline_host_is_named(self, world: Believing) -> None:
        """An administrator has taken it out of use."""
        fail_over(world)
        world.hosts["node2"] = 8
        assert "OFFLINE" in quietly(world).decisions[0].sentence
        assert world.told == []

    def test_what_oned_refuses_is_named_and_tried_later(self, world: Believing) -> None:
        """Later and later; and at once when something has changed."""
        fail_over(world)
        world.refuses = "VM with a pinned NUMA topology cannot be live-migrated"
        sentence = quietly(world).decisions[0].sentence
        assert "pinned NUMA" in sentence
        # The same while it waits: the log has it once.
        assert quietly(world).decisions[0].sentence == sentence
        assert len(world.told) == 1
        world.now += 11
        quietly(world)
        world.now += 11
        quietly(world)
        assert len(world.told) == 2
        world.refuses = ""
        world.state = "UNKNOWN"
        quietly(world)
        assert world.belief() == ("RUNNING", "node2")

    def test_dry_run(self, world: Believing) -> None:
        """It says what it would do."""
        fail_over(world)
        done = turns.turn(world.here(), dry_run=True)
        assert (world.told, done.decisions[0].kind) == ([], Kind.ACT)
        assert world.belief() == ("RUNNING", "node1")

    def test_a_vm_that_opennebula_does_not_know(self, world: Believing) -> None:
        """Its database was restored from an old copy."""
        world.is_known = False
        assert "OpenNebula knows no such VM" in quietly(world).decisions[0].sentence
