# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""The verbs that start and stop domains: what is there after each of them."""

import fcntl
import os
from pathlib import Path
from typing import Any

import pytest

from cxm.errors import CxmError, NotFoundError, RefusedError, UsageError
from cxm.names import DomainName, VmId
from cxm.node import configs, guests
from cxm.node.guests import Guest, Life
from cxm.xen.guest import Disk, Nic
from tests.fakes.call import Answer, ask
from tests.fakes.domains import (
    NAME,
    active,
    assert_off,
    checkpoint,
    guest,
    life,
    link,
    picture,
    save,
    start,
    stop,
)
from tests.fakes.filesteps import watched
from tests.fakes.machine import CLOUD, Fault, How, KilledError, Outcome
from tests.fakes.xen import FakeXen


class TestStart:
    """domain-start."""

    def test_a_cold_start(self, xen: FakeXen) -> None:
        """Disks are active, the configuration stored, the guest running and started at boot."""
        answer = start(xen)
        assert answer.result == {"name": NAME, "type": "pvh", "adopted": False}
        domain = xen.of_vm(7)
        assert domain is not None
        assert (domain.name, domain.life) == (NAME, "running")
        assert domain.volumes == ("lv-one-7-0",)
        assert active(xen) == ["lv-one-7-0"]
        assert os.readlink(link(xen)) == xen.node.path("cfg", NAME)
        assert os.stat(xen.node.path("cfg", NAME)).st_mode & 0o777 == 0o600
        assert life(xen) is Life.RUNNING
        assert answer.log == [
            f"VM 7 was started as {NAME}: PVH, since it brings no kernel; grub boots its disk"
        ]

    def test_a_running_domain_is_adopted(self, xen: FakeXen) -> None:
        """A second deploy finds the guest running and leaves it alone."""
        start(xen)
        before = xen.of_vm(7)
        answer = start(xen, name="another-name")
        assert answer.result["adopted"] is True
        assert answer.result["name"] == NAME
        assert xen.of_vm(7) == before

    def test_adopting_does_not_need_the_record(self, xen: FakeXen) -> None:
        """A domain whose start was killed before it was recorded is recorded by the next one."""
        start(xen)
        guests.forget(xen.machine(), CLOUD, VmId(7))
        os.unlink(link(xen))
        start(xen)
        assert life(xen) is Life.RUNNING
        assert os.path.islink(link(xen))

    @pytest.mark.parametrize("remains", ["off", "crashed", "half"])
    def test_remains_are_replaced(self, xen: FakeXen, remains: str) -> None:
        """What is left of an ended or half-made domain does not hinder a start."""
        start(xen)
        xen.guest(7, remains)
        assert start(xen).result["adopted"] is False
        domain = xen.of_vm(7)
        assert domain is not None
        assert domain.life == "running"

    def test_a_reboot_is_waited_for(self, xen: FakeXen) -> None:
        """A guest between two lives is adopted when it is back, not started twice."""
        start(xen)
        xen.guest(7, "rebooting")
        assert start(xen).result["adopted"] is True

    def test_name_of_the_disks_is_taken(self, xen: FakeXen) -> None:
        """A request without a name gets the one on its disks."""
        assert start(xen, name="").result["name"] == NAME

    def test_a_guest_without_disks_and_name(self, xen: FakeXen) -> None:
        """Where nobody can tell a name, OpenNebula's own is taken."""
        assert start(xen, vm=9, name="", disks=()).result["name"] == "one-9"

    def test_a_renamed_vm_keeps_one_configuration(self, xen: FakeXen) -> None:
        """Deployed under a new name, the VM has no configuration or link of the old one."""
        start(xen)
        stop(xen)
        start(xen, name="new-name")
        assert os.listdir(xen.node.path("cfg")) == ["new-name"]
        assert os.listdir(xen.node.path("auto")) == ["new-name"]

    def test_a_checkpoint_is_thrown_away(self, xen: FakeXen) -> None:
        """A cold start makes old memory worthless, so it goes first."""
        start(xen)
        save(xen)
        assert checkpoint(xen) == "ready"
        start(xen)
        assert checkpoint(xen) is None

    def test_what_xendomains_saved_is_thrown_away(self, xen: FakeXen) -> None:
        """So does memory that xendomains saved when the host went down."""
        path = xen.node.path("xendomains", NAME)
        Path(path).write_bytes(b"old memory")
        start(xen)
        assert not os.path.exists(path)

    def test_exact_identity(self, xen: FakeXen) -> None:
        """VM 1 beside VM 10 and 11: each has its own domain, disk and configuration."""
        for vm in (1, 10, 11):
            xen.add_disk(vm, 1)
            xen.add_disk(vm, 10)
            disks = (Disk("1", "xvda"), Disk("10", "xvdb"))
            start(xen, vm=vm, name=f"vm{vm}", disks=disks, nics=())
        stop(xen, vm=1, how="destroy")
        assert xen.of_vm(1) is None
        for vm in (10, 11):
            domain = xen.of_vm(vm)
            assert domain is not None
            assert domain.volumes == (f"lv-one-{vm}-1", f"lv-one-{vm}-10")
        assert active(xen) == ["lv-one-10-1", "lv-one-10-10", "lv-one-11-1", "lv-one-11-10"]

    def test_when_it_is_its_turn(self, xen: FakeXen) -> None:
        """Not more at a time than dom0 has processors."""
        free = []

        def look() -> None:
            fd = os.open(xen.node.path("run", "launch", "0"), os.O_RDONLY)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                free.append(True)
            except BlockingIOError:
                free.append(False)
            os.close(fd)

        def create(argv: tuple[str, ...], data: bytes) -> Outcome:
            look()
            return xen._xl(argv[argv.index("--") + 1 :], data)

        xen.node.model("systemd-run", create)
        start(xen)
        look()
        assert free == [False, True]


