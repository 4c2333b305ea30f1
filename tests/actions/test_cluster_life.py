# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""What the agent makes of a guest's own life, and of what is left of it; saving and restoring."""

from contextlib import suppress
from dataclasses import replace
from xml.etree.ElementTree import fromstring

import pytest

from cxm.cluster import peer
from cxm.cluster.agent import Ocf
from cxm.cluster.cib import Wish
from cxm.errors import CxmError, RefusedError, UnreachableError
from cxm.names import VmId
from cxm.node.guests import Life
from tests.fakes.domains import checkpoint
from tests.fakes.machine import CLOUD, Fault, How, KilledError
from tests.fakes.pair import Pair, kills, running
from tests.fakes.scheduler import Order
from tests.fakes.xen import FakeDomain

NAME = "user-vm7.home.net"
RECURRING = {"interval": "10000", "timeout": "60000"}


@pytest.fixture
def pair() -> Pair:
    """VM 7 runs on node1."""
    made = Pair()
    made.start("node1")
    made.pacemaker.done.clear()
    return made


def rest(pair: Pair, node: str = "node1", **changes: object) -> None:
    """Something of the VM is on a node."""
    domain = pair.xens["node1"].of_vm(7)
    assert domain is not None
    made = replace(domain, **changes)  # type: ignore[arg-type]
    if node != "node1":
        pair.xens[node].put(replace(made, volumes=()))
    else:
        pair.xens[node].put(made)


def _domain(pair: Pair) -> FakeDomain:
    """What runs of the VM, or did."""
    (found,) = filter(None, (xen.of_vm(7) for xen in pair.xens.values()))
    return found


def life(pair: Pair) -> tuple[bool, Life]:
    """What the cluster says of the VM."""
    known = pair.resource()
    assert known is not None
    return known.started, known.life


