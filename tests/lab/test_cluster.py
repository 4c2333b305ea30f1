# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""VMs of a real cluster: they move, and survive their node; never is one on two nodes.

# Requirements: the lab with node1 and node2, a cluster by cxm-setup; OpenNebula or its stand-in.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

import pytest

from lab import cluster, traces, visit
from lab import town as towns
from lab.guest_image import GuestImage
from lab.lab import Lab
from lab.machine import Machine
from lab.oned import scenarios
from lab.oned.cloud import Cloud, Network, VmView
from lab.oned.scenarios import Parts
from lab.spec import BRIDGE
from lab.town import FAILOVER_S
from tests.lab.invariant import watched
from tests.lab.sites import versions

ADDRESS: Final = "10.77.1.150"
_TELLS_OF_FAILURE: Final = (4, 14)  # failmigrate
_XL: Final = "/usr/local/sbin/xl"
# What receives a guest gets 8 MiB of it and is killed, so that it cannot clean up.
_DYING_XL: Final = """#!/bin/sh
[ "$1" = migrate-receive ] || exec /usr/sbin/xl "$@"
{ head -c 8388608; pkill -KILL -f '^/usr/lib/xen-.*/xl migrate-receive'; } | /usr/sbin/xl "$@"
"""


@dataclass(slots=True)
class Stage:
    """A cluster, and an OpenNebula that uses it."""

    lab: Lab
    cloud: Cloud
    parts: Parts

    @property
    def nodes(self) -> list[Machine]:
        return [self.lab.machine(name) for name in (self.parts.host, self.parts.other)]

    def answers(self) -> visit.Status:
        return visit.await_status(self.lab, ADDRESS)

    def vms(self, node: Machine) -> dict[str, tuple[str, ...]]:
        """Where the VMs are, as a node sees it."""
        found = towns.status(node).resources
        return {
            rid: placed.nodes
            for rid, placed in found.items()
            if placed.nodes and rid.startswith("cxm-") and rid.rpartition("-")[2].isdecimal()
        }

    def directories(self, node: Machine) -> list[str]:
        """The VMs' directories on a node."""
        argv = ["find", self.cloud.host_datastores, "-mindepth", "2", "-maxdepth", "2"]
        return node.run(argv).stdout.splitlines()

    def left(self) -> list[str]:
        """Whatever of a VM is still there."""
        self.cloud.settle()
        found = self.cloud.left_behind()
        for node in self.nodes:
            found += traces.of_vms(node, self.cloud.host_datastores)
        return found + list(self.vms(self.nodes[0]))


@pytest.fixture
def stage(pair_session: Lab, guest: GuestImage, version: str) -> Iterator[Stage]:
    """An OpenNebula whose hosts are the nodes of a cluster that was just formed."""
    cluster.bring_up(pair_session)
    with scenarios.open_cloud(pair_session, version, san=True) as cloud:
        network = Network("lan", BRIDGE, ADDRESS)
        parts = Parts("node1", guest.tgz, network, address=ADDRESS, other="node2")
        scenarios.prepare(cloud, parts)
        yield Stage(pair_session, cloud, parts)


@pytest.mark.extensive
@pytest.mark.parametrize("version", versions("7.4", "3.8"))
def test_a_vm_moves(stage: Stage) -> None:
    """Live there and back, saved, asleep: its memory goes with it, and nothing is left."""
    boots: list[visit.Status] = []

    def look(name: str, vm: VmView) -> None:
        if vm.state != "RUNNING":
            return
        boots.append(stage.answers())
        if name in ("moved", "resumed", "moved saved", "awake"):
            before, after = boots[-2:]
            assert (after.boot, after.boots) == (before.boot, before.boots), name
            assert after.count >= before.count, name
        assert list(stage.vms(stage.nodes[0]).values()) == [(vm.host,)], name

    with watched(stage.lab):
        scenarios.cluster_job(stage.cloud, stage.parts, look)
    assert boots[-1].boot != boots[-2].boot
    assert stage.left() == []


