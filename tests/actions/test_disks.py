# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""The verbs that make disks: what a new disk holds, and whose it is."""

import gzip
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from cxm import wire
from cxm.errors import (
    DataError,
    RefusedError,
    UsageError,
)
from cxm.names import CloudId, State
from cxm.wire import Zeros
from tests.fakes.call import Answer, ask, request, send
from tests.fakes.disks import (
    FILES,
    NOISE,
    assert_no_old_bytes,
    blank,
    content_of,
    deployed,
    directory,
    new_node,
    picture,
    section,
    tags_of,
    write,
    zstd,
)
from tests.fakes.machine import MIB, FakeNode

OTHER = CloudId("othercloud")


@pytest.fixture
def node(tmp_path: Path) -> FakeNode:
    """A node with an empty volume group of 1 GiB and no domains."""
    return new_node(tmp_path / "node1")


class TestWrite:
    """disk-write."""

    def test_raw_holds_the_content_and_zeros(self, node: FakeNode) -> None:
        """What the image does not cover, holes included, reads as zeros."""
        answer = write(node, section(NOISE, Zeros(3 * MIB), b"end"))
        expected = NOISE + bytes(3 * MIB) + b"end"
        assert answer.result == {"lv": "lv-one-42-0", "size_mib": 8, "created": True}
        assert node.content("lv-one-42-0") == expected.ljust(8 * MIB, b"\0")
        assert os.readlink(directory(node, 42) + "/disk.0") == node.machine().device(
            answer.result["lv"]
        )

    def test_tags_say_whose_it_is(self, node: FakeNode) -> None:
        """A finished disk is ready and carries cloud, VM, disk and name."""
        write(node, section(b"x"))
        lv = node.state.lvs["lv-one-42-0"]
        assert set(lv.tags) == set(tags_of(42, "0", State.READY))

    def test_says_what_it_changed(self, node: FakeNode) -> None:
        """The reply's log names the new volume."""
        assert write(node, section(b"x")).log == ["created volume lv-one-42-0 (8 MiB) in LVM_XEN"]

    @pytest.mark.parametrize(
        ("content", "packed"),
        [("raw", bytes), ("gzip", gzip.compress), ("zstd", zstd)],
    )
    def test_compressed_images_are_the_same(
        self, node: FakeNode, content: str, packed: Callable[[bytes], bytes]
    ) -> None:
        """A compressed image gives the disk that the plain one gives."""
        image = NOISE + bytes(2 * MIB) + NOISE[:1000]
        write(node, section(packed(image)), content=content)
        assert node.content("lv-one-42-0") == image.ljust(8 * MIB, b"\0")

    @pytest.mark.parametrize(
        ("content", "packed", "fstype"),
        [
            ("tar", bytes, "ext4"),
            ("tar.gz", gzip.compress, "ext4"),
            ("tar.zst", zstd, "ext4"),
            *(("tar.gz", gzip.compress, each) for each in ("ext2", "ext3", "xfs", "btrfs", "vfat")),
        ],
    )
    def test_tar_becomes_a_file_system(
        self, node: FakeNode, content: str, packed: Callable[[bytes], bytes], fstype: str
    ) -> None:
        """A tar image is unpacked into a file system of the kind asked for."""
        write(node, section(packed(FILES)), content=content, fstype=fstype)
        tree = Path(node.tree("lv-one-42-0"))
        assert node.state.lvs["lv-one-42-0"].filesystem == fstype
        assert (tree / "etc/hostname").read_bytes() == b"vm42\n"
        assert (tree / "bin/sh").read_bytes() == b"#!" + NOISE[:5000]
        assert node.state.mounts == {}
        assert os.listdir(node.path("tmp", "cxm")) == []
        assert_no_old_bytes(node)

    def test_size_may_come_with_the_data(self, node: FakeNode) -> None:
        """Without a size, that of the content rules, in whole MiB."""
        answer = write(node, section(NOISE, b"x", size=MIB + 1), size_mib=None)
        assert answer.result["size_mib"] == 4  # one extent

    def test_no_size_at_all_is_an_error(self, node: FakeNode) -> None:
        """A disk of unknown size is not made."""
        with pytest.raises(DataError, match="how large the disk is"):
            write(node, section(b"x"), size_mib=None)
        assert node.state.lvs == {}

    def test_shared_group_leaves_it_inactive(self, node: FakeNode) -> None:
        """On a shared group a new disk is nobody's until a VM starts, and no boot activates it."""
        node.shared = True
        write(node, section(b"x"))
        lv = node.state.lvs["lv-one-42-0"]
        assert (lv.active, lv.autoactivation) == (False, False)

    def test_process_starts_are_few(self, node: FakeNode) -> None:
        """A new disk costs these commands and no others."""
        write(node, section(gzip.compress(FILES)), content="tar.gz", fstype="ext4")
        assert [argv[0] for argv in node.ran] == [
            "lvm", "lvcreate", "mke2fs", "mount", "gzip", "tar", "umount", "lvchange",
        ]  # fmt: skip

    def test_packed_upload(self, node: FakeNode) -> None:
        """An upload may be compressed on its way."""
        args = {
            "vm": 42,
            "disk": 0,
            "dir": directory(node, 42),
            "name": "user-vm42.home.net",
            "size_mib": 8,
            "content": "raw",
            "fstype": None,
            "replace": False,
        }
        data = zstd(b"".join(wire.encode(section(NOISE))))
        send(node.machine(), "disk-write", request(args, pack=True) + data)
        assert node.content("lv-one-42-0") == NOISE.ljust(8 * MIB, b"\0")


