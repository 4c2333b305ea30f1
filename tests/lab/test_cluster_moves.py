# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Live migration on a real cluster, and everything that can go wrong in the middle of one.

Whatever breaks: never two guests, never one lost without a sentence, and the cluster heals itself.
Requirements: the lab with node1 and node2, a cluster by cxm-setup, a VM on each, no frontend.
"""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Final

import pytest

from cxm.run import Result
from lab import faults, visit
from lab import town as towns
from lab.machine import Machine
from lab.town import BACK_S, FAILOVER_S, Resident, Town, status
from tests.lab import phases
from tests.lab.invariant import watched
from tests.lab.phases import Deed, Phase
from tests.lab.test_cluster_faults import program_killed
from tests.lab.test_cluster_life import crashed

# An order may wait for a node to be fenced, and for the VM's cold start.
_ORDER_S: Final = 1300.0
_TIMES: Final = 10
# The deaths in a phase that the guest's memory outlives for sure (docs/design/0010).
_GOES_ON: Final = {
    Phase.SENDING: (
        Deed.XL_SENDING, Deed.XL_RECEIVING, Deed.ALL_XL, Deed.SSH, Deed.TARGET_DIES,
    ),
    Phase.RECEIVED: (Deed.XL_RECEIVING, Deed.SSH, Deed.TARGET_DIES),
    Phase.GO: (Deed.XL_SENDING, Deed.SSH),
    Phase.UNPAUSED: (Deed.XL_SENDING, Deed.XL_RECEIVING, Deed.ALL_XL, Deed.SSH),
}  # fmt: skip


def _migrate(asked: Machine, name: str, target: str) -> Result:
    return asked.run(["cxm", "migrate", name, target], timeout_s=_ORDER_S, ok=range(256))


@contextmanager
def _migrating(asked: Machine, name: str, target: str) -> Iterator[Future[Result]]:
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(_migrate, asked, name, target)


def _move(town: Town, resident: Resident, target: Machine) -> None:
    """Move a VM; it is on the target then, the same boot, and nothing is left where it was."""
    before = resident.answers()
    done = _migrate(target, resident.name, target.name)
    assert done.code == 0, done.stderr
    assert towns.places_of(status(target))[resident.vm] == (target.name,)
    after = resident.lives_on(before)
    assert after.boots == before.boots


@pytest.mark.extensive
def test_there_and_back(town: Town) -> None:
    """Ten times each way: the same boot, its counter goes on and stands still for no long time."""
    first, second = town.nodes
    begun = town.web.answers()
    with watched(town.lab):
        for _turn in range(_TIMES):
            for target in (second, first):
                with visit.followed(town.lab, town.web.address):
                    _move(town, town.web, target)
        # Ordered again, it is there already, from whichever node.
        for asked in town.nodes:
            assert "already" in _migrate(asked, "web", first.name).stdout
    assert town.web.answers().boot == begun.boot


@pytest.mark.extensive
def test_node_is_full(town: Town) -> None:
    """A target without room for the VM: refused before anything is done."""
    refused_by_a_full_node(town)


def refused_by_a_full_node(town: Town) -> None:
    """A move to a node without room changes nothing."""
    first, second = town.nodes
    web = town.web.answers()
    names = ["--type", "nodes", "--node", second.name, "--utilization", "--name", "memory"]
    with watched(town.lab):
        shown = second.run(["crm_attribute", *names, "--query", "--quiet"]).stdout.strip()
        second.run(["crm_attribute", *names, "--update", "150"])
        refused = _migrate(first, "web", second.name)
        assert refused.code == 6, refused.stderr
        assert "too little memory" in refused.stderr
        assert towns.places_of(status(second))[town.web.vm] == (first.name,)
        second.run(["crm_attribute", *names, "--update", shown])
        town.web.lives_on(web)


_FENCING = (Deed.SOURCE_DIES, Deed.TARGET_DIES, Deed.LINK)


@pytest.mark.extensive
@pytest.mark.parametrize("deed", _FENCING, ids=str)
@pytest.mark.parametrize("phase", Phase, ids=str)
def test_a_node_or_the_link_dies_in_a_move(town: Town, phase: Phase, deed: Deed) -> None:
    """In each phase of a migration a node dies, or the nodes lose sight of each other."""
    broken_off(town, phase, deed)


@pytest.mark.extensive
@pytest.mark.parametrize("phase", Phase, ids=str)
def test_programs_die_in_a_move(town: Town, phase: Phase) -> None:
    """In each phase of a migration xl or ssh is killed: one after the other in a cluster's life.

    So the next move shows that nothing has stayed half-done.
    """
    for deed in Deed:
        if deed not in _FENCING:
            broken_off(town, phase, deed)
    there, other = _source_and_target(town)
    _move(town, town.web, other)
    _move(town, town.web, there)


def _source_and_target(town: Town) -> tuple[Machine, Machine]:
    """The node where web is, and the other one."""
    first, second = town.nodes
    (name,) = towns.running(town, first)[town.web.vm]
    return (first, second) if name == first.name else (second, first)


def broken_off(town: Town, phase: Phase, deed: Deed) -> None:
    """Something breaks in a phase of a move of web to the other node; all is well afterwards."""
    source, target = _source_and_target(town)
    web, *others = (each.answers() for each in town.residents)
    asked = target if deed is Deed.SOURCE_DIES else source
    with watched(town.lab), phases.stalled(target, phase):
        with _migrating(asked, town.web.name, target.name) as order:
            phases.await_phase(target, phase)
            phases.do(town.lab, deed, source, target)
            if deed is Deed.LINK:
                _await_end_of_split(town, source)
            said = order.result()
        alive = _alive(town, deed, source, target)
        if deed in _FENCING:
            town.await_whole(timeout_s=BACK_S)
        if deed is Deed.TARGET_DIES:
            phases.go_on(target)
        seen = towns.running(town, alive)
        assert set(seen) == {each.vm for each in town.residents}
        after = _lives(town.web, web)
        for each, before in zip(town.residents[1:], others, strict=True):
            _lives(each, before)
        is_there = seen[town.web.vm] == (target.name,)
        fate = "goes on" if after.boot == web.boot else "was started afresh"
        where = "target" if is_there else "source"
        print(f"\n{phase}, {deed}: it {fate} on the {where}; the order ended with {said.code}")
        if deed in _GOES_ON[phase]:
            assert after.boot == web.boot, said
        if said.code == 0:
            assert is_there, said
        # Of an order that has died with its node nobody hears the end.
        if said.code and not is_there and asked is alive:
            assert f"VM {town.web.vm}" in said.stderr or town.web.name in said.stderr, said
        standing = (alive,) if deed in _FENCING else town.nodes
        told = "\n".join(town.timeline(node) for node in standing)
        if after.boot != web.boot:
            assert after.boots == web.boots + 1
            # Pacemaker remembers the last operation on a node only; cxm's log has both.
            name, vm = town.web.name, town.web.vm
            words = (f"{name} (VM {vm}) was started", f"VM {vm} was started as {name}")
            assert any(each in told for each in words), told
        assert town.alarms(alive) == ""


@pytest.mark.extensive
def test_a_day_of_a_cluster(town: Town) -> None:
    """One of each kind that the demo does not show, in one life of a cluster.

    A move is refused, one breaks off, a guest crashes, lvmlockd dies: both VMs live on.
    """
    refused_by_a_full_node(town)
    broken_off(town, Phase.RECEIVED, Deed.XL_RECEIVING)
    crashed(town)
    program_killed(town, "lvmlockd")


@pytest.mark.extensive
def test_a_node_dies_while_a_vm_comes_to_it(town: Town) -> None:
    """What lived there is started elsewhere at once; what is on its way stays where it is."""
    first, second = town.nodes
    web, db = town.web.answers(), town.db.answers()
    with watched(town.lab), phases.stalled(second, Phase.SENDING):
        with _migrating(first, "web", second.name) as order:
            phases.await_phase(second, Phase.SENDING)
            second.power_off()
            seconds = first.wait_until(lambda: town.db.booted_again(db) != db, timeout_s=FAILOVER_S)
            print(f"\nthe dead node's VM answered again after {seconds:.0f} s, a move pending")
            assert order.result().code != 0
        town.await_places(first, {0: (first.name,), 1: (first.name,)})
        assert town.web.lives_on(web).boots == web.boots


@pytest.mark.extensive
def test_a_node_dies_while_a_vm_is_deaf(town: Town) -> None:
    """A VM of the other node ignores its shutdown: the dead node's VM does not wait for that."""
    first, second = town.nodes
    visit.fetch(town.lab, town.db.address, "cgi-bin/note?deaf")
    web = town.web.answers()
    with watched(town.lab), ThreadPoolExecutor(1) as pool:
        deaf = pool.submit(
            second.run, ["cxm", "shutdown", "db", "--timeout", "600"],
            timeout_s=_ORDER_S, ok=range(256),
        )  # fmt: skip
        second.wait_until(
            ["sh", "-c", "journalctl -t cxm | grep -q 'shutdown db'"], timeout_s=FAILOVER_S
        )
        seconds = second.wait_until(
            lambda: _killed_and_back(town, first, web), timeout_s=FAILOVER_S
        )
        print(f"\nthe dead node's VM answered again after {seconds:.0f} s, a shutdown pending")
        assert not deaf.done()
        second.run(["pkill", "-f", "cxm shutdown db"])
        deaf.result()


def _killed_and_back(town: Town, node: Machine, before: visit.Status) -> bool:
    node.power_off()
    town.web.booted_again(before)
    return True


def _await_end_of_split(town: Town, cut: Machine) -> None:
    """Wait until one of the nodes has fenced the other, and heal the network."""
    towns.survivor(town)
    faults.heal(town.lab, cut.name)


def _alive(town: Town, deed: Deed, source: Machine, target: Machine) -> Machine:
    """A node that was not hurt."""
    if deed is Deed.LINK:
        return towns.survivor(town)
    return target if deed is Deed.SOURCE_DIES else source


def _lives(resident: Resident, before: visit.Status) -> visit.Status:
    """It answers: as before, or booted once more."""
    now = visit.await_status(resident.lab, resident.address, timeout_s=FAILOVER_S)
    if now.boot == before.boot:
        return resident.lives_on(before)
    return now
