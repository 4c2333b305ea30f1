# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Disks from damaged, lying and hostile images: one clear sentence, and nothing left."""

import gzip
import io
import os
import stat
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cxm import wire
from cxm.errors import (
    CommandError,
    CxmError,
    DataError,
    NotFoundError,
    RefusedError,
)
from cxm.names import VmId
from cxm.node import helper
from cxm.node.client import FAILURE_CODE
from cxm.wire import Zeros
from tests.fakes.call import ask, request, send
from tests.fakes.disks import (
    FILES,
    NOISE,
    directory,
    files,
    new_node,
    section,
    special,
    tar,
    write,
    zstd,
)
from tests.fakes.machine import CLOUD, MIB, FakeNode, Outcome


@pytest.fixture
def node(tmp_path: Path) -> FakeNode:
    """A node with an empty volume group of 1 GiB and no domains."""
    return new_node(tmp_path / "node1")


def _arguments(node: FakeNode, content: str, fstype: str | None) -> dict[str, object]:
    """Of disk-write, for a request that is written byte by byte."""
    return {
        "vm": 42,
        "disk": 0,
        "dir": directory(node, 42),
        "name": "user-vm42.home.net",
        "size_mib": 8,
        "content": content,
        "fstype": fstype,
        "replace": False,
    }


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
        args = _arguments(node, "raw", None)
        with pytest.raises(DataError, match="data stream was cut"):
            send(node.machine(), "disk-write", request(args, pack=True) + data[: len(data) // 2])

    @pytest.mark.parametrize("content", ["raw", "gzip", "tar"])
    @pytest.mark.parametrize("pack", [False, True])
    def test_sender_that_falls_silent(self, node: FakeNode, content: str, *, pack: bool) -> None:
        """A frontend that died without a word must not hold the VM and half a disk for ever."""
        image = {"raw": NOISE, "gzip": gzip.compress(NOISE), "tar": FILES}[content]
        data = b"".join(wire.encode(section(image)))
        args = _arguments(node, content, "ext4")
        machine = node.machine(silence_s=0.2)
        reading, writing = os.pipe()
        with open(reading, "rb", buffering=0) as stdin, open(writing, "wb", buffering=0) as sender:
            sender.write(request(args, pack=pack) + (zstd(data) if pack else data)[:30000])
            output = io.BytesIO()
            assert helper.serve("disk-write", stdin, output, machine) == FAILURE_CODE
        with pytest.raises(
            DataError, match=r"node1: nothing has come from the frontend for 0\.2 s"
        ):
            wire.parse_reply(output.getvalue())
        assert not machine.vm_busy(CLOUD, VmId(42))

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


def test_the_first_failure_is_said_whatever_follows(node: FakeNode) -> None:
    """When LVM cannot even be asked what to take back, the image's damage is still told."""
    reports = iter([node._lvm])

    def once(argv: tuple[str, ...], given: bytes) -> Outcome:
        return next(reports, lambda _argv, _given: Outcome("no report"))(argv, given)

    node.model("lvm", once)
    with pytest.raises(DataError, match="the image is damaged"):
        write(node, section(b"no gzip"), content="gzip")


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
