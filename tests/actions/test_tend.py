# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""What a standalone host does about guests that end by themselves."""

import io
import os
from contextlib import suppress
from pathlib import Path

import pytest

from cxm import interrupt
from cxm.errors import CxmError
from cxm.names import VmId, domain_uuid
from cxm.node import guests, helper
from cxm.node.guests import Guest, Life
from cxm.node.tend import DELAYS_S, RECOVERED_S, STOP_FORGOTTEN_S, Deed, View, decide
from cxm.xen.xl import Domain
from tests.fakes.call import ask
from tests.fakes.domains import NAME, active, assert_off, life, link, new_xen, picture, save, start
from tests.fakes.machine import CLOUD, Fault, How, KilledError
from tests.fakes.xen import FakeXen


@pytest.fixture
def xen(tmp_path: Path) -> FakeXen:
    """A standalone host on which VM 7 runs."""
    made = new_xen(tmp_path / "node1")
    start(made)
    made.node.ran.clear()
    return made


def tend(xen: FakeXen) -> None:
    """One turn of the service."""
    code = helper.serve("tend", io.BytesIO(), io.BytesIO(), xen.machine())
    assert code == 0


def record(xen: FakeXen) -> Guest:
    """What the host remembers of VM 7."""
    found = guests.read(xen.machine(), CLOUD, VmId(7))
    assert found is not None
    return found


class TestQuiet:
    """Nothing is done where nothing is odd."""

    def test_one_command_when_all_is_well(self, xen: FakeXen) -> None:
        """A turn costs one look at Xen."""
        before = picture(xen)
        tend(xen)
        assert xen.node.ran == [("xl", "list", "-v")]
        assert picture(xen) == before

    def test_a_stop_that_is_followed_is_not_forgotten(self, xen: FakeXen) -> None:
        """A deaf guest is destroyed at the end of a long SHUTDOWN_TIMEOUT, not taken for wanted."""
        xen.listens = False
        turns: list[float] = []

        def sleep(seconds: float) -> None:
            xen.sleep(seconds)
            if not turns or xen.clock - turns[-1] >= STOP_FORGOTTEN_S / 4:
                turns.append(xen.clock)
                tend(xen)

        patience_s = int(2 * STOP_FORGOTTEN_S)
        machine = xen.machine(sleep=sleep)
        answer = ask(machine, "domain-stop", vm=7, how="shutdown", timeout_s=patience_s)
        assert answer.result == {"was": "running"}
        assert len(turns) > 4
        assert record(xen).life is Life.STOPPED
        assert xen.of_vm(7) is None

    def test_a_reboot_is_not_a_fall(self, xen: FakeXen) -> None:
        """A guest is between two lives for some seconds: nobody starts it twice."""
        xen.guest(7, "rebooting")
        seen = set()
        for _turn in range(20):
            tend(xen)
            xen.sleep(0.5)
            domain = xen.of_vm(7)
            seen.add("absent" if domain is None else domain.life)
        assert seen == {"rebooting", "gap", "building", "running"}
        assert record(xen).falls == ()
        domain = xen.of_vm(7)
        assert domain is not None
        assert domain.domid == 2

    def test_an_action_at_work_is_left_alone(self, xen: FakeXen) -> None:
        """A VM whose lock is held belongs to the one who holds it."""
        xen.guest(7, "crashed")
        with xen.machine().vm_lock(CLOUD, VmId(7)):
            tend(xen)
        domain = xen.of_vm(7)
        assert domain is not None
        assert domain.life == "crashed"

    def test_a_stopped_vm_stays_off(self, xen: FakeXen) -> None:
        """What OpenNebula stopped is not started."""
        ask(xen.machine(), "domain-stop", vm=7, how="destroy", timeout_s=1)
        xen.sleep(3600)
        tend(xen)
        assert_off(xen)

    def test_a_saved_vm_stays_saved(self, xen: FakeXen) -> None:
        """A suspended VM is not started, and its memory stays."""
        save(xen)
        before = picture(xen)
        tend(xen)
        assert picture(xen) == before

    def test_a_paused_guest_is_left_alone(self, xen: FakeXen) -> None:
        """Somebody paused it, and will know why."""
        xen.guest(7, "paused")
        tend(xen)
        domain = xen.of_vm(7)
        assert domain is not None
        assert domain.life == "paused"

    def test_strangers_are_left_alone(self, xen: FakeXen) -> None:
        """Domains that no cloud of this node made are none of its business."""
        domain = xen.of_vm(7)
        assert domain is not None
        stranger = "11111111-2222-4333-8444-555555555555"
        xen._put(type(domain)(99, "mine", stranger, 4, "/x", (), life="crashed"))
        tend(xen)
        assert any(each.uuid == stranger for each in xen.state.domains)