class TestRefusedStart:
    """Starts that fail leave nothing behind, and the next one works."""

    def refused(self, xen: FakeXen, kind: type[CxmError], text: str, **changes: Any) -> None:
        before = picture(xen)
        with pytest.raises(kind, match=text):
            start(xen, **changes)
        assert picture(xen) == before

    def test_a_name_of_another_vm(self, xen: FakeXen) -> None:
        """Two VMs of one name: the second is told who has it."""
        xen.add_disk(8)
        start(xen, vm=8, name="twin", disks=(Disk("0", "xvda"),))
        self.refused(xen, RefusedError, "'twin' of VM 7 is taken already, by VM 8", name="twin")

    def test_a_name_of_a_stored_configuration(self, xen: FakeXen) -> None:
        """A stopped VM keeps its name."""
        xen.add_disk(8)
        start(xen, vm=8, name="twin", disks=(Disk("0", "xvda"),))
        stop(xen, vm=8)
        self.refused(xen, RefusedError, "whose configuration is .*/cfg/twin", name="twin")

    def test_a_name_of_somebody_elses_configuration(self, xen: FakeXen) -> None:
        """A configuration that cxm did not write is never overwritten."""
        Path(xen.node.path("cfg", "mine")).write_text("name = 'mine'\n", encoding="utf-8")
        self.refused(xen, RefusedError, "by a domain that cxm did not make", name="mine")

    def test_a_name_on_volumes_of_another_vm(self, xen: FakeXen) -> None:
        """A VM that is deployed elsewhere but has its disks here keeps its name, too."""
        xen.add_disk(8, name="twin")
        self.refused(xen, RefusedError, "'twin' of VM 7 is taken already", name="twin")

    def test_a_disk_is_missing(self, xen: FakeXen) -> None:
        """A disk that was never made is named."""
        disks = (Disk("0", "xvda"), Disk("1", "xvdb"))
        self.refused(xen, NotFoundError, "VM 7 has no volume lv-one-7-1", disks=disks)

    def test_a_disk_is_incomplete(self, xen: FakeXen) -> None:
        """A disk that is still being filled is not given to a guest."""
        argv = [
            "--deltag",
            "cxm.state=ready",
            "--addtag",
            "cxm.state=filling",
            "LVM_XEN/lv-one-7-0",
        ]
        xen.node.run(["lvchange", *argv])
        self.refused(xen, RefusedError, "lv-one-7-0 of VM 7 is not ready: it is 'filling'")

    def test_a_disk_is_in_use(self, xen: FakeXen) -> None:
        """A disk that something else holds is not given to a guest."""
        xen.node.state.opened = {"lv-one-7-0"}
        self.refused(xen, RefusedError, "lv-one-7-0 is in use, though VM 7 has no domain")

    def test_a_bridge_is_missing(self, xen: FakeXen) -> None:
        """A bridge that the node lacks is named before anything is made."""
        nics = (Nic(bridge="br99"),)
        self.refused(xen, RefusedError, "the bridge br99 of VM 7 does not exist", nics=nics)

    def test_a_kernel_outside(self, xen: FakeXen) -> None:
        """A file of the host that is no kernel for guests is not handed out."""
        self.refused(xen, RefusedError, "VM 7: .*/etc/shadow is not in", kernel="/etc/shadow")

    def test_too_little_memory(self, xen: FakeXen) -> None:
        """The refusal of xl itself names the cause, not its consequences."""
        xen.free_mib = 1
        self.refused(xen, CxmError, "xl create failed: .*Out of memory")

    def test_a_spec_that_is_none(self, xen: FakeXen) -> None:
        """The helper checks the guest again, whatever the caller has checked."""
        spec = guest() | {"options": {"device_model_override": "/tmp/evil"}}
        directory = xen.node.path("datastores", "0", "7")
        with pytest.raises(UsageError, match=r"device_model_override .*cannot be given"):
            ask(xen.machine(), "domain-start", vm=7, dir=directory, guest=spec)

    def test_the_next_try_works(self, xen: FakeXen) -> None:
        """After a failed start nothing hinders the next one."""
        xen.free_mib = 1
        with pytest.raises(CxmError):
            start(xen)
        xen.free_mib = 64
        assert start(xen).result["adopted"] is False

    def test_somebody_else_was_faster(self, xen: FakeXen) -> None:
        """When xendomains starts the guest at the same moment, that one is taken and not killed."""
        start(xen)
        running = xen.of_vm(7)
        assert running is not None
        hidden = [True, True]

        def xl(argv: tuple[str, ...], data: bytes) -> Any:
            if argv[:2] == ("xl", "list") and hidden:
                hidden.pop()
                empty = xen._list(("list", "-v"))
                return type(empty)("".join(empty.stdout.splitlines(keepends=True)[:2]))
            return xen._xl(argv, data)

        xen.node.state.opened = set()
        xen.lose_keeper(7)
        xen.node.model("xl", xl)
        assert start(xen).result["name"] == NAME
        assert xen.of_vm(7) is not None


