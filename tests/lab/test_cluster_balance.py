# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""The nodes of a real cluster become equally busy: guests move live, and OpenNebula knows it.

# Requirements: the lab with node1 and node2, a cluster by cxm-setup; OpenNebula or its stand-in.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

import pytest

from cxm.errors import CxmError
from lab import cluster, process, visit
from lab import town as towns
from lab.guest_image import GuestImage
from lab.lab import Lab
from lab.machine import Machine
from lab.oned import scenarios
from lab.oned.cloud import Network
from lab.oned.scenarios import Parts
from lab.spec import BRIDGE
from lab.town import FAILOVER_S
from tests.lab.invariant import watched
from tests.lab.sites import versions
from tests.lab.test_cluster import Stage
from tests.lab.test_cluster_sync import told

_ADDRESSES: Final = tuple(f"10.77.1.{number}" for number in range(150, 156))
_BUSY: Final = 2  # of those that begin on the first node
_BUSY_CPU: Final = "0.25"  # their weight when they want the processor too
# Each of the guests on a node has a part of one emulated processor.
_ANSWER_S: Final = FAILOVER_S
_LOOK_S: Final = 300.0  # a command of cxm there
_TIMELINE_S: Final = 180.0
_METRICS_S: Final = 900.0
# In a pair of emulated nodes a move takes 46 to 85 s, more beside guests that are busy.
_PLAN_S: Final = 1800.0
# Rounds that begin less than two minutes after another do not count, and a node is late at times.
_EVERY: Final = "180s"
# Three rounds that find a plan; two more may find the cluster at work on something.
_BY_ITSELF_S: Final = 5 * 180.0 + _PLAN_S


@pytest.fixture
def stage(pair_session: Lab, guest: GuestImage, version: str) -> Iterator[Stage]:
    """An OpenNebula whose hosts are the nodes of a cluster that was just formed."""
    cluster.bring_up(pair_session)
    with scenarios.open_cloud(pair_session, version, san=True) as cloud:
        network = Network("lan", BRIDGE, _ADDRESSES[0])
        # A node has 639 MiB for guests, and each takes 118: five are the most.
        parts = Parts("node1", guest.tgz, network, cpu="0.1", address=_ADDRESSES[0], other="node2")
        scenarios.prepare(cloud, parts)
        yield Stage(pair_session, cloud, parts)


def _cxm(node: Machine, *words: str, timeout_s: float = _LOOK_S) -> str:
    return node.run(["cxm", *words], timeout_s=timeout_s).stdout


def _deployed(stage: Stage, on_first: int) -> list[int]:
    """So many VMs on the first node, the other ones on the second; two of the first are busy."""
    image = scenarios.register(stage.cloud, stage.parts, "load")
    made = []
    for number, address in enumerate(_ADDRESSES):
        cpu = _BUSY_CPU if number < _BUSY else stage.parts.cpu
        parts = replace(stage.parts, address=address, cpu=cpu)
        if number >= on_first:
            parts = replace(parts, host="node2", other="node1")
        made.append(scenarios.deploy(stage.cloud, parts, f"load{number}", image))
        visit.await_status(stage.lab, address, timeout_s=_ANSWER_S)
    for address in _ADDRESSES[:_BUSY]:
        _burn(stage.lab, address)
    _await_busy(stage, made)
    return made


def _burn(lab: Lab, address: str) -> None:
    """Have a guest busy from now on; asked again it goes on as it does."""

    def asked() -> bool:
        with suppress(CxmError):
            return "burn" in visit.fetch(lab, address, "cgi-bin/burn")
        return False

    what = f"the guest at {address} gets to work"
    process.wait_until(asked, timeout_s=_ANSWER_S, what=what, pause_s=1.0)


def _await_busy(stage: Stage, vms: Sequence[int]) -> None:
    """Wait until the nodes say that the busy VMs use clearly more CPU than the others do.

    They are to go by what VMs use from now on, not by how they booted one after the other.
    """
    for node in stage.nodes:
        node.run(["rm", "-f", "/run/cxm/usage.json"])

    def are_busy() -> bool:
        said = json.loads(_cxm(stage.nodes[0], "infos", "--json", "--metrics"))
        used = {vm["vm"]: vm["cpu_used"] for vm in said["vms"]}
        print(f"CPU: {used}")
        if set(used) != set(vms) or None in used.values():
            return False
        busy = min(used[vm] for vm in vms[:_BUSY])
        others = max(used[vm] for vm in vms[_BUSY:])
        return bool(busy >= 1.5 * others and busy >= others + 5)

    stage.nodes[0].wait_until(are_busy, timeout_s=_METRICS_S, pause_s=5.0)


