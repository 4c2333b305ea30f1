# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Which kernels a guest may boot, and what the node keeps of them."""

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from cxm.errors import RefusedError, UsageError
from cxm.node import kernels
from cxm.xen.guest import Bootloader
from cxm.xen.kernel import Kernel
from tests.fakes.call import ask
from tests.fakes.domains import NAME, guest, new_xen, start
from tests.fakes.xen import FakeXen
from tests.unit.test_kernel import PV, PVH, elf


@pytest.fixture
def xen(tmp_path: Path) -> FakeXen:
    """A standalone host, VM 7's disk, and a secret outside of the kernels' directory."""
    made = new_xen(tmp_path / "node1")
    os.makedirs(directory(made))
    Path(made.node.path("secret")).write_bytes(b"secret")
    return made


def directory(xen: FakeXen) -> str:
    """The directory of VM 7."""
    return xen.node.path("datastores", "0", "7")


def kernel(xen: FakeXen, name: str, content: bytes) -> str:
    """A kernel in KERNEL_DIRS."""
    path = Path(xen.node.path("kernels", name))
    path.write_bytes(content)
    return str(path)


class TestStage:
    """Which path root uses."""

    def test_a_kernel_of_the_node_is_used_as_it_is(self, xen: FakeXen) -> None:
        """A file in KERNEL_DIRS is named by its real path."""
        path = kernel(xen, "vmlinuz-6.1", b"kernel")
        os.symlink("vmlinuz-6.1", xen.node.path("kernels", "vmlinuz"))
        linked = xen.node.path("kernels", "..", "kernels", "vmlinuz")
        assert kernels.stage(xen.machine(), linked, directory(xen)) == path

    def test_a_kernel_of_the_vm_is_copied(self, xen: FakeXen) -> None:
        """A file of a FILE datastore outlives the VM's directory, by its content."""
        for name in ("kernel", "initrd"):
            Path(directory(xen), name).write_bytes(b"the same")
        found = {
            kernels.stage(xen.machine(), f"{directory(xen)}/{name}", directory(xen))
            for name in ("kernel", "initrd")
        }
        digest = hashlib.sha256(b"the same").hexdigest()
        assert found == {xen.node.path("state", "kernels", digest)}
        assert os.listdir(xen.node.path("state", "kernels")) == [digest]

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda path, secret: os.symlink(secret, path), "cannot be read"),
            (lambda path, _secret: os.mkfifo(path), "is not a file"),
            (lambda path, _secret: os.mkdir(path), "is not a file"),
            (lambda _path, _secret: None, "cannot be read: No such file"),
        ],
        ids=["link", "fifo", "directory", "nothing"],
    )
    def test_what_is_planted_in_the_directory(
        self, xen: FakeXen, make: object, message: str
    ) -> None:
        """A link that oneadmin planted gives it no file of the host."""
        path = f"{directory(xen)}/kernel"
        assert callable(make)
        make(path, xen.node.path("secret"))
        with pytest.raises(RefusedError, match=message):
            kernels.stage(xen.machine(), path, directory(xen))

    @pytest.mark.parametrize(
        "path",
        ["{root}/secret", "{root}/kernels/../secret", "{root}/kernels/link", "{root}/kernels"],
    )
    def test_files_elsewhere(self, xen: FakeXen, path: str) -> None:
        """Neither a path nor a link leads out of KERNEL_DIRS."""
        os.symlink("../secret", xen.node.path("kernels", "link"))
        with pytest.raises(RefusedError, match=r"is not in .*/kernels") as caught:
            kernels.stage(xen.machine(), path.format(root=xen.node.root), directory(xen))
        assert "KERNEL_DIRS" in (caught.value.hint or "")

    @pytest.mark.parametrize(
        ("name", "mode", "is_given"),
        [
            ("initrd.img-6.1", 0o644, True),
            ("initrd.img-6.1", 0o600, False),
            ("grub.cfg", 0o640, False),
            ("vmlinuz-6.8.0-generic", 0o600, True),
        ],
    )
    def test_files_that_are_not_for_everybody(
        self, xen: FakeXen, name: str, mode: int, *, is_given: bool
    ) -> None:
        """A ramdisk may hold keys, grub.cfg a password: a guest would read them as its ramdisk."""
        path = kernel(xen, name, b"content")
        os.chmod(path, mode)
        if is_given:
            assert kernels.stage(xen.machine(), path, directory(xen)) == path
            return
        with pytest.raises(RefusedError, match=f"{name} may not be read by everybody") as caught:
            kernels.stage(xen.machine(), path, directory(xen))
        assert caught.value.hint == f"if a guest may see what it holds: chmod a+r {path}"

    def test_a_missing_kernel(self, xen: FakeXen) -> None:
        """A kernel that was removed from the node is named."""
        with pytest.raises(RefusedError, match="gone does not exist on this node"):
            kernels.stage(xen.machine(), xen.node.path("kernels", "gone"), directory(xen))


