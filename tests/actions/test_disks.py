# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""The verbs about disks: what they leave behind, whatever happens on their way."""

import gzip
import hashlib
import io
import os
import signal
import stat
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cxm import interrupt, wire
from cxm.errors import (
    CommandError,
    CxmError,
    DataError,
    NotFoundError,
    RefusedError,
)
from cxm.names import CloudId, State, Tags, VmId, domain_uuid
from cxm.node import guests
from cxm.run import System
from cxm.wire import Item, Section, Zeros
from tests.fakes.call import Answer, ask, request, send
from tests.fakes.machine import MIB, OLD_TENANT, FakeNode, Fault, How, KilledError, Outcome

CLOUD = CloudId("cloudone1")
OTHER = CloudId("othercloud")
NOISE = hashlib.shake_128(b"noise").digest(MIB)


@pytest.fixture
def node(tmp_path: Path) -> FakeNode:
    """A node with an empty volume group of 1 GiB and no domains."""
    return new_node(tmp_path / "node1")


def new_node(path: Path) -> FakeNode:
    """A node that also answers ``xl list -v`` from ``state.extra['domains']``."""
    made = FakeNode(str(path))

    def xl(argv: tuple[str, ...], _input: bytes) -> Outcome:
        assert argv == ("xl", "list", "-v")
        head = "Name ID Mem VCPUs State Time(s) UUID Reason-Code Security Label\n"
        rows = [
            f"{name} {number} 128 1 -b---- 1.0 {uuid} - -\n"
            for number, (name, uuid) in enumerate(made.state.extra.get("domains", ()), start=1)
        ]
        return Outcome(head + "".join(rows))

    made.model("xl", xl)
    return made


def section(*parts: bytes | Zeros, name: str = "disk.0", **meta: Any) -> list[Item]:
    """An upload of one section."""
    return [Section(name, meta), *parts]


def tar(*members: tarfile.TarInfo | tuple[str, bytes]) -> bytes:
    """An archive of files, given by name and content, and of other members."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size, info.uid, info.gid = len(member[1]), os.geteuid(), os.getegid()
            archive.addfile(info, io.BytesIO(member[1]))
    return buffer.getvalue()


def special(name: str, kind: bytes, *, target: str = "", device: tuple[int, int] = (0, 0)) -> Any:
    """A member of an archive that is no plain file."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    info.devmajor, info.devminor = device
    info.uid, info.gid = os.geteuid(), os.getegid()
    return info


def zstd(data: bytes) -> bytes:
    """Compressed by the real program."""
    with System().produce(["zstd", "-q", "-c"], chunks=[data]) as output:
        return b"".join(output)


FILES = tar(("etc/hostname", b"vm42\n"), ("bin/sh", b"#!" + NOISE[:5000]))


def directory(node: FakeNode, vm: int) -> str:
    """The VM's directory on the node."""
    return node.path("datastores", "0", str(vm))


def write(
    node: FakeNode, data: list[Item], *, vm: int = 42, disk: int = 0, **changes: Any
) -> Answer:
    """disk-write with the arguments of an ordinary call."""
    args: dict[str, Any] = {
        "vm": vm,
        "disk": disk,
        "dir": directory(node, vm),
        "name": f"user-vm{vm}.home.net",
        "size_mib": 8,
        "content": "raw",
        "fstype": None,
        "replace": False,
    }
    return ask(node.machine(), "disk-write", data, **(args | changes))


def blank(node: FakeNode, *, vm: int = 42, disk: int = 1, made_as: str = "raw") -> Answer:
    """disk-blank with the arguments of an ordinary call."""
    return ask(
        node.machine(),
        "disk-blank",
        vm=vm,
        disk=disk,
        dir=directory(node, vm),
        name=f"user-vm{vm}.home.net",
        size_mib=8,
        format=made_as,
    )


def tags_of(vm: int, kind: str, state: State, cloud: CloudId = CLOUD) -> list[str]:
    """The tags of a volume."""
    return Tags(cloud, VmId(vm), kind, state, f"user-vm{vm}.home.net").encode()


