# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the demo's second part: a VM of a cluster moves while it runs, and survives its node."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from cxm.errors import CxmError
from lab import cluster, guest_image, town, visit
from lab.lab import Lab
from lab.machine import Machine
from lab.oned import scenarios
from lab.oned.cloud import Cloud, Network
from lab.oned.inlab import SAN, open_standin
from lab.oned.scenarios import Parts
from lab.spec import BRIDGE
from lab.story import Story
from lab.town import NODES, Resident, Town

_NAME = "ha"
_ADDRESS = "10.77.1.160"
_MEMORY_MIB = 104  # less does not boot; what there is must be sent when it moves
_EJECT_S = 900.0
_FAILOVER_S = 300.0
_TOLD_S = 240.0  # measured 10 to 40 s
_SHOWN = 14  # lines of the timeline


@dataclass(frozen=True, slots=True)
class Stage:
    """Where the second part plays: a cluster, and a VM on its first node."""

    lab: Lab
    cloud: Cloud
    vm: int

    @property
    def nodes(self) -> tuple[Machine, Machine]:
        first, second = (self.lab.machine(name) for name in NODES)
        return first, second


@contextmanager
def prepared(story: Story, running: Lab) -> Iterator[Stage]:
    """Make two machines that share a disk a cluster, and deploy a VM on it.

    The frontend is there as long as the block.
    """
    with story.step("Make two hosts a cluster") as row:
        cluster.bring_up(running)
        shown = running.machine(NODES[0]).run(["cxm", "infos"]).stdout
        _require("2 nodes, quorate" in shown, shown)
        row.happened = "cxm-setup cluster: Corosync, Pacemaker, DLM, lvmlockd, fencing by IPMI"
    with ExitStack() as opened:
        with story.step("Deploy a VM on the cluster") as row:
            cloud = opened.enter_context(
                open_standin(running, "7.4", setup=SAN, settings={"VM_FQDN_TEMPLATE": "%V"})
            )
            vm = _deploy(running, cloud)
            row.shown = running.machine(NODES[0]).run(["cxm", "infos"]).stdout.splitlines()
            row.happened = (
                f"it runs on {NODES[0]}, as OpenNebula chose, and Pacemaker looks after it"
            )
        yield Stage(running, cloud, vm)


def play(story: Story, stage: Stage) -> None:
    """Tell what becomes of the VM."""
    _move(story, stage)
    _survive(story, stage)
    _empty(story, stage)
    _tell(story, stage)


def town_of(running: Lab) -> Town:
    """The cluster as the demo leaves it, which lives on: its VM is on the second node."""
    (vm,) = town.places_of(town.status(running.machine(NODES[1])))
    return Town(running, (Resident(running, vm, _NAME, _ADDRESS, NODES[1]),))


def _require(condition: bool, otherwise: str) -> None:  # noqa: FBT001 - reads as a sentence
    if not condition:
        raise CxmError(otherwise)


def _deploy(running: Lab, cloud: Cloud) -> int:
    first = running.machine(NODES[0])
    guest = guest_image.ready(running.places, running.progress)
    network = Network("lab", BRIDGE, _ADDRESS)
    parts = Parts(
        first.name,
        guest.tgz,
        network,
        memory_mib=_MEMORY_MIB,
        address=_ADDRESS,
        other=NODES[1],
        more=scenarios.directly(first, guest),
    )
    scenarios.prepare(cloud, parts)
    image = scenarios.register(cloud, parts, _NAME)
    vm = scenarios.deploy(cloud, parts, _NAME, image)
    visit.await_status(running, _ADDRESS)
    where = _where(first)
    _require(where == [first.name], f"the VM is on {where}")
    return vm


def _where(seen_from: Machine) -> list[str]:
    """Where the VM is."""
    found = town.places_of(town.status(seen_from))
    return [node for nodes in found.values() for node in nodes]


def _move(story: Story, stage: Stage) -> None:
    _first, second = stage.nodes
    with story.step("Migrate it while it runs") as row:
        with visit.followed(stage.lab, _ADDRESS) as pulse:
            scenarios.move(stage.cloud, stage.vm, second.name, live=True)
        row.happened = (
            f"onevm migrate --live: it is on {second.name}; same boot, its counter went on from "
            f"{pulse.first.count} to {pulse.last.count} and stood still for at most "
            f"{pulse.longest_pause_s:.1f} s"
        )


def _survive(story: Story, stage: Stage) -> None:
    first, second = stage.nodes
    with story.step("Pull the plug of the node under it") as row:
        before = visit.await_status(stage.lab, _ADDRESS)
        second.power_off()
        after = visit.await_status(
            stage.lab, _ADDRESS, lambda now: now.boot != before.boot, timeout_s=_FAILOVER_S
        )
        where = _where(first)
        _require(where == [first.name], f"the VM is on {where}")
        fenced = [each.target for each in town.status(first).fencing]
        _require(fenced == [second.name], f"fenced: {fenced}")
        row.happened = (
            f"{second.name} was fenced through its BMC, and only then the VM was started on "
            f"{first.name}: boot {after.boots} of its disk"
        )
    with story.step("See that OpenNebula knows") as row:
        # As soon as cxm-sync can be certain: its timer has it look every 20 s.
        with scenarios.timer(stage.cloud):
            scenarios.await_told(stage.cloud, [stage.vm], first.name, timeout_s=_TOLD_S)
        row.happened = (
            f"cxm-sync: OpenNebula, which has ordered nothing, says RUNNING on {first.name}"
        )


def _empty(story: Story, stage: Stage) -> None:
    first, second = stage.nodes
    with story.step("Evacuate the other node") as row:
        town.await_whole(stage.nodes)  # fencing has switched the dead one on again
        with visit.followed(stage.lab, _ADDRESS) as pulse:
            first.run(["cxm", "eject", first.name], timeout_s=_EJECT_S)
        where = _where(second)
        _require(where == [second.name], f"the VM is on {where}")
        first.run(["cxm", "eject", "--back", first.name], timeout_s=_EJECT_S)
        row.happened = (
            f"{second.name} is back; cxm eject {first.name}: the VM is on {second.name}, its "
            f"counter went on to {pulse.last.count}"
        )


def _tell(story: Story, stage: Stage) -> None:
    _first, second = stage.nodes
    with story.step("See what the cluster did, and why") as row:
        lines = second.run(["cxm", "timeline", "--since", "30min"], timeout_s=60).stdout
        shown = lines.splitlines()[:-1]  # the last line is a remark
        _require(any("was fenced" in line for line in shown), lines)
        row.shown = [shown[0], *shown[1:][-_SHOWN:]]
        row.happened = "cxm timeline, above"
