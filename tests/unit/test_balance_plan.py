# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Plans: every state on the way is as it must be, nothing becomes worse, and they are explained."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.clusters import cluster, crowded, small
from cxm.balance import steady
from cxm.balance.model import Node, Plan, Role, Settings, Snapshot, Vm, gain
from cxm.balance.planner import plan
from cxm.balance.problem import compile_
from cxm.balance.rooms import Space, pack
from cxm.balance.search import Search
from cxm.balance.sequence import Hop, in_order, in_steps
from cxm.balance.start import choose
from cxm.errors import DataError
from tests.fakes import replay

NAMES = tuple(f"node{number}" for number in range(1, 8))


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
        prefers=tuple(draw(st.sets(where))) if draw(seldom) else (),
        stays="it is told to" if draw(seldom) else "",
    )


@st.composite
def clusters(draw: st.DrawFn) -> Snapshot:
    """Clusters with every rule; nodes hold what they have, however full they are."""
    names = NAMES[: draw(st.sampled_from((1, 2, 3, 3, 4, 4, 6, 7)))]
    vms = tuple(draw(_vms(number, names)) for number in range(draw(st.integers(0, 10))))
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
        assert not move.vm.stays
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


@pytest.mark.parametrize(
    "seed", [209, *(pytest.param(seed, marks=pytest.mark.extensive) for seed in range(200))]
)
def test_every_state_of_a_long_plan_is_valid(seed: int) -> None:
    """The same of more nodes, and moves that overtake others: of 209, N+1 was lost on the way."""
    _tried(crowded(seed))


# --- by example -----------------------------------------------------------------------------------


def test_a_full_pair_changes_places_by_way_of_a_third_node() -> None:
    """Neither of two nodes has room for both VMs at once, so one of them goes aside first."""
    nodes = (Node("a", 4096, 400), Node("b", 4096, 400), Node("c", 2048, 100))
    vms = tuple(Vm(f"vm{at}", 2048, 100, "a" if at < 2 else "b") for at in range(4))
    problem = compile_(Snapshot(nodes, vms))
    hops = in_order(problem, [(0, 1), (2, 0)], strict=True)
    assert hops == [Hop(0, 0, 2, detour=True), Hop(2, 1, 0), Hop(0, 2, 1)]
    full = replace(problem, spaces=(*problem.spaces[:2], Space(1024, 100)))
    assert in_order(full, [(0, 1), (2, 0)], strict=True) == []


def test_who_overtakes_leaves_a_place_for_a_dead_nodes_vms() -> None:
    """Those that were overtaken follow: their room is one thing, that of all nodes another."""
    nodes = [Node(f"n{at}", memory, 0) for at, memory in enumerate((1, 2, 3, 1, 2, 2))]
    small = [Vm(f"vm{at}", 1, 0, f"n{at}") for at in range(4)]
    problem = compile_(Snapshot(tuple(nodes), (*small, Vm("vm4", 2, 0, "n5"))))
    # The large one of n5 has a place on n2 but for a moment, and on n4 until another comes there.
    hops = [Hop(0, 0, 1), Hop(1, 1, 2), Hop(2, 2, 0), Hop(3, 3, 4)]
    assert in_order(problem, [(hop.vm, hop.target) for hop in hops], strict=True) == hops
    assert in_steps(problem, hops, 2, strict=True) == [[hop] for hop in hops]
    assert in_steps(problem, hops, 2, strict=False)[0] == [hops[0], hops[3]]


def test_n_plus_one_is_kept() -> None:
    """One small VM on each of two nodes would be evener: but then a large one has no way out."""
    nodes = tuple(Node(name, 4096, 400) for name in ("a", "b", "c"))
    small = tuple(Vm(f"vm{at}", 1024, 100, "b", used=100) for at in range(2))
    large = Snapshot(nodes, (*small, Vm("large", 4096, 100, "a", used=100)))
    assert compile_(large).rooms().shortage(0) == 0
    even: replay.Where = {"vm0": "b", "vm1": "c", "large": "a"}
    assert replay.lost(large, even, "a") == 4096
    assert not plan(large).moves
    parts = tuple(Vm(f"part{at}", 1024, 25, "a", used=25) for at in range(4))
    spread = plan(Snapshot(nodes, (*small, *parts))).end(Snapshot(nodes, small))
    assert {spread["vm0"], spread["vm1"]} == {"b", "c"}


def test_vms_that_stay_together_may_part_when_their_node_dies() -> None:
    """Together is a wish: it is enough that each of them has a place somewhere."""
    nodes = tuple(Node(name, 6144, 400) for name in ("a", "b", "c"))
    pair = tuple(Vm(f"t{at}", 2048, 50, "a", used=50, together=("t",)) for at in range(2))
    small = tuple(Vm(f"x{at}", 1024, 50, "a", used=100) for at in range(2))
    others = tuple(Vm(f"y{at}", 1536, 50, name, used=50) for at, name in enumerate("bc"))
    snapshot = Snapshot(nodes, (*pair, *small, *others))
    end = plan(snapshot).end(snapshot)
    assert {end["x0"], end["x1"]} == {"b", "c"}
    assert max(replay.lost(snapshot, end, node.name) for node in nodes) == 0


def test_where_the_best_placement_cannot_be_reached_another_one_is_found() -> None:
    """A pair that is nearly full: what is best of all needs room that there is not on the way."""
    snapshot = small(114)
    made = plan(snapshot)
    assert made.moves
    assert made.after.imbalance < made.before.imbalance