class TestStop:
    """domain-stop."""

    def test_a_guest_shuts_down(self, xen: FakeXen) -> None:
        """The verb returns when the domain is gone and its disks are released."""
        start(xen)
        assert stop(xen).result == {"was": "off"}
        assert_off(xen)
        assert life(xen) is Life.STOPPED
        assert os.path.exists(xen.node.path("cfg", NAME))

    def test_a_deaf_guest_is_destroyed(self, xen: FakeXen) -> None:
        """A guest that does not listen has its time, and no more."""
        start(xen)
        xen.listens = False
        before = xen.clock
        answer = stop(xen, timeout_s=45)
        assert 45 <= xen.clock - before < 60
        assert answer.log == ["VM 7 did not shut down in time and is destroyed", "VM 7 is off"]
        assert_off(xen)

    def test_a_guest_that_was_booting_is_asked_again(self, xen: FakeXen) -> None:
        """The first request was lost; the second is heard."""
        start(xen)
        xen.listens = False
        machine = xen.machine(sleep=lambda seconds: _wake(xen, seconds))
        answer = ask(machine, "domain-stop", vm=7, how="shutdown", timeout_s=300)
        assert answer.result == {"was": "off"}

    @pytest.mark.parametrize("how", ["shutdown", "destroy"])
    def test_nothing_to_stop_is_success(self, xen: FakeXen, how: str) -> None:
        """Stopping a VM that has no domain succeeds, and releases its disks."""
        xen.node.run(["lvchange", "-a", "y", "LVM_XEN/lv-one-7-0"])
        assert stop(xen, how).result == {"was": "absent"}
        assert_off(xen)
        assert life(xen) is None

    @pytest.mark.parametrize("how", ["shutdown", "destroy"])
    @pytest.mark.parametrize("does", ["off", "crashed", "rebooting", "paused", "half"])
    def test_any_state_ends(self, xen: FakeXen, how: str, does: str) -> None:
        """Whatever the domain was doing, it is gone afterwards and does not come back."""
        start(xen)
        xen.guest(7, does)
        stop(xen, how)
        xen.sleep(60)
        assert_off(xen)

    def test_a_keeper_that_hangs_is_ended(self, xen: FakeXen) -> None:
        """A keeper that waits for ever to make a domain is ended."""
        start(xen)
        xen.guest(7, "rebooting")
        domain = xen.of_vm(7)
        assert domain is not None
        xen._drop(domain)
        xen._put(type(domain)(9, NAME, domain.uuid, 4, domain.config, (), "gap", keeper=77))
        stop(xen, "destroy")
        assert_off(xen)

    def test_poweroff_and_resume(self, xen: FakeXen) -> None:
        """A stopped VM starts again, with the configuration of the new request."""
        start(xen)
        stop(xen)
        start(xen, vcpus=3)
        text = Path(xen.node.path("cfg", NAME)).read_text(encoding="utf-8")
        assert "vcpus = 3\n" in text
        assert life(xen) is Life.RUNNING

    def test_destroy_overtakes_a_shutdown(self, xen: FakeXen) -> None:
        """While a shutdown waits for its guest, an order to destroy it is not held up."""
        start(xen)
        xen.listens = False
        destroyed: list[str] = []

        def sleep(seconds: float) -> None:
            xen.sleep(seconds)
            if xen.clock > 20 and not destroyed:
                destroyed.append(stop(xen, "destroy").result["was"])

        machine = xen.machine(sleep=sleep)
        answer = ask(machine, "domain-stop", vm=7, how="shutdown", timeout_s=300)
        assert destroyed == ["running"]
        assert answer.result == {"was": "absent"}
        assert xen.clock < 60

    def test_a_start_in_the_meantime_is_told(self, xen: FakeXen) -> None:
        """A VM that was started while a shutdown waited is not stopped by it."""
        start(xen)
        xen.listens = False
        started: list[Answer] = []

        def sleep(seconds: float) -> None:
            xen.sleep(seconds)
            if not started:
                started.append(start(xen))

        with pytest.raises(RefusedError, match="started again while it shut down"):
            ask(xen.machine(sleep=sleep), "domain-stop", vm=7, how="shutdown", timeout_s=30)
        assert xen.of_vm(7) is not None


