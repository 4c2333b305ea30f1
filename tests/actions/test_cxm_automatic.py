# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""The cluster balances itself, on a model: its switch, its rounds, and all that it waits for."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cxm.balance import steady
from cxm.cli import autobalance, balanceturn, main
from cxm.cluster import balancer
from cxm.cluster import cib as documents
from cxm.errors import CommandError, NotFoundError, UsageError
from cxm.names import VmId, domain_uuid
from tests.fakes.crm import NOW, FakeCluster, Place, two_nodes
from tests.fakes.machine import CLOUD

BIG = "cxm-cloudone1-8"
ROUND_S = 300.0


@pytest.fixture
def crm(tmp_path: Path) -> FakeCluster:
    """A cluster that balances itself; one VM of node1 should be on node2."""
    made = two_nodes(str(tmp_path / "n"))
    for vm, memory in ((8, 1024), (9, 512), (10, 768)):
        made.add_vm(vm, "node1", memory=memory)
    made.add_node("node3")
    made.answers["usage"] = {"used": {domain_uuid(CLOUD, VmId(42)): 2.5}}
    made.can_balance()
    balancer.switch(made.cib, on=True)
    return made


def _run(crm: FakeCluster, line: str) -> int:
    return main.main(line.split(), crm.world())


def _rounds(crm: FakeCluster, number: int = steady.ROUNDS) -> int:
    code = 0
    for _round in range(number):
        code = balanceturn.turn(crm.world())
        crm.node.clock += ROUND_S
    return code


def _almost(crm: FakeCluster) -> None:
    """The next round is the third in a row."""
    at = crm.world().now() - ROUND_S
    autobalance.remember(crm.world(), steady.Memory(steady.ROUNDS - 1, {}, at))


def _status(crm: FakeCluster) -> dict[str, object]:
    crm.said.truncate(0)
    crm.said.seek(0)
    assert _run(crm, "loadbalance --auto status --json") == 0
    found: dict[str, object] = json.loads(crm.text)
    return found


def _moved(crm: FakeCluster) -> bool:
    return crm.places[BIG].nodes != ("node1",)


# --- the switch -----------------------------------------------------------------------------------


def test_it_is_off_until_somebody_switches_it_on(tmp_path: Path) -> None:
    """One command, from any node; and it can be switched off again."""
    crm = two_nodes(str(tmp_path))
    crm.can_balance()
    assert _status(crm) == {"on": False, "node": None, "last": None, "waits": None}
    assert _run(crm, "loadbalance --auto on") == 0
    assert _status(crm)["on"] is True
    assert _run(crm, "infos") == 0
    assert "Balancer on, on node1; it has moved nothing yet" in crm.text
    assert _run(crm, "loadbalance --auto off") == 0
    assert _status(crm)["on"] is False
    assert _run(crm, "infos") == 0
    assert "Balancer" not in crm.text


def test_a_former_cluster_says_what_it_needs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """``cxm-setup cluster`` once more; looking is no error."""
    crm = two_nodes(str(tmp_path))
    assert _run(crm, "loadbalance --auto on") == NotFoundError.code
    assert "run 'cxm-setup cluster' once more" in capsys.readouterr().err
    assert _status(crm)["on"] is False


@pytest.mark.extensive
def test_the_switch_plans_nothing(crm: FakeCluster) -> None:
    """Together with what plans, nobody knows what is meant."""
    assert _run(crm, "loadbalance --auto on --dry-run") == UsageError.code


# --- a round --------------------------------------------------------------------------------------


def test_three_rounds_move_what_is_worth_it_and_tell(crm: FakeCluster) -> None:
    """All nodes know what was done, and which VMs rest; OpenNebula is told by cxm-sync."""
    assert _rounds(crm, 2) == 0
    assert not _moved(crm)
    assert _rounds(crm, 1) == 0
    assert _moved(crm)
    last = _status(crm)["last"]
    assert isinstance(last, dict)
    assert last["failed"] is False
    assert "of the imbalance gone" in last["what"]
    assert balancer.moved(crm.cib)[BIG] == pytest.approx(NOW + 2 * ROUND_S, abs=ROUND_S)
    assert documents.rules(crm.cib) == []
    _run(crm, "check")
    assert "  ok       balancer" in crm.text


def test_another_node_that_goes_on_lets_vms_rest(crm: FakeCluster, tmp_path: Path) -> None:
    """It knows of no rounds, so it begins to count; what has moved stays all the same."""
    _almost(crm)
    _rounds(crm, 1)
    assert _moved(crm)
    (tmp_path / "n" / "run/cxm/balance.json").unlink()
    crm.places[BIG] = Place(("node1",))  # as if it were worth it again
    _rounds(crm)
    assert crm.places[BIG].nodes == ("node1",)


def test_rounds_that_follow_too_fast_are_none(crm: FakeCluster) -> None:
    """Pacemaker looks more often when somebody asks it to."""
    for _time in range(steady.ROUNDS + 1):
        balanceturn.turn(crm.world())
    assert not _moved(crm)


