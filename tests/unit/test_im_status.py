# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""When the state of a VM is told, and that nobody is told what nobody knows."""

from cxm.one.im import status
from cxm.one.im.observation import Guest
from cxm.one.im.status import Said
from tests.fakes import template
from tests.fakes.observations import guest

SYNC_S = 180.0


class Oned:
    """Takes reports, as far as they are delivered, and keeps what they said."""

    def __init__(self) -> None:
        self.said = Said()

    def tell(self, now: float, *guests: Guest, delivered: bool = True) -> dict[str, str] | None:
        """The states of a report by VM, with '*' for SYNC_STATE; None for no message."""
        report = status.report(self.said, guests, now=now, sync_every_s=SYNC_S)
        if delivered or not report.text:
            self.said = report.then
        if not report.text:
            return None
        read = template.parse(report.text)
        found = {vm["ID"]: vm["STATE"] for vm in template.vectors(read, "VM")}
        singles = template.singles(read)
        if singles:
            assert singles == {"SYNC_STATE": "yes", "MISSING_STATE": "UNKNOWN"}
            found["*"] = ""
        return found


def test_first_report_is_complete() -> None:
    """Also without any VM: what oned believes to run here and does not becomes UNKNOWN."""
    assert Oned().tell(0, guest(1), guest(2, "poweroff")) == {
        "1": "RUNNING",
        "2": "POWEROFF",
        "*": "",
    }
    assert Oned().tell(0) == {"*": ""}


def test_only_changes_in_between() -> None:
    """Silence while nothing happens, one line for what does."""
    oned = Oned()
    oned.tell(0, guest(1), guest(2))
    oned.tell(40, guest(1), guest(2))
    assert oned.tell(45, guest(1), guest(2)) is None
    assert oned.tell(50, guest(1), guest(2, "poweroff")) == {"2": "POWEROFF"}
    assert oned.tell(55, guest(1), guest(2, "poweroff")) is None


def test_a_change_is_said_once_more() -> None:
    """From 7.0 on oned ignores states for 30 s after its own change of the VM."""
    oned = Oned()
    oned.tell(0, guest(1))
    assert oned.tell(30, guest(1)) is None
    assert oned.tell(35, guest(1)) == {"1": "RUNNING"}
    assert oned.tell(80, guest(1)) is None


def test_all_are_said_again_each_period() -> None:
    """SYNC_STATE comes with every VM, and only then."""
    oned = Oned()
    oned.tell(0, guest(1), guest(2))
    oned.tell(50, guest(1), guest(2))
    assert oned.tell(179, guest(1), guest(2)) is None
    assert oned.tell(180, guest(1), guest(2)) == {"1": "RUNNING", "2": "RUNNING", "*": ""}
    assert oned.tell(185, guest(1), guest(2)) is None


def test_a_vm_that_is_gone_is_missing_at_once() -> None:
    """A complete report without it makes it UNKNOWN now, not at the end of the period."""
    oned = Oned()
    oned.tell(0, guest(1), guest(2))
    assert oned.tell(5, guest(1)) == {"1": "RUNNING", "*": ""}
    assert oned.tell(10, guest(1)) is None


def test_a_vanished_vm_is_not_named() -> None:
    """So that it becomes UNKNOWN, and RUNNING again when it is started again."""
    oned = Oned()
    oned.tell(0, guest(1))
    assert oned.tell(5, guest(1, "vanished")) == {"*": ""}
    assert oned.tell(10, guest(1)) == {"1": "RUNNING"}


def test_a_busy_vm_has_nothing_new() -> None:
    """While an action works on it, it is named when all are, and never with a state."""
    oned = Oned()
    oned.tell(0, guest(1))
    assert oned.tell(5, guest(1, "busy")) is None
    assert oned.tell(180, guest(1, "busy")) == {"1": "UNKNOWN", "*": ""}
    assert oned.tell(185, guest(1)) is None
    assert Oned().tell(0, guest(3, "busy")) == {"3": "UNKNOWN", "*": ""}


def test_a_vm_busy_at_first_is_said_when_it_runs() -> None:
    """The end of a deploy is a change."""
    oned = Oned()
    oned.tell(0, guest(3, "busy"))
    assert oned.tell(5, guest(3)) == {"3": "RUNNING"}


def test_what_was_not_delivered_is_said_again() -> None:
    """A dead frontend misses nothing."""
    oned = Oned()
    assert oned.tell(0, guest(1), delivered=False) == {"1": "RUNNING", "*": ""}
    assert oned.tell(5, guest(1), delivered=False) == {"1": "RUNNING", "*": ""}
    oned.tell(10, guest(1))
    assert oned.tell(20, guest(1, "failure"), delivered=False) == {"1": "FAILURE"}
    assert oned.tell(25, guest(1, "failure")) == {"1": "FAILURE"}
    assert oned.tell(30, guest(1, "paused")) == {"1": "SUSPENDED"}


def test_memory_survives_as_text() -> None:
    """A probe that is a process each time knows what the last one said."""
    oned = Oned()
    oned.tell(0, guest(1), guest(42, "poweroff"))
    assert status.load(status.dump(oned.said)) == oned.said


def test_damaged_memory_means_that_nothing_was_said() -> None:
    """The next report is complete."""
    for text in ("", "{}", "[]", '{"words": 3}', "\0"):
        assert status.load(text) == Said()