class TestOff:
    """A guest that switched itself off."""

    def test_a_disk_that_stays_in_use_is_released_later(self, xen: FakeXen) -> None:
        """Somebody looks into the guest's disk: when that has ended, the next turn releases it."""
        xen.guest(7, "off")
        xen.node.state.mounts["/mnt"] = "lv-one-7-0"
        tend(xen)
        assert not record(xen).released
        assert active(xen) == ["lv-one-7-0"]
        xen.node.state.mounts.clear()
        tend(xen)
        assert record(xen).released
        assert_off(xen)

    def test_it_is_recorded_and_released(self, xen: FakeXen) -> None:
        """Its remains go, its disks are released, and it does not start at boot."""
        xen.guest(7, "off")
        tend(xen)
        assert_off(xen)
        assert life(xen) is Life.OFF
        assert record(xen).reason == "its guest switched itself off"

    def test_it_stays_off(self, xen: FakeXen) -> None:
        """Neither the next turn nor a restart of the host starts it."""
        xen.guest(7, "off")
        tend(xen)
        xen.boot_host()
        xen.sleep(3600)
        tend(xen)
        assert_off(xen)

    def test_it_can_be_started_again(self, xen: FakeXen) -> None:
        """OpenNebula resumes it as any VM that is off."""
        xen.guest(7, "off")
        tend(xen)
        start(xen)
        assert life(xen) is Life.RUNNING


