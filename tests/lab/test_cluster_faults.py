# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""What a real cluster does when something of it dies: its VMs live on, and none of them twice.

Requirements: the lab with node1 and node2, a cluster by cxm-setup, a VM on each, no frontend.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import Process
from typing import Final

import pytest

from cxm.cluster.pacemaker import Status
from lab import faults, visit
from lab import town as towns
from lab.guest_image import GuestImage
from lab.lab import Lab
from lab.machine import Machine, Power
from lab.oned import scenarios
from lab.town import BACK_S, FAILOVER_S, Town, status
from tests.lab.invariant import watched

_RESTORES: Final = 50
# Counts of a guest, one a second of its own: longer than Corosync needs to miss a token twice.
_GONE_ON: Final = 20


@pytest.mark.extensive
def test_power_lost(town: Town) -> None:
    """A node without power is fenced, and only then its VM starts elsewhere; it comes back."""
    first, second = town.nodes
    web, db = town.web.answers(), town.db.answers()
    with watched(town.lab):
        first.power_off()
        town.web.booted_again(web)
        town.await_places(second, {0: (second.name,), 1: (second.name,)})
        town.db.lives_on(db)
        assert town.fenced(second) == [first.name]
        told = town.timeline(second)
        assert "was fenced" in told
        assert "web (VM 0) was started" in told
        town.await_whole()
        # It does not go back by itself.
        town.await_places(first, {0: (second.name,), 1: (second.name,)})
        assert town.alarms(first) == ""


@pytest.mark.extensive
def test_what_a_vm_boots_is_on_every_node(town: Town) -> None:
    """A VM with a kernel of its own: its files, the datastores and its node are gone; it lives."""
    first, second = town.nodes
    db = town.db.answers()
    with watched(town.lab):
        assert first.run(["test", "-e", scenarios.KERNEL], ok=(0, 1)).code == 1
        for node in town.nodes:
            node.run(["sh", "-c", "rm -rf /var/lib/one/datastores/* /boot/lab-*"])
        second.power_off()
        town.db.booted_again(db)
        town.await_places(first, {0: (first.name,), 1: (first.name,)})


@pytest.mark.extensive
def test_node_hangs(town: Town) -> None:
    """A node that hangs is fenced like one that is off."""
    first, _second = town.nodes
    web = town.web.answers()
    with watched(town.lab):
        first.hang()
        _rescued(town, web)
        town.await_whole()


@pytest.mark.extensive
def test_node_hangs_and_comes_back_believing(town: Town) -> None:
    """A hung node that cannot be fenced goes on later, and thinks that its VMs are its own.

    Nothing of it was started elsewhere; then it is fenced, or taken in again: never both run.
    """
    first, second = town.nodes
    web = town.web.answers()
    faults.cut(town.lab, first.name, "bmc")
    with watched(town.lab):
        first.hang()
        told = town.await_alarm(second, f"FENCING OF {first.name} FAILED")
        assert f"cxm fence --confirmed {first.name}" in told
        assert towns.places_of(status(second)).get(0) != (second.name,)
        first.resume()
        first.wait_for_ssh(timeout_s=BACK_S)
        faults.heal(town.lab, first.name)
        town.await_whole()
        seen = towns.running(town, second)
        assert set(seen) == {0, 1}
        now = town.web.answers()
        assert now.boots in (web.boots, web.boots + 1)


@pytest.mark.extensive
@pytest.mark.parametrize("number", range(5))
def test_link_cut(town: Town, number: int) -> None:
    """Both nodes are well and do not see each other: exactly one dies, and all VMs live on."""
    first, second = town.nodes
    web, db = town.web.answers(), town.db.answers()
    with watched(town.lab):
        faults.cut(town.lab, (first, second)[number % 2].name, "cluster")
        survivor = towns.survivor(town)
        (dead,) = (node for node in town.nodes if node is not survivor)
        assert town.fenced(survivor) == [dead.name]
        if dead is first:
            town.web.booted_again(web)
            town.db.lives_on(db)
        else:
            town.db.booted_again(db)
            town.web.lives_on(web)
        town.await_places(survivor, {0: (survivor.name,), 1: (survivor.name,)})
        faults.heal(town.lab, (first, second)[number % 2].name)
        town.await_whole()
        assert _fencings(status(survivor)) == 1