class TestMonitor:
    """What a monitor finds, and what Pacemaker does then."""

    def test_healthy(self, pair: Pair) -> None:
        """Nothing is done."""
        pair.monitor()
        assert pair.pacemaker.done == []

    def test_guest_that_switched_itself_off(self, pair: Pair) -> None:
        """Is off for the cluster, too: no failure, its disk released, not started again."""
        pair.xens["node1"].guest(7, "off")
        pair.monitor()
        assert life(pair) == (False, Life.OFF)
        assert pair.runs_on() == []
        assert pair.locks() == {}
        assert "<failure " not in pair.mon()
        pair.monitor()
        assert pair.runs_on() == []

    @pytest.mark.parametrize("does", ["crashed", "vanished", "suspended"])
    def test_guest_that_ended_otherwise_is_started_again(self, pair: Pair, does: str) -> None:
        """Vanished is another code than crashed: Pacemaker need not stop it."""
        pair.xens["node1"].guest(7, does)
        expected = Ocf.NOT_RUNNING if does == "vanished" else Ocf.ERROR
        assert pair.agent("node1", "monitor", **RECURRING) == expected
        pair.monitor()
        assert pair.runs_on() == ["node1"]
        assert life(pair) == (True, Life.RUNNING)

    def test_reboot_is_waited_for(self, pair: Pair) -> None:
        """Its keeper lives, so the guest comes back."""
        pair.xens["node1"].guest(7, "rebooting")
        assert pair.agent("node1", "monitor", **RECURRING) == Ocf.SUCCESS
        assert pair.runs_on() == ["node1"]

    def test_reboot_without_a_keeper(self, pair: Pair) -> None:
        """Nobody would start it again."""
        pair.xens["node1"].guest(7, "rebooting")
        pair.xens["node1"].lose_keeper(7)
        assert pair.agent("node1", "monitor", **RECURRING) == Ocf.ERROR

    @pytest.mark.parametrize("half", ["--incoming", "--migratedaway"])
    def test_half_of_a_migration_never_counts(self, pair: Pair, half: str) -> None:
        """And takes no time."""
        rest(pair, name=f"{NAME}{half}", life="running")
        before = pair.xens["node1"].clock
        assert pair.agent("node1", "monitor") == Ocf.NOT_RUNNING
        assert pair.xens["node1"].clock == before

    def test_domain_that_never_ran(self, pair: Pair) -> None:
        """Is being made while somebody is at it, and was left half-made otherwise."""
        rest(pair, life="half", ran=False)
        assert pair.agent("node1", "monitor", **RECURRING) == Ocf.SUCCESS
        rest(pair, life="half", ran=False, keeper=None)
        assert pair.agent("node1", "monitor", **RECURRING) == Ocf.ERROR

    def test_paused_guest_is_left_alone(self, pair: Pair) -> None:
        """Somebody has paused it."""
        pair.xens["node1"].guest(7, "paused")
        assert pair.agent("node1", "monitor", **RECURRING) == Ocf.SUCCESS

    def test_action_at_work_answers_for_the_vm(self, pair: Pair) -> None:
        """A monitor is content with that; a probe of the other node is not."""
        machines = {name: xen.machine() for name, xen in pair.xens.items()}
        with (
            machines["node1"].vm_lock(CLOUD, VmId(7)),
            machines["node2"].vm_lock(CLOUD, VmId(7)),
        ):
            assert pair.agent("node1", "monitor", **RECURRING) == Ocf.SUCCESS
            assert pair.agent("node1", "monitor") == Ocf.SUCCESS
            assert pair.agent("node2", "monitor") == Ocf.NOT_RUNNING
            pair.xens["node1"].guest(7, "vanished")
            assert pair.agent("node1", "monitor", **RECURRING) == Ocf.SUCCESS

    def test_remains_on_another_node_do_not_switch_the_vm_off(self, pair: Pair) -> None:
        """It has no disk there."""
        rest(pair, "node2", life="off")
        assert pair.agent("node2", "monitor") == Ocf.NOT_RUNNING
        assert life(pair) == (True, Life.RUNNING)

    def test_guest_that_is_off_when_pacemaker_starts(self, pair: Pair) -> None:
        """A probe says so too: it is not started again."""
        pair.xens["node1"].guest(7, "off")
        assert pair.agent("node1", "monitor") == Ocf.SUCCESS
        assert life(pair) == (False, Life.OFF)

    def test_uuid_is_left_for_monitors_without_python(self, pair: Pair) -> None:
        """As the shell agent reads it."""
        domain = pair.xens["node1"].of_vm(7)
        assert domain is not None
        path = pair.xens["node1"].node.path("run", "uuid", f"{CLOUD}-7")
        with open(path, encoding="ascii") as file:
            assert file.read() == f"{domain.uuid}\n"


class TestBrokenSettings:
    """A slip in /etc/cxm/cxmrc gets no node fenced for a VM that is not there."""

    def test_absent_vm(self, pair: Pair) -> None:
        """Is not running, and stopped."""
        pair.is_broken = True
        assert pair.agent("node2", "monitor") == Ocf.NOT_RUNNING
        assert pair.agent("node2", "stop") == Ocf.SUCCESS

    @pytest.mark.parametrize("action", ["start", "migrate_to", "migrate_from"])
    def test_nothing_begins(self, pair: Pair, action: str) -> None:
        """The sentence is the file's."""
        pair.is_broken = True
        assert pair.agent("node2", action) == Ocf.ERROR
        assert pair.said == ["cxmrc is broken"]

    def test_running_guest_goes_on(self, pair: Pair) -> None:
        """Whatever Pacemaker asks of its state."""
        pair.is_broken = True
        assert pair.agent("node1", "monitor", **RECURRING) == Ocf.SUCCESS
        assert pair.runs_on() == ["node1"]

    def test_running_guest_can_be_stopped(self, pair: Pair) -> None:
        """Its disk stays where it was until the file is repaired, and then goes where it must."""
        pair.is_broken = True
        assert pair.agent("node1", "stop") == Ocf.SUCCESS
        assert pair.runs_on() == []
        assert pair.locks() == {"node1": "ex"}
        pair.is_broken = False
        assert pair.agent("node2", "start", timeout="300000") == Ocf.SUCCESS
        assert pair.locks() == {"node2": "ex"}