def picture(node: FakeNode) -> dict[str, Any]:
    """All that a node holds, to compare."""
    volumes = {
        lv.name: (
            lv.size,
            lv.tags,
            lv.active,
            lv.filesystem,
            hashlib.sha256(node.content(lv.name)).hexdigest(),
            files(node.tree(lv.name)) if lv.filesystem else {},
        )
        for lv in node.state.lvs.values()
    }
    return {
        "volumes": volumes,
        "mounts": node.state.mounts,
        "tmp": files(node.path("tmp")),
        "dirs": files(node.path("datastores")),
        "dev": sorted(os.listdir(node.path("dev", node.vg))),
    }


def files(root: str) -> dict[str, str]:
    """Every path below ``root`` but the directory that the mounts are made in."""
    found = {}
    for base, directories, names in os.walk(root):
        for name in [*directories, *names]:
            path = os.path.join(base, name)
            key = os.path.relpath(path, root)
            if os.path.islink(path):
                # Where the node is, is no part of its state.
                found[key] = os.path.basename(os.readlink(path))
            elif os.path.isdir(path):
                found[key] = "directory"
            elif os.path.isfile(path):
                found[key] = Path(path).read_bytes().hex()[:64]
            else:
                found[key] = "special"
    return {path: what for path, what in found.items() if path != "cxm"}


def assert_no_old_bytes(node: FakeNode) -> None:
    """No volume of ours holds a byte of the old tenant."""
    for lv in node.state.lvs.values():
        if lv.tags:
            assert OLD_TENANT not in node.content(lv.name), lv.name
            assert OLD_TENANT[:4] not in node.content(lv.name), lv.name


# --- a disk is filled -----------------------------------------------------------------------------


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
        ("content", "packed"),
        [("tar", bytes), ("tar.gz", gzip.compress), ("tar.zst", zstd)],
    )
    @pytest.mark.parametrize("fstype", ["ext2", "ext3", "ext4", "xfs", "btrfs", "vfat"])
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


def deployed(node: FakeNode, vm: int) -> None:
    """The VM has been started on this node."""
    guests.write(
        node.machine(),
        guests.Guest(CLOUD, VmId(vm), f"user-vm{vm}.home.net", guests.Life.RUNNING, "started", 0.0),
    )


# --- whose volume it is ---------------------------------------------------------------------------


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
            lambda: ask(node.machine(), "disk-read", vm=42, disk=0, as_="raw", level=None),
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


# --- what can go wrong ----------------------------------------------------------------------------


