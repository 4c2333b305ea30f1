# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""What needs a VM's disks waits until its own node can have locks, and says what it waited for."""

import pytest

from cxm.errors import CxmError
from tests.fakes.pair import Pair
from tests.fakes.san import GLOBAL, GROUP, USABLE

_WHY = {
    None: "lvmlockd does not answer",
    GLOBAL: "its lockspace is not started",
    GROUP: "its lockspace is not started",
}


@pytest.fixture
def pair() -> Pair:
    """VM 7 runs on node1; node2 cannot have locks yet."""
    made = Pair()
    made.start("node1")
    made.pacemaker.done.clear()
    return made


def _usable_after(pair: Pair, node: str, delay_s: float) -> None:
    """The node has its locks so much later."""
    sleep, clock = pair.sleep, pair.xens[node].clock

    def later(seconds: float) -> None:
        sleep(seconds)
        if pair.xens[node].clock >= clock + delay_s:
            pair.xens[node].node.lvmlockd = USABLE

    pair.sleep = later  # type: ignore[method-assign]


@pytest.mark.parametrize("said", _WHY)
def test_start_waits_for_its_own_nodes_locks(pair: Pair, said: str | None) -> None:
    """A node that joins is given VMs while it still starts its locks: no start of them fails."""
    pair.xens["node2"].node.lvmlockd = said
    _usable_after(pair, "node2", 90)
    pair.fail("node1")
    assert pair.runs_on() == ["node2"]
    assert pair.pacemaker.done == [("start", "node2", 0), ("monitor", "node2", 0)]


@pytest.mark.parametrize("limit_s", [300, 100])
@pytest.mark.parametrize(("said", "why"), _WHY.items())
def test_start_where_there_are_no_locks_says_so(
    pair: Pair, said: str | None, why: str, limit_s: int
) -> None:
    """It ends well within its time, and nothing of the VM is left there."""
    there = pair.xens["node2"]
    there.node.lvmlockd = said
    begun = there.clock
    pair.pacemaker.is_working = True
    assert pair.agent("node2", "start", timeout=f"{limit_s}000") == 1
    sentence = f"node2 cannot have locks on the volume group LVM_XEN: {why} ('crm_mon -1'"
    assert " ".join(pair.said).startswith(sentence)
    assert 0.6 * limit_s <= there.clock - begun < 0.8 * limit_s
    assert pair.runs_on() == ["node1"]
    assert pair.locks() == {"node1": "ex"}


def test_guest_comes_to_a_node_that_has_just_joined(pair: Pair) -> None:
    """Its disks are shared when both nodes can have locks."""
    pair.xens["node2"].node.lvmlockd = GLOBAL
    _usable_after(pair, "node2", 30)
    pair.move("node1", "node2")
    assert pair.runs_on() == ["node2"]
    assert pair.locks() == {"node2": "ex"}


def test_guest_stays_where_the_other_node_has_no_locks(pair: Pair) -> None:
    """And the order says why."""
    pair.xens["node2"].node.lvmlockd = None
    with pytest.raises(CxmError, match="node2 cannot have locks on the volume group LVM_XEN: lvml"):
        pair.move("node1", "node2")
    assert pair.runs_on() == ["node1"]
    assert pair.locks() == {"node1": "ex"}
