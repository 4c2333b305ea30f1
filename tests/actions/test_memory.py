# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""The verbs that save and restore a guest's memory."""

import logging
import os
from pathlib import Path

import pytest

from cxm.errors import CxmError, RefusedError
from cxm.node.guests import Life
from tests.fakes.call import ask
from tests.fakes.domains import (
    NAME,
    active,
    assert_off,
    checkpoint,
    guest,
    life,
    link,
    picture,
    restore,
    save,
    start,
    stop,
)
from tests.fakes.machine import Outcome
from tests.fakes.xen import FakeXen


def fail_unpause(xen: FakeXen, after: str) -> None:
    """From now on ``xl unpause`` fails: before it did its work, or after that."""
    plain = xen.node._handlers["xl"]

    def handler(argv: tuple[str, ...], data: bytes) -> Outcome:
        if argv[1] != "unpause":
            return plain(argv, data)
        if after != "nothing":
            plain(argv, data)
        if after == "it ran and vanished":
            xen.guest(7, "vanished")
        return Outcome(stderr="Terminated\n", code=143)

    xen.node.model("xl", handler)


class TestMemory:
    """domain-save and domain-restore."""

    def test_save_and_restore(self, xen: FakeXen) -> None:
        """The guest goes on where it was, and its checkpoint is gone."""
        start(xen)
        before = xen.of_vm(7)
        assert save(xen).result["checkpoint"] == "lv-one-7-checkpoint"
        assert_off(xen)
        assert life(xen) is Life.STOPPED
        assert checkpoint(xen) == "ready"
        xen.clock += 100
        assert restore(xen).result == {"name": NAME}
        after = xen.of_vm(7)
        assert before is not None
        assert after is not None
        assert after.memory == before.memory
        assert after.life == "running"
        assert checkpoint(xen) is None
        assert active(xen) == ["lv-one-7-0"]
        assert os.path.islink(link(xen))

    def test_nothing_of_a_former_tenant_is_behind_the_memory(self, xen: FakeXen) -> None:
        """What the save does not cover of its volume is zero."""
        start(xen)
        save(xen)
        content = xen.node.content("lv-one-7-checkpoint")
        assert b"tenant" not in content
        assert content.startswith(b"Xen saved domain")

    def test_a_failed_save_leaves_the_guest_running(self, xen: FakeXen) -> None:
        """When the guest does not suspend, it runs on, and no checkpoint is left."""
        start(xen)
        before = picture(xen)
        xen.save_fails = True
        with pytest.raises(CxmError, match=r"xl save failed: .*didn't acknowledge suspend"):
            save(xen)
        assert picture(xen) == before

    def test_a_full_group_is_told_before(self, xen: FakeXen) -> None:
        """Without room for the memory nothing is tried."""
        start(xen)
        before = picture(xen)
        xen.node.add_lv("big", xen.node.free() // (1 << 20) - 32, content=b"x")
        with pytest.raises(RefusedError, match="has 32 MiB free, but lv-one-7-checkpoint needs 68"):
            save(xen)
        assert picture(xen)["domain"] == before["domain"]
        assert life(xen) is Life.RUNNING

    def test_saving_nothing_is_refused(self, xen: FakeXen) -> None:
        """A VM that does not run has no memory."""
        with pytest.raises(RefusedError, match="VM 7 does not run here"):
            save(xen)

    def test_saving_twice_is_success(self, xen: FakeXen) -> None:
        """A save that has been done already succeeds."""
        start(xen)
        save(xen)
        before = picture(xen)
        save(xen)
        assert picture(xen) == before

    def test_restoring_a_running_vm_is_success(self, xen: FakeXen) -> None:
        """And a checkpoint that was left over is removed."""
        start(xen)
        assert restore(xen).result == {"name": NAME}

    def test_a_missing_checkpoint(self, xen: FakeXen) -> None:
        """Restoring nothing says so, and what of the VM is left."""
        start(xen)
        stop(xen)
        with pytest.raises(RefusedError, match="VM 7 has no saved memory") as caught:
            restore(xen)
        assert "only its memory is lost" in caught.value.sentence()

    def test_a_damaged_checkpoint(self, xen: FakeXen) -> None:
        """Saved memory that is not complete is never restored."""
        start(xen)
        save(xen)
        with open(xen.node.path("backing", "lv-one-7-checkpoint"), "r+b") as file:
            file.write(b"Xen saved domain, xl format\n \0 \r" + bytes(200))
        with pytest.raises(RefusedError, match="the saved memory of VM 7 cannot be restored"):
            restore(xen)
        assert_off(xen)

    def test_a_failed_restore_can_be_tried_again(self, xen: FakeXen) -> None:
        """Without memory on the host the checkpoint stays good."""
        start(xen)
        save(xen)
        xen.free_mib = 1
        before = picture(xen)
        with pytest.raises(CxmError, match="Out of memory"):
            restore(xen)
        assert picture(xen) == before
        xen.free_mib = 64
        restore(xen)
        assert xen.of_vm(7) is not None

    def test_guest_that_was_not_woken_keeps_its_memory(self, xen: FakeXen) -> None:
        """It has run no instruction, so the restore can be tried again."""
        start(xen)
        save(xen)
        plain, before = xen.node._handlers["xl"], picture(xen)
        fail_unpause(xen, "nothing")
        with pytest.raises(CxmError, match="xl unpause"):
            restore(xen)
        assert picture(xen) == before
        xen.node.model("xl", plain)
        restore(xen)
        assert xen.of_vm(7) is not None

    @pytest.mark.parametrize("after", ["it ran", "it ran and vanished"])
    def test_memory_of_a_guest_that_may_have_run_is_never_used_again(
        self, xen: FakeXen, after: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It may have written to its disks: its old memory would corrupt them."""
        start(xen)
        save(xen)
        fail_unpause(xen, after)
        with pytest.raises(CxmError, match="xl unpause"), caplog.at_level(logging.WARNING):
            restore(xen)
        assert_off(xen)
        assert checkpoint(xen) == "filling"
        assert "VM 7 may have run: its saved memory is used up" in caplog.text
        with pytest.raises(RefusedError, match="the saved memory of VM 7 is 'filling'"):
            restore(xen)
        start(xen)
        assert checkpoint(xen) is None

    def test_used_memory_that_could_not_be_removed_is_not_saved_memory(self, xen: FakeXen) -> None:
        """It is complete and has been restored: after the guest has gone, no save takes it."""
        start(xen)
        save(xen)
        xen.node.model("lvremove", lambda _argv, _data: Outcome(stderr="busy", code=5))
        restore(xen)
        assert checkpoint(xen) == "filling"
        xen.guest(7, "vanished")
        with pytest.raises(RefusedError, match="its saved memory is incomplete or used up"):
            save(xen)
        assert checkpoint(xen) == "filling"

    def test_used_memory_goes_when_its_opener_lets_go(self, xen: FakeXen) -> None:
        """Some program looks at a volume for a moment whenever it appears."""
        start(xen)
        save(xen)
        plain = xen.node._handlers["xl"]
        name = "lv-one-7-checkpoint"

        def handler(argv: tuple[str, ...], data: bytes) -> Outcome:
            if argv[1] == "unpause":
                xen.node.state.opened = xen.node.state.opened | {name}
            return plain(argv, data)

        xen.node.model("xl", handler)
        machine = xen.machine()

        def sleep(seconds: float) -> None:
            machine.sleep(seconds)
            xen.node.state.opened = xen.node.state.opened - {name}

        directory = xen.node.path("datastores", "0", "7")
        ask(xen.machine(sleep=sleep), "domain-restore", vm=7, dir=directory, guest=None)
        assert checkpoint(xen) is None

    def test_restore_on_another_node(self, xen: FakeXen) -> None:
        """Where no configuration is stored, the request's guest gives it, as the type it was."""
        start(xen)
        save(xen)
        os.unlink(xen.node.path("cfg", NAME))
        with pytest.raises(RefusedError, match="no stored configuration"):
            restore(xen)
        restore(xen, guest(guest_type="pv"))
        text = Path(xen.node.path("cfg", NAME)).read_text(encoding="utf-8")
        assert "type = 'pvh'\n" in text
        assert xen.of_vm(7) is not None