def test_stop_does_not_wait_for_a_guest_whose_node_has_died(pair: Pair) -> None:
    """What receives it would wait until the connection is given up, and the failover with it."""
    other = pair.xens["node2"]
    unit = f"unit:cxm-{CLOUD}-7-4711"
    rest(pair, "node2", life="rebooting", keeper=4000, config=unit)
    assert pair.agent("node2", "stop") == Ocf.SUCCESS
    assert other.of_vm(7) is None
    assert ("kill", "-KILL", "4000") in other.node.ran


def test_nodes_tell_each_other_which_boot_they_are_in(pair: Pair) -> None:
    """That is how a test of fencing knows a reset; a node that is down says nothing."""
    here = pair.xens["node1"].machine()
    told = peer.find(here, fromstring(pair.pacemaker.text), "node2")
    before = told.boot_id()
    assert told.boot_id() == before
    pair.fail("node2")
    with pytest.raises(UnreachableError, match="the node node2 cannot be reached from node1"):
        told.boot_id()
    pair.come_back("node2")
    assert told.boot_id() not in ("", before)


@pytest.mark.parametrize("half", [None, f"{NAME}--incoming"])
def test_start_does_not_wait_for_a_guest_whose_node_has_died(pair: Pair, half: str | None) -> None:
    """The failover begins at once, whether the receiver has a part of the guest yet or not."""
    other = pair.xens["node2"]
    unit = f"unit:cxm-{CLOUD}-7-4711"
    life, name = ("gap", NAME) if half is None else ("half", half)
    rest(pair, "node2", name=name, life=life, ran=False, keeper=4000, config=unit)
    pair.xens["node1"].boot_host()
    pair.xens["node1"].node.lose()
    before = other.clock
    assert pair.agent("node2", "start", timeout="300000") == Ocf.SUCCESS
    assert pair.runs_on() == ["node2"]
    assert other.clock - before <= 5
    (there,) = other.state.domains
    assert there.keeper != 4000  # the receiver is gone


def test_start_waits_for_a_guest_that_has_come(pair: Pair) -> None:
    """Its receiver is about to let it run: its memory is not thrown away."""
    other = pair.xens["node2"]
    unit = f"unit:cxm-{CLOUD}-7-4711"
    made = replace(_domain(pair), life="building", ran=False, until=other.clock + 2.0, config=unit)
    pair.xens["node1"].boot_host()
    pair.xens["node1"].node.lose()
    other.put(replace(made, keeper=4000, memory="of before", volumes=()))
    assert pair.agent("node2", "start", timeout="300000") == Ocf.SUCCESS
    (there,) = other.state.domains
    assert (there.life, there.memory) == ("running", "of before")


@pytest.mark.parametrize("action", ["start", "stop", "monitor", "migrate_to", "migrate_from"])
def test_agent_without_parameters(pair: Pair, action: str) -> None:
    """Is not configured; an unknown action is unimplemented."""
    machine = pair.xens["node1"].machine()
    assert pair.run_agent(machine, action, {}) == Ocf.NOT_CONFIGURED
    assert pair.agent("node1", "dance") == Ocf.UNIMPLEMENTED
    assert pair.agent("node1", "validate-all") == Ocf.SUCCESS


class TestStop:
    """The agent's stop."""

    @pytest.mark.parametrize("name", [f"{NAME}--incoming", f"{NAME}--migratedaway", NAME])
    @pytest.mark.parametrize("does", ["half", "suspended", "off", "crashed", "running"])
    def test_whatever_is_left_goes(self, pair: Pair, name: str, does: str) -> None:
        """And its disk with it."""
        rest(pair, name=name, life=does)
        assert pair.agent("node1", "stop") == Ocf.SUCCESS
        assert pair.xens["node1"].of_vm(7) is None
        assert pair.locks() == {}

    def test_takes_no_longer_than_it_must(self, pair: Pair) -> None:
        """A guest that does not listen is destroyed at once, or after 20 s."""
        pair.xens["node1"].listens = False
        before = pair.xens["node1"].clock
        assert pair.agent("node1", "stop") == Ocf.SUCCESS
        assert pair.xens["node1"].clock - before <= 25


