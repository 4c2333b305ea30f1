# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""``cxm loadbalance`` on a model of a cluster: what it shows and orders, and when it stops."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cxm.balance import schema
from cxm.cli import main, metrics, show
from cxm.cluster import balancer, balancing, nodes
from cxm.cluster import cib as documents
from cxm.errors import CommandError, RefusedError, UsageError
from cxm.names import VmId, domain_uuid
from tests.fakes.crm import FakeCluster, Place, two_nodes
from tests.fakes.machine import CLOUD


@pytest.fixture
def crm(tmp_path: Path) -> FakeCluster:
    """node1 has four VMs and node2 one, which is smaller than they are together."""
    made = two_nodes(str(tmp_path / "n"))
    made.add_vm(8, "node1", memory=1024)
    made.add_vm(9, "node1", memory=512)
    made.add_vm(10, "node1", memory=768)
    made.answers["usage"] = {"used": {domain_uuid(CLOUD, VmId(42)): 2.5}}
    return made


def _run(crm: FakeCluster, line: str) -> int:
    return main.main(line.split(), crm.world())


def test_a_plan_is_shown_and_nothing_moves(crm: FakeCluster) -> None:
    """With what the VMs of both nodes use."""
    assert _run(crm, "loadbalance --dry-run") == 0
    assert "1 move of 1024 MiB" in crm.text
    assert crm.places["cxm-cloudone1-8"].nodes == ("node1",)


def test_the_cluster_can_be_told_and_planned_for_elsewhere(
    crm: FakeCluster, tmp_path: Path
) -> None:
    """What ``infos`` writes is what ``--from`` reads, and the plan is the same."""
    assert _run(crm, "infos --json --metrics") == 0
    told = json.loads(crm.text)
    assert {vm["name"]: vm["cpu_used"] for vm in told["vms"]}["db.home.net"] == 2.5
    path = tmp_path / "told.json"
    path.write_text(crm.text)
    crm.said.truncate(0)
    crm.said.seek(0)
    assert _run(crm, f"loadbalance --from {path} --json") == 0
    offline = json.loads(crm.text)
    crm.said.truncate(0)
    crm.said.seek(0)
    assert _run(crm, "loadbalance --dry-run --json") == 0
    assert json.loads(crm.text) == offline


def test_a_cluster_in_a_file_is_the_one_that_is_there(crm: FakeCluster) -> None:
    """Whatever is up with its nodes and VMs, and its settings: planned for alike."""
    for name in ("node3", "node4", "node5"):
        crm.add_node(name)
    nodes.set_attribute(crm.cib, "node3", nodes.STANDBY, "on")
    crm.members["node4"].online = False
    for vm, node in ((20, "node3"), (21, "node1"), (22, "node1"), (23, "node2")):
        crm.add_vm(vm, node, name="same" if vm > 22 else f"one-{vm}")
    crm.add_vm(24, "node5", name="same")
    crm.places["cxm-cloudone1-20"].role = "Stopping"
    crm.places["cxm-cloudone1-21"].nodes = ("node1", "node2")
    for name in crm.members:
        what = f'id="ban-{name}" rsc="cxm-cloudone1-22" node="{name}" score="-INFINITY"'
        crm.constrain(f"<rsc_location {what}/>")
    config = replace(crm.node.machine().config, lb_max_vm_per_node=5, lb_max_migration=3)
    world = crm.world(settings=config, as_json=True)
    cluster, cib = world.look()
    used = metrics.used(world, cluster, cib)
    live = balancing.snapshot(cluster, used, config)
    assert {vm.nodes for vm in live.vms if vm.name == "one-22"} == {()}
    assert show.infos(world, with_metrics=True) == 0
    assert schema.parse(crm.text, "it") == live
    assert main.main(["infos", "--json"], crm.world()) == 0


def test_vms_move_when_that_is_confirmed(crm: FakeCluster) -> None:
    """And are where the plan has them then; once more, nothing is to be done."""
    assert _run(crm, "loadbalance") == UsageError.code
    assert crm.places["cxm-cloudone1-8"].nodes == ("node1",)
    crm.answer = "balance"
    assert _run(crm, "loadbalance") == 0
    assert "done: " in crm.text
    assert crm.places["cxm-cloudone1-8"].nodes == ("node2",)
    known = documents.find(crm.cib, CLOUD, VmId(8))
    assert known is not None
    assert known.host != "node2"  # nobody has told OpenNebula yet
    crm.said.truncate(0)
    assert _run(crm, "loadbalance --yes") == 0
    assert "STEP" not in crm.text