def _guests(stage: Stage) -> list[visit.Status]:
    return [visit.await_status(stage.lab, address, timeout_s=_ANSWER_S) for address in _ADDRESSES]


def _go_on(stage: Stage, before: Sequence[visit.Status]) -> None:
    """All guests are the same boots, and their counters go on."""
    for address, was in zip(_ADDRESSES, before, strict=True):
        now = visit.await_status(
            stage.lab,
            address,
            lambda now, was=was: now.count > was.count,  # type: ignore[misc]
            timeout_s=_ANSWER_S,
        )
        assert (now.boot, now.boots) == (was.boot, was.boots), address


def _places(stage: Stage) -> dict[int, str]:
    """Where the VMs are, each on one node."""
    found = towns.places_of(towns.status(stage.nodes[0]))
    assert all(len(nodes) == 1 for nodes in found.values()), found
    return {vm: nodes[0] for vm, nodes in found.items()}


def _are_apart(stage: Stage, vms: Sequence[int]) -> bool:
    """Whether the busy VMs are at rest, each on a node of its own."""
    with suppress(CxmError):
        found = towns.places_of(towns.status(stage.nodes[0]))
        places = [found.get(vm, ()) for vm in vms[:_BUSY]]
        return all(len(each) == 1 for each in places) and len(set(places)) == _BUSY
    return False


def _in_line(stage: Stage, places: Mapping[int, str]) -> None:
    """OpenNebula comes to say RUNNING where they are, as ``cxm-sync`` takes its turns."""
    with scenarios.timer(stage.cloud):
        for node in stage.nodes:
            told(stage, [vm for vm, name in places.items() if name == node.name], node)


@pytest.mark.extensive
@pytest.mark.parametrize("version", versions("7.4", "3.8"))
def test_load_is_evened_out(stage: Stage) -> None:
    """One of the two that are busy goes to the other node, alive; the record follows."""
    vms = _deployed(stage, 4)
    before = _guests(stage)
    with watched(stage.lab):
        said = _cxm(stage.nodes[0], "loadbalance", "--yes", "--json", timeout_s=_PLAN_S)
        plan: dict[str, Any] = json.loads(said)
        _go_on(stage, before)
    assert plan["steps"], plan
    assert plan["stuck"] == []
    assert plan["after"]["imbalance"] < plan["before"]["imbalance"]
    assert _are_apart(stage, vms), _places(stage)
    _in_line(stage, _places(stage))
    scenarios.ended(stage.cloud, vms)
    assert stage.left() == []


@pytest.mark.extensive
@pytest.mark.parametrize("version", versions("7.4"))
def test_the_cluster_evens_itself_out(stage: Stage) -> None:
    """Switched on, it does the same by itself, on one node; off again it does nothing more.

    Five VMs on one node and one on the other are uneven enough for it by their memory alone.
    """
    vms = _deployed(stage, 5)
    first, second = stage.nodes
    seldom = f'<op id="cxm-balance-monitor" interval="{_EVERY}"/>'
    first.run(["cibadmin", "--modify", "--scope", "resources", "--xml-text", seldom])

    def state() -> dict[str, Any]:
        found: dict[str, Any] = json.loads(_cxm(first, "loadbalance", "--auto", "status", "--json"))
        print(found)  # what it waits for
        return found

    before = _guests(stage)
    with watched(stage.lab):
        _cxm(second, "loadbalance", "--auto", "on")
        try:
            first.wait_until(lambda: _are_apart(stage, vms), timeout_s=_BY_ITSELF_S, pause_s=10.0)
        except CxmError:
            state()
            raise
        # A round says what it did when all of its moves are made.
        first.wait_until(lambda: state()["last"] is not None, timeout_s=_PLAN_S, pause_s=10.0)
        _go_on(stage, before)
        assert state()["last"]["failed"] is False
        assert "by the balancer" in _cxm(first, "timeline", timeout_s=_TIMELINE_S)
        _cxm(first, "loadbalance", "--auto", "off")
        assert state()["on"] is False
    _in_line(stage, _places(stage))
    scenarios.ended(stage.cloud, vms)
    assert stage.left() == []
