# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""File systems: what is recognised, and mounts that are private and never stay."""

import os
from pathlib import Path

import pytest

from cxm import config, filesystem
from cxm.errors import CommandError, DataError, RefusedError
from tests.fakes.machine import FakeNode, Fault, How, Outcome

LABEL = "cloudone1-42"


@pytest.fixture
def node(tmp_path: Path) -> FakeNode:
    """A node with a volume that holds an ext4."""
    made = FakeNode(str(tmp_path / "node"))
    made.add_lv("disk", 4, content=b"")
    filesystem.make(made, device(made), "ext4")
    made.ran.clear()
    return made


def device(node: FakeNode) -> str:
    """The volume's device."""
    return node.path("dev", node.vg, "disk")


def tmp(node: FakeNode) -> str:
    """The directory below which mounts are made."""
    return node.path("tmp")


@pytest.mark.parametrize(
    ("stdout", "code", "found"),
    [
        ("DEVNAME=/dev/x\nUUID=1\nTYPE=ext4\nUSAGE=filesystem\n", 0, "ext4"),
        ("DEVNAME=/dev/x\nSEC_TYPE=ext2\nTYPE=ext3\nUSAGE=filesystem\n", 0, "ext3"),
        ("DEVNAME=/dev/x\nLABEL=TYPE=ext4\nTYPE=vfat\n", 0, "vfat"),
        ("DEVNAME=/dev/x\nTYPE=ntfs\nUSAGE=filesystem\n", 0, None),
        ("DEVNAME=/dev/x\nTYPE=swap\nUSAGE=other\n", 0, None),
        ("DEVNAME=/dev/x\nPTUUID=1\nPTTYPE=dos\n", 0, None),
        ("", 2, None),
        ("", 8, None),
    ],
)
def test_detection(node: FakeNode, stdout: str, code: int, found: str | None) -> None:
    """Only a file system that cxm makes itself is one: nothing else is ever mounted."""
    node.model("blkid", lambda _argv, _input: Outcome(stdout, code=code))
    assert filesystem.detect(node, "/dev/x") == found


def test_every_file_system_of_the_settings_can_be_made(node: FakeNode) -> None:
    """FSTYPE's words are all known here."""
    for kind in (*config.FILESYSTEMS, "swap"):
        node.add_lv("disk", 4, content=b"")
        filesystem.make(node, device(node), kind)
        assert node.state.lvs["disk"].filesystem == kind


def test_first_complaint_of_a_maker_is_the_sentence(node: FakeNode) -> None:
    """mkfs.xfs prints its manual behind the reason; the reason is what counts."""
    text = "Filesystem must be larger than 300MB.\nUsage: mkfs.xfs\n" + "x" * 2000
    node.model("mkfs.xfs", lambda _argv, _input: Outcome(stderr=text, code=1))
    with pytest.raises(CommandError) as caught:
        filesystem.make(node, device(node), "xfs")
    assert caught.value.message.endswith("disk: Filesystem must be larger than 300MB.")


def test_mount_is_private_and_ends(node: FakeNode) -> None:
    """While mounted, only root can go there; afterwards nothing is left."""
    with filesystem.mounted(
        node, device(node), "ext4", root=tmp(node), label=LABEL, write=True
    ) as path:
        assert path == os.path.join(tmp(node), "cxm", LABEL)
        assert os.stat(os.path.dirname(path)).st_mode & 0o777 == 0o700
        assert node.state.mounts == {path: "disk"}
        Path(path, "file").write_text("x")
    assert node.state.mounts == {}
    assert os.listdir(os.path.join(tmp(node), "cxm")) == []
    assert Path(node.tree("disk"), "file").read_text() == "x"


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt()])
def test_mount_ends_with_a_failure(node: FakeNode, error: BaseException) -> None:
    """Whatever ends the work ends the mount, and is what is reported."""
    with (
        pytest.raises(type(error)),
        filesystem.mounted(node, device(node), "ext4", root=tmp(node), label=LABEL, write=False),
    ):
        raise error
    assert node.state.mounts == {}
    assert os.listdir(os.path.join(tmp(node), "cxm")) == []


def test_unmounting_gets_a_second_chance(node: FakeNode) -> None:
    """A failure of umount is a failure, but the mount does not stay."""
    node.fault = Fault(1, How.FAIL)
    with (
        pytest.raises(CommandError, match="umount"),
        filesystem.mounted(node, device(node), "ext4", root=tmp(node), label=LABEL, write=True),
    ):
        pass
    assert node.state.mounts == {}


