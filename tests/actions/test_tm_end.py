# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""A VM's end: disks are saved back and removed, and nothing stays."""

import gzip
import re
import tarfile
from pathlib import Path

import pytest

from cxm.errors import RefusedError
from cxm.one.version import OneVersion
from tests.fakes.hosts import FRONTEND, Cloud, run
from tests.fakes.machine import MIB
from tests.fakes.transfers import (
    DISK,
    clone_argv,
    everything,
    image,
    new_cloud,
    old_image,
    saved_back_argv,
    stopped_disk,
    tar_image,
    volume,
    with_filesystem,
)


@pytest.mark.parametrize("name", ["disk.0", ""])
@pytest.mark.parametrize("host", ["solo1", FRONTEND])
def test_deleting_nothing_succeeds(cloud: Cloud, host: str, name: str) -> None:
    """Oned deletes what was never made."""
    run(cloud, "delete", cloud.place(host, name), "42", "0")


@pytest.mark.parametrize("name", ["disk.0", ""])
def test_what_is_in_use_is_refused_and_marked(cloud: Cloud, name: str) -> None:
    """Oned's clean-up reports success whatever we answer: the mark stays on the volume."""
    lv = volume(cloud, "solo1")
    cloud.hosts["solo1"].state.opened.add(lv)
    with pytest.raises(RefusedError, match="in use"):
        run(cloud, "delete", cloud.place("solo1", name), "42", "0")
    assert cloud.hosts["solo1"].content(lv) == DISK
    assert "cxm.state=delete-requested" in cloud.hosts["solo1"].state.lvs[lv].tags


def test_3_x_deletes_while_it_cancels(cloud: Cloud) -> None:
    """Its disks are in use for a moment still: the action waits, and removes them then."""
    lv = volume(cloud, "solo1")
    opened = cloud.hosts["solo1"].state.opened
    opened.add(lv)
    cloud.later = lambda: opened.discard(lv) if cloud.now > 5 else None
    run(cloud, "delete", cloud.place("solo1", "disk.0"), "42", "1", version=OneVersion(3, 8))
    assert not cloud.hosts["solo1"].state.lvs
    assert 5 < cloud.now < 10


def test_3_x_gives_up_in_the_end(cloud: Cloud) -> None:
    """A domain that does not go keeps its disks, marked."""
    lv = volume(cloud, "solo1")
    cloud.hosts["solo1"].state.opened.add(lv)
    with pytest.raises(RefusedError, match="in use"):
        run(cloud, "delete", cloud.place("solo1"), "42", "0", version=OneVersion(3, 8))
    assert 60 <= cloud.now < 70
    assert cloud.hosts["solo1"].content(lv) == DISK


def test_a_stopped_vm_is_deleted_by_the_name_of_its_old_host(cloud: Cloud) -> None:
    """7.4 names the host that the VM was on; its disks are on the frontend."""
    stopped_disk(cloud)
    run(cloud, "delete", cloud.place("solo1", "disk.0"), "42", "1")
    run(cloud, "delete", cloud.place("solo1"), "42", "0")
    assert not cloud.directory(FRONTEND).exists()


def test_the_end_of_a_vm_leaves_nothing_on_the_frontend(cloud: Cloud) -> None:
    """A resume was given up half-way: one disk is here, the other there."""
    volume(cloud, "solo1", "1")
    stopped_disk(cloud)
    run(cloud, "delete", cloud.place("solo1"), "42", "0")
    assert not cloud.hosts["solo1"].state.lvs
    assert not cloud.directory(FRONTEND).exists()


def test_a_link_in_place_of_the_directory_is_not_followed(cloud: Cloud) -> None:
    """Another VM's directory is safe."""
    stopped_disk(cloud)
    cloud.directory(FRONTEND, 43).symlink_to(cloud.directory(FRONTEND))
    with pytest.raises(RefusedError, match="is a link"):
        run(cloud, "delete", cloud.place(FRONTEND, vm=43), "43", "0")
    assert (cloud.directory(FRONTEND) / "disk.0").exists()


@pytest.mark.parametrize("mode", ["RAW", "GZIP", "TGZ"])
@pytest.mark.parametrize("host", ["solo1", FRONTEND])
def test_a_persistent_disk_goes_back_and_comes_again(cloud: Cloud, host: str, mode: str) -> None:
    """Saved in any mode, from a host or as a stopped VM, the next clone gives the same disk."""
    if host == FRONTEND:
        stopped_disk(cloud)
    else:
        volume(cloud, host)
    source = image(cloud, "web")
    source.write_bytes(b"old")
    source.chmod(0o640)
    run(cloud, "mvds", cloud.place(host, "disk.0"), str(source), "42", "1", mode=mode)
    assert source.read_bytes()[:2] == (b"\x1f\x8b" if mode != "RAW" else DISK[:2])
    assert source.stat().st_mode & 0o777 == 0o640
    if host != FRONTEND:
        run(cloud, "delete", cloud.place(host), "42", "0")
    run(cloud, "clone", *clone_argv(cloud))
    assert cloud.hosts["solo1"].content("lv-one-42-0") == DISK


