# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns a cluster that VMs live on, from a snapshot, and how it is looked at.

The VMs were deployed by the drivers, driven by a stand-in for oned that is gone: whatever happens
here happens with the frontend away.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from cxm.cluster import pacemaker
from cxm.cluster.cib import parse_id
from cxm.errors import CxmError
from lab import cluster, installed, visit
from lab.guest_image import GuestImage
from lab.lab import Lab
from lab.machine import Machine
from lab.oned import scenarios
from lab.oned.cloud import Network
from lab.oned.inlab import SAN, open_standin
from lab.oned.scenarios import Parts
from lab.spec import BRIDGE

# Measured on a quiet machine: 28 s to a fenced node, 45 s to a guest that boots elsewhere.
FAILOVER_S: Final = 300.0
# Measured 70 s from the reset of a node to its locks.
BACK_S: Final = 400.0
NODES: Final = ("node1", "node2")
# Who lives where, by turns on the first and on the second node.
PAIR: Final = ("web", "db")
FOUR: Final = (*PAIR, "shop", "mail")
_ADDRESS: Final = "10.77.1.{}"
_FIRST: Final = 150
_CPU: Final = "0.2"  # all of them fit on one node


def status(node: Machine) -> pacemaker.Status:
    """The cluster as a node sees it."""
    said = node.run(["crm_mon", "-1", "--output-as=xml"], timeout_s=60)
    return pacemaker.parse_status(said.stdout)


def places_of(seen: pacemaker.Status) -> dict[int, tuple[str, ...]]:
    """Where the VMs are that are anywhere, by their numbers."""
    found = {}
    for rid, placed in seen.resources.items():
        vm = parse_id(rid)
        if vm is not None and placed.nodes:
            found[vm[1]] = tuple(dict.fromkeys(placed.nodes))
    return {int(vm): nodes for vm, nodes in found.items()}


def with_locks(seen: pacemaker.Status) -> set[str]:
    """The nodes that can use the SAN's volumes."""
    placed = seen.resources.get("cxm-lockspace")
    # One that is being started has its node already.
    if placed is None or placed.role != "Started":
        return set()
    return set(placed.nodes) & {node.name for node in seen.nodes if node.online}


@dataclass(frozen=True, slots=True)
class Resident:
    """A VM of the town, and where it was deployed."""

    lab: Lab
    vm: int
    name: str
    address: str
    home: str

    def answers(self) -> visit.Status:
        """What its guest says, as soon as it says something."""
        return visit.await_status(self.lab, self.address)

    def lives_on(self, before: visit.Status, counts: int = 1) -> visit.Status:
        """The same boot, its counter going on: by as many ``counts`` at least."""
        return visit.await_status(
            self.lab,
            self.address,
            lambda now: now.boot == before.boot and now.count >= before.count + counts,
            timeout_s=FAILOVER_S,
        )

    def booted_again(self, before: visit.Status) -> visit.Status:
        """Another boot of the same disk."""
        return visit.await_status(
            self.lab,
            self.address,
            lambda now: now.boot != before.boot and now.boots > before.boots,
            timeout_s=FAILOVER_S,
        )


@dataclass(frozen=True, slots=True)
class Town:
    """VMs that live on two nodes by turns: web on the first, db on the second, perhaps more."""

    lab: Lab
    residents: tuple[Resident, ...]

    @property
    def web(self) -> Resident:
        return self.residents[0]

    @property
    def db(self) -> Resident:
        return self.residents[1]

    @property
    def nodes(self) -> tuple[Machine, Machine]:
        """The home of the first VM, and the other node."""
        first, second = NODES if self.web.home == NODES[0] else NODES[::-1]
        return self.lab.machine(first), self.lab.machine(second)

    def infos(self, node: Machine) -> dict[str, Any]:
        """What ``cxm infos`` says on a node."""
        found: dict[str, Any] = json.loads(node.run(["cxm", "infos", "--json"]).stdout)
        return found

    def alarms(self, node: Machine) -> str:
        """What the box of ``cxm infos`` says on a node; empty where all is well or it is away."""
        return "\n".join(
            f"{each['text']} -> {each['advice']}" for each in self.infos(node)["alarms"]
        )

    def timeline(self, node: Machine) -> str:
        """What ``cxm timeline`` says on a node."""
        return node.run(["cxm", "timeline"], timeout_s=60).stdout

    def await_alarm(self, node: Machine, words: str, *, timeout_s: float = FAILOVER_S) -> str:
        """Wait until a node complains with these words."""
        node.wait_until(lambda: words in self.alarms(node), timeout_s=timeout_s, pause_s=2.0)
        return self.alarms(node)

    def await_places(
        self, node: Machine, wanted: Mapping[int, tuple[str, ...]], *, timeout_s: float = FAILOVER_S
    ) -> None:
        """Wait until the VMs are where they should be, at rest, as a node sees it."""

        def there() -> bool:
            seen = _try(lambda: status(node))
            if seen is None or places_of(seen) != dict(wanted):
                return False
            return all(each.at_rest for rid, each in seen.resources.items() if parse_id(rid))

        node.wait_until(there, timeout_s=timeout_s, pause_s=1.0)

    def await_whole(self, *, timeout_s: float = BACK_S) -> None:
        """Wait until both nodes are members with locks, also one that just boots."""
        await_whole(self.nodes, timeout_s=timeout_s)

    def fenced(self, seen_from: Machine) -> list[str]:
        """The nodes that were fenced, as a node remembers."""
        found = status(seen_from).fencing
        return sorted({each.target for each in found if each.status == "success"})