class TestFallen:
    """A guest that crashed or vanished."""

    @pytest.mark.parametrize(
        ("does", "why"),
        [("crashed", "its guest crashed"), ("vanished", "its domain vanished")],
    )
    def test_it_is_started_again_at_once(self, xen: FakeXen, does: str, why: str) -> None:
        """The first fall costs no time."""
        xen.guest(7, does)
        tend(xen)
        domain = xen.of_vm(7)
        assert domain is not None
        assert (domain.domid, domain.life) == (2, "running")
        assert active(xen) == ["lv-one-7-0"]
        assert life(xen) is Life.RUNNING
        assert record(xen).reason == f"{why}; it was started again"
        assert os.path.islink(link(xen))

    def test_a_reboot_without_a_keeper_is_helped(self, xen: FakeXen) -> None:
        """A guest that rebooted when its keeper had been killed is started again."""
        xen.lose_keeper(7)
        xen.guest(7, "rebooting")
        tend(xen)
        domain = xen.of_vm(7)
        assert domain is not None
        assert domain.life == "running"

    def test_falls_in_a_row_wait_longer_and_longer(self, xen: FakeXen) -> None:
        """A guest that crashes at once is not started in a tight loop, and never given up."""
        waited = []
        for _fall in range(9):
            xen.guest(7, "crashed")
            begun = xen.clock
            tend(xen)
            while xen.of_vm(7) is None:
                assert life(xen) is Life.CRASHED
                assert active(xen) == []
                xen.sleep(1)
                tend(xen)
            waited.append(xen.clock - begun)
        expected = [*DELAYS_S, DELAYS_S[-1], DELAYS_S[-1]]
        assert all(0 <= took - delay <= 1 for took, delay in zip(waited, expected, strict=True))

    def test_a_guest_that_ran_well_is_forgiven(self, xen: FakeXen) -> None:
        """After ten minutes of running the next fall is the first again."""
        for _fall in range(3):
            xen.guest(7, "crashed")
            tend(xen)
            xen.sleep(25)
            tend(xen)
        assert len(record(xen).falls) == 3
        xen.sleep(RECOVERED_S + 1)
        tend(xen)
        assert record(xen).falls == ()
        xen.guest(7, "crashed")
        tend(xen)
        assert xen.of_vm(7) is not None

    def test_a_start_that_fails_is_tried_again(self, xen: FakeXen) -> None:
        """Without memory on the host the guest waits for its next turn."""
        xen.guest(7, "vanished")
        xen.free_mib = 1
        tend(xen)
        assert xen.of_vm(7) is None
        assert life(xen) is Life.CRASHED
        xen.free_mib = 64
        xen.sleep(DELAYS_S[-1])
        tend(xen)
        assert xen.of_vm(7) is not None
        assert life(xen) is Life.RUNNING

    def test_a_stop_ends_the_waiting(self, xen: FakeXen) -> None:
        """A guest that waits for its next start is not started once OpenNebula stopped it."""
        for _fall in range(2):
            xen.guest(7, "crashed")
            tend(xen)
        assert life(xen) is Life.CRASHED
        ask(xen.machine(), "domain-stop", vm=7, how="destroy", timeout_s=1)
        xen.sleep(3600)
        tend(xen)
        assert_off(xen)
        assert life(xen) is Life.STOPPED

    def test_old_memory_is_thrown_away(self, xen: FakeXen) -> None:
        """Memory that xendomains could not restore is worthless after a start."""
        path = Path(xen.node.path("xendomains", NAME))
        path.write_bytes(b"memory")
        xen.guest(7, "crashed")
        tend(xen)
        assert not path.exists()