class TestMemory:
    """domain-save and domain-restore."""

    def test_restored_on_the_other_node(self, pair: Pair) -> None:
        """The guest goes on there; its memory is used up."""
        before = pair.xens["node1"].of_vm(7)
        assert pair.ask("node1", "domain-save", vm=7).result["checkpoint"] == "lv-one-7-checkpoint"
        assert life(pair) == (False, Life.STOPPED)
        assert pair.locks() == {}
        assert pair.locks("lv-one-7-checkpoint") == {}
        assert checkpoint(pair.xens["node2"]) == "ready"
        assert pair.restore("node2").result == {"name": NAME}
        after = pair.xens["node2"].of_vm(7)
        assert before is not None
        assert after is not None
        assert (after.memory, after.life) == (before.memory, "running")
        assert checkpoint(pair.xens["node2"]) is None
        assert pair.locks() == {"node2": "ex"}
        known = pair.resource()
        assert known is not None
        assert known.wish is Wish.NONE
        assert pair.restore("node2").result["name"] == NAME

    def test_cold_start_throws_the_memory_away(self, pair: Pair) -> None:
        """Then a restore is refused: it would corrupt the disks."""
        pair.ask("node1", "domain-save", vm=7)
        pair.start("node2")
        assert checkpoint(pair.xens["node2"]) is None
        pair.stop("node2")
        with pytest.raises(RefusedError, match="VM 7 has no saved memory"):
            pair.restore("node1")
        assert pair.runs_on() == []

    def test_failed_save_leaves_the_guest_running(self, pair: Pair) -> None:
        """And no wish, and no checkpoint."""
        pair.xens["node1"].save_fails = True
        with pytest.raises(CxmError, match="xl save failed"):
            pair.ask("node1", "domain-save", vm=7)
        pair.monitor()
        assert pair.runs_on() == ["node1"]
        assert checkpoint(pair.xens["node1"]) is None
        known = pair.resource()
        assert known is not None
        assert (known.wish, known.started) == (Wish.NONE, True)

    def test_save_of_another_nodes_vm(self, pair: Pair) -> None:
        """Nothing is done."""
        with pytest.raises(RefusedError, match="VM 7 runs on node1, not here"):
            pair.ask("node2", "domain-save", vm=7)

    @pytest.mark.extensive
    @pytest.mark.parametrize("how", ["killed", "failed"])
    def test_save_cut_at_any_step(self, how: str) -> None:
        """The VM runs, or its memory is whole: never neither. A restore finds what there is."""
        whole = running()
        whole.ask("node1", "domain-save", vm=7)
        done = whole.xens["node1"].node
        for kill in kills(done.ran, list(done.own)):
            pair = running()
            host = pair.xens["node1"].node
            host.fault = kill if how == "killed" else Fault(kill.step, How.FAIL)
            with pytest.raises((KilledError, CxmError)):  # noqa: PT012 - it ends in either way
                pair.ask("node1", "domain-save", vm=7)
                raise CxmError("it went well, in spite of that")
            host.revive()
            pair.pacemaker.go_on()
            pair.monitor()
            if pair.runs_on() == []:
                assert checkpoint(pair.xens["node1"]) == "ready"
                assert life(pair) == (False, Life.STOPPED)
                pair.restore("node2")
            (node,) = pair.runs_on()
            assert pair.locks() == {node: "ex"}
            pair.ask(node, "domain-save", vm=7)
            assert pair.runs_on() == []

    def test_guest_left_suspended_by_a_killed_save(self, pair: Pair) -> None:
        """Nothing would wake it, so it is started afresh."""
        pair.xens["node1"].guest(7, "suspended")
        pair.monitor()
        assert pair.runs_on() == ["node1"]

    def test_memory_that_cannot_be_used(self, pair: Pair) -> None:
        """It is gone when the agent looks: a cold start, and the verb says so."""
        pair.ask("node1", "domain-save", vm=7)
        act = pair.pacemaker._act

        def lose(order: Order) -> tuple[int, str]:
            if order.action == "start" and checkpoint(pair.xens["node1"]) is not None:
                pair.xens["node1"].node.run(["lvremove", "-f", "-y", "LVM_XEN/lv-one-7-checkpoint"])
            return act(order)

        pair.pacemaker._act = lose
        with pytest.raises(CxmError, match="VM 7 was started afresh on node1"):
            pair.restore("node1")
        assert pair.runs_on() == ["node1"]

    def test_damaged_memory(self, pair: Pair) -> None:
        """Is never restored, and the VM is not started either: somebody must decide."""
        pair.ask("node1", "domain-save", vm=7)
        with open(pair.xens["node1"].node.path("backing", "lv-one-7-checkpoint"), "r+b") as file:
            file.write(b"Xen saved domain, xl format\n \0 \r" + bytes(200))
        with pytest.raises(CxmError, match="saved memory of VM 7 cannot be restored"):
            pair.restore("node2")
        assert pair.runs_on() == []
        assert life(pair) == (False, Life.STOPPED)
        assert pair.locks() == {}

    def test_nothing_that_fails_after_the_guest_runs_ends_it(self) -> None:
        """Pacemaker would start it cold: whatever is left to do is only told, and done later."""
        before, ran = _domain(running()).memory, _restored(None).xens["node1"].node.ran
        (woken,) = [step for step, words in enumerate(ran) if words[:2] == ("xl", "unpause")]
        assert len(ran) > woken + 1
        for step in range(woken + 1, len(ran)):
            pair = _restored(Fault(step, How.FAIL))
            host = pair.xens["node1"]
            assert pair.runs_on() == ["node1"]
            assert _domain(pair).memory == before
            assert checkpoint(host) == "filling"
            pair.stop("node1")
            assert pair.locks("lv-one-7-checkpoint") == {}
            pair.start("node2")
            assert checkpoint(host) is None

    @pytest.mark.extensive
    def test_agent_killed_while_it_restores(self) -> None:
        """At each of its steps: the guest goes on once, or the verb says that it does not."""
        for kill in kills(_restored(None).xens["node1"].node.ran):
            pair = _restored(kill)
            if pair.runs_on() == []:
                pair.start("node2")
            pair.monitor()
            (node,) = pair.runs_on()
            assert pair.locks() == {node: "ex"}
            assert checkpoint(pair.xens[node]) is None

    def test_node_that_dies_while_a_guest_is_saved(self) -> None:
        """A cold start elsewhere; what was saved is worthless."""
        step = _step_of_save()
        pair = running()
        act = pair.xens["node1"].node
        act.fault = Fault(step, How.KILL)
        with pytest.raises(KilledError):
            pair.ask("node1", "domain-save", vm=7)
        act.revive()
        pair.fail("node1")
        assert pair.runs_on() == ["node2"]
        assert checkpoint(pair.xens["node2"]) is None
        known = pair.resource()
        assert known is not None
        assert known.wish is Wish.NONE


def _step_of_save() -> int:
    pair = running()
    pair.ask("node1", "domain-save", vm=7)
    found = [words[:2] for words in pair.xens["node1"].node.ran]
    return found.index(("xl", "save"))


def _restored(fault: Fault | None) -> Pair:
    """A VM that was restored on node1; its agent's start is cut the first time."""
    pair = running()
    pair.ask("node1", "domain-save", vm=7)
    act, host = pair.pacemaker._act, pair.xens["node1"].node
    ran: list[list[tuple[str, ...]]] = []

    def cut(order: Order) -> tuple[int, str]:
        if ran or order.action != "start":
            return act(order)
        host.ran.clear()
        host.fault = fault
        try:
            return act(order)
        finally:
            ran.append(list(host.ran))
            host.fault = None

    pair.pacemaker._act = cut
    with suppress(CxmError):
        pair.restore("node1")
    host.ran[:] = ran[0]
    return pair