def test_it_stops_at_the_first_move_that_fails(
    crm: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    """And says how far it came."""
    crm.answers["bridges"] = {"missing": ["xenbr0"]}
    assert _run(crm, "loadbalance --yes") == CommandError.code
    said = capsys.readouterr().err
    assert "node2 lacks xenbr0" in said
    assert "0 VMs of 1 moved before" in said
    assert "'cxm loadbalance' plans anew" in said


def _added(crm: FakeCluster) -> None:
    crm.add_vm(20, "node2", name="new.home.net")


def _left(crm: FakeCluster) -> None:
    crm.members["node3"].online = False


def _moved(crm: FakeCluster) -> None:
    crm.places["cxm-cloudone1-7"].nodes = ("node2",)


def _off(crm: FakeCluster) -> None:
    known = documents.find(crm.cib, CLOUD, VmId(9))
    assert known is not None
    documents.put(crm.cib, replace(known, started=False))
    crm.places[known.id] = Place((), "Stopped")


@pytest.mark.parametrize(
    ("happens", "what"),
    [
        (_added, "new.home.net is on node2"),
        (_left, "node3 is offline"),
        (_moved, "web.home.net is on node2"),
        (_off, "one-9 does not run"),
    ],
)
def test_what_changed_while_the_reader_thought_ends_it(
    crm: FakeCluster,
    capsys: pytest.CaptureFixture[str],
    happens: Callable[[FakeCluster], None],
    what: str,
) -> None:
    """Who came takes room that the plan has given away, and so does a node that is gone."""
    crm.add_node("node3")

    def typed(_prompt: str) -> str:
        happens(crm)
        return "balance"

    world = crm.world(typed=typed)
    assert main.main(["loadbalance"], world) == RefusedError.code
    said = f"the cluster changed meanwhile ({what}), so the plan ends after 0 moves"
    assert said in capsys.readouterr().err
    assert crm.places["cxm-cloudone1-8"].nodes == ("node1",)


def test_two_vms_move_at_the_same_time(crm: FakeCluster) -> None:
    """In one step, between nodes of their own; what follows knows where both of them are."""
    for name in ("node3", "node4", "node5"):
        crm.add_node(name)
    for vm in (20, 21, 22):
        crm.add_vm(vm, "node3", memory=1024)
    assert _run(crm, "loadbalance --yes") == 0
    assert [line.split()[0] for line in crm.text.splitlines() if ": node" in line] == [
        "1/2",
        "1/2",
        "2/2",
    ]
    assert "done: 3 moves in 2 steps" in crm.text
    there = [crm.places[f"cxm-cloudone1-{vm}"].nodes for vm in (8, 20, 9)]
    assert there == [("node4",), ("node5",), ("node4",)]
    assert documents.rules(crm.cib) == []


def test_a_node_that_does_not_answer_is_named(crm: FakeCluster) -> None:
    """Its VMs are taken to use what others with their share do."""
    del crm.answers["usage"]
    crm.unreachable = True
    assert _run(crm, "loadbalance --dry-run") == 0
    assert "what the VMs of node2 use is not known: " in crm.text


def test_a_processor_that_lacks_something_is_no_target(crm: FakeCluster) -> None:
    """A guest that uses it would not survive the move."""
    nodes.set_attribute(crm.cib, "node1", nodes.CPU, "00000003:00000001")
    nodes.set_attribute(crm.cib, "node2", nodes.CPU, "00000001:00000001")
    assert _run(crm, "loadbalance --yes") == 0
    assert "no move is worth" in crm.text


def test_unasked_it_waits_for_three_rounds(crm: FakeCluster) -> None:
    """And does not ask then; a round that is only shown does not count."""
    crm.add_node("node3")
    for line in ("loadbalance --unasked", "loadbalance --unasked --dry-run"):
        assert _run(crm, line) == 0
    assert _run(crm, "loadbalance --unasked") == 0
    assert "to be seen 1 time more before anything moves" in crm.text
    assert crm.places["cxm-cloudone1-8"].nodes == ("node1",)
    assert _run(crm, "loadbalance --unasked") == 0
    assert "done: " in crm.text


def test_unasked_only_those_rest_whose_turn_came(crm: FakeCluster) -> None:
    """A plan that ends with its first step keeps nobody of the second from the next plan."""
    crm.can_balance()
    for name in ("node3", "node4", "node5"):
        crm.add_node(name)
    for vm in (20, 21, 22):
        crm.add_vm(vm, "node3", memory=1024)
    for _round in range(2):
        assert _run(crm, "loadbalance --unasked") == 0
    crm.answers["bridges"] = {"missing": ["xenbr0"]}
    assert _run(crm, "loadbalance --unasked") == CommandError.code
    assert "2  one-9" in crm.text
    assert balancer.moved(crm.cib).keys() == {"cxm-cloudone1-8", "cxm-cloudone1-20"}


def test_without_quorum_nothing_is_planned(
    crm: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing could be moved."""
    crm.quorate = False
    assert _run(crm, "loadbalance --dry-run") == RefusedError.code
    assert "not quorate" in capsys.readouterr().err
