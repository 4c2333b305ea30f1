# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""The verbs about a VM's directory, and the one that removes a VM."""

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cxm import wire
from cxm.errors import CxmError, DataError, RefusedError
from cxm.names import State, VmId
from cxm.node import guests
from cxm.wire import Item, Section, Zeros
from tests.fakes.call import Answer, ask
from tests.fakes.disks import (
    NOISE,
    deployed,
    directory,
    new_node,
    picture,
    section,
    tags_of,
    uuid_of,
    write,
)
from tests.fakes.machine import CLOUD, MIB, FakeNode


@pytest.fixture
def node(tmp_path: Path) -> FakeNode:
    """A node with an empty volume group of 1 GiB and no domains."""
    return new_node(tmp_path / "node1")


def put(node: FakeNode, items: list[Item], *, vm: int = 42) -> Answer:
    """dir-write for a VM."""
    name = f"user-vm{vm}.home.net"
    return ask(node.machine(), "dir-write", items, vm=vm, dir=directory(node, vm), name=name)


def get(node: FakeNode, *, vm: int = 42) -> Answer:
    """dir-read for a VM."""
    return ask(node.machine(), "dir-read", vm=vm, dir=directory(node, vm))


def parts(answer: Answer) -> dict[str, tuple[dict[str, Any], bytes]]:
    """The sections of a download: meta and content by name."""
    found: dict[str, tuple[dict[str, Any], bytes]] = {}
    name = ""
    for item in answer.items:
        if isinstance(item, Section):
            name = item.name
            found[name] = (item.meta, b"")
        else:
            data = bytes(item.length) if isinstance(item, Zeros) else item
            found[name] = (found[name][0], found[name][1] + data)
    return found


