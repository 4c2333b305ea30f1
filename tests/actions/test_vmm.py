# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""VMM actions as each age of OpenNebula calls them, down to the modelled node."""

import os
from pathlib import Path

import pytest

from cxm.config import GuestType
from cxm.errors import CxmError, RefusedError, UsageError
from cxm.node.guests import Life
from cxm.one.action import ACTIONS
from cxm.one.version import OneVersion
from tests.fakes.domains import active, assert_off, checkpoint, life, new_xen
from tests.fakes.vmm import Oned
from tests.fakes.xen import FakeXen

V36, V38, V414, V510 = OneVersion(3, 6), OneVersion(3, 8), OneVersion(4, 14), OneVersion(5, 10)
V610, V74 = OneVersion(6, 10), OneVersion(7, 4)
XEN_AGE = [V36, V38, V414]
XML_AGE = [V510, V610, V74]


@pytest.fixture
def xen(tmp_path: Path) -> FakeXen:
    """A standalone host with the disk of VM 7, named when it was made."""
    return new_xen(tmp_path / "node1")


def vm_xml(
    name: str = "web-1", user: str = "user", *, vm: int = 7, template: str = "", more: str = ""
) -> str:
    """The XML of a small VM."""
    escaped = name.replace("&", "&amp;").replace("<", "&lt;")
    owner = user.replace("&", "&amp;").replace("<", "&lt;")
    return (
        f"<VM><ID>{vm}</ID><UNAME>{owner}</UNAME><NAME>{escaped}</NAME><TEMPLATE><CPU>1</CPU>"
        "<MEMORY>4</MEMORY><DISK><DISK_ID>0</DISK_ID><TARGET>xvda</TARGET></DISK>"
        f"{template}</TEMPLATE>{more}</VM>"
    )


def xen_file(oned: Oned, *, vm: int = 7, more: str = "") -> str:
    """What oned's Xen driver writes for a small VM."""
    return (
        f"name = 'one-{vm}'\n#O CPU_CREDITS = 256\nmemory  = '4'\nbootloader = \"grub\"\ndisk = [\n"
        f"    'tap:aio:{oned.directory(vm)}/disk.0,xvda,w',\n]\nvif = [\n]\n{more}"
    )


def deploy(oned: Oned, text: str, *, vm: int = 7, number: int = 0) -> str:
    """The action deploy."""
    path = f"{oned.directory(vm)}/deployment.{number}"
    return oned.run("deploy", path, "solo1", vm=vm, stdin=text)