@pytest.mark.extensive
@pytest.mark.parametrize("version", versions("7.4", "3.8"))
def test_a_vm_stays(stage: Stage) -> None:
    """What receives it dies in mid-stream: it runs on, nothing of it is there, it can go again."""
    first, second = stage.nodes
    answers: list[visit.Status] = []

    def spoil() -> None:
        second.write(_XL, _DYING_XL)
        second.run(["chmod", "755", _XL])

    def mend() -> None:
        second.run(["rm", _XL])

    def look(name: str, vm: VmView) -> None:
        answers.append(stage.answers())
        assert answers[-1].boot == answers[0].boot, name
        assert list(stage.vms(first).values()) == [(vm.host,)], name
        if name == "stayed":
            assert f"VM {vm.id} did not move to {second.name}" in vm.error
            assert _pieces(second) == []
            assert list(towns.status(first).failures) == []
            if stage.cloud.version >= _TELLS_OF_FAILURE:
                assert stage.directories(second) == []

    with watched(stage.lab):
        scenarios.failed_move(stage.cloud, stage.parts, spoil, mend, look)
    assert stage.left() == []


def _pieces(node: Machine) -> list[str]:
    """What of a VM's guest is on a node: domains, active volumes, the mark of a move."""
    script = (
        "xl list | awk 'NR > 2 {print $1}'; dmsetup ls | grep lv--one; ls /run/cxm/moving"
        " 2>/dev/null; true"
    )
    return node.run(["sh", "-c", script]).stdout.splitlines()


@pytest.mark.extensive
@pytest.mark.parametrize("version", versions("7.4"))
def test_a_node_lacks_a_bridge(stage: Stage) -> None:
    """A live migration to it is refused by the bridge's name, and nothing happens to the VM."""
    first, second = stage.nodes
    first.run(["ip", "link", "add", "extra0", "type", "bridge"])
    first.run(["ip", "link", "set", "extra0", "up"])
    stage.cloud.create_network(Network("extra", "extra0", "10.99.0.10"))
    parts = replace(stage.parts, more='NIC=[NETWORK="extra"]')
    image = scenarios.register(stage.cloud, parts, "bridged")
    vm = scenarios.deploy(stage.cloud, parts, "bridged", image)
    before = stage.answers()
    with watched(stage.lab):
        stage.cloud.migrate(vm, second.name, live=True)
        stayed = stage.cloud.wait_migrated(vm)
        assert (stayed.host, stayed.state) == (first.name, "RUNNING")
        assert f"{second.name} lacks extra0" in stayed.error
        after = stage.answers()
        assert (after.boot, after.boots) == (before.boot, before.boots)
    stage.cloud.delete(vm)


@pytest.mark.extensive
def test_a_vm_survives_its_node(stage: Stage) -> None:
    """The power of its node is cut: the node is fenced, and only then the VM starts elsewhere."""
    first, second = stage.nodes
    image = scenarios.register(stage.cloud, stage.parts, "survivor")
    vm = scenarios.deploy(stage.cloud, stage.parts, "survivor", image)
    before = stage.answers()
    with watched(stage.lab):
        first.power_off()
        visit.await_status(
            stage.lab, ADDRESS, lambda seen: seen.boot != before.boot, timeout_s=FAILOVER_S
        )
        second.wait_until(
            lambda: list(stage.vms(second).values()) == [(second.name,)], timeout_s=FAILOVER_S
        )
        fenced = [each for each in towns.status(second).fencing if each.target == first.name]
        assert [each.status for each in fenced] == ["success"]
        timeline = second.run(["cxm", "timeline"], timeout_s=60).stdout
        assert f"{first.name}" in timeline
        assert "fenced" in timeline
        # Fencing has switched it on again.
        towns.await_whole(stage.nodes)
        assert list(stage.vms(first).values()) == [(second.name,)]
        assert stage.answers().boots == before.boots + 1
    stage.cloud.delete(vm)