class TestFiles:
    """dir-read, dir-write and file-write."""

    def test_files_arrive(self, node: FakeNode) -> None:
        """Content and mode of every file arrive, an empty one too."""
        files: list[Item] = [
            Section("deployment.0", {"mode": 0o640}),
            b"name = 'x'",
            Section("vm.xml", {"mode": 0o4755}),
            NOISE,
            Zeros(3 * MIB),
            b"end",
            Section("empty", {}),
        ]
        assert put(node, files).result == {"files": ["deployment.0", "vm.xml", "empty"]}
        base = Path(directory(node, 42))
        assert (base / "deployment.0").read_bytes() == b"name = 'x'"
        assert (base / "vm.xml").read_bytes() == NOISE + bytes(3 * MIB) + b"end"
        assert (base / "empty").read_bytes() == b""
        modes = [stat.S_IMODE(os.stat(base / name).st_mode) for name in ("deployment.0", "vm.xml")]
        assert modes == [0o640, 0o755]  # no set-uid bit comes in this way
        assert sorted(os.listdir(base)) == ["deployment.0", "empty", "vm.xml"]

    def test_what_was_read_can_be_written(self, node: FakeNode, tmp_path: Path) -> None:
        """A VM that goes on at another host takes its files and its checkpoint along."""
        node.add_lv(
            "lv-one-42-checkpoint", 8, tags=tags_of(42, "checkpoint", State.READY), content=NOISE
        )
        put(node, section(b"x", name="deployment.0", mode=0o600))
        answer = get(node)
        assert answer.result == {"files": ["deployment.0", "checkpoint"]}
        other = new_node(tmp_path / "node2")
        put(other, answer.items)
        assert picture(other)["volumes"] == picture(node)["volumes"]
        assert parts(get(other)) == parts(answer)

    def test_only_regular_files_leave(self, node: FakeNode, tmp_path: Path) -> None:
        """Links, pipes, sockets and directories are not sent; a pipe is not waited for."""
        secret = tmp_path / "secret"
        secret.write_text("secret")
        base = directory(node, 42)
        os.makedirs(base + "/sub")
        os.symlink(secret, base + "/link")
        os.symlink("/dev/zero", base + "/disk.0")
        os.mkfifo(base + "/pipe")
        Path(base, "vm.xml").write_text("<VM/>")
        assert {name: data for name, (_meta, data) in parts(get(node)).items()} == {
            "vm.xml": b"<VM/>"
        }

    def test_incomplete_checkpoint_does_not_leave(self, node: FakeNode) -> None:
        """Half of a memory is worth nothing."""
        node.add_lv("lv-one-42-checkpoint", 8, tags=tags_of(42, "checkpoint", State.FILLING))
        put(node, section(b"x", name="vm.xml"))
        assert list(parts(get(node))) == ["vm.xml"]

    def test_no_directory_gives_nothing(self, node: FakeNode) -> None:
        """What a move that was cut has removed already is no error."""
        assert get(node).result == {"files": []}

    @pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "/etc/x", "a\0b"])
    def test_names_that_leave_the_directory(self, node: FakeNode, name: str) -> None:
        """A part of the data is a file of this directory or nothing."""
        with pytest.raises(DataError, match="is not the name of a file"):
            put(node, section(b"x", name=name))
        assert not os.path.exists(node.path("datastores", "0", "x"))

    def test_planted_link_is_replaced_and_not_followed(
        self, node: FakeNode, tmp_path: Path
    ) -> None:
        """A link in place of the file, or of its first form, is not written through."""
        victim = tmp_path / "victim"
        victim.write_text("old")
        base = directory(node, 42)
        os.makedirs(base)
        os.symlink(victim, base + "/vm.xml")
        os.symlink(victim, base + "/vm.xml.new")
        put(node, section(b"new", name="vm.xml"))
        assert victim.read_text() == "old"
        assert Path(base, "vm.xml").read_text() == "new"
        assert not os.path.islink(base + "/vm.xml")

    def test_cut_stream_leaves_no_half_file(self, node: FakeNode) -> None:
        """The old file stays until the new one is complete."""
        put(node, section(b"old", name="vm.xml"))
        whole = b"".join(wire.encode(section(NOISE, name="vm.xml")))
        with pytest.raises(DataError, match="cut before its end"):
            ask(
                node.machine(),
                "dir-write",
                body=whole[:-3],
                vm=42,
                dir=directory(node, 42),
                name="user-vm42.home.net",
            )
        assert os.listdir(directory(node, 42)) == ["vm.xml"]
        assert Path(directory(node, 42), "vm.xml").read_bytes() == b"old"

    @pytest.mark.parametrize("meta", [{}, {"size_mib": 0}, {"size_mib": "8"}, {"size_mib": None}])
    def test_volume_without_a_size(self, node: FakeNode, meta: dict[str, Any]) -> None:
        """A checkpoint must say how large it is."""
        with pytest.raises(DataError, match="not a checkpoint with a size"):
            put(node, section(b"x", name="checkpoint", kind="volume", **meta))
        assert node.state.lvs == {}

    def test_volume_of_another_kind(self, node: FakeNode) -> None:
        """Disks travel by their own verb."""
        with pytest.raises(DataError, match="'0' of the data is not a checkpoint"):
            put(node, section(b"x", name="0", kind="volume", size_mib=8))

    def test_one_file(self, node: FakeNode) -> None:
        """A kernel goes into the VM's directory under the name asked for."""
        answer = ask(
            node.machine(),
            "file-write",
            section(NOISE, name="whatever"),
            vm=42,
            dir=directory(node, 42),
            file="kernel",
        )
        assert answer.result == {"size": MIB}
        assert Path(directory(node, 42), "kernel").read_bytes() == NOISE

    def test_one_file_is_one(self, node: FakeNode) -> None:
        """Two parts are a mistake of the caller, none as well."""
        for items in ([], [*section(b"a"), *section(b"b", name="b")]):
            with pytest.raises(DataError, match="parts, not in one"):
                ask(
                    node.machine(),
                    "file-write",
                    items,
                    vm=42,
                    dir=directory(node, 42),
                    file="kernel",
                )


class TestDatastoresOfOthers:
    """A self-contained OpenNebula names a path on the host that nobody has made."""

    @pytest.mark.parametrize("put_in", [write, put], ids=["link", "file"])
    def test_says_how_to_make_it(
        self,
        node: FakeNode,
        monkeypatch: pytest.MonkeyPatch,
        put_in: Callable[[FakeNode, list[Item]], Answer],
    ) -> None:
        """The error names what is missing, and the command that makes it."""
        make = os.makedirs

        def refuse(path: str, **more: Any) -> None:
            if path == directory(node, 42):
                raise PermissionError(13, "Permission denied", "/srv/cloud")
            make(path, **more)

        monkeypatch.setattr(os, "makedirs", refuse)
        with pytest.raises(CxmError, match="cannot be made: /srv/cloud belongs to") as caught:
            put_in(node, section(b"x", name="vm.xml"))
        assert f"install -d -o oneadmin {node.path('datastores')}" in (caught.value.hint or "")
        assert node.state.lvs == {}


