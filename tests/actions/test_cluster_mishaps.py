# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""What comes between in a cluster: others act meanwhile, answers get lost, files cannot be written.

No node is fenced for it that is well, and no order says that something has happened which has not.
"""

import shlex
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from cxm import lock
from cxm.cluster import agent, basis, orders, view
from cxm.cluster.cib import Wish
from cxm.errors import CxmError, NotFoundError, RefusedError
from cxm.names import VmId
from cxm.node import configs
from cxm.node.guests import Life
from cxm.node.verbs import Call
from tests.fakes.machine import CLOUD, KilledError, Outcome
from tests.fakes.pair import BecameError, Pair, PairXen, kills, running


@pytest.fixture
def pair() -> Pair:
    """VM 7 runs on node1."""
    made = Pair()
    made.start("node1")
    return made


def begin(pair: Pair, node: str, at: str) -> dict[str, Any]:
    """``cxm create`` on ``at``."""
    call = Call(pair.xens[at].machine(), CLOUD)
    return orders.begin(call, vm=VmId(7), node=node, reason="root started it")


def test_a_disk_is_read_while_the_vm_is_to_start(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The start fails; the stop that follows finds nothing to stop, and fences nobody."""
    pair.stop("node1")
    wait = lock._await
    monkeypatch.setattr(
        lock, "_await", lambda take, seconds, every: wait(take, min(seconds, 0.05), every)
    )
    with pair.xens["node1"].machine().vm_lock(CLOUD, VmId(7)), pytest.raises(CxmError):
        begin(pair, "node1", at="node2")
    pair.pacemaker.go_on()
    assert pair.dead == set()
    assert pair.runs_on() == []


def test_a_stop_on_a_file_system_that_cannot_be_written(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guest is off: that is all that Pacemaker has asked for."""

    def fails(*_given: object) -> None:
        raise OSError(30, "Read-only file system", "/etc/xen/vm/x")

    monkeypatch.setattr(configs, "remove", fails)
    pair.stop("node1", "destroy")
    assert pair.runs_on() == []
    assert pair.dead == set()


def test_a_guest_that_was_rebooting_is_not_off(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """It looked so when it was asked, and runs when it is to be ended: who asked is told."""
    pair.xens["node1"].guest(7, "rebooting")
    unblocked = view.unblocked

    def slow(vm: Any) -> Any:
        for _second in range(60):
            pair.sleep(1.0)
        return unblocked(vm)

    monkeypatch.setattr(orders, "unblocked", slow)
    with pytest.raises(RefusedError, match="VM 7 was off, and was started again meanwhile"):
        pair.stop("node1", "shutdown", 180)
    assert pair.runs_on() == ["node1"]


@pytest.fixture
def deleted_after(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Any], None]:
    """Has OpenNebula delete the VM in the midst of an order: after a piece of it has ended."""

    def after(name: str, piece: Callable[[Any, Any], None]) -> None:
        def and_delete(first: Any, second: Any) -> None:
            piece(first, second)
            pair.ask("node1", "vm-remove", vm=7, dir=pair.directory("node1"))

        monkeypatch.setattr(orders, name, and_delete)

    return after


def test_a_vm_that_is_deleted_while_its_start_is_called_off(
    pair: Pair, deleted_after: Callable[[str, Any], None]
) -> None:
    """It does not come back without its disks."""
    pair.stop("node1")
    pair.xens["node2"].free_mib = 1
    deleted_after("_await_stop", orders._await_stop)
    with pytest.raises(CxmError):
        begin(pair, "node2", at="node2")
    assert pair.resource() is None


def test_a_vm_that_is_deleted_before_its_start(
    pair: Pair, deleted_after: Callable[[str, Any], None]
) -> None:
    """Between the look and the order."""
    pair.stop("node1")
    deleted_after("takes", view.takes)
    with pytest.raises(NotFoundError):
        begin(pair, "node2", at="node2")
    assert pair.resource() is None
    assert pair.constraints() == {}


def test_a_change_that_was_made_and_not_answered(pair: Pair) -> None:
    """OpenNebula is told that its deployment failed: then the VM must not start."""
    pair.stop("node1")
    cibadmin = pair.pacemaker.handlers()["cibadmin"]
    hit: list[tuple[str, ...]] = []

    def lost(argv: tuple[str, ...], data: bytes) -> Outcome:
        outcome = cibadmin(argv, data)
        if argv[1] == "--patch" and b"-place" in data and not hit:
            hit.append(argv)
            return Outcome(stderr="cib_apply_diff failed (-110): Connection timed out", code=124)
        return outcome

    pair.xens["node1"].node.model("cibadmin", lost)
    with pytest.raises(CxmError):
        pair.start("node1")
    assert hit
    pair.pacemaker.go_on()
    assert pair.runs_on() == []
    assert set(pair.constraints()) <= {"prefer"}


def test_a_guest_that_switches_itself_off_while_it_moves(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stays off, and is not started afresh where it was to go."""

    def migrate(self: Pair, source: PairXen, argv: tuple[str, ...]) -> Outcome:
        target, text = self._peer(shlex.split(argv[7]))
        with pytest.raises(BecameError):
            self._serve(target, text)
        source.guest(7, "off")
        return Outcome(stderr="libxl: error: x.c:1:x: guest did not suspend\n", code=1)

    monkeypatch.setattr(Pair, "migrate", migrate)
    with pytest.raises(CxmError, match="its guest switched itself off"):
        pair.move("node1", "node2")
    pair.pacemaker.go_on()
    assert pair.runs_on() == []
    known = pair.resource()
    assert known is not None
    assert (known.started, known.life) == (False, Life.OFF)


def test_a_reset_that_is_killed() -> None:
    """At whatever step: the VM runs, or it is off, is told to be, and can be started."""
    whole = running()
    host = whole.xens["node1"].node
    whole.ask("node1", "domain-reset", vm=7)
    was_off = 0
    for kill in kills(host.ran, list(host.own)):
        pair = running()
        pair.xens["node1"].node.fault = kill
        with pytest.raises(KilledError):
            pair.ask("node1", "domain-reset", vm=7)
        pair.xens["node1"].node.revive()
        pair.pacemaker.go_on()
        known = pair.resource()
        assert known is not None
        if known.started:
            assert pair.runs_on() == ["node1"]
            continue
        was_off += 1
        assert known.life is Life.OFF
        begin(pair, "node1", at="node1")
        assert pair.runs_on() == ["node1"]
    assert was_off


def test_a_reset_on_a_node_that_is_being_emptied(pair: Pair) -> None:
    """Refused before anything is done: the guest runs on, where it has gone."""
    pair.pacemaker.edit(lambda root: basis.edit_facts(root, "node1", {"standby": "on"}, {}))
    with pytest.raises(RefusedError):
        pair.ask("node1", "domain-reset", vm=7)
    pair.pacemaker.go_on()
    assert pair.runs_on() == ["node2"]


def test_a_restore_whose_order_is_withdrawn_while_it_waits(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its memory is there for the next start that is to go on from it."""
    pair.ask("node1", "domain-save", vm=7)
    known, reads = agent.resource_of, []

    def read(vm: Any) -> Any:
        reads.append(vm)
        found = known(vm)
        return replace(found, wish=Wish.NONE) if len(reads) == 2 else found

    monkeypatch.setattr(agent, "resource_of", read)
    pair.restore("node1")
    assert "VM 7 is not restored: its order was withdrawn meanwhile" in caplog.text
    assert "VM 7 goes on from its saved memory" in caplog.text
    assert pair.runs_on() == ["node1"]