class TestRebootAndReset:
    """domain-reboot and domain-reset."""

    def test_reboot_asks_the_guest(self, xen: FakeXen) -> None:
        """The verb ends when the guest has taken the request; the same VM comes back."""
        start(xen)
        assert ask(xen.machine(), "domain-reboot", vm=7).result == {"name": NAME}
        for _turn in range(20):
            xen.sleep(1)
        domain = xen.of_vm(7)
        assert domain is not None
        assert (domain.domid, domain.life) == (2, "running")

    def test_reboot_of_a_deaf_guest_says_what_to_do(self, xen: FakeXen) -> None:
        """A guest that does not listen needs a reset."""
        start(xen)
        xen.listens = False
        with pytest.raises(RefusedError, match="does not take the request") as caught:
            ask(xen.machine(), "domain-reboot", vm=7)
        assert caught.value.hint == "a reset needs no help from the guest"

    def test_reboot_of_nothing_is_refused(self, xen: FakeXen) -> None:
        """A VM that does not run cannot reboot."""
        with pytest.raises(RefusedError, match="VM 7 does not run here"):
            ask(xen.machine(), "domain-reboot", vm=7)

    def test_reset_starts_anew(self, xen: FakeXen) -> None:
        """Another domain runs with the same configuration."""
        start(xen)
        before = xen.of_vm(7)
        assert ask(xen.machine(), "domain-reset", vm=7).result == {"name": NAME}
        after = xen.of_vm(7)
        assert before is not None
        assert after is not None
        assert after.domid != before.domid
        assert life(xen) is Life.RUNNING

    def test_reset_needs_a_configuration(self, xen: FakeXen) -> None:
        """A running VM without a stored configuration is not destroyed."""
        start(xen)
        os.unlink(xen.node.path("cfg", NAME))
        with pytest.raises(RefusedError, match="has no stored configuration"):
            ask(xen.machine(), "domain-reset", vm=7)
        assert xen.of_vm(7) is not None