class TestRemoveVm:
    """vm-remove."""

    def remove(self, node: FakeNode, vm: int = 42) -> Answer:
        """The verb."""
        return ask(node.machine(), "vm-remove", vm=vm, dir=directory(node, vm))

    def test_everything_goes(self, node: FakeNode) -> None:
        """Volumes, checkpoint, record and directory go; the neighbour's stay."""
        for vm in (4, 42):
            write(node, section(b"x"), vm=vm)
            write(node, section(b"x"), vm=vm, disk=1)
        node.add_lv("lv-one-42-checkpoint", 8, tags=tags_of(42, "checkpoint", State.FILLING))
        put(node, section(b"x", name="vm.xml"))
        os.makedirs(directory(node, 42) + "/sub/sub")
        os.symlink("/", directory(node, 42) + "/sub/root")
        deployed(node, 42)
        neighbour = {name: node.state.lvs[name] for name in ("lv-one-4-0", "lv-one-4-1")}
        removed = self.remove(node).result["removed"]
        assert removed[:3] == ["lv-one-42-0", "lv-one-42-1", "lv-one-42-checkpoint"]
        assert removed[-1] == directory(node, 42)
        assert node.state.lvs == neighbour
        assert os.listdir(node.path("datastores", "0")) == ["4"]
        assert guests.read(node.machine(), CLOUD, VmId(42)) is None
        assert os.path.isdir("/etc")

    def test_nothing_there_is_success(self, node: FakeNode) -> None:
        """A VM that has gone has been removed."""
        assert self.remove(node).result == {"removed": []}

    def test_domain_protects_all(self, node: FakeNode) -> None:
        """While a domain of the VM is there, nothing of it goes; what is wanted is noted."""
        write(node, section(b"x"))
        node.state.extra["domains"] = (("x", uuid_of(42)),)
        with pytest.raises(RefusedError, match="domain is still there"):
            self.remove(node)
        assert "cxm.state=delete-requested" in node.state.lvs["lv-one-42-0"].tags
        assert os.path.islink(directory(node, 42) + "/disk.0")

    def test_domain_without_volumes_protects_too(self, node: FakeNode) -> None:
        """A VM without disks has a configuration that its domain needs."""
        node.state.extra["domains"] = (("x", uuid_of(42)),)
        deployed(node, 42)
        with pytest.raises(RefusedError, match="domain is still there"):
            self.remove(node)
        assert guests.read(node.machine(), CLOUD, VmId(42)) is not None

    def test_one_volume_in_use_keeps_all(self, node: FakeNode) -> None:
        """A VM is removed whole or not at all."""
        write(node, section(b"x"))
        write(node, section(b"x"), disk=1)
        node.state.opened.add("lv-one-42-1")
        with pytest.raises(RefusedError, match="lv-one-42-1 is in use"):
            self.remove(node)
        assert set(node.state.lvs) == {"lv-one-42-0", "lv-one-42-1"}


@pytest.mark.parametrize(("kind", "stays"), [("gfs2", True), ("nfs4", True), ("ext4", False)])
def test_directory_that_all_nodes_see_is_not_dropped(
    node: FakeNode, tmp_path: Path, kind: str, stays: bool
) -> None:
    """With a shared system datastore it is the one that the VM has just moved to."""
    put(node, [Section("deployment.0", {"mode": 0o644}), b"kept"])
    (tmp_path / "proc/self").mkdir(parents=True)
    point = os.path.dirname(directory(node, 42))
    (tmp_path / "proc/self/mountinfo").write_text(
        f"22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n"
        f"40 22 253:5 / {point} rw,relatime shared:9 - {kind} /dev/mapper/x rw\n"
    )
    machine = node.machine(proc_dir=str(tmp_path / "proc"))
    ask(machine, "dir-drop", vm=42, dir=directory(node, 42))
    assert os.path.exists(os.path.join(directory(node, 42), "deployment.0")) == stays