def test_a_round_counts_from_its_beginning(crm: FakeCluster) -> None:
    """To ask what VMs use takes a while, which is no reason to leave the next round out."""
    began = crm.node.clock
    for turn in range(steady.ROUNDS):
        crm.node.clock = began + turn * 120.0
        balanceturn.turn(crm.world())
    assert _moved(crm)


def _pending(crm: FakeCluster) -> None:
    crm.fence_events.append({"target": "node3", "action": "reboot", "status": "pending"})


def _rule(crm: FakeCluster) -> None:
    documents.attract(crm.cib, "cxm-cloudone1-42", "node2", until="2026-12-31T00:00:00+00:00")


_DISTURBANCES: list[tuple[Callable[[FakeCluster], None], str]] = [
    (_pending, "FENCING IN PROGRESS"),
    (_rule, "an order about cxm-cloudone1-42 is at work"),
]
_MORE: list[tuple[Callable[[FakeCluster], None], str]] = [
    (lambda crm: setattr(crm.members["node3"], "unclean", True), "UNCLEAN"),
    (lambda crm: setattr(crm.members["node3"], "pending", True), "node3 is joining"),
    (lambda crm: setattr(crm, "quorate", False), "NOT QUORATE"),
    (lambda crm: setattr(crm.places[BIG], "blocked", True), "IS BLOCKED"),
    (lambda crm: setattr(crm.places[BIG], "role", "Migrating"), "is migrating"),
]


@pytest.mark.parametrize(
    ("happens", "why"),
    [*_DISTURBANCES, *(pytest.param(*each, marks=pytest.mark.extensive) for each in _MORE)],
)
def test_nothing_moves_while_something_goes_on(
    crm: FakeCluster, happens: Callable[[FakeCluster], None], why: str
) -> None:
    """And the rounds before it do not count: it begins anew."""
    _almost(crm)
    before = dict(crm.places)
    crm.stuck.update(crm.places)
    happens(crm)
    assert balanceturn.turn(crm.world()) == 0
    assert {rid: each.nodes for rid, each in crm.places.items()} == {
        rid: each.nodes for rid, each in before.items()
    }
    assert why in str(_status(crm)["waits"])
    assert steady.from_text(_kept(crm)).wanted == 0


def _kept(crm: FakeCluster) -> str:
    return (Path(crm.node.root) / "run/cxm/balance.json").read_text()


def test_an_order_on_another_node_is_not_crossed(crm: FakeCluster) -> None:
    """A guest that somebody shuts down from there: only that node knows."""
    _almost(crm)
    crm.answers["ordered"] = {"ordered": True}
    assert _rounds(crm, 1) == 0
    assert not _moved(crm)
    last = _status(crm)["last"]
    assert isinstance(last, dict)
    assert "is at work on node2, so the plan ends after 0 moves" in last["what"]
    # None has moved, so none need rest.
    assert balancer.moved(crm.cib) == {}
    assert steady.from_text(_kept(crm)).moved == {}
    crm.answers["ordered"] = {"ordered": False}
    _rounds(crm)
    assert _moved(crm)


@pytest.mark.extensive
def test_an_order_on_this_node_is_not_crossed(crm: FakeCluster) -> None:
    """The same."""
    _almost(crm)
    with crm.world().machine().order_lock(CLOUD, VmId(8)):
        _rounds(crm, 1)
    assert not _moved(crm)


@pytest.mark.parametrize("to", ["node2", pytest.param("", marks=pytest.mark.extensive)])
def test_only_where_pacemaker_has_it_a_round_is_made(crm: FakeCluster, to: str) -> None:
    """One that was begun here, or is begun by hand, does nothing more."""
    crm.balances = to
    _almost(crm)
    _rounds(crm, 1)
    assert not _moved(crm)


def test_switched_off_it_begins_no_further_step(crm: FakeCluster) -> None:
    """What moves arrives."""
    _almost(crm)

    seen = crm.world()
    looks = 0

    def look_and_off() -> float:
        nonlocal looks
        looks += 1
        if looks == 2:
            balancer.switch(crm.cib, on=False)
        return crm.node.clock

    assert balanceturn.turn(replace(seen, monotonic=look_and_off)) == 0
    assert not _moved(crm)


def test_a_move_that_fails_is_told_and_fails_nothing_else(crm: FakeCluster) -> None:
    """The next plan leaves the VM alone for hours."""
    crm.answers["bridges"] = {"missing": ["xenbr0"]}
    _almost(crm)
    assert _rounds(crm, 1) == CommandError.code
    assert not _moved(crm)
    _run(crm, "check")
    assert "  warning  balancer" in crm.text
    crm.answers["bridges"] = {"missing": []}
    _almost(crm)
    _rounds(crm, 1)
    assert not _moved(crm)


@pytest.mark.extensive
def test_it_runs_nowhere_is_told(crm: FakeCluster) -> None:
    """It is on, and no node has it."""
    crm.balances = ""
    _run(crm, "check")
    assert "on, but it runs nowhere" in crm.text