@pytest.mark.extensive
def test_san_cut(town: Town) -> None:
    """A node that does not reach its disks any more is fenced: its guests hang."""
    first, _second = town.nodes
    web = town.web.answers()
    with watched(town.lab):
        faults.cut(town.lab, first.name, "san")
        _rescued(town, web)
        faults.heal(town.lab, first.name)
        town.await_whole()


@pytest.mark.extensive
def test_bmc_unreachable(town: Town) -> None:
    """A dead node that cannot be fenced: nothing is started, that is said; then it goes on."""
    first, second = town.nodes
    web = town.web.answers()
    faults.cut(town.lab, first.name, "bmc")
    with watched(town.lab):
        first.power_off()
        told = town.await_alarm(second, f"FENCING OF {first.name} FAILED")
        assert f"cxm fence --confirmed {first.name}" in told
        assert f"NODE {first.name} IS UNCLEAN" in told
        assert first.power() is Power.OFF
        assert _domains(second) == ["db"]
        faults.heal(town.lab, first.name)
        town.web.booted_again(web)
        town.await_places(second, {0: (second.name,), 1: (second.name,)})
        town.await_whole()


@pytest.mark.extensive
def test_bmc_slow(town: Town) -> None:
    """A BMC that takes its time is waited for."""
    first, _second = town.nodes
    web = town.web.answers()
    faults.slow_bmc(town.lab, first.name)
    with watched(town.lab):
        first.power_off()
        _rescued(town, web)


@pytest.mark.extensive
def test_bmc_dies_with_its_node(town: Town) -> None:
    """Nobody can know that the node is off, but a human: it is said how to say so."""
    first, second = town.nodes
    web = town.web.answers()
    faults.link_bmc(town.lab, first.name, linked=True)
    with watched(town.lab):
        first.power_off()
        told = town.await_alarm(second, f"FENCING OF {first.name} FAILED")
        assert f"cxm fence --confirmed {first.name}" in told
        refused = second.run(["cxm", "fence", "--confirmed", first.name], ok=(2,), stdin=b"no\n")
        assert "not confirmed" in refused.stderr
        assert _domains(second) == ["db"]
        second.run(["cxm", "fence", "--confirmed", first.name], stdin=f"{first.name}\n".encode())
        town.web.booted_again(web)
        town.await_places(second, {0: (second.name,), 1: (second.name,)})
        first.power_on()
        town.await_whole()
        town.await_places(first, {0: (second.name,), 1: (second.name,)})


@pytest.mark.extensive
def test_dlm_controld_killed(town: Town) -> None:
    """Nobody knows a node's locks any more: it is fenced, and its VM starts elsewhere."""
    first, _second = town.nodes
    web = town.web.answers()
    with watched(town.lab):
        first.run(["pkill", "-KILL", "-x", "dlm_controld"])
        _rescued(town, web)
        town.await_whole()


@pytest.mark.extensive
@pytest.mark.parametrize("program", ["lvmlockd", "pacemakerd"])
def test_program_killed(town: Town, program: str) -> None:
    """No guest notices, and everything works again by itself: a VM moves afterwards."""
    program_killed(town, program)


def program_killed(town: Town, program: str) -> None:
    """Kill a program of node1; the VMs do not notice, and one moves afterwards."""
    first, second = town.nodes
    web, db = town.web.answers(), town.db.answers()
    with watched(town.lab):
        first.run(["pkill", "-KILL", "-x", program])
        first.wait_until(["pgrep", "-x", program], timeout_s=FAILOVER_S)
        town.await_whole()
        assert town.fenced(second) == []
        web, db = town.web.lives_on(web), town.db.lives_on(db)
        there = towns.running(town, second)[town.web.vm]
        target = second.name if there == (first.name,) else first.name
        first.run(["cxm", "migrate", "web", target], timeout_s=FAILOVER_S * 2)
        town.web.lives_on(web)
        town.await_places(second, {0: (target,), 1: (second.name,)})