def test_where_not_all_find_a_place_as_many_as_possible_do() -> None:
    """Of VMs of the same memory those that need little CPU go first then."""
    needs = [(2048, 90, 0), *((2048, 25, number) for number in (1, 2, 3))]
    assert pack(needs, [(6144, 100, 0)]) == ({1: 0, 2: 0, 3: 0}, [0])


def test_an_even_cluster_is_left_alone() -> None:
    """Noise of a point or two is no reason to move anything."""
    snapshot = cluster(4, 40, 1)
    once = plan(snapshot)
    end = once.end(snapshot)
    again = replace(snapshot, vms=tuple(replace(vm, node=end[vm.name]) for vm in snapshot.vms))
    assert once.moves
    assert not plan(again).moves
    assert "no move is worth" in plan(again).reason or "LB_MIN_GAIN" in plan(again).reason


def test_what_a_vm_uses_is_reckoned_where_it_is_unknown() -> None:
    """It is taken to use as much of its share as those do of which it is known."""
    vms = (Vm("a", 1, 100, "n", used=50), Vm("b", 1, 200, "n"), Vm("c", 1, 100, "n"))
    problem = compile_(Snapshot((Node("n", 10, 400),), vms))
    assert problem.loads == (50, 100, 50)
    unknown = tuple(replace(vm, used=None) for vm in vms)
    assert compile_(Snapshot((Node("n", 10, 400),), unknown)).loads == (100, 200, 100)


def test_a_vm_starts_where_it_evens_out() -> None:
    """On the node that it was last on if that has room; not where it would cost N+1."""
    nodes = (Node("a", 8192, 800), Node("b", 8192, 800), Node("c", 1024, 800))
    vms = (Vm("x", 4096, 100, "a", used=100),)
    new = Vm("new", 2048, 100, None, used=50)
    snapshot = Snapshot(nodes, vms)
    assert choose(snapshot, new) == "b"
    assert choose(snapshot, new, "a") == "a"
    assert choose(snapshot, replace(new, nodes=("c",))) is None
    assert choose(snapshot, replace(new, memory=6000), "a") == "b"


def test_a_vm_starts_where_it_is_wished() -> None:
    """Rather than where it was last, but not where N+1 would go; with others above all."""
    nodes = tuple(Node(name, 4096, 800) for name in ("a", "b", "c"))
    vms = (Vm("x", 2048, 100, "a", together=("t",)), Vm("y", 1024, 100, "b"))
    new = Vm("new", 1024, 100, None, prefers=("c",))
    snapshot = Snapshot(nodes, vms)
    assert choose(snapshot, new, "b") == "c"
    # One of 4096 has a place elsewhere only while a node is empty.
    large = replace(snapshot, vms=(Vm("x", 4096, 100, "a"), vms[1]))
    assert choose(large, new, "b") == "b"
    assert choose(snapshot, replace(new, together=("t",)), "b") == "a"
    assert choose(snapshot, replace(new, prefers=()), "b") == "b"


def test_vms_that_stay_together_are_as_many_as_they_are() -> None:
    """A limit of VMs on a node has no place for two where one more may come."""
    nodes = (Node("a", 8192, 800), Node("b", 8192, 800))
    pair = tuple(Vm(f"t{at}", 1024, 100, "a", used=100, together=("t",)) for at in range(2))
    vms = (*pair, Vm("x", 2048, 100, "a", used=200, movable=False), Vm("y", 256, 10, "b", used=0))
    for limit, found in ((3, [1, 3]), (2, [3, 1])):
        search = Search(compile_(Snapshot(nodes, vms, Settings(max_vms=limit))))
        search.descend()
        assert search.rooms.number == found


def test_balancing_unasked_waits_and_lets_vms_rest() -> None:
    """Three rounds in a row; then a VM that has moved stays for hours, whatever it uses."""
    snapshot = cluster(4, 40, 2)
    memory = steady.Memory()
    for left in ("2 times", "1 time"):
        made, memory = steady.consider(snapshot, memory, 0.0)
        assert not made.moves
        assert made.reason.startswith(f"to be seen {left} more")
    made, memory = steady.consider(snapshot, memory, 600.0)
    assert made.moves
    gone = {move.vm.name for move in made.moves}
    assert set(memory.moved) == gone
    for _round in range(steady.ROUNDS):
        made, memory = steady.consider(snapshot, memory, 700.0)
    assert not {move.vm.name for move in made.moves} & gone
    assert not steady.consider(snapshot, steady.Memory(0, {"old": 0.0}), 1e6)[1].moved
    assert steady.from_text(steady.to_text(memory)) == memory
    assert steady.from_text("[1]") == steady.from_text("{") == steady.Memory()


def test_what_a_round_does_not_know_makes_it_slower_only() -> None:
    """Rounds of long ago, of another node with its clock ahead, or of none at all."""
    snapshot = cluster(4, 40, 2)
    almost = steady.Memory(steady.ROUNDS - 1, {}, 0.0)
    assert steady.consider(snapshot, almost, 60.0)[0].moves
    assert not steady.consider(snapshot, almost, steady.LAPSE_S + 60.0)[0].moves
    ahead = replace(almost, moved={vm.name: 90.0 for vm in snapshot.vms})
    assert not steady.consider(snapshot, ahead, 60.0)[0].moves
    assert steady.from_text('{"wanted": 2, "moved": {}}') == steady.Memory(2)
