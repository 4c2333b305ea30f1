# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Orders that meet other orders, and an agent on a node whose LVM or disk does not do its part."""

from pathlib import Path
from typing import Any, NoReturn
from xml.etree.ElementTree import Element, fromstring, tostring

import pytest

from cxm.cluster import agent, cib, moving, orders, pacemaker
from cxm.cluster.agent import Ocf
from cxm.errors import CommandError, CxmError, NotFoundError, RefusedError
from cxm.node import configs
from cxm.node.machine import Machine
from tests.actions.test_cluster_moves import assert_well
from tests.actions.test_cluster_watch import look, start_and_kill
from tests.fakes.machine import CLOUD
from tests.fakes.pair import RID, Pair
from tests.fakes.scheduler import Order

RECURRING = {"interval": "10000", "timeout": "60000"}
HANGS = CommandError("'lvm' did not finish within 25 s", argv=("lvm",), exit_code=-9, stderr="")


@pytest.fixture
def pair() -> Pair:
    """VM 7 runs on node1."""
    made = Pair()
    made.start("node1")
    return made


def mark(pair: Pair, node: str) -> Path:
    """Where a node notes that the VM's disks may be shared."""
    return Path(pair.xens[node].node.path("run", "moving", f"{CLOUD}-7"))


def raising(error: Exception) -> object:
    """Something that always fails."""

    def fail(*_args: object, **_more: object) -> NoReturn:
        raise error

    return fail


# --- the agent ------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [HANGS, NotFoundError("no such group"), OSError("full")])
def test_guest_that_is_well_is_well(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """That its disks may be shared, and cannot be claimed just now, is no failure of it."""
    mark(pair, "node1").parent.mkdir(exist_ok=True)
    mark(pair, "node1").touch()
    monkeypatch.setattr(moving, "_claim", raising(error))
    assert pair.agent("node1", "monitor", **RECURRING) == Ocf.SUCCESS
    assert pair.agent("node1", "monitor") == Ocf.SUCCESS
    assert mark(pair, "node1").exists()


def test_stop_where_lvm_stands_still(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guest is off; its disks are given back when somebody needs them, no node is fenced."""
    with monkeypatch.context() as patched:
        patched.setattr(agent, "release", raising(HANGS))
        pair.stop("node1", "destroy")
    assert pair.dead == set()
    assert pair.runs_on() == []
    pair.start("node2")
    assert assert_well(pair) == "node2"


@pytest.mark.parametrize("error", [OSError("No space left on device"), HANGS])
def test_guest_that_has_come_has_come(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """What else is wrong on the target would have Pacemaker stop it on both nodes."""
    before = pair.xens["node1"].of_vm(7)
    write = configs.write

    def fail_on_the_target(machine: Machine, *args: Any) -> str:
        if machine.hostname == "node2":
            raise error
        return write(machine, *args)

    monkeypatch.setattr(configs, "write", fail_on_the_target)
    assert pair.move("node1", "node2").result["moved"]
    after = pair.xens["node2"].of_vm(7)
    assert before is not None
    assert after is not None
    assert after.memory == before.memory


def test_why_it_does_not_move_is_told(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the agent came to nothing before it sent anything."""
    monkeypatch.setattr(moving, "send", raising(HANGS))
    with pytest.raises(CxmError, match="'lvm' did not finish within 25 s"):
        pair.move("node1", "node2")
    assert pair.runs_on() == ["node1"]


# --- orders ---------------------------------------------------------------------------------------


def test_busy_resource() -> None:
    """An operation that is under way, on any node."""
    text = """<cib><status><node_state id="1"><lrm id="1"><lrm_resources>
      <lrm_resource id="a"><lrm_rsc_op id="a_last_0" op-status="0"/></lrm_resource>
      <lrm_resource id="b"><lrm_rsc_op id="b_last_0" op-status="-1"/></lrm_resource>
    </lrm_resources></lrm></node_state></status></cib>"""
    assert [cib.is_busy(fromstring(text), rid) for rid in ("a", "b", "c")] == [False, True, False]


def test_later_order_wins(pair: Pair) -> None:
    """A start that fails does not take down what was started on another node meanwhile."""
    pair.stop("node1", "destroy")
    act = pair.pacemaker._act

    def taken_over(order: Order) -> tuple[int, str]:
        if order.action != "start" or order.node != "node1":
            return act(order)
        pair.pacemaker._act = act

        def other(root: Element) -> None:
            cib.confine(root, RID, "node2", until="2100-01-01T00:00:00Z")
            cib.prefer(root, RID, "node2")

        pair.pacemaker.edit(other)
        return 1, "no"

    pair.pacemaker._act = taken_over
    with pytest.raises(CxmError):
        pair.start("node1")
    pair.pacemaker.go_on()
    known = pair.resource()
    assert known is not None
    assert known.started
    assert pair.runs_on() == ["node2"]


def test_nobody_waits_for_a_guest_that_does_not_listen(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a guest is asked to switch itself off, it can be destroyed."""
    asked = []

    def deaf(_vm: object, node: str, word: str) -> bool:
        asked.append((node, word))
        pair.stop("node1", "destroy")
        return False

    monkeypatch.setattr(orders, "_ask", deaf)
    pair.stop("node1", "shutdown")
    assert asked == [("node1", "shutdown")]
    assert pair.runs_on() == []
    assert pair.locks() == {}


def test_vm_on_its_way_is_neither_here_nor_there(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An order about it would turn the move back: Pacemaker then stops it on both nodes."""
    head, own, tail = pair.mon().partition(f'<resource id="{RID}"')
    moved = head + own + tail.replace('role="Started"', 'role="Migrating"', 1)
    assert "Migrating" in moved
    monkeypatch.setattr(pacemaker, "status", lambda _runner: pacemaker.parse_status(moved))
    before = pair.pacemaker.text
    with pytest.raises(RefusedError, match="is on its way"):
        pair.start("node1")
    with pytest.raises(RefusedError, match="is on its way"):
        pair.move("node1", "node1")
    assert pair.pacemaker.text == before


def test_start_that_came_off_needs_nobodys_word() -> None:
    """A node that cannot be asked does not keep the VM from failing over."""
    pair = Pair()
    start_and_kill(pair, "node1")
    pair.xens["node1"].node.model("ssh", raising(HANGS))  # type: ignore[arg-type]
    pair.xens["node2"].node.model("ssh", raising(HANGS))  # type: ignore[arg-type]
    assert look(pair) == 1
    assert pair.constraints() == {"prefer": "node1"}


def test_what_resources_do_meanwhile_is_not_simulated_again(pair: Pair) -> None:
    """A patch that was stale is made anew, not all that was found out about it."""
    runner, checks = pair.xens["node1"].machine().runner, []

    def check(_root: Element) -> None:
        checks.append(1)
        if len(checks) == 1:
            grown = fromstring(pair.pacemaker.text)
            grown.set("num_updates", str(int(grown.get("num_updates", "0")) + 1))
            pair.pacemaker.text = tostring(grown, encoding="unicode")

    def edit(root: Element) -> None:
        cib.prefer(root, RID, "node2")

    assert pacemaker.change(runner, edit, what="a wish", check=check)
    assert checks == [1]
    assert pair.constraints()["prefer"] == "node2"