class TestFacts:
    """What is known of a kernel."""

    def test_they_are_remembered(self, xen: FakeXen) -> None:
        """A kernel is unpacked once, as long as it stays the same."""
        path = kernel(xen, "k", elf(PVH))
        machine = xen.machine()
        assert kernels.facts(machine, path) == Kernel(pvh=True, pv=False)
        stored = Path(xen.node.path("state", "kernels", "facts.json"))
        known = json.loads(stored.read_text(encoding="utf-8"))
        stored.write_text(json.dumps({key: [False, True] for key in known}), encoding="utf-8")
        assert kernels.facts(machine, path) == Kernel(pvh=False, pv=True)
        kernel(xen, "k", elf(PV, PVH))
        assert kernels.facts(machine, path) == Kernel(pvh=True, pv=True)

    @pytest.mark.parametrize("text", ["", "[]", "{", "null"])
    def test_a_damaged_memory_is_begun_anew(self, xen: FakeXen, text: str) -> None:
        """What cannot be read is found out again."""
        path = kernel(xen, "k", elf(PVH))
        os.makedirs(xen.node.path("state", "kernels"))
        stored = Path(xen.node.path("state", "kernels", "facts.json"))
        stored.write_text(text, encoding="utf-8")
        assert kernels.facts(xen.machine(), path) == Kernel(pvh=True, pv=False)
        assert path in stored.read_text(encoding="utf-8")


class TestStart:
    """A start with a kernel."""

    @pytest.mark.parametrize(("numbers", "type_"), [((PVH, PV), "pvh"), ((PV,), "pv"), ((), "hvm")])
    def test_the_kernel_decides(self, xen: FakeXen, numbers: tuple[int, ...], type_: str) -> None:
        """The guest runs as its kernel can, and the configuration tells why."""
        path = kernel(xen, "k", elf(*numbers))
        assert start(xen, kernel=path, cmdline="quiet").result["type"] == type_
        text = Path(xen.node.path("cfg", NAME)).read_text(encoding="utf-8")
        assert f"kernel = '{path}'\nextra = 'quiet'\n" in text
        assert f"# guest type: {type_.upper()}, since its kernel has " in text

    def test_pygrub_is_the_administrators_choice(self, xen: FakeXen) -> None:
        """Root reads no file system of a guest's making because its template says so."""
        with pytest.raises(RefusedError, match="VM 7: pygrub is not allowed on this") as caught:
            start(xen, bootloader=Bootloader.PYGRUB)
        assert "grub-xen-host" in (caught.value.hint or "")
        assert 'PYGRUB="yes"' in (caught.value.hint or "")
        given = kernel(xen, "k", elf(PVH))
        assert start(xen, bootloader=Bootloader.PYGRUB, kernel=given).result["type"] == "pvh"

    def test_pygrub_boots_where_it_is_allowed(self, xen: FakeXen) -> None:
        """An administrator who trusts the guests' owners has it as before."""
        machine = xen.machine()
        allowing = replace(machine, config=replace(machine.config, pygrub=True))
        result = ask(
            allowing,
            "domain-start",
            vm=7,
            dir=directory(xen),
            guest=guest(bootloader=Bootloader.PYGRUB),
        ).result
        assert result["type"] == "pv"
        text = Path(xen.node.path("cfg", NAME)).read_text(encoding="utf-8")
        assert "bootloader = 'pygrub'" in text

    def test_what_is_no_kernel(self, xen: FakeXen) -> None:
        """A file that is none is refused with what to do."""
        path = kernel(xen, "k", b"#!/bin/sh")
        with pytest.raises(UsageError, match=r"VM 7: cxm cannot tell how Xen would run") as caught:
            start(xen, kernel=path)
        assert "XEN_TYPE" in (caught.value.hint or "")