class TestFailures:
    """One clear sentence, and nothing left."""

    @pytest.fixture(autouse=True)
    def _nothing_left(self, node: FakeNode) -> Iterator[None]:
        """After each of these tests the node is as empty as before."""
        yield
        assert node.state.lvs == {}
        assert node.state.mounts == {}
        assert files(node.path("tmp")) == {}
        assert {path for path in files(node.path("datastores")) if "disk" in path} == set()

    def test_full_group(self, node: FakeNode) -> None:
        """The sentence says how much is free and how much is asked for."""
        with pytest.raises(RefusedError, match=r"LVM_XEN has 1024 MiB free, but .* needs 2000 MiB"):
            write(node, section(b"x"), size_mib=2000)

    def test_missing_group(self, node: FakeNode) -> None:
        """The sentence names the group and the setting."""
        node.has_vg = False
        with pytest.raises(NotFoundError, match="LVM_XEN does not exist") as caught:
            write(node, section(b"x"))
        assert "VG_NAME" in str(caught.value.hint)

    @pytest.mark.parametrize("content", ["gzip", "zstd", "tar.gz", "tar.zst"])
    @pytest.mark.parametrize("damage", ["cut", "flipped", "nothing"])
    def test_damaged_compression(self, node: FakeNode, content: str, damage: str) -> None:
        """A compressed image that is cut or damaged never becomes a disk."""
        pack = gzip.compress if content in ("gzip", "tar.gz") else zstd
        image = bytearray(pack(tar(("a", NOISE)) if "tar" in content else NOISE))
        if damage == "cut":
            del image[len(image) // 2 :]
        elif damage == "flipped":
            image[len(image) // 2] ^= 0xFF
        else:
            image = bytearray(b"this is no archive at all")
        with pytest.raises(DataError, match=r"node1: the image is damaged: (gzip|zstd|.*stdin).*"):
            write(node, section(bytes(image)), content=content, fstype="ext4")

    def test_checksum_behind_the_archive_counts(self, node: FakeNode) -> None:
        """Tar stops at the archive's end, but gzip's checksum behind it is looked at too."""
        image = bytearray(gzip.compress(FILES + bytes(4 * MIB)))
        image[-6] ^= 0xFF
        with pytest.raises(DataError, match=r"the image is damaged.*crc error"):
            write(node, section(bytes(image)), content="tar.gz", fstype="ext4")

    @pytest.mark.parametrize("content", ["raw", "gzip", "tar", "tar.gz"])
    def test_stream_that_is_cut(self, node: FakeNode, content: str) -> None:
        """An upload that breaks off anywhere is a failure, never a shorter disk."""
        image = FILES if "tar" in content else NOISE[:50000]
        image = gzip.compress(image, mtime=0) if content.endswith(("gz", "gzip")) else image
        body = b"".join(wire.encode(section(image[:20000], image[20000:])))
        for length in {0, 1, 8, 9, 40, 200, 15000, len(body) - 30, len(body) - 17, len(body) - 1}:
            with pytest.raises(DataError, match=r"cut before its end|is missing"):
                ask(
                    node.machine(),
                    "disk-write",
                    body=body[: min(length, len(body) - 1)],
                    vm=42,
                    disk=0,
                    dir=directory(node, 42),
                    name="user-vm42.home.net",
                    size_mib=8,
                    content=content,
                    fstype="ext4",
                    replace=False,
                )
            self.assert_empty(node)

    @staticmethod
    def assert_empty(node: FakeNode) -> None:
        """No volume is left."""
        assert node.state.lvs == {}

    @pytest.mark.parametrize("content", ["raw", "tar"])
    def test_stream_that_is_damaged(self, node: FakeNode, content: str) -> None:
        """A byte that changed on its way is found, whatever tar or the disk think of it."""
        body = bytearray(b"".join(wire.encode(section(FILES))))
        body[-5] ^= 0xFF
        with pytest.raises(DataError, match="checksum does not fit"):
            ask(
                node.machine(),
                "disk-write",
                body=bytes(body),
                vm=42,
                disk=0,
                dir=directory(node, 42),
                name="user-vm42.home.net",
                size_mib=8,
                content=content,
                fstype="ext4",
                replace=False,
            )

    def test_packed_stream_that_is_cut(self, node: FakeNode) -> None:
        """The same for an upload that was compressed on its way."""
        data = zstd(b"".join(wire.encode(section(NOISE))))
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
        with pytest.raises(DataError, match="data stream was cut"):
            send(node.machine(), "disk-write", request(args, pack=True) + data[: len(data) // 2])

    @pytest.mark.parametrize(
        ("content", "pack"), [("raw", bytes), ("gzip", gzip.compress), ("zstd", zstd)]
    )
    def test_content_larger_than_the_disk(
        self, node: FakeNode, content: str, pack: Callable[[bytes], bytes]
    ) -> None:
        """An image that unpacks to more than its size said: the sentence says what to raise."""
        with pytest.raises(DataError, match="larger than the 8 MiB") as caught:
            write(node, section(pack(NOISE * 9)), content=content)
        assert "LV_SIZE" in str(caught.value.hint)

    def test_holes_larger_than_the_disk(self, node: FakeNode) -> None:
        """Zeros count as content: a guest's partition table may promise them."""
        with pytest.raises(DataError, match="larger than the 8 MiB"):
            write(node, section(b"x", Zeros(9 * MIB)))

    def test_second_section(self, node: FakeNode) -> None:
        """A disk is one part of data."""
        with pytest.raises(DataError, match=r"disk\.1"):
            write(node, [*section(b"x"), *section(b"y", name="disk.1")])

    def test_tar_that_is_none(self, node: FakeNode) -> None:
        """A file that only claims to be an archive."""
        with pytest.raises(DataError, match="not a tar archive"):
            write(node, section(NOISE), content="tar", fstype="ext4")

    def test_tar_that_ends_early(self, node: FakeNode) -> None:
        """An archive without its second half."""
        with pytest.raises(DataError, match="ends too early"):
            write(node, section(FILES[:3000]), content="tar", fstype="ext4")

    @pytest.mark.parametrize("name", ["../evil", "a/../../evil", "../../../../../../evil"])
    def test_tar_that_climbs_out(self, node: FakeNode, name: str) -> None:
        """A name with '..' is refused."""
        with pytest.raises(DataError, match=r"outside of its root directory: '.*evil'"):
            write(node, section(tar(("ok", b"ok"), (name, b"evil"))), content="tar", fstype="ext4")
        assert not os.path.exists(node.path("evil"))

    def test_error_of_mkfs_is_said(self, node: FakeNode) -> None:
        """What a tool says reaches the caller, with the node's name."""
        node.model("mke2fs", lambda _argv, _in: Outcome(stderr="mke2fs: no luck today", code=1))
        with pytest.raises(
            CommandError, match=r"node1: no ext4 can be made on .*: mke2fs: no luck today"
        ):
            write(node, section(FILES), content="tar", fstype="ext4")

    def test_old_mke2fs(self, node: FakeNode) -> None:
        """A mke2fs that does not know an option is asked again without it."""
        real = node._mkfs

        def old(argv: tuple[str, ...], given: bytes) -> Outcome:
            if any("assume_storage_prezeroed" in word for word in argv):
                text = "Bad option(s) specified: assume_storage_prezeroed=1"
                return Outcome(stderr=text, code=1)
            return real(argv, given)

        node.model("mke2fs", old)
        write(node, section(FILES), content="tar", fstype="ext4")
        assert node.state.lvs["lv-one-42-0"].filesystem == "ext4"
        ask(node.machine(), "disk-remove", vm=42, disk=0, dir=directory(node, 42))


class TestHostileArchives:
    """What an image's archive may hold, and where it ends up."""

    def test_absolute_names_lose_their_slash(self, node: FakeNode) -> None:
        """'/etc/x' of an archive is etc/x of the guest."""
        write(node, section(tar(("/etc/x", b"x"))), content="tar", fstype="ext4")
        assert Path(node.tree("lv-one-42-0"), "etc/x").read_bytes() == b"x"

    @pytest.mark.parametrize("target", ["OUTSIDE", "../../../OUT", "up"])
    def test_links_do_not_lead_out(self, node: FakeNode, tmp_path: Path, target: str) -> None:
        """A file that goes through a link out of the disk does not arrive outside."""
        outside = tmp_path / "outside"
        outside.mkdir()
        links = {
            "OUTSIDE": [special("link", tarfile.SYMTYPE, target=str(outside))],
            "../../../OUT": [
                special(
                    "link",
                    tarfile.SYMTYPE,
                    target=os.path.relpath(outside, node.tree("lv-one-42-0")),
                )
            ],
            "up": [
                special("up", tarfile.SYMTYPE, target=".."),
                special("link", tarfile.SYMTYPE, target="up/../../outside"),
            ],
        }[target]
        with pytest.raises(DataError, match=r"cannot be unpacked: tar: link/evil"):
            write(node, section(tar(*links, ("link/evil", b"x"))), content="tar", fstype="ext4")
        assert list(outside.iterdir()) == []
        assert node.state.lvs == {}

    def test_hard_links_do_not_lead_out(self, node: FakeNode, tmp_path: Path) -> None:
        """A hard link to a file outside is not made."""
        secret = tmp_path / "secret"
        secret.write_text("secret")
        link = special("link", tarfile.LNKTYPE, target=str(secret))
        with pytest.raises(CxmError):
            write(node, section(tar(link)), content="tar", fstype="ext4")
        assert secret.stat().st_nlink == 1

    def test_links_inside_are_kept(self, node: FakeNode) -> None:
        """A guest's own links, also such that look absolute, are its own."""
        image = tar(
            special("bin", tarfile.SYMTYPE, target="usr/bin"),
            special("etc/mtab", tarfile.SYMTYPE, target="/proc/mounts"),
            special("etc/localtime", tarfile.SYMTYPE, target="../usr/share/zoneinfo/UTC"),
            ("usr/bin/sh", b"sh"),
        )
        write(node, section(image), content="tar", fstype="ext4")
        tree = node.tree("lv-one-42-0")
        assert os.readlink(tree + "/etc/mtab") == "/proc/mounts"
        assert os.readlink(tree + "/etc/localtime") == "../usr/share/zoneinfo/UTC"
        assert Path(tree, "bin/sh").read_bytes() == b"sh"

    def test_device_nodes_are_data(self, node: FakeNode) -> None:
        """A root file system has /dev nodes; who may not make them says so and leaves nothing."""
        image = tar(special("dev/null", tarfile.CHRTYPE, device=(1, 3)), ("a", b"a"))
        if os.geteuid() == 0:
            write(node, section(image), content="tar", fstype="ext4")
            status = os.lstat(node.tree("lv-one-42-0") + "/dev/null")
            assert stat.S_ISCHR(status.st_mode)
            assert status.st_rdev == os.makedev(1, 3)
        else:
            with pytest.raises(DataError, match="mknod"):
                write(node, section(image), content="tar", fstype="ext4")
            assert node.state.lvs == {}

    def test_ten_thousand_files(self, node: FakeNode) -> None:
        """Many files in many directories arrive, every one."""
        names = [f"d{number % 100}/file{number}" for number in range(10_000)]
        image = tar(*((name, name.encode()) for name in names))
        write(node, section(gzip.compress(image, 1)), content="tar.gz", fstype="ext4")
        tree = Path(node.tree("lv-one-42-0"))
        assert sum(len(found) for _base, _dirs, found in os.walk(tree)) == 10_000
        assert (tree / names[9999]).read_text() == names[9999]

    def test_odd_names(self, node: FakeNode) -> None:
        """Names with blanks, dashes, quotes, line breaks and UTF-8 are names like others."""
        names = ["-rf", "a b", "quo'te\"", "new\nline", "größe", "$HOME", "`id`"]
        write(node, section(tar(*((n, n.encode()) for n in names))), content="tar", fstype="ext4")
        assert sorted(os.listdir(node.tree("lv-one-42-0"))) == sorted(names)


# --- reading --------------------------------------------------------------------------------------


def content_of(answer: Answer) -> bytes:
    """A download's bytes."""
    parts = [
        bytes(item.length) if isinstance(item, Zeros) else item
        for item in answer.items
        if not isinstance(item, Section)
    ]
    return b"".join(parts)


def read(node: FakeNode, form: str, *, vm: int = 42, disk: int = 0) -> tuple[Section, Answer]:
    """disk-read; the head of the data and the answer."""
    answer = ask(node.machine(), "disk-read", vm=vm, disk=disk, as_=form, level=None)
    head = answer.items[0]
    assert isinstance(head, Section)
    return head, answer


class TestRead:
    """disk-read."""

    def test_raw(self, node: FakeNode) -> None:
        """The whole disk comes back, its zeros as lengths."""
        write(node, section(NOISE, Zeros(2 * MIB), b"tail"))
        head, answer = read(node, "raw")
        assert head.meta == {"content": "raw", "size_mib": 8, "fstype": None}
        assert content_of(answer) == node.content("lv-one-42-0")
        sent = sum(len(item) for item in answer.items if isinstance(item, bytes))
        assert sent <= MIB + 64 * 1024
        assert answer.result == {"lv": "lv-one-42-0"}

    def test_gzip(self, node: FakeNode) -> None:
        """A compressed image of the whole disk."""
        write(node, section(NOISE))
        head, answer = read(node, "gzip")
        assert head.meta["content"] == "gzip"
        assert gzip.decompress(content_of(answer)) == node.content("lv-one-42-0")

    def test_tar_gz(self, node: FakeNode) -> None:
        """The files of a disk with a file system, as an archive."""
        write(node, section(FILES), content="tar", fstype="ext3")
        head, answer = read(node, "tar.gz")
        assert head.meta == {"content": "tar.gz", "size_mib": 8, "fstype": "ext3"}
        with tarfile.open(fileobj=io.BytesIO(content_of(answer))) as archive:
            file = archive.extractfile("./etc/hostname")
            assert file is not None
            assert file.read() == b"vm42\n"
        assert node.state.mounts == {}
        assert files(node.path("tmp")) == {}
        assert ("mount", "-t", "ext3", "-o", "nosuid,nodev,noexec,ro") in {
            argv[:5] for argv in node.ran
        }

    def test_tar_gz_without_a_file_system(self, node: FakeNode) -> None:
        """A disk with partitions cannot be a tar: it becomes a compressed image, and says so."""
        write(node, section(NOISE))
        head, answer = read(node, "tar.gz")
        assert head.meta["content"] == "gzip"
        assert gzip.decompress(content_of(answer)) == node.content("lv-one-42-0")

    def test_round_trip(self, node: FakeNode) -> None:
        """What was read makes the same disk again."""
        write(node, section(FILES), content="tar", fstype="ext4")
        _head, answer = read(node, "tar.gz")
        write(node, section(content_of(answer)), vm=43, content="tar.gz", fstype="ext4")
        assert files(node.tree("lv-one-43-0")) == files(node.tree("lv-one-42-0"))

    def test_packed(self, node: FakeNode) -> None:
        """A download may be compressed on its way, its reply included."""
        write(node, section(NOISE))
        args = {"vm": 42, "disk": 0, "as": "raw", "level": None}
        answer = send(node.machine(), "disk-read", request(args, pack=True), pack=True)
        assert content_of(answer) == node.content("lv-one-42-0")

    def test_packed_failure(self, node: FakeNode) -> None:
        """A failure is said in the form that the caller asked for."""
        args = {"vm": 42, "disk": 0, "as": "raw", "level": None}
        with pytest.raises(NotFoundError, match="VM 42 has no disk 0"):
            send(node.machine(), "disk-read", request(args, pack=True), pack=True)

    def test_in_use(self, node: FakeNode) -> None:
        """A disk that a guest writes to is not read: the copy would be torn."""
        write(node, section(NOISE))
        node.state.opened.add("lv-one-42-0")
        with pytest.raises(RefusedError, match="in use"):
            read(node, "raw")

    def test_incomplete(self, node: FakeNode) -> None:
        """An incomplete disk is not worth reading."""
        node.add_lv("lv-one-42-0", 8, tags=tags_of(42, "0", State.FILLING))
        with pytest.raises(RefusedError, match="incomplete"):
            read(node, "raw")

    def test_inactive_on_a_shared_group(self, node: FakeNode) -> None:
        """A disk that nobody uses is activated for the reading only."""
        node.shared = True
        write(node, section(NOISE))
        _head, answer = read(node, "raw")
        assert content_of(answer) == node.content("lv-one-42-0")
        assert not node.state.lvs["lv-one-42-0"].active


# --- removing -------------------------------------------------------------------------------------


class TestRemove:
    """disk-remove."""

    def remove(self, node: FakeNode) -> Answer:
        """The verb for disk 0 of VM 42."""
        return ask(node.machine(), "disk-remove", vm=42, disk=0, dir=directory(node, 42))

    def test_volume_and_link_go(self, node: FakeNode) -> None:
        """Neither the volume nor the link stays."""
        write(node, section(b"x"))
        assert self.remove(node).result == {"removed": True}
        assert node.state.lvs == {}
        assert os.listdir(directory(node, 42)) == []

    def test_nothing_there_is_success(self, node: FakeNode) -> None:
        """A disk that has gone already has been removed, even if its directory has gone too."""
        assert self.remove(node).result == {"removed": False}

    def test_in_use_is_marked(self, node: FakeNode) -> None:
        """A disk in use stays, marked, and the answer is a failure."""
        write(node, section(b"x"))
        node.state.opened.add("lv-one-42-0")
        with pytest.raises(RefusedError, match="lv-one-42-0 is in use"):
            self.remove(node)
        assert set(node.state.lvs["lv-one-42-0"].tags) == set(
            tags_of(42, "0", State.DELETE_REQUESTED)
        )
        node.state.opened.clear()
        assert self.remove(node).result == {"removed": True}

    def test_domain_is_enough(self, node: FakeNode) -> None:
        """A domain that has its disks closed just now still needs them."""
        write(node, section(b"x"))
        uuid = uuid_of(42)
        node.state.extra["domains"] = (("whatever", uuid),)
        with pytest.raises(RefusedError, match="domain is still there"):
            self.remove(node)
        assert "lv-one-42-0" in node.state.lvs

    def test_domain_of_another_vm_does_not_count(self, node: FakeNode) -> None:
        """The domain of VM 421 protects nothing of VM 42."""
        write(node, section(b"x"))
        node.state.extra["domains"] = (("lv-one-42", uuid_of(421)),)
        assert self.remove(node).result == {"removed": True}


def uuid_of(vm: int) -> str:
    """The UUID of a VM's domain."""
    return domain_uuid(CLOUD, VmId(vm))


def test_usage_of_the_group(node: FakeNode) -> None:
    """Space is what LVM says, in MiB, and the group's own id tells who shares it."""
    node.add_lv("other", 100)
    assert ask(node.machine(), "vg-usage").result == {
        "vg": "LVM_XEN",
        "uuid": "Xh9PzT-0000-0000-0000-0000-0000-000001",
        "total_mib": 1024,
        "used_mib": 100,
        "free_mib": 924,
    }


# --- every step of every verb ---------------------------------------------------------------------


@dataclass(frozen=True)
class Scenario:
    """A verb on a prepared node."""

    act: Callable[[FakeNode], Answer]
    prepare: Callable[[FakeNode], object] = lambda _node: None
    makes: bool = True  # a failure leaves what was there before
    shared: tuple[bool, ...] = (False,)


def _context(node: FakeNode) -> Answer:
    return write(node, section(b"new context"), disk=2, replace=True)


def _prepared_context(node: FakeNode) -> None:
    write(node, section(NOISE), disk=2)
    deployed(node, 42)


def _checkpoint(node: FakeNode) -> list[Item]:
    return [
        Section("deployment.0", {"mode": 0o640}),
        b"name = 'x'\n",
        Section("checkpoint", {"kind": "volume", "size_mib": 8}),
        NOISE,
        Zeros(MIB),
    ]


SCENARIOS = {
    "write raw": Scenario(lambda node: write(node, section(NOISE)), shared=(False, True)),
    "write gzip": Scenario(lambda node: write(node, section(gzip.compress(NOISE)), content="gzip")),
    "write tar.gz": Scenario(
        lambda node: write(node, section(gzip.compress(FILES)), content="tar.gz", fstype="ext4")
    ),
    "write over a leftover": Scenario(
        lambda node: write(node, section(NOISE)),
        lambda node: node.add_lv("lv-one-42-0", 8, tags=tags_of(42, "0", State.FILLING)),
        makes=False,
    ),
    "write again": Scenario(
        lambda node: write(node, section(NOISE)), lambda node: write(node, section(NOISE))
    ),
    "replace": Scenario(_context, _prepared_context, makes=False, shared=(False, True)),
    "blank swap": Scenario(lambda node: blank(node, made_as="swap")),
    "read tar.gz": Scenario(
        lambda node: read(node, "tar.gz")[1],
        lambda node: write(node, section(FILES), content="tar", fstype="ext4"),
        makes=False,
        shared=(False, True),
    ),
    "remove": Scenario(
        lambda node: ask(node.machine(), "disk-remove", vm=42, disk=0, dir=directory(node, 42)),
        lambda node: write(node, section(NOISE)),
        makes=False,
    ),
    "directory": Scenario(
        lambda node: ask(
            node.machine(),
            "dir-write",
            _checkpoint(node),
            vm=42,
            dir=directory(node, 42),
            name="user-vm42.home.net",
        ),
        makes=False,
    ),
}


@pytest.fixture
def _signals() -> Iterator[None]:
    """The process ends by exception on TERM, as the helper does."""
    numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("how", list(How), ids=[how.value for how in How])
@pytest.mark.parametrize(
    ("name", "shared"),
    [(name, shared) for name, scenario in SCENARIOS.items() for shared in scenario.shared],
)
@pytest.mark.usefixtures("_signals")
def test_fault_at_every_step(tmp_path: Path, name: str, how: How, *, shared: bool) -> None:
    """A verb that ends at any step and is run again does what it does undisturbed."""
    scenario = SCENARIOS[name]

    def prepared(path: Path) -> FakeNode:
        node = new_node(path)
        node.shared = shared
        scenario.prepare(node)
        node.ran.clear()
        return node

    undisturbed = prepared(tmp_path / "undisturbed")
    scenario.act(undisturbed)
    expected = picture(undisturbed)
    steps = len(undisturbed.ran)
    assert steps >= 1
    for step in range(steps):
        node = prepared(tmp_path / str(step))
        before = picture(node)
        node.fault = Fault(step, how)
        interrupt.install()
        with pytest.raises((KilledError, CxmError)):
            scenario.act(node)
        node.revive()
        if how in (How.FAIL, How.TERM):
            assert node.state.mounts == {}
            assert files(node.path("tmp")) == {}
            if scenario.makes:
                after = picture(node)
                after["dirs"] = {
                    path: what for path, what in after["dirs"].items() if what != "directory"
                }
                before["dirs"] = {
                    path: what for path, what in before["dirs"].items() if what != "directory"
                }
                assert after == before, f"step {step} {undisturbed.ran[step]}"
        scenario.act(node)
        assert picture(node) == expected, f"step {step} {undisturbed.ran[step]}"
        assert_no_old_bytes(node)