def _wake(xen: FakeXen, seconds: float) -> None:
    xen.sleep(seconds)
    xen.listens = xen.clock > 10


class TestForgetting:
    """What vm-remove leaves."""

    def test_nothing_is_left(self, xen: FakeXen) -> None:
        """Configuration, link and record go with the VM."""
        start(xen)
        stop(xen)
        directory = xen.node.path("datastores", "0", "7")
        answer = ask(xen.machine(), "vm-remove", vm=7, dir=directory)
        assert xen.node.path("cfg", NAME) in answer.result["removed"]
        assert os.listdir(xen.node.path("cfg")) == []
        assert life(xen) is None
        assert xen.node.state.lvs == {}

    def test_what_was_being_written_goes_too(self, xen: FakeXen) -> None:
        """A start that is killed in the middle of a file, and never run again, leaves nothing."""
        machine, vm = xen.machine(), VmId(7)
        os.mkdir(xen.node.path("state", "guests"))
        record = Guest(CLOUD, vm, NAME, Life.RUNNING, "started", 0.0)
        for write in (
            lambda: configs.write(machine, CLOUD, vm, DomainName(NAME), "name = 'x'"),
            lambda: guests.write(machine, record),
        ):
            xen.node.revive()
            xen.node.fault = Fault(0, How.KILL)
            with pytest.raises(KilledError), watched(xen.node):
                write()
        xen.node.revive()
        assert len(os.listdir(xen.node.path("cfg"))) == 1
        assert len(os.listdir(xen.node.path("state", "guests"))) == 1
        directory = xen.node.path("datastores", "0", "7")
        assert ask(machine, "vm-remove", vm=7, dir=directory).result["removed"] == ["lv-one-7-0"]
        assert os.listdir(xen.node.path("cfg")) == []
        assert os.listdir(xen.node.path("state", "guests")) == []

    def test_a_kernel_is_kept_while_it_is_used(self, xen: FakeXen) -> None:
        """A copied kernel goes when the last VM that boots it has gone, and is old."""
        directory = xen.node.path("datastores", "0", "7")
        os.makedirs(directory)
        Path(directory, "kernel").write_bytes(b"a kernel")
        start(xen, kernel=f"{directory}/kernel", guest_type="pvh")
        store = xen.node.path("state", "kernels")
        copies = [name for name in os.listdir(store) if name != "facts.json"]
        assert len(copies) == 1
        os.utime(os.path.join(store, copies[0]), (1, 1))
        xen.add_disk(8)
        start(xen, vm=8, name="other", disks=(Disk("0", "xvda"),))
        stop(xen, vm=8)
        ask(xen.machine(), "vm-remove", vm=8, dir=xen.node.path("datastores", "0", "8"))
        assert os.path.exists(os.path.join(store, copies[0]))
        stop(xen)
        ask(xen.machine(), "vm-remove", vm=7, dir=directory)
        assert not os.path.exists(os.path.join(store, copies[0]))