class TestBlockSize:
    """BLOCK_SIZE, which comes with the request."""

    ARGS: ClassVar[dict[str, Any]] = {
        "vm": 42, "disk": 0, "as": "raw", "fstype": None, "level": None,
    }  # fmt: skip

    def test_disk_is_the_same(self, node: FakeNode) -> None:
        """The size of a block changes no byte."""
        write(node, section(NOISE, Zeros(MIB), NOISE[:5]))
        answer = send(node.machine(), "disk-read", request(self.ARGS, block_mib=4))
        assert content_of(answer) == node.content("lv-one-42-0")

    @pytest.mark.parametrize("size", [0, 65, "1M", None, 1.5])
    def test_unreasonable_sizes_are_refused(self, node: FakeNode, size: Any) -> None:
        """A request never decides over the host's memory."""
        with pytest.raises(UsageError, match="not a whole number from 1 to 64"):
            send(node.machine(), "disk-read", request(self.ARGS, block_mib=size))


class TestBlank:
    """disk-blank."""

    def test_raw_is_all_zeros(self, node: FakeNode) -> None:
        """An empty disk holds nothing of anybody."""
        assert blank(node).result == {"lv": "lv-one-42-1", "size_mib": 8, "created": True}
        assert not any(node.content("lv-one-42-1"))

    @pytest.mark.parametrize("kind", ["swap", "ext2", "ext3", "ext4", "xfs", "btrfs", "vfat"])
    def test_made_as(self, node: FakeNode, kind: str) -> None:
        """A swap space or file system is made on zeros."""
        blank(node, made_as=kind)
        assert node.state.lvs["lv-one-42-1"].filesystem == kind
        assert_no_old_bytes(node)


class TestAgain:
    """A disk that is there already."""

    def test_ready_and_never_started_is_kept(self, node: FakeNode) -> None:
        """A second clone of the same disk does no work and reads its input to the end."""
        write(node, section(NOISE))
        again = write(node, section(b"other"))
        assert again.result == {"lv": "lv-one-42-0", "size_mib": 8, "created": False}
        assert node.content("lv-one-42-0").startswith(NOISE)

    def test_another_size_is_made_anew(self, node: FakeNode) -> None:
        """A disk of another size than asked for is not what was asked for."""
        write(node, section(NOISE))
        again = write(node, section(b"other"), size_mib=16)
        assert again.result == {"lv": "lv-one-42-0", "size_mib": 16, "created": True}
        assert node.content("lv-one-42-0") == b"other".ljust(16 * MIB, b"\0")

    def test_deployed_is_never_overwritten(self, node: FakeNode) -> None:
        """What a guest may have written stays."""
        write(node, section(NOISE))
        deployed(node, 42)
        with pytest.raises(RefusedError, match=r"node1: .*lv-one-42-0 .* has run with it"):
            write(node, section(b"other"))
        assert node.content("lv-one-42-0").startswith(NOISE)
        assert os.path.islink(directory(node, 42) + "/disk.0")

    def test_replace_rewrites_in_place(self, node: FakeNode) -> None:
        """The contextualization is written again at every start, into the same volume."""
        write(node, section(NOISE), disk=2)
        deployed(node, 42)
        answer = write(node, section(b"other"), disk=2, replace=True)
        assert answer.result["created"] is True
        assert node.content("lv-one-42-2") == b"other".ljust(8 * MIB, b"\0")
        assert "lvremove" not in {argv[0] for argv in node.ran}

    def test_replace_makes_anew_what_is_too_small(self, node: FakeNode) -> None:
        """A larger contextualization gets a larger volume."""
        write(node, section(NOISE), disk=2)
        deployed(node, 42)
        write(node, section(b"other"), disk=2, replace=True, size_mib=12)
        assert node.content("lv-one-42-2") == b"other".ljust(12 * MIB, b"\0")

    def test_replace_of_a_disk_in_use_is_refused(self, node: FakeNode) -> None:
        """A running guest's disk is not written."""
        write(node, section(NOISE), disk=2)
        node.state.opened.add("lv-one-42-2")
        with pytest.raises(RefusedError, match="lv-one-42-2 of VM 42 is in use"):
            write(node, section(b"other"), disk=2, replace=True)
        assert node.content("lv-one-42-2").startswith(NOISE)

    @pytest.mark.parametrize("state", [State.FILLING, State.DELETE_REQUESTED])
    def test_leftovers_are_thrown_away(self, node: FakeNode, state: State) -> None:
        """An incomplete or unwanted volume makes room."""
        node.add_lv("lv-one-42-0", 16, tags=tags_of(42, "0", state))
        write(node, section(b"new"))
        assert node.content("lv-one-42-0") == b"new".ljust(8 * MIB, b"\0")

    def test_leftover_gives_its_space(self, node: FakeNode) -> None:
        """The space of a thrown away volume counts as free for the new one."""
        node.size = 12 * MIB
        node.add_lv("lv-one-42-0", 8, tags=tags_of(42, "0", State.FILLING))
        assert write(node, section(b"new")).result["created"] is True

    def test_unwanted_but_in_use_is_refused(self, node: FakeNode) -> None:
        """A volume whose removal waits for its guest is not given to a new one."""
        node.add_lv("lv-one-42-0", 8, tags=tags_of(42, "0", State.DELETE_REQUESTED))
        node.state.opened.add("lv-one-42-0")
        with pytest.raises(RefusedError, match="in use"):
            write(node, section(b"new"))