class TestDeploy:
    """Deploy."""

    @pytest.mark.parametrize("version", XML_AGE, ids=str)
    def test_xml(self, xen: FakeXen, version: OneVersion) -> None:
        """The VM is named after its owner and itself; the file is kept where oned wants it."""
        oned = Oned(xen, version)
        text = vm_xml()
        assert deploy(oned, text, number=3) == "user-web1.vm.home.net"
        kept = Path(oned.directory(), "deployment.3")
        assert kept.read_text(encoding="utf-8") == text
        assert kept.stat().st_mode & 0o777 == 0o600
        assert active(xen) == ["lv-one-7-0"]

    @pytest.mark.parametrize("version", XEN_AGE, ids=str)
    def test_xen(self, xen: FakeXen, version: OneVersion) -> None:
        """Without XML the name is the one that its disks got."""
        oned = Oned(xen, version)
        assert deploy(oned, xen_file(oned)) == "user-vm7.home.net"

    def test_xen_with_the_xml_beside_it(self, xen: FakeXen) -> None:
        """From 6.0 on vm.xml tells name and type, whatever the deployment file is."""
        oned = Oned(xen, V610)
        os.makedirs(oned.directory())
        wish = "<USER_TEMPLATE><XEN_TYPE>pv</XEN_TYPE></USER_TEMPLATE>"
        Path(oned.directory(), "vm.xml").write_text(vm_xml(more=wish), encoding="utf-8")
        assert deploy(oned, xen_file(oned, more="type = 'pvh'\n")) == "user-web1.vm.home.net"
        text = Path(xen.node.path("cfg", "user-web1.vm.home.net")).read_text(encoding="utf-8")
        assert "type = 'pv'\n" in text

    def test_default_type(self, xen: FakeXen) -> None:
        """DEFAULT_GUEST_TYPE holds where nothing else is said."""
        deploy(Oned(xen, V74, default_guest_type=GuestType.PV), vm_xml())
        text = Path(xen.node.path("cfg", "user-web1.vm.home.net")).read_text(encoding="utf-8")
        assert "type = 'pv'\n" in text

    def test_a_second_deploy_adopts(self, xen: FakeXen) -> None:
        """The running domain is named, nothing is started."""
        oned = Oned(xen, V74)
        deploy(oned, vm_xml())
        before = xen.of_vm(7)
        assert deploy(oned, vm_xml(), number=1) == "user-web1.vm.home.net"
        assert xen.of_vm(7) == before

    @pytest.mark.parametrize(
        ("name", "user", "expected"),
        [
            ("a/b & 'c' \"d\" $e; f", "user", "user-abcdef.vm.home.net"),
            ("web", "o'hara & sons/x", "oharasonsx-web.vm.home.net"),
            ("-web", "user", "user-web.vm.home.net"),
            ("Größe 3", "user", "user-Gre3.vm.home.net"),
        ],
    )
    def test_odd_names(self, xen: FakeXen, name: str, user: str, expected: str) -> None:
        """Whatever a VM or its owner is called, the domain's name is safe."""
        assert deploy(Oned(xen, V74), vm_xml(name, user)) == expected

    @pytest.mark.parametrize(
        ("name", "user", "message"),
        [
            ("", "user", "VM 7: its name '' has no letter or digit"),
            ("\u540d\u524d", "user", "VM 7: its name .* has no letter or digit"),
            ("web", "", "VM 7: its owner '' has no letter or digit"),
            ("web", "-x", "VM 7: '-x-web.vm.home.net' cannot name a domain"),
            ("w" * 128, "user", "cannot name a domain"),
        ],
    )
    def test_impossible_names(self, xen: FakeXen, name: str, user: str, message: str) -> None:
        """A name that leaves nothing is refused before anything is made."""
        oned = Oned(xen, V74)
        with pytest.raises(UsageError, match=message):
            deploy(oned, vm_xml(name, user))
        assert not os.path.exists(oned.directory())
        assert active(xen) == []

    def test_two_vms_of_one_name(self, xen: FakeXen) -> None:
        """``web-1`` and ``web1`` clash: the second is told, and what to do."""
        xen.add_disk(8)
        oned = Oned(xen, V74)
        deploy(oned, vm_xml("web-1"))
        with pytest.raises(RefusedError, match="taken already") as caught:
            deploy(oned, vm_xml("web1", vm=8), vm=8)
        assert "%I" in (caught.value.hint or "")
        assert active(xen) == ["lv-one-7-0"]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "VM 7: oned gave no deployment file"),
            ("<VM><ID>8</ID></VM>", "VM 7: the XML is of VM 8"),
            ("<VM>", "VM 7: the XML of a VM cannot be read"),
            ("memory = ", "VM 7: the deployment file, line 1"),
        ],
    )
    def test_what_is_no_deployment_file(self, xen: FakeXen, text: str, message: str) -> None:
        """One sentence that begins with the VM."""
        with pytest.raises(CxmError, match=message):
            deploy(Oned(xen, V74), text)

    def test_the_file_must_be_the_vms(self, xen: FakeXen) -> None:
        """A path of another VM is not written to."""
        oned = Oned(xen, V74)
        with pytest.raises(UsageError, match="is not in the directory of VM 7"):
            oned.run("deploy", f"{oned.directory(8)}/deployment.0", "solo1", stdin=vm_xml())
        assert not os.path.exists(oned.directory(8))

    def test_again_after_a_failure(self, xen: FakeXen) -> None:
        """A failed deploy leaves nothing that hinders the next."""
        oned = Oned(xen, V74)
        xen.free_mib = 1
        with pytest.raises(CxmError, match="Out of memory"):
            deploy(oned, vm_xml())
        assert_off(xen)
        xen.free_mib = 64
        assert deploy(oned, vm_xml()) == "user-web1.vm.home.net"


