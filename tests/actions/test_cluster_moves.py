# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Live migration in a cluster, cut in every phase and at every step (docs/design/0010)."""

import os
from pathlib import Path

import pytest

from cxm.errors import CxmError
from tests.fakes.machine import Fault, How, KilledError
from tests.fakes.pair import CUTS, PHASES, Pair


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    """VM 7 runs on node1."""
    made = Pair(tmp_path)
    made.start("node1")
    made.pacemaker.done.clear()
    return made


def assert_well(pair: Pair) -> str:
    """The VM runs once, its disk is that node's alone, nothing is left; returns the node."""
    (node,) = pair.runs_on()
    assert pair.where() == (node,)
    assert pair.locks() == {node: "ex"}
    for xen in pair.xens.values():
        for domain in xen.state.domains:
            assert domain.name == "user-vm7.home.net", domain
    assert set(pair.constraints()) <= {"prefer"}
    for name, xen in pair.xens.items():
        mark = xen.node.path("run", "moving", "cloudone1-7")
        assert not os.path.exists(mark), name
    return node


@pytest.mark.parametrize("what", CUTS)
@pytest.mark.parametrize("phase", PHASES)
def test_cut_in_any_phase(pair: Pair, phase: str, what: str) -> None:
    """The guest goes on, or is started afresh; a second order finds all well."""
    booted = pair.xens["node1"].of_vm(7)
    assert booted is not None
    pair.cut = (phase, what)
    failure = None
    try:
        pair.move("node1", "node2")
    except CxmError as error:
        failure = error
    except KilledError:
        pass
    print(phase, what, "->", pair.runs_on(), failure and failure.sentence())
    for node in sorted(pair.dead):
        pair.fail(node)
    for node in sorted(pair.dead):
        pair.come_back(node)
    pair.monitor()
    print(pair.pacemaker.done)
    (node,) = pair.runs_on()
    print(
        node,
        pair.locks(),
        pair.constraints(),
        [d.name for x in pair.xens.values() for d in x.state.domains],
    )
    assert_well(pair)


@pytest.mark.parametrize(
    "how", [How.KILL, How.KILL_AFTER, How.FAIL], ids=["kill", "kill after", "fail"]
)
def test_source_agent_cut_at_any_step(tmp_path: Path, how: How) -> None:
    """Of the agent's migrate_to."""
    step = 0
    while True:
        pair = Pair(tmp_path / str(step))
        pair.start("node1")
        source = pair.xens["node1"].node
        act = pair.pacemaker._act

        def cut(order, act=act, source=source, step=step):
            if order.action == "migrate_to":
                source.ran.clear()
                source.fault = Fault(step, how)
            try:
                return act(order)
            finally:
                if order.action == "migrate_to":
                    cut.steps = len(source.ran)
                source.fault = None

        pair.pacemaker._act = cut
        ran = None
        try:
            pair.move("node1", "node2")
        except CxmError as error:
            ran = error.sentence()
        pair.monitor()
        print(step, ran, pair.runs_on(), pair.locks(), pair.pacemaker.done[-6:])
        assert_well(pair)
        step += 1
        if step > 25 or (ran is None and step > 20):
            return