class TestIdentity:
    """A volume is a VM's own, or it is not touched."""

    NEIGHBOURS = ((1, "0"), (1, "1"), (1, "10"), (10, "1"), (11, "1"), (11, "0"), (110, "1"))

    def populate(self, node: FakeNode) -> None:
        """Volumes of VMs whose ids look alike."""
        for vm, kind in self.NEIGHBOURS:
            node.add_lv(f"lv-one-{vm}-{kind}", 4, tags=tags_of(vm, kind, State.READY))

    def test_disk_one_is_not_disk_ten(self, node: FakeNode) -> None:
        """Removing disk 1 of VM 1 removes just that."""
        self.populate(node)
        ask(node.machine(), "disk-remove", vm=1, disk=1, dir=None)
        left = {f"lv-one-{vm}-{kind}" for vm, kind in self.NEIGHBOURS} - {"lv-one-1-1"}
        assert set(node.state.lvs) == left

    def test_volumes_of_one_vm(self, node: FakeNode) -> None:
        """A VM's volumes are its own: disks by number, then the checkpoint."""
        self.populate(node)
        node.add_lv("lv-one-1-checkpoint", 8, tags=tags_of(1, "checkpoint", State.FILLING))
        node.add_lv("lv-one-1-data", 8)
        answer = ask(node.machine(), "vm-volumes", vm=1)
        assert [
            (row["disk"], row["state"], row["size_mib"]) for row in answer.result["volumes"]
        ] == [
            ("0", "ready", 4),
            ("1", "ready", 4),
            ("10", "ready", 4),
            ("checkpoint", "filling", 8),
        ]

    @pytest.mark.parametrize("tags", [[], tags_of(42, "0", State.FILLING, OTHER)])
    def test_what_is_not_ours_is_not_touched(self, node: FakeNode, tags: list[str]) -> None:
        """A volume with our name but without our tags stays as it is."""
        node.add_lv("lv-one-42-0", 8, tags=tags)
        before = picture(node)
        calls: list[Callable[[], Answer]] = [
            lambda: write(node, section(b"x")),
            lambda: write(node, section(b"x"), replace=True),
            lambda: blank(node, disk=0),
            lambda: ask(
                node.machine(), "disk-read", vm=42, disk=0, as_="raw", fstype=None, level=None
            ),
            lambda: ask(node.machine(), "disk-remove", vm=42, disk=0, dir=None),
            lambda: ask(node.machine(), "vm-volumes", vm=42),
        ]
        for call in calls:
            with pytest.raises(RefusedError, match=r"lv-one-42-0 (was not made|belongs to)"):
                call()
        assert picture(node) == before

    def test_tags_that_contradict_the_name(self, node: FakeNode) -> None:
        """A volume that was renamed by hand is not taken for another disk."""
        node.add_lv("lv-one-42-0", 8, tags=tags_of(7, "3", State.READY))
        with pytest.raises(RefusedError, match="belongs to disk 3 of VM 7"):
            ask(node.machine(), "disk-remove", vm=42, disk=0, dir=None)

    def test_name_of_another_vm_is_refused(self, node: FakeNode) -> None:
        """Two VMs cannot have one domain name; nothing is made for the second."""
        node.add_lv("lv-one-7-0", 8, tags=tags_of(7, "0", State.READY))
        with pytest.raises(RefusedError, match=r"user-vm7.home.net.*lv-one-7-0"):
            write(node, section(b"x"), name="user-vm7.home.net")
        assert set(node.state.lvs) == {"lv-one-7-0"}
        assert not os.path.exists(directory(node, 42))