class TestHost:
    """The host's own life."""

    def test_guests_run_again_after_a_restart(self, xen: FakeXen) -> None:
        """What should run is started when the host is up again, without counting as a fall."""
        xen.boot_host()
        tend(xen)
        assert xen.of_vm(7) is not None
        assert record(xen).falls == ()
        assert record(xen).reason == "the host was restarted; it was started again"

    def test_what_xendomains_started_is_taken_over(self, xen: FakeXen) -> None:
        """A guest that xendomains started at boot is recorded as of this boot."""
        domain = xen.of_vm(7)
        assert domain is not None
        xen.boot_host()
        xen._put(domain)
        tend(xen)
        assert record(xen).boot_id == f"boot-{xen.state.boots}"

    def test_what_xendomains_saved_is_left_to_it(self, xen: FakeXen) -> None:
        """While the host goes down, xendomains saves the guests: they have not vanished."""
        xen.guest(7, "vanished")
        path = Path(xen.node.path("xendomains", NAME))
        path.write_bytes(b"memory")
        tend(xen)
        assert xen.of_vm(7) is None
        assert path.exists()

    def test_a_running_vm_without_a_record_is_recorded(self, xen: FakeXen) -> None:
        """A start that was killed at its very end is finished."""
        guests.forget(xen.machine(), CLOUD, VmId(7))
        tend(xen)
        assert life(xen) is Life.RUNNING

    def test_a_damaged_record_is_told_and_made_again(
        self, xen: FakeXen, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A damaged record hinders no other guest."""
        path = Path(xen.node.path("state", "guests", f"{CLOUD}-7.json"))
        path.write_text("{", encoding="utf-8")
        tend(xen)
        assert "cannot be read" in caplog.text


def _domain(state: str, reason: int | None = None) -> Domain:
    uuid = domain_uuid(CLOUD, VmId(7))
    return Domain(NAME, 1, 4, 1, state, 5.0, uuid, reason)


def _guest(life_: Life, **changes: object) -> Guest:
    made = Guest(CLOUD, VmId(7), NAME, life_, "why", since=1000.0, boot_id="b")
    return Guest(**{name: getattr(made, name) for name in Guest.__slots__} | changes)


RUNNING, OFF, STOPPED = _guest(Life.RUNNING), _guest(Life.OFF), _guest(Life.STOPPED)
CRASHED = _guest(Life.CRASHED, next_start=2000.0)


@pytest.mark.parametrize(
    ("domain", "known", "view", "deed"),
    [
        (_domain("-b----"), RUNNING, View(1100, "b"), Deed.NOTHING),
        (_domain("-b----"), OFF, View(1100, "b"), Deed.ADOPT),
        (_domain("-b----"), STOPPED, View(1100, "b"), Deed.NOTHING),
        (_domain("-b----"), STOPPED, View(1001 + STOP_FORGOTTEN_S, "b"), Deed.ADOPT),
        (_domain("-----d"), RUNNING, View(1100, "b"), Deed.NOTHING),
        (_domain("--ps-s", 2), RUNNING, View(1100, "b"), Deed.NOTHING),
        (_domain("---ss-", 2), STOPPED, View(1100, "b"), Deed.NOTHING),
        (_domain("---sr-", 1), RUNNING, View(1100, "b", kept=True), Deed.NOTHING),
        (_domain("---sr-", 1), RUNNING, View(1100, "b"), Deed.FALLEN),
        (_domain("---s--", 0), STOPPED, View(1100, "b"), Deed.CLEAN),
        (_domain("---sc-", 3), STOPPED, View(1100, "b"), Deed.CLEAN),
        (_domain("---s--", 0), None, View(1100, "b"), Deed.SWITCH_OFF),
        (_domain("---sw-", 4), RUNNING, View(1100, "b"), Deed.FALLEN),
        (None, None, View(1100, "b"), Deed.NOTHING),
        (None, OFF, View(1100, "b"), Deed.CLEAN),
        (None, _guest(Life.OFF, released=True), View(1100, "b"), Deed.NOTHING),
        (None, RUNNING, View(1100, "b", kept=True), Deed.NOTHING),
        (None, RUNNING, View(1100, "b"), Deed.FALLEN),
        (None, RUNNING, View(1100, "b", saved=True), Deed.NOTHING),
        (None, RUNNING, View(1100, "c"), Deed.HOST_RESTARTED),
        (None, CRASHED, View(1999, "b"), Deed.NOTHING),
        (None, CRASHED, View(2000, "b"), Deed.START),
    ],
)
def test_decision(domain: Domain | None, known: Guest | None, view: View, deed: Deed) -> None:
    """The whole table of what is done about what."""
    assert decide([] if domain is None else [domain], known, view) is deed


@pytest.mark.parametrize("how", list(How), ids=[how.value for how in How])
@pytest.mark.parametrize("does", ["off", "crashed", "vanished"])
@pytest.mark.usefixtures("own_signals")
def test_cut_at_any_step(tmp_path: Path, does: str, how: How) -> None:
    """A turn that fails or is killed at any of its commands is made good by later turns."""
    whole = _fallen(tmp_path / "whole", does)
    tend(whole)
    steps = len(whole.node.ran)
    for step in range(steps):
        xen = _fallen(tmp_path / str(step), does)
        xen.node.fault = Fault(step, how)
        interrupt.install()
        with suppress(KilledError, CxmError, AssertionError):
            tend(xen)
        xen.node.revive()
        for _turn in range(3):
            xen.sleep(30)
            tend(xen)
        domain = xen.of_vm(7)
        assert (domain is None) == (does == "off"), step
        assert life(xen) is (Life.OFF if does == "off" else Life.RUNNING), step
        if does == "off":
            assert_off(xen)


def _fallen(path: Path, does: str) -> FakeXen:
    xen = new_xen(path)
    start(xen)
    xen.guest(7, does)
    xen.node.ran.clear()
    return xen