@pytest.mark.extensive
def test_node_reboots_in_order(town: Town) -> None:
    """A node that is rebooted gives its VMs away while they run, and comes back."""
    first, second = town.nodes
    web = town.web.answers()
    with watched(town.lab):
        first.run(["systemctl", "--no-block", "reboot"])
        second.wait_until(
            lambda: first.name not in towns.with_locks(status(second)), timeout_s=FAILOVER_S
        )
        town.await_places(second, {0: (second.name,), 1: (second.name,)})
        town.web.lives_on(web)
        town.await_whole()
        assert town.fenced(second) == []


@pytest.mark.extensive
def test_everything_loses_its_power(town: Town) -> None:
    """Both nodes come back: every VM starts again, once."""
    _first, second = town.nodes
    web, db = town.web.answers(), town.db.answers()
    with watched(town.lab):
        for node in town.nodes:
            node.power_off()
        for node in town.nodes:
            node.power_on()
        town.web.booted_again(web)
        town.db.booted_again(db)
        town.await_whole()
        assert set(towns.running(town, second)) == {0, 1}


@pytest.mark.extensive
def test_one_node_comes_back_alone(town: Town) -> None:
    """After a total power loss one node alone starts nothing, and says what it waits for.

    A human says that the other is off: then it goes on alone.
    """
    first, second = town.nodes
    web, db = town.web.answers(), town.db.answers()
    faults.cut(town.lab, first.name, "bmc")
    with watched(town.lab):
        for node in town.nodes:
            node.power_off()
        second.power_on()
        second.forget_connection()
        second.wait_for_ssh(timeout_s=BACK_S)
        told = town.await_alarm(second, "waits for", timeout_s=BACK_S)
        assert first.name in told
        assert _domains(second) == []
        second.run(["cxm", "fence", "--confirmed", first.name], stdin=f"{first.name}\n".encode())
        town.web.booted_again(web)
        town.db.booted_again(db)
        town.await_places(second, {0: (second.name,), 1: (second.name,)})
        faults.heal(town.lab, first.name)
        first.power_on()
        town.await_whole()


def _rescued(town: Town, web: visit.Status) -> None:
    """Wait until node1's VM runs on node2, and see that node1 was fenced for it, no other."""
    first, second = town.nodes
    town.web.booted_again(web)
    assert town.fenced(second) == [first.name]
    town.await_places(second, {0: (second.name,), 1: (second.name,)})


def _domains(node: Machine) -> list[str]:
    rows = node.run(["xl", "list"]).stdout.splitlines()[2:]
    return [row.split()[0] for row in rows]


def _fencings(seen: Status) -> int:
    return len([each for each in seen.fencing if each.status == "success"])


@pytest.mark.extensive
def test_a_busy_machine_fences_nobody(pair_session: Lab, guest: GuestImage) -> None:
    """The lab's token is long enough: restored fifty times on a loaded machine, all are there."""
    with _loaded():
        for _time in range(_RESTORES):
            town = towns.bring_up(pair_session, guest)
            before = [each.answers() for each in town.residents]
            town.await_whole()
            for each, then in zip(town.residents, before, strict=True):
                each.lives_on(then, counts=_GONE_ON)
            assert town.fenced(town.nodes[0]) == []


@contextmanager
def _loaded() -> Iterator[None]:
    """Another process for each of this machine's processors, always busy."""
    busy = [Process(target=_run_for_ever, daemon=True) for _cpu in range(os.cpu_count() or 1)]
    for each in busy:
        each.start()
    try:
        yield
    finally:
        for each in busy:
            each.terminate()
            each.join()


def _run_for_ever() -> None:
    while True:
        pass
