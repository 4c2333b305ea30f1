# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the demo's second part: a VM of a cluster moves while it runs, and survives its node."""

from dataclasses import dataclass

from cxm.errors import CxmError
from lab import cluster, town, visit
from lab.guest_image import guest_image
from lab.image import node_image
from lab.lab import Lab
from lab.machine import Machine
from lab.oned import scenarios
from lab.oned.cloud import Cloud, Network
from lab.oned.inlab import SAN, open_standin
from lab.oned.scenarios import Parts
from lab.spec import BRIDGE
from lab.story import Story
from lab.town import NODES

_ADDRESS = "10.77.1.160"
_EJECT_S = 900.0
_FAILOVER_S = 300.0
_SHOWN = 14  # lines of the timeline


@dataclass(frozen=True, slots=True)
class _Stage:
    lab: Lab
    cloud: Cloud
    parts: Parts
    story: Story

    @property
    def nodes(self) -> tuple[Machine, Machine]:
        first, second = (self.lab.machine(name) for name in NODES)
        return first, second

    def where(self, seen_from: Machine) -> list[str]:
        """Where the VM is."""
        found = town.places_of(town.status(seen_from))
        return [node for nodes in found.values() for node in nodes]


def play(story: Story, running: Lab) -> None:
    """Tell it, on a lab of two machines that share a disk."""
    with story.step("Make two hosts a cluster") as row:
        cluster.bring_up(running)
        shown = running.machine(NODES[0]).run(["cxm", "infos"]).stdout
        _require("2 nodes, quorate" in shown, shown)
        print("\n".join(f"    {line}" for line in shown.splitlines()), flush=True)
        row.happened = "cxm-setup cluster: Corosync, Pacemaker, DLM, lvmlockd, fencing by IPMI"
    node = node_image(running.places, running.progress)
    guest = guest_image(running.places, node, running.progress)
    with open_standin(running, "7.4", setup=SAN) as cloud:
        network = Network("lab", BRIDGE, _ADDRESS)
        parts = Parts(NODES[0], guest.tgz, network, address=_ADDRESS, other=NODES[1])
        stage = _Stage(running, cloud, parts, story)
        vm = _deploy(stage)
        _move(stage, vm)
        _empty(stage)
        _survive(stage)
        _tell(stage)


def _require(condition: bool, otherwise: str) -> None:  # noqa: FBT001 - reads as a sentence
    if not condition:
        raise CxmError(otherwise)


def _deploy(stage: _Stage) -> int:
    first, _second = stage.nodes
    with stage.story.step("Deploy a VM on the cluster") as row:
        scenarios.prepare(stage.cloud, stage.parts)
        image = scenarios.register(stage.cloud, stage.parts, "ha")
        vm = scenarios.deploy(stage.cloud, stage.parts, "ha", image)
        visit.await_status(stage.lab, _ADDRESS)
        where = stage.where(first)
        _require(where == [first.name], f"the VM is on {where}")
        row.happened = f"it runs on {first.name}, as OpenNebula chose, and Pacemaker looks after it"
    return vm


def _move(stage: _Stage, vm: int) -> None:
    _first, second = stage.nodes
    with stage.story.step("Migrate it while it runs") as row:
        with visit.followed(stage.lab, _ADDRESS) as pulse:
            scenarios.move(stage.cloud, vm, second.name, live=True)
        row.happened = (
            f"onevm migrate --live: it is on {second.name}; same boot, its counter went on from "
            f"{pulse.first.count} to {pulse.last.count} and stood still for at most "
            f"{pulse.longest_pause_s:.1f} s"
        )


def _empty(stage: _Stage) -> None:
    first, second = stage.nodes
    with stage.story.step("Evacuate its node") as row:
        with visit.followed(stage.lab, _ADDRESS) as pulse:
            second.run(["cxm", "eject", second.name], timeout_s=_EJECT_S)
        where = stage.where(first)
        _require(where == [first.name], f"the VM is on {where}")
        second.run(["cxm", "eject", "--back", second.name], timeout_s=_EJECT_S)
        row.happened = (
            f"cxm eject {second.name}: the VM is on {first.name} again, its counter at "
            f"{pulse.last.count}"
        )


def _survive(stage: _Stage) -> None:
    first, second = stage.nodes
    with stage.story.step("Pull the plug of the node under it") as row:
        before = visit.await_status(stage.lab, _ADDRESS)
        first.power_off()
        after = visit.await_status(
            stage.lab, _ADDRESS, lambda now: now.boot != before.boot, timeout_s=_FAILOVER_S
        )
        where = stage.where(second)
        _require(where == [second.name], f"the VM is on {where}")
        fenced = [each.target for each in town.status(second).fencing]
        _require(fenced == [first.name], f"fenced: {fenced}")
        row.happened = (
            f"{first.name} was fenced through its BMC, and only then the VM was started on "
            f"{second.name}: boot {after.boots} of its disk"
        )


def _tell(stage: _Stage) -> None:
    _first, second = stage.nodes
    with stage.story.step("See what the cluster did, and why") as row:
        lines = second.run(["cxm", "timeline", "--since", "30min"], timeout_s=60).stdout
        shown = lines.splitlines()[:-1]  # the last line is a remark
        _require(any("was fenced" in line for line in shown), lines)
        print("\n".join(f"    {line}" for line in [shown[0], *shown[1:][-_SHOWN:]]), flush=True)
        row.happened = "cxm timeline, above"
