# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""An administrator's constraints: plans and Pacemaker's own scheduler agree on where VMs may be.

A plan is carried out as orders do it, in simulation. Whatever else Pacemaker would do on the way,
or afterwards, is a disagreement.
"""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from xml.etree.ElementTree import fromstring

import pytest

from cxm.balance.model import Plan, Snapshot
from cxm.balance.planner import plan
from cxm.cluster import balancing, basis, model, pacemaker
from cxm.cluster import cib as documents
from cxm.cluster.cib import Resource
from cxm.config import NodeConfig
from cxm.errors import CommandError
from cxm.names import VmId
from tests.fakes.cib import Cluster, Step, section
from tests.fakes.machine import CLOUD

NODES = ("node1", "node2", "node3")
_UNTIL = "2099-01-01T00:00:00Z"
_DONE = tuple(f"{word} cxm-{CLOUD}" for word in ("start", "stop", "migrate_to"))


def vm_id(vm: int | str) -> str:
    """The resource of a VM, by its number or name."""
    return f"cxm-{CLOUD}-{str(vm).removeprefix('vm')}"


def _resource(vm: int, memory: int = 100) -> Resource:
    return Resource(
        cloud=CLOUD,
        vm=VmId(vm),
        name=f"vm{vm}",
        config=f"name = 'vm{vm}'",
        memory_mib=memory,
        cpu=50,
        migratable=True,
        started=True,
    )


class Lab:
    """A cluster in simulation, with constraints."""

    def __init__(self, directory: Path, vms: dict[int, str], *constraints: str) -> None:
        self.cluster = Cluster(str(directory), {}, *NODES, start=False)
        for node in NODES:
            basis.edit_facts(self.cluster.cib, node, {}, {"memory": "1000", "cpu": "800"})
        for vm, node in vms.items():
            documents.put(self.cluster.cib, replace(_resource(vm), preferred=node))
        self.cluster.go_on()
        for text in constraints:
            section(self.cluster.cib, "constraints").append(fromstring(text))
        for _turn in range(4):
            if self.at_work():
                self.cluster.go_on()

    def at_work(self) -> list[tuple[str, str]]:
        """What Pacemaker would do with VMs now."""
        return _deeds(self.cluster.ask())

    def seen(self) -> model.Cluster:
        """The cluster as cxm sees it."""
        status = pacemaker.parse_status(self.cluster.crm_mon())
        return model.build(status, self.cluster.cib)

    def snapshot(self, used: dict[int, float]) -> Snapshot:
        """The same for the planner, which thinks every move worth it."""
        by_id = {vm_id(vm): load for vm, load in used.items()}
        made = balancing.snapshot(self.seen(), by_id, NodeConfig())
        return replace(made, settings=replace(made.settings, worth=0.01, min_gain=0.0))

    def where(self) -> dict[str, str]:
        return {vm.name: vm.node for vm in self.seen().vms}

    def carry_out(self, made: Plan) -> None:
        """Step by step, the moves of a step at the same time; nothing else moves, ever."""
        expected = self.where()
        for step in made.steps:
            wanted = set()
            for move in step:
                rid = vm_id(move.vm.name)
                documents.attract(self.cluster.cib, rid, move.target, until=_UNTIL)
                documents.prefer(self.cluster.cib, rid, move.target)
                wanted.add((f"migrate_to {rid}", move.source))
                wanted.add((f"stop {rid}", move.source))
                expected[move.vm.name] = move.target
            assert set(_deeds(self.cluster.go_on())) == wanted, made
            for move in step:
                documents.release(self.cluster.cib, vm_id(move.vm.name))
            assert self.at_work() == [], made
            assert self.where() == expected


def _deeds(steps: Sequence[Step]) -> list[tuple[str, str]]:
    return sorted((each.what, each.node) for each in steps if each.what.startswith(_DONE))


# --- by example -----------------------------------------------------------------------------------


def _colocated(score: str, *vms: int) -> str:
    refs = "".join(f'<resource_ref id="{vm_id(vm)}"/>' for vm in vms)
    inner = f'<resource_set id="c-s">{refs}</resource_set>'
    return f'<rsc_colocation id="c" score="{score}">{inner}</rsc_colocation>'


def test_failover_keeps_what_a_plan_keeps(tmp_path: Path) -> None:
    """A wish gives way where there is no place, and a plan puts that right when there is."""
    lab = Lab(tmp_path, {1: "node1", 2: "node2", 3: "node3"}, _colocated("-500", 1, 2, 3))
    lab.cluster.go_on("--node-fail", "node3")
    lab.cluster.go_on("--node-up", "node3")
    lab.cluster.go_on()
    assert "node3" not in lab.where().values()
    made = plan(lab.snapshot({}))
    lab.carry_out(made)
    assert len(made.moves) == 1
    assert sorted(lab.where().values()) == list(NODES)


def test_vms_together_go_one_after_the_other(tmp_path: Path) -> None:
    """Below the stickiness the one that is left behind waits for its own order."""
    given = _colocated("500", 1, 2)
    lab = Lab(tmp_path, {1: "node1", 2: "node1", 3: "node1", 4: "node1"}, given)
    made = plan(lab.snapshot({1: 45.0, 2: 45.0, 3: 45.0, 4: 45.0}))
    lab.carry_out(made)
    where = lab.where()
    assert where["vm1"] == where["vm2"]
    assert len({where["vm1"], where["vm3"], where["vm4"]}) == 3


@pytest.mark.parametrize("score", ["INFINITY", "1200"])
def test_vms_that_pacemaker_moves_together_stay(tmp_path: Path, score: str) -> None:
    """An order about one of them takes both: which is why a plan has none."""
    lab = Lab(tmp_path, {1: "node1", 2: "node1", 3: "node1"}, _colocated(score, 1, 2))
    assert not {move.vm.name for move in plan(lab.snapshot({})).moves} & {"vm1", "vm2"}
    documents.attract(lab.cluster.cib, vm_id(1), "node2", until=_UNTIL)
    lab.cluster.go_on()
    documents.release(lab.cluster.cib, vm_id(1))
    lab.cluster.go_on()
    assert lab.where()["vm1"] == lab.where()["vm2"]


def test_order_about_one_draws_another_after_it(tmp_path: Path) -> None:
    """Two steps away, where INFINITY is handed on: which is why a plan leaves such VMs alone."""
    vms = {1: "node2", 2: "node1", 3: "node1", 4: "node2", 5: "node3", 6: "node1"}
    two = _colocated("-INFINITY", 4, 3)
    three = _colocated("-INFINITY", 2, 4, 5).replace('"c"', '"d"').replace('"c-s"', '"d-s"')
    lab = Lab(tmp_path, vms, two, three)
    assert not {move.vm.name for move in plan(lab.snapshot({})).moves} - {"vm1", "vm6"}
    documents.attract(lab.cluster.cib, vm_id(3), "node3", until=_UNTIL)
    assert {what for what, _node in lab.at_work()} > {f"migrate_to {vm_id(3)}"}


def test_vm_that_goes_takes_its_name_out_of_everything(tmp_path: Path) -> None:
    """A name that means nothing makes the document invalid, and OpenNebula could delete no VM."""
    lab = Lab(tmp_path, dict.fromkeys((1, 2, 3), "node1"), _colocated("-5", 1, 2))
    cib = lab.cluster.cib
    configuration = cib.find("configuration")
    assert configuration is not None
    tags = f'<tag id="some"><obj_ref id="{vm_id(1)}"/><obj_ref id="{vm_id(3)}"/></tag>'
    tags += f'<tag id="one"><obj_ref id="{vm_id(1)}"/></tag>'
    configuration.append(fromstring(f"<tags>{tags}</tags>"))
    for tag in ("some", "one"):
        text = f'<rsc_location id="l-{tag}" rsc="{tag}" node="node1" score="5"/>'
        section(cib, "constraints").append(fromstring(text))
    lab.cluster.ask()
    left: list[set[str]] = [{"c", "l-some"}, {"l-some"}, set()]
    for vm, expected in zip((1, 2, 3), left, strict=True):
        documents.remove(cib, vm_id(vm))
        lab.cluster.ask()
        names = {each.get("id") for each in section(cib, "constraints")}
        assert names & {"c", "l-some", "l-one"} == expected
    section(cib, "constraints").append(fromstring(_colocated("-5", 1, 2)))
    with pytest.raises(CommandError, match="unknown ID"):
        lab.cluster.ask()


# --- any ------------------------------------------------------------------------------------------


def _location(chance: random.Random, name: str, vm: str) -> str:
    score = chance.choice(("INFINITY", "-INFINITY", "-INFINITY", "50", "300", "-200", "900"))
    node = chance.choice(NODES)
    return f'<rsc_location id="{name}" rsc="{vm}" node="{node}" score="{score}"/>'


def _colocation(chance: random.Random, name: str, vms: Sequence[str]) -> str:
    some = chance.sample(list(vms), chance.choice((2, 2, 3)))
    # Mostly small ones, or most plans would leave most VMs alone.
    wishes = ("-100", "-150", "-200", "-300", "100", "200")
    score = chance.choice((*wishes, *wishes, "-INFINITY", "-INFINITY", "INFINITY", "500", "-2000"))
    if len(some) == 2 and chance.random() < 0.6:
        return f'<rsc_colocation id="{name}" rsc="{some[0]}" with-rsc="{some[1]}" score="{score}"/>'
    refs = "".join(f'<resource_ref id="{each}"/>' for each in some)
    inner = f'<resource_set id="{name}-s">{refs}</resource_set>'
    return f'<rsc_colocation id="{name}" score="{score}">{inner}</rsc_colocation>'


def _any(directory: Path, seed: int) -> int:
    """A cluster of chance, its plan carried out; returns how many VMs move."""
    chance = random.Random(seed)
    vms = {number: chance.choice(NODES[:2]) for number in range(1, chance.randint(5, 8))}
    ids = [vm_id(vm) for vm in vms]
    given = [_location(chance, f"l{n}", chance.choice(ids)) for n in range(chance.randint(0, 3))]
    given += [_colocation(chance, f"c{n}", ids) for n in range(chance.randint(0, 4))]
    lab = Lab(directory, vms, *given)
    made = plan(lab.snapshot({vm: chance.choice((5.0, 20.0, 45.0)) for vm in vms}))
    if lab.at_work() or any("finds no place" in each for each in made.stays):
        return 0  # constraints that Pacemaker turns round and round with, or cannot keep
    lab.carry_out(made)
    return len(made.moves)


def test_pacemaker_moves_nothing_but_what_a_plan_moves(tmp_path: Path) -> None:
    """Whatever the constraints are; some of the plans have moves."""
    assert sum(_any(tmp_path, seed) for seed in range(2)) > 0


@pytest.mark.extensive
@pytest.mark.parametrize("seed", [*range(2, 6), *range(100, 200)])
def test_pacemaker_moves_nothing_but_what_many_plans_move(tmp_path: Path, seed: int) -> None:
    """The same of many more."""
    _any(tmp_path, seed)