def test_only_the_files_of_a_file_system_are_saved(cloud: Cloud) -> None:
    """Mode TGZ keeps the data and leaves the free space."""
    tar_image(cloud)
    run(cloud, "clone", *clone_argv(cloud))
    run(cloud, "mvds", *saved_back_argv(cloud), mode="TGZ")
    with tarfile.open(image(cloud, "web")) as archive:
        names = {member.name.removeprefix("./").rstrip("/") for member in archive}
    assert {"etc/hostname", "srv/noise"} <= names


@pytest.mark.parametrize("version", ["3.8", "4.14", "7.4"])
def test_a_disk_that_is_saved_as_files_keeps_its_size(cloud_root: Path, version: str) -> None:
    """Of the files no size follows, and the default may be smaller than the image once was."""
    cloud = new_cloud(cloud_root, version)
    node = cloud.hosts["solo1"]
    cloud.images[7] = re.sub("<LV_SIZE>.*</LV_SIZE>", "", cloud.images[7]).replace(
        "<SIZE>4<", "<SIZE>24<"
    )
    cloud.vms[42] = cloud.vms[42].replace("SIZE><![CDATA[4]", "SIZE><![CDATA[24]")
    image(cloud, "web").write_bytes(with_filesystem("ext4", 24))
    run(cloud, "clone", *clone_argv(cloud), default_lv_size="8M")
    (Path(node.tree("lv-one-42-0")) / "etc").mkdir(parents=True)
    run(cloud, "mvds", *saved_back_argv(cloud))
    assert tarfile.is_tarfile(image(cloud, "web"))
    run(cloud, "delete", cloud.place("solo1"), "42", "0")
    run(cloud, "clone", *clone_argv(cloud), default_lv_size="8M")
    assert node.state.lvs["lv-one-42-0"].size == 24 * MIB
    assert node.state.lvs["lv-one-42-0"].filesystem == "ext4"


def test_a_disk_of_another_file_system_is_saved_whole(
    cloud: Cloud, caplog: pytest.LogCaptureFixture
) -> None:
    """Files would come back as ext4, which the guest's fstab does not know; the log says so."""
    disk = with_filesystem("xfs", 4)
    image(cloud, "web").write_bytes(disk)
    run(cloud, "clone", *clone_argv(cloud))
    cloud.steps.clear()
    run(cloud, "mvds", *saved_back_argv(cloud))
    assert cloud.steps == [("solo1", "disk-read")]
    (warning,) = [each for each in caplog.records if each.name == "cxm.one.tm.mvds"][:1]
    assert warning.levelname == "WARNING"
    assert "VM 42 disk 0 is saved whole" in warning.getMessage()
    assert "set FSTYPE=xfs at the image" in warning.getMessage()
    run(cloud, "delete", cloud.place("solo1"), "42", "0")
    run(cloud, "clone", *clone_argv(cloud))
    assert cloud.hosts["solo1"].content("lv-one-42-0") == disk


def test_a_disk_whose_image_nobody_knows_is_saved_whole(cloud: Cloud) -> None:
    """A VM's end does not fail since oned does not say what its image would become."""
    image(cloud, "web").write_bytes(with_filesystem("ext4", 4))
    run(cloud, "clone", *clone_argv(cloud))
    cloud.oned_answers = False
    run(cloud, "mvds", *saved_back_argv(cloud))
    assert gzip.decompress(image(cloud, "web").read_bytes()) == with_filesystem("ext4", 4)


def test_3_x_saves_a_disk_as_an_image_of_its_own(cloud_root: Path) -> None:
    """What the new image says, not the old one, decides how the disk comes again."""
    cloud = new_cloud(cloud_root, "3.8")
    image(cloud, "web").write_bytes(with_filesystem("ext4", 4))
    run(cloud, "clone", *clone_argv(cloud))
    cloud.vms[42] = cloud.vms[42].replace(
        "<IMAGE_ID><![CDATA[7]]>", "<SAVE_AS>9</SAVE_AS><IMAGE_ID><![CDATA[7]]>"
    )
    cloud.images[9] = (
        "<IMAGE><ID>9</ID><NAME>new</NAME><TYPE>0</TYPE><FSTYPE>save_as</FSTYPE></IMAGE>"
    )
    argv = [cloud.place("solo1", "disk.0"), str(image(cloud, "new")), "42", "1"]
    run(cloud, "mvds", *argv, default_fstype="ext3")
    assert gzip.decompress(image(cloud, "new").read_bytes()) == with_filesystem("ext4", 4)


def test_a_disk_in_use_is_not_saved(cloud: Cloud) -> None:
    """The image stays as it was, and nothing lies beside it."""
    old_image(cloud)
    cloud.hosts["solo1"].state.opened.add("lv-one-42-0")
    before = everything(cloud)
    with pytest.raises(RefusedError, match="in use"):
        run(cloud, "mvds", *saved_back_argv(cloud))
    assert everything(cloud) == before


def test_a_new_image_is_made(cloud: Cloud) -> None:
    """3.x saves a disk as a new image when the VM ends."""
    volume(cloud, "solo1")
    target = image(cloud, "new")
    run(cloud, "mvds", cloud.place("solo1", "disk.0"), str(target), "42", "1", mode="RAW")
    assert target.read_bytes() == DISK
    assert target.stat().st_mode & 0o777 == 0o660