def await_whole(nodes: Sequence[Machine], *, timeout_s: float = BACK_S) -> None:
    """Wait until all nodes are members with locks, also one that just boots."""
    for node in nodes:
        node.forget_connection()
        node.wait_for_ssh(timeout_s=timeout_s)
    for node in nodes:
        node.wait_until(partial(_is_whole, node), timeout_s=timeout_s, pause_s=2.0)


def _is_whole(node: Machine) -> bool:
    seen = _try(lambda: status(node))
    return seen is not None and with_locks(seen) == set(NODES)


def _try(look: Callable[[], pacemaker.Status]) -> pacemaker.Status | None:
    try:
        return look()
    except CxmError:
        return None


def bring_up(lab: Lab, guest: GuestImage, names: Sequence[str] = PAIR) -> Town:
    """The town as it was built, from a snapshot where there is one."""
    packages = installed.ready(lab)
    below = cluster.label(lab.places, packages).partition("-")[2]
    residents = tuple(
        Resident(lab, vm, name, _ADDRESS.format(_FIRST + vm), NODES[vm % len(NODES)])
        for vm, name in enumerate(names)
    )
    # This module says what the town is like.
    with open(__file__, "rb") as file:
        plan = file.read() + f"{guest.key} {below} {names}".encode()
    label = f"town-{hashlib.sha256(plan).hexdigest()[:12]}"
    lab.prepared(label, lambda lab: _settle(lab, guest, residents))
    return Town(lab, residents)


def _settle(lab: Lab, guest: GuestImage, residents: Sequence[Resident]) -> None:
    cluster.bring_up(lab)
    first, second = NODES
    network = Network("lan", BRIDGE, _ADDRESS.format(_FIRST))
    # Those of the second node boot what only that node has; the others from their disks.
    more = {first: "", second: scenarios.directly(lab.machine(second), guest)}
    others = {first: second, second: first}
    parts = [
        Parts(
            each.home,
            guest.tgz,
            network,
            cpu=_CPU,
            address=each.address,
            other=others[each.home],
            more=more[each.home],
        )
        for each in residents
    ]
    with open_standin(lab, "7.4", setup=SAN, settings={"VM_FQDN_TEMPLATE": "%V"}) as cloud:
        scenarios.prepare(cloud, parts[0])
        image = scenarios.register(cloud, parts[0], "town")
        for each, its in zip(residents, parts, strict=True):
            scenarios.deploy(cloud, its, each.name, image)
            visit.await_status(lab, each.address)


def running(town: Town, seen_from: Machine) -> dict[int, tuple[str, ...]]:
    """Where the VMs are when nothing is being done to them any more."""
    found: list[dict[int, tuple[str, ...]]] = []

    def quiet() -> bool:
        seen = status(seen_from)
        found.append(places_of(seen))
        return len(found[-1]) == len(town.residents) and all(
            each.at_rest for each in seen.resources.values()
        )

    seen_from.wait_until(quiet, timeout_s=FAILOVER_S, pause_s=2.0)
    return found[-1]


def survivor(town: Town) -> Machine:
    """The node that has fenced the other, which may not have noticed yet that it is dead."""
    found: list[Machine] = []

    def one() -> bool:
        for node, other in (town.nodes, town.nodes[::-1]):
            fenced = node.run(
                ["stonith_admin", "--history", other.name, "--output-as=xml"],
                timeout_s=30.0,
                ok=range(256),
            )
            if 'status="success"' in fenced.stdout:
                found.append(node)
                return True
        return False

    town.nodes[0].wait_until(one, timeout_s=FAILOVER_S, pause_s=1.0)
    return found[0]
