# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Plans: every state on the way is as it must be, nothing becomes worse, and they are explained."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.clusters import small
from cxm.balance.model import Node, Plan, Role, Settings, Snapshot, Vm, gain
from cxm.balance.planner import plan
from cxm.balance.problem import compile_
from cxm.errors import DataError
from tests.fakes import replay

NAMES = ("node1", "node2", "node3", "node4")


@st.composite
def _vms(draw: st.DrawFn, number: int, names: tuple[str, ...]) -> Vm:
    where = st.sampled_from(names)
    cpu = draw(st.sampled_from((0, 25, 100, 200)))
    seldom = st.sampled_from((False,) * 5 + (True,))
    return Vm(
        f"vm{number}",
        draw(st.sampled_from((256, 1024, 2048, 4096))),
        cpu,
        None if draw(seldom) else draw(where),
        used=draw(st.one_of(st.none(), st.floats(0, 200))) if draw(seldom) else cpu / 2,
        movable=not draw(seldom),
        live=not draw(seldom),
        apart=("a",) if draw(seldom) else (),
        together=("t",) if draw(seldom) else (),
        nodes=tuple(draw(st.sets(where))) if draw(seldom) else None,
        prefers=draw(where) if draw(seldom) else None,
    )


@st.composite
def clusters(draw: st.DrawFn) -> Snapshot:
    """Small clusters with every rule; nodes hold what they have, however full they are."""
    names = NAMES[: draw(st.integers(1, 4))]
    vms = tuple(draw(_vms(number, names)) for number in range(draw(st.integers(0, 8))))
    nodes = []
    for name in names:
        here = [vm for vm in vms if vm.node == name]
        spare = draw(st.sampled_from((0, 512, 2048, 8192)))
        role = draw(st.sampled_from((*[Role.BOTH] * 6, *Role)))
        nodes.append(
            Node(
                name,
                sum(vm.memory for vm in here) + spare,
                sum(vm.cpu for vm in here) + spare // 16,
                role,
            )
        )
    return Snapshot(
        tuple(nodes),
        vms,
        Settings(
            max_vms=draw(st.sampled_from((0, 0, 3))),
            max_moves=draw(st.sampled_from((0, 0, 1, 2, 4))),
            min_gain=draw(st.sampled_from((0.0, 5.0))),
            worth=draw(st.sampled_from((0.0, 2.0))),
            parallel=draw(st.integers(1, 3)),
            restart=draw(st.booleans()),
        ),
    )


def _tried(snapshot: Snapshot) -> None:
    """What is true of every plan."""
    if _contradicts(snapshot):
        with pytest.raises(DataError, match="must be together, and apart"):
            plan(snapshot)
        return
    made = plan(snapshot)
    assert plan(_turned(snapshot)) == made
    begin = {vm.name: vm.node for vm in snapshot.vms}
    names = [node.name for node in snapshot.nodes if node.role is not Role.GONE]
    was = replay.broken(snapshot, begin, ())
    before = {name: replay.lost(snapshot, begin, name) for name in names}
    must_empty = any(node.role is Role.SOURCE for node in snapshot.nodes)
    for where, moving in replay.states(snapshot, made):
        assert replay.broken(snapshot, where, moving) <= was
        if not must_empty:
            for name in names:
                allowed = compile_(snapshot).rooms().shortage(names.index(name))
                assert replay.lost(snapshot, where, name) <= max(before[name], allowed)
    _limits(snapshot, begin, made)
    problem = compile_(snapshot)
    at = {node.name: number for number, node in enumerate(problem.nodes)}
    end = made.end(snapshot)
    right = len(problem.wrong([at[end[vm.name] or ""] for vm in problem.vms]))
    assert right == len(made.stuck) <= len(problem.wrong(problem.begin))
    if right == len(problem.wrong(problem.begin)):
        assert made.after.imbalance <= made.before.imbalance
        assert not made.moves or gain(made.before, made.after) >= snapshot.settings.min_gain
    assert made.reason


def _contradicts(snapshot: Snapshot) -> bool:
    """Whether two VMs must be together and apart: there is one group of each kind."""
    return sum(bool(vm.apart and vm.together) for vm in snapshot.vms) > 1


def _turned(snapshot: Snapshot) -> Snapshot:
    """The same cluster, told in another order."""
    return replace(snapshot, nodes=snapshot.nodes[::-1], vms=snapshot.vms[::-1])


def _limits(snapshot: Snapshot, begin: replay.Where, made: Plan) -> None:
    """Who moves may; so many at a time, and in all, as was said."""
    limits = snapshot.settings
    roles = {node.name: node.role for node in snapshot.nodes}
    moves = made.moves
    assert not limits.max_moves or len(moves) <= limits.max_moves
    for step in made.steps:
        assert 0 < len(step) <= limits.parallel
        ends = [name for move in step for name in (move.source, move.target)]
        assert len(ends) == len(set(ends))
    for move in moves:
        assert move.vm.movable
        assert move.vm.live or limits.restart
        assert roles[move.target] is Role.BOTH
        assert roles[move.source] in (Role.BOTH, Role.SOURCE)
        assert begin[move.vm.name] is not None


@settings(max_examples=30, deadline=None, derandomize=True)
@given(clusters())
def test_every_state_of_a_plan_is_valid(snapshot: Snapshot) -> None:
    """Also with any of a step's moves done and others not; nothing is worse than it was."""
    _tried(snapshot)


@pytest.mark.extensive
@settings(max_examples=400, deadline=None)
@given(clusters())
def test_every_state_of_many_plans_is_valid(snapshot: Snapshot) -> None:
    """The same of many more."""
    _tried(snapshot)


@pytest.mark.extensive
@pytest.mark.parametrize("seed", range(100))
def test_every_state_of_a_full_cluster_is_valid(seed: int) -> None:
    """The same of those that the best plans are proven for."""
    _tried(small(seed))
