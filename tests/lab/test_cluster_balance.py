# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""The nodes of a real cluster become equally busy: guests move live, and OpenNebula knows it.

# Requirements: the lab with node1 and node2, a cluster by cxm-setup; OpenNebula or its stand-in.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import pytest

from lab import cluster, visit
from lab import town as towns
from lab.guest_image import GuestImage
from lab.lab import Lab
from lab.oned import scenarios
from lab.oned.cloud import Network
from lab.oned.scenarios import Parts
from lab.spec import BRIDGE
from tests.lab.invariant import watched
from tests.lab.sites import versions
from tests.lab.test_cluster import Stage

_ADDRESSES: Final = tuple(f"10.77.1.{number}" for number in range(150, 156))
_ON_FIRST: Final = 4  # of them
_BUSY: Final = 2  # of those
# In a pair of emulated nodes a move takes 46 to 85 s, more beside guests that are busy.
_PLAN_S: Final = 1800.0
# Rounds that follow each other faster than two minutes do not count.
_ROUND: Final = "130s"
_BY_ITSELF_S: Final = 3 * 130.0 + _PLAN_S


@pytest.fixture
def stage(pair_session: Lab, guest: GuestImage, version: str) -> Iterator[Stage]:
    """An OpenNebula whose hosts are the nodes of a cluster that was just formed."""
    cluster.bring_up(pair_session)
    with scenarios.open_cloud(pair_session, version, san=True) as cloud:
        network = Network("lan", BRIDGE, _ADDRESSES[0])
        parts = Parts(
            "node1",
            guest.tgz,
            network,
            memory_mib=96,
            cpu="0.1",
            address=_ADDRESSES[0],
            other="node2",
        )
        scenarios.prepare(cloud, parts)
        yield Stage(pair_session, cloud, parts)


@pytest.fixture
def vms(stage: Stage) -> list[int]:
    """Four VMs on the first node and two on the second; two of the first node are busy."""
    image = scenarios.register(stage.cloud, stage.parts, "load")
    made = []
    for number, address in enumerate(_ADDRESSES):
        parts = replace(stage.parts, address=address)
        if number >= _ON_FIRST:
            parts = replace(parts, host="node2", other="node1")
        made.append(scenarios.deploy(stage.cloud, parts, f"load{number}", image))
        visit.await_status(stage.lab, address)
    for address in _ADDRESSES[:_BUSY]:
        visit.fetch(stage.lab, address, "cgi-bin/burn")
    return made


def _guests(stage: Stage) -> list[visit.Status]:
    return [visit.await_status(stage.lab, address) for address in _ADDRESSES]


def _go_on(stage: Stage, before: Sequence[visit.Status]) -> None:
    """All guests are the same boots, and their counters go on."""
    for address, was in zip(_ADDRESSES, before, strict=True):
        now = visit.await_status(stage.lab, address, lambda now, was=was: now.count > was.count)  # type: ignore[misc]
        assert (now.boot, now.boots) == (was.boot, was.boots), address


def _places(stage: Stage) -> dict[int, str]:
    """Where the VMs are, each on one node."""
    found = towns.places_of(towns.status(stage.nodes[0]))
    assert all(len(nodes) == 1 for nodes in found.values()), found
    return {vm: nodes[0] for vm, nodes in found.items()}


def _in_line(stage: Stage, places: Mapping[int, str]) -> None:
    """OpenNebula says RUNNING where they are, after a turn of ``cxm-sync``."""
    said = stage.cloud.sync()
    for vm, node in places.items():
        view = stage.cloud.vm(vm)
        assert (view.host, view.state) == (node, "RUNNING"), said


@pytest.mark.extensive
@pytest.mark.parametrize("version", versions("7.4", "3.8"))
def test_load_is_evened_out(stage: Stage, vms: list[int]) -> None:
    """One of the two that are busy goes to the other node, alive; the record follows."""
    first = stage.nodes[0]
    before = _guests(stage)
    with watched(stage.lab):
        said = first.run(["cxm", "loadbalance", "--yes", "--json"], timeout_s=_PLAN_S)
        told: dict[str, Any] = json.loads(said.stdout)
        _go_on(stage, before)
    assert told["steps"], told
    assert told["stuck"] == []
    assert told["after"]["imbalance"] < told["before"]["imbalance"]
    places = _places(stage)
    assert len({places[vm] for vm in vms[:_BUSY]}) == _BUSY, places
    _in_line(stage, places)
    scenarios.ended(stage.cloud, vms)
    assert stage.left() == []


@pytest.mark.extensive
@pytest.mark.parametrize("version", versions("7.4"))
def test_the_cluster_evens_itself_out(stage: Stage, vms: list[int]) -> None:
    """Switched on, it does the same by itself, on one node; off again it does nothing more."""
    first, second = stage.nodes
    shorter = f'<op id="cxm-balance-monitor" interval="{_ROUND}"/>'
    first.run(["cibadmin", "--modify", "--scope", "resources", "--xml-text", shorter])
    before = _guests(stage)
    with watched(stage.lab):
        second.run(["cxm", "loadbalance", "--auto", "on"])

        def state() -> dict[str, Any]:
            said = first.run(["cxm", "loadbalance", "--auto", "status", "--json"], timeout_s=120.0)
            found: dict[str, Any] = json.loads(said.stdout)
            return found

        first.wait_until(lambda: state()["last"] is not None, timeout_s=_BY_ITSELF_S, pause_s=10.0)
        _go_on(stage, before)
        told = state()
        assert told["last"]["failed"] is False, told
        assert "by the balancer" in first.run(["cxm", "timeline"], timeout_s=60.0).stdout
        first.run(["cxm", "loadbalance", "--auto", "off"])
        assert state()["on"] is False
    places = _places(stage)
    assert len({places[vm] for vm in vms[:_BUSY]}) == _BUSY, places
    _in_line(stage, places)
    scenarios.ended(stage.cloud, vms)
    assert stage.left() == []