@pytest.mark.parametrize("version", [*XEN_AGE, *XML_AGE], ids=str)
class TestLife:
    """What happens to a VM in each version; before 5.0 no input is read."""

    def started(self, xen: FakeXen, version: OneVersion) -> tuple[Oned, str, str | None]:
        oned = Oned(xen, version)
        text = vm_xml() if version.gives_stdin else xen_file(oned)
        data = f"<VMM_DRIVER_ACTION_DATA>{vm_xml()}</VMM_DRIVER_ACTION_DATA>"
        return oned, deploy(oned, text), data if version.gives_stdin else None

    @pytest.mark.parametrize("action", ["shutdown", "cancel"])
    def test_poweroff_and_resume(self, xen: FakeXen, version: OneVersion, action: str) -> None:
        """After a stop the VM is off, and deployed anew."""
        oned, name, data = self.started(xen, version)
        assert oned.run(action, name, "solo1", stdin=data) == ""
        assert_off(xen)
        assert life(xen) is Life.STOPPED
        text = vm_xml() if version.gives_stdin else xen_file(oned)
        assert deploy(oned, text, number=1) == name

    @pytest.mark.parametrize("action", ["shutdown", "save", "reset"])
    def test_without_a_list_of_local_actions(
        self, xen: FakeXen, version: OneVersion, action: str
    ) -> None:
        """An oned.conf without ``-l`` has the host do it, with the same outcome."""
        oned, name, data = self.started(xen, version)
        oned = Oned(xen, version, is_local=False)
        path = (f"{oned.directory()}/checkpoint",) if action == "save" else ()
        assert oned.run(action, name, *path, "solo1", stdin=data) == ""
        domain = xen.of_vm(7)
        assert (domain is None) == (action != "reset")

    def test_cancel_without_a_name(self, xen: FakeXen, version: OneVersion) -> None:
        """A VM that never got a deployment id is cancelled all the same."""
        oned, _name, data = self.started(xen, version)
        oned.run("cancel", "", "solo1", stdin=data)
        assert_off(xen)

    def test_suspend_and_resume(self, xen: FakeXen, version: OneVersion) -> None:
        """The memory is saved and comes back."""
        oned, name, data = self.started(xen, version)
        before = xen.of_vm(7)
        path = f"{oned.directory()}/checkpoint"
        assert oned.run("save", name, path, "solo1", stdin=data) == ""
        assert_off(xen)
        assert checkpoint(xen) == "ready"
        words = (path, "solo1", name) if version >= (4, 4) else (path, "solo1")
        assert oned.run("restore", *words, stdin=data) == ""
        after = xen.of_vm(7)
        assert before is not None
        assert after is not None
        assert (after.name, after.memory) == (name, before.memory)

    def test_resume_on_another_host(self, xen: FakeXen, version: OneVersion) -> None:
        """Where the node knows nothing of the VM, what oned gives is enough."""
        oned, name, data = self.started(xen, version)
        path = f"{oned.directory()}/checkpoint"
        oned.run("save", name, path, "solo1", stdin=data)
        os.unlink(xen.node.path("cfg", name))
        words = (path, "solo1", name) if version >= (4, 4) else (path, "solo1")
        oned.run("restore", *words, stdin=data)
        after = xen.of_vm(7)
        assert after is not None
        assert after.name == name

    @pytest.mark.parametrize("action", ["reboot", "reset"])
    def test_reboot_and_reset(self, xen: FakeXen, version: OneVersion, action: str) -> None:
        """Another domain of the same VM runs afterwards."""
        oned, name, data = self.started(xen, version)
        oned.run(action, name, "solo1", stdin=data)
        for _turn in range(20):
            xen.sleep(1)
        domain = xen.of_vm(7)
        assert domain is not None
        assert (domain.domid, domain.life) == (2, "running")

    @pytest.mark.parametrize(
        "action", sorted(name for name, module in ACTIONS["vmm"].items() if module == "unsupported")
    )
    def test_the_unsupported_is_refused(
        self, xen: FakeXen, version: OneVersion, action: str
    ) -> None:
        """Never exit code 0: a sentence with the action, and what to do instead."""
        oned, name, _data = self.started(xen, version)
        with pytest.raises(RefusedError, match=f"{action} of VM 7.*nothing was done") as caught:
            oned.run(action, name, "x", "solo1")
        assert caught.value.hint
        assert xen.of_vm(7) is not None


class TestRestore:
    """The arguments of restore."""

    def test_a_renamed_vm_keeps_its_name(self, xen: FakeXen) -> None:
        """A VM that was renamed while suspended comes back under the name that oned knows."""
        oned = Oned(xen, V74)
        name = deploy(oned, vm_xml())
        path = f"{oned.directory()}/checkpoint"
        oned.run("save", name, path, "solo1", stdin=vm_xml())
        os.unlink(xen.node.path("cfg", name))
        oned.run("restore", path, "solo1", name, stdin=vm_xml("renamed"))
        domain = xen.of_vm(7)
        assert domain is not None
        assert domain.name == name

    def test_a_vm_that_cannot_be_described(self, xen: FakeXen) -> None:
        """Where the node has its configuration, what oned gives need not be understood."""
        oned = Oned(xen, V74)
        name = deploy(oned, vm_xml())
        path = f"{oned.directory()}/checkpoint"
        oned.run("save", name, path, "solo1", stdin=vm_xml())
        oned.run("restore", path, "solo1", name, stdin="<VM><ID>7</ID></VM>")
        assert xen.of_vm(7) is not None

    def test_nothing_to_restore(self, xen: FakeXen) -> None:
        """A VM that was never saved says so."""
        oned = Oned(xen, V74)
        with pytest.raises(RefusedError, match="VM 7 has no saved memory"):
            oned.run("restore", f"{oned.directory()}/checkpoint", "solo1", "x", stdin=vm_xml())


@pytest.mark.parametrize("action", sorted(ACTIONS["vmm"]))
def test_too_few_arguments(xen: FakeXen, action: str) -> None:
    """An action that was called by hand, without a VM, does nothing."""
    oned = Oned(xen, V74)
    with pytest.raises(UsageError):
        oned.run(action, vm=-1, stdin="")