def test_options_of_mounts(node: FakeNode) -> None:
    """A guest's file system gives this host no programs, no set-uid bits and no devices."""
    for write, mode in ((True, "rw,noatime"), (False, "ro")):
        with filesystem.mounted(
            node, device(node), "ext4", root=tmp(node), label=LABEL, write=write
        ):
            pass
        mount = next(argv for argv in reversed(node.ran) if argv[0] == "mount")
        assert mount[1:5] == ("-t", "ext4", "-o", f"nosuid,nodev,noexec,{mode}")


def test_mount_left_by_a_kill_is_cleared(node: FakeNode) -> None:
    """The next action on the VM unmounts what a killed one left; others' mounts stay."""
    home = os.path.join(tmp(node), "cxm")
    node.add_lv("other", 4, content=b"")
    filesystem.make(node, node.path("dev", node.vg, "other"), "ext3")
    os.makedirs(os.path.join(home, LABEL), mode=0o700)
    os.makedirs(os.path.join(home, LABEL + "1"))
    os.chmod(home, 0o700)
    options = ("-o", "nosuid,nodev,noexec")
    node.run(["mount", "-t", "ext4", *options, device(node), os.path.join(home, LABEL)])
    other = os.path.join(home, LABEL + "1")
    node.run(["mount", "-t", "ext3", *options, node.path("dev", node.vg, "other"), other])
    filesystem.clear(node, tmp(node), LABEL)
    assert node.state.mounts == {other: "other"}
    assert os.listdir(home) == [LABEL + "1"]


def test_nothing_left_costs_no_command(node: FakeNode) -> None:
    """Where nothing is left, nothing is run and nothing is made."""
    filesystem.clear(node, tmp(node), LABEL)
    assert node.ran == []
    assert os.listdir(tmp(node)) == []


@pytest.mark.parametrize("planted", ["link", "file", "open"])
def test_planted_directory_is_refused(node: FakeNode, tmp_path: Path, planted: str) -> None:
    """In a place that everybody can write, a directory of root alone or none."""
    home = Path(tmp(node), "cxm")
    if planted == "link":
        home.symlink_to(tmp_path)
    elif planted == "file":
        home.write_text("")
    else:
        home.mkdir(mode=0o755)
    with (
        pytest.raises(RefusedError, match="cxm is not a directory of root alone"),
        filesystem.mounted(node, device(node), "ext4", root=tmp(node), label=LABEL, write=True),
    ):
        pass
    assert node.state.mounts == {}


@pytest.mark.parametrize(
    ("stderr", "says"),
    [
        ("tar: a: Cannot write: No space left on device\n", "do not fit into the disk"),
        ("tar: Cannot mkdir: No space left on device\n" * 9999, "do not fit into the disk"),
        ("tar: x/../y: Member name contains '..'\n", r"outside of its root directory: 'x/\.\./y'"),
        ("tar: This does not look like a tar archive\n", "not a tar archive"),
        ("tar: Unexpected EOF in archive\n", "ends too early"),
        ("tar: a: Cannot mknod: Operation not permitted\n", "cannot be unpacked: tar: a: Cannot"),
    ],
)
def test_complaints_of_tar(node: FakeNode, stderr: str, says: str) -> None:
    """What tar says becomes a sentence about the image, short however much tar says."""
    node.model("tar", lambda _argv, _input: Outcome(stderr=stderr, code=2))
    with pytest.raises(DataError, match=says) as caught:
        filesystem.unpack(node, [b""], "/nowhere", "ext4")
    assert len(caught.value.sentence()) < 500


def test_owners_and_modes_are_numbers_and_kept(node: FakeNode, tmp_path: Path) -> None:
    """What goes into an archive comes out of it: modes, links, empty directories, attributes."""
    origin, copy = tmp_path / "origin", tmp_path / "copy"
    (origin / "empty").mkdir(parents=True)
    copy.mkdir()
    (origin / "program").write_text("x")
    (origin / "program").chmod(0o4751)
    os.setxattr(origin / "program", "user.note", b"kept")
    os.link(origin / "program", origin / "again")
    os.symlink("/proc/mounts", origin / "mtab")
    os.utime(origin / "program", (10**9, 10**9))
    with filesystem.pack(node, str(origin)) as archive:
        filesystem.unpack(node, archive, str(copy), "ext4")
    status = os.lstat(copy / "program")
    assert status.st_mode & 0o7777 == 0o4751
    assert (status.st_mtime, status.st_nlink) == (10**9, 2)
    assert os.getxattr(copy / "program", "user.note") == b"kept"
    assert os.readlink(copy / "mtab") == "/proc/mounts"
    assert (copy / "empty").is_dir()
    assert "--numeric-owner" in node.ran[-1]
