# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""The verbs that read disks and remove them."""

import gzip
import io
import os
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from cxm.errors import (
    NotFoundError,
    RefusedError,
)
from cxm.names import State
from cxm.wire import Zeros
from tests.fakes.call import Answer, ask, request, send
from tests.fakes.disks import (
    FILES,
    NOISE,
    content_of,
    directory,
    files,
    new_node,
    read,
    section,
    tags_of,
    uuid_of,
    write,
)
from tests.fakes.machine import MIB, FakeNode


@pytest.fixture
def node(tmp_path: Path) -> FakeNode:
    """A node with an empty volume group of 1 GiB and no domains."""
    return new_node(tmp_path / "node1")


def closes_in(node: FakeNode, seconds: float) -> None:
    """The backend of disk 0 of VM 42 has it open, and lets go of it after this time."""
    opened = node.state.opened
    opened.add("lv-one-42-0")
    node.later = lambda: opened.discard("lv-one-42-0") if node.clock >= seconds else None


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
        assert answer.result == {"lv": "lv-one-42-0", "content": "raw", "fstype": None}

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

    def test_files_that_would_become_another_file_system(self, node: FakeNode) -> None:
        """A disk whose files would come back as ext3 is sent whole, and stays xfs."""
        write(node, section(FILES), content="tar", fstype="xfs")
        head, answer = read(node, "tar.gz", fstype="ext3")
        assert head.meta == {"content": "gzip", "size_mib": 8, "fstype": "xfs"}
        assert gzip.decompress(content_of(answer)) == node.content("lv-one-42-0")
        assert answer.result == {"lv": "lv-one-42-0", "content": "gzip", "fstype": "xfs"}
        head, _answer = read(node, "tar.gz", fstype="xfs")
        assert head.meta["content"] == "tar.gz"

    def test_btrfs_is_sent_whole(self, node: FakeNode) -> None:
        """Its subvolumes are file systems of their own: an archive would lack them."""
        write(node, section(FILES), content="tar", fstype="btrfs")
        head, answer = read(node, "tar.gz", fstype="btrfs")
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
        args = {"vm": 42, "disk": 0, "as": "raw", "fstype": None, "level": None}
        answer = send(node.machine(), "disk-read", request(args, pack=True), pack=True)
        assert content_of(answer) == node.content("lv-one-42-0")

    def test_packed_failure(self, node: FakeNode) -> None:
        """A failure is said in the form that the caller asked for."""
        args = {"vm": 42, "disk": 0, "as": "raw", "fstype": None, "level": None}
        with pytest.raises(NotFoundError, match="VM 42 has no disk 0"):
            send(node.machine(), "disk-read", request(args, pack=True), pack=True)

    def test_in_use(self, node: FakeNode) -> None:
        """A disk that a guest writes to is not read: the copy would be torn."""
        write(node, section(NOISE))
        node.state.opened.add("lv-one-42-0")
        with pytest.raises(RefusedError, match="in use"):
            read(node, "raw")

    def test_backend_that_closes_late_is_waited_for(self, node: FakeNode) -> None:
        """A disk is saved when the backend of its guest, just ended, has let go of it."""
        write(node, section(NOISE))
        closes_in(node, 3)
        _head, answer = read(node, "raw")
        assert content_of(answer) == node.content("lv-one-42-0")

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

    def test_backend_that_closes_late_is_waited_for(self, node: FakeNode) -> None:
        """A domain is gone some moments before its backend lets go of the disk."""
        write(node, section(b"x"))
        closes_in(node, 3)
        assert self.remove(node).result == {"removed": True}
        assert node.state.lvs == {}
        assert 3 <= node.clock < 4

    def test_disk_of_a_running_guest_is_not_waited_for(self, node: FakeNode) -> None:
        """Only the moments after a domain's end are worth waiting for."""
        write(node, section(b"x"))
        node.state.extra["domains"] = (("whatever", uuid_of(42)),)
        closes_in(node, 3)
        with pytest.raises(RefusedError, match="lv-one-42-0 is in use"):
            self.remove(node)
        assert node.clock == 0

    def test_tags_of_the_administrator_stay(self, node: FakeNode) -> None:
        """Whoever marks a volume for a backup finds the mark again."""
        write(node, section(b"x"))
        lv = node.state.lvs["lv-one-42-0"]
        node.state.lvs[lv.name] = replace(lv, tags=(*lv.tags, "backup=weekly", "gold"))
        node.state.opened.add(lv.name)
        with pytest.raises(RefusedError, match="in use"):
            self.remove(node)
        tags = set(node.state.lvs[lv.name].tags)
        assert tags == {*tags_of(42, "0", State.DELETE_REQUESTED), "backup=weekly", "gold"}

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
