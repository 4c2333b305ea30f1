# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Images become disks: clone, ln, mkimage and mkswap, from oned's words to a host's volumes."""

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest

from cxm.errors import (
    ConfigError,
    CxmError,
    DataError,
    NotFoundError,
    RefusedError,
    UnreachableError,
    UsageError,
)
from cxm.names import State, Tags, VmId
from cxm.node import guests
from cxm.node.guests import Life
from tests.fakes.hosts import Cloud, run, with_id
from tests.fakes.machine import CLOUD, MIB
from tests.fakes.transfers import (
    DISK,
    NOISE,
    clone_argv,
    everything,
    image,
    new_cloud,
    tar_gz,
    tar_image,
    volume,
)


@pytest.mark.parametrize("action", ["clone", "ln"])
def test_a_raw_image_becomes_a_volume(cloud: Cloud, action: str) -> None:
    """Content, size, tags, link; in one round trip."""
    run(cloud, action, *clone_argv(cloud))
    node = cloud.hosts["solo1"]
    lv = node.state.lvs["lv-one-42-0"]
    assert node.content(lv.name) == DISK
    tags = Tags(CLOUD, VmId(42), "0", State.READY, "alice-web1.vm.home.net")
    assert set(lv.tags) == set(tags.encode())
    assert (cloud.directory("solo1") / "disk.0").is_symlink()
    assert cloud.steps == [("solo1", "disk-write")]


@pytest.mark.parametrize("version", ["3.8", "4.14", "5.10", "6.10", "7.4"])
def test_a_tar_image_becomes_files(cloud_root: Path, version: str) -> None:
    """The file system of FSTYPE, with the image's files, in every version."""
    cloud = new_cloud(cloud_root, version)
    tar_image(cloud)
    run(cloud, "clone", *clone_argv(cloud))
    node = cloud.hosts["solo1"]
    assert node.state.lvs["lv-one-42-0"].filesystem == "ext4"
    tree_of = Path(node.tree("lv-one-42-0"))
    assert (tree_of / "srv" / "noise").read_bytes() == NOISE
    assert (tree_of / "etc" / "hostname").read_bytes() == b"guest\n"


def test_the_disk_of_the_template_decides_the_size(cloud: Cloud) -> None:
    """The VM's template asks for more than the image has (5.0 on)."""
    cloud.vms[42] = cloud.vms[42].replace("<SIZE><![CDATA[4]]>", "<SIZE><![CDATA[40]]>", 1)
    run(cloud, "clone", *clone_argv(cloud))
    assert cloud.hosts["solo1"].state.lvs["lv-one-42-0"].size == 40 * MIB


def test_a_volume_is_never_smaller_than_its_content(cloud: Cloud) -> None:
    """An LV_SIZE that is too small is exceeded, not the disk cut."""
    image(cloud, "web").write_bytes(DISK + DISK)
    run(cloud, "clone", *clone_argv(cloud))
    assert cloud.hosts["solo1"].content("lv-one-42-0") == DISK + DISK


def test_a_gzip_image_that_says_too_little_is_measured(cloud: Cloud) -> None:
    """Its last bytes tell the length modulo 4 GiB, and of its last part only."""
    parts = [NOISE[:-number] for number in range(1, 7)]
    image(cloud, "web").write_bytes(b"".join(gzip.compress(part, 1) for part in parts))
    run(cloud, "clone", *clone_argv(cloud))
    assert cloud.hosts["solo1"].content("lv-one-42-0").rstrip(b"\0") == b"".join(parts).rstrip(
        b"\0"
    )


def test_a_cd_is_as_large_as_its_content(cloud: Cloud) -> None:
    """An installation CD gets no volume of gigabytes."""
    image(cloud, "web").write_bytes(bytes(32768) + b"\x01CD001\x01" + bytes(2041))
    cloud.images[7] = cloud.images[7].replace("4M", "800M")
    run(cloud, "ln", *clone_argv(cloud))
    assert cloud.hosts["solo1"].state.lvs["lv-one-42-0"].size == 4 * MIB


def test_disk_10_has_its_own_image(cloud: Cloud) -> None:
    """Disk 1 is volatile, disk 10 is an image: they are not mistaken for each other."""
    run(cloud, "clone", *clone_argv(cloud, "disk.10"))
    assert list(cloud.hosts["solo1"].state.lvs) == ["lv-one-42-10"]
    run(cloud, "mkswap", "4", cloud.place("solo1", "disk.1"), "42", "0")
    run(cloud, "delete", cloud.place("solo1", "disk.1"), "42", "0")
    assert list(cloud.hosts["solo1"].state.lvs) == ["lv-one-42-10"]


def test_vm_1_beside_vm_10_and_11(cloud: Cloud) -> None:
    """Every action on VM 1 leaves VM 10 and 11 as they are."""
    text = cloud.vms[42]
    for vm in (1, 10, 11):
        cloud.vms[vm] = with_id(text, vm, name=f"web{vm}")
        place = cloud.place("solo1", "disk.0", vm)
        run(cloud, "clone", str(image(cloud, "web")), place, str(vm), "1")
    before = {name: cloud.hosts["solo1"].state.lvs[name] for name in ("lv-one-10-0", "lv-one-11-0")}
    place = cloud.place("solo1", "disk.0", 1)
    run(cloud, "mvds", place, str(image(cloud, "web")), "1", "1", mode="RAW")
    run(cloud, "delete", cloud.place("solo1", vm=1), "1", "0")
    assert cloud.hosts["solo1"].state.lvs == before
    assert sorted(path.name for path in cloud.directory("solo1", 10).parent.iterdir()) == [
        "10",
        "11",
    ]


def test_a_kernel_becomes_a_file(cloud: Cloud) -> None:
    """A file of a FILE datastore is copied whatever it holds."""
    image(cloud, "web").write_bytes(b"\x7fELF" + NOISE)
    run(cloud, "clone", *clone_argv(cloud, "kernel"))
    assert (cloud.directory("solo1") / "kernel").read_bytes() == b"\x7fELF" + NOISE
    assert not cloud.hosts["solo1"].state.lvs


def test_a_disk_whose_image_oned_does_not_know(cloud: Cloud) -> None:
    """3.x takes a SOURCE without an image: the default size holds."""
    cloud.vms[42] = cloud.vms[42].replace("<IMAGE_ID><![CDATA[7]]></IMAGE_ID>", "")
    run(cloud, "clone", *clone_argv(cloud), default_lv_size="12M")
    assert cloud.hosts["solo1"].state.lvs["lv-one-42-0"].size == 12 * MIB


def test_a_disk_that_a_guest_has_used_is_kept(cloud: Cloud) -> None:
    """Oned repeats the prolog of a VM that has run: its disk and the link to it stay."""
    volume(cloud, "solo1", content=NOISE * 4)
    machine = cloud.hosts["solo1"].machine()
    guests.write(machine, guests.Guest(CLOUD, VmId(42), "x", Life.STOPPED, "off", 0.0))
    before = everything(cloud)
    with pytest.raises(RefusedError, match="has run with it; its content is kept"):
        run(cloud, "clone", *clone_argv(cloud))
    assert everything(cloud) == before


def _volume_of_another_cloud(cloud: Cloud) -> None:
    tags = ["cxm.cloud=othercloud", "cxm.vm=42", "cxm.disk=0", "cxm.state=ready"]
    cloud.hosts["solo1"].add_lv("lv-one-42-0", 4, tags=tags)


def _name_is_taken(cloud: Cloud) -> None:
    volume(cloud, "solo1", vm=41)


def _vm_named(owner: str, name: str) -> Callable[[Cloud], None]:
    def change(cloud: Cloud) -> None:
        text = cloud.vms[42].replace("<UNAME>alice<", f"<UNAME>{owner}<")
        cloud.vms[42] = text.replace("<NAME>web-1<", f"<NAME>{name}<")

    return change


def _image_is(content: bytes) -> Callable[[Cloud], None]:
    def change(cloud: Cloud) -> None:
        image(cloud, "web").write_bytes(content)

    return change


def _image_is_directory(cloud: Cloud) -> None:
    image(cloud, "web").unlink()
    image(cloud, "web").mkdir()


def _no_group(cloud: Cloud) -> None:
    cloud.hosts["solo1"].has_vg = False


def _full_group(cloud: Cloud) -> None:
    cloud.hosts["solo1"].add_lv("other", 1020)
    cloud.images[7] = cloud.images[7].replace("4M", "100M")


def _no_oned(cloud: Cloud) -> None:
    cloud.oned_answers = False


def _dead_host(cloud: Cloud) -> None:
    cloud.dead.add("solo1")


def _unknown_vm(cloud: Cloud) -> None:
    del cloud.vms[42]


def _no_disk(cloud: Cloud) -> None:
    cloud.vms[42] = cloud.vms[42].replace("<DISK_ID><![CDATA[0]]>", "<DISK_ID><![CDATA[100]]>")


def _bad_size(cloud: Cloud) -> None:
    cloud.images[7] = cloud.images[7].replace("4M", "four")


def _bad_filesystem(cloud: Cloud) -> None:
    tar_image(cloud)
    cloud.images[7] = cloud.images[7].replace("ext4", "ntfs")


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (_volume_of_another_cloud, RefusedError, "belongs to disk 0 of VM 42 of the cloud"),
        (_name_is_taken, RefusedError, "'alice-web1.vm.home.net' of VM 42 is taken already"),
        (_vm_named("$;&amp;'/", "web"), UsageError, "its owner '$;&'/' has no letter or digit"),
        (_vm_named("alice", "---"), UsageError, "its name '---' has no letter or digit"),
        (_vm_named("alice", "\u2603"), UsageError, "has no letter or digit"),
        (_vm_named("-alice", "web"), UsageError, "'-alice-web.vm.home.net' cannot name a domain"),
        (_vm_named("", "web"), UsageError, "its owner '' has no letter"),
        (_image_is(b"\xfd7zXZ\0" + NOISE), DataError, "is xz-compressed"),
        (_image_is(b"KDMV" + NOISE), DataError, "vmdk"),
        (_image_is(gzip.compress(NOISE * 4)[:-100_000]), DataError, "damaged"),
        (_image_is(tar_gz()[:-100_000]), CxmError, "damaged"),
        (_image_is(gzip.compress(NOISE)[:-4] + b"\xff" * 4), DataError, "damaged"),
        (_image_is(gzip.compress(NOISE)[:-4] + b"\1\0\0\0"), DataError, "solo1: the image is"),
        (_image_is_directory, UsageError, "is a directory"),
        (lambda cloud: image(cloud, "web").unlink(), NotFoundError, "does not exist"),
        (_no_group, NotFoundError, "LVM_XEN"),
        (_full_group, RefusedError, "has 4 MiB free"),
        (_no_oned, UnreachableError, "oned does not answer"),
        (_dead_host, UnreachableError, "solo1 cannot be reached"),
        (_unknown_vm, NotFoundError, "oned refused one.vm.info"),
        (_no_disk, NotFoundError, "VM 42 has no disk 0 in oned"),
        (_bad_size, ConfigError, "LV_SIZE: 'four' is not a size"),
        (_bad_filesystem, ConfigError, "'ntfs' is not a file system"),
    ],
)
def test_what_cannot_be_cloned_is_one_sentence_and_leaves_nothing(
    cloud: Cloud, change: Callable[[Cloud], object], error: type[CxmError], says: str
) -> None:
    """The sentence names the cause; no volume, no link and no temporary file stays."""
    change(cloud)
    hosts = {name: set(node.state.lvs) for name, node in cloud.hosts.items()}
    with pytest.raises(error) as caught:
        run(cloud, "clone", *clone_argv(cloud))
    assert says in caught.value.sentence()
    assert "\n" not in caught.value.sentence()
    assert {name: set(node.state.lvs) for name, node in cloud.hosts.items()} == hosts
    for host in cloud.hosts:
        assert not list(Path(cloud.hosts[host].path("datastores")).rglob("disk.0")) or hosts[host]
    assert not list((cloud.front / "tmp").iterdir())


@pytest.mark.parametrize("data", [gzip.compress(NOISE)[:-4] + b"\1\0\0\0", b"KDMV" + NOISE])
def test_what_is_wrong_with_an_image_names_vm_disk_and_image(cloud: Cloud, data: bytes) -> None:
    """Whoever reads it knows which of many images to mend, wherever the damage was found."""
    image(cloud, "web").write_bytes(data)
    with pytest.raises(DataError, match=r"^VM 42 disk 0, image 7 \('web root'\): \S+"):
        run(cloud, "clone", *clone_argv(cloud))
    cloud.vms[42] = cloud.vms[42].replace("<IMAGE_ID><![CDATA[7]]></IMAGE_ID>", "")
    with pytest.raises(DataError, match=r"^VM 42 disk 0: \S+"):
        run(cloud, "clone", *clone_argv(cloud), default_lv_size="4M")


def test_a_name_of_any_letters_is_reduced_as_in_the_original(cloud: Cloud) -> None:
    """Blanks, quotes and letters of other scripts fall away; what is left names the domain."""
    _vm_named("alice", "w\u00e9b / '1' &amp; $x;")(cloud)
    run(cloud, "clone", *clone_argv(cloud))
    assert "cxm.name=alice-wb1x.vm.home.net" in cloud.hosts["solo1"].state.lvs["lv-one-42-0"].tags


@pytest.mark.parametrize(
    ("version", "form", "expected"),
    [("3.8", "ext3", "ext3"), ("5.10", "ext4", "ext4"), ("7.4", "raw", "ext4"), ("3.8", "raw", "")],
)
def test_a_volatile_disk_is_made_as_its_version_says(
    cloud_root: Path, version: str, form: str, expected: str
) -> None:
    """FORMAT up to 5.10, FS later."""
    cloud = new_cloud(cloud_root, version)
    if expected == "":
        cloud.vms[42] = cloud.vms[42].replace("ext3", "raw")
    run(cloud, "mkimage", "8", form, cloud.place("solo1", "disk.1"), "42", "0")
    lv = cloud.hosts["solo1"].state.lvs["lv-one-42-1"]
    assert (lv.size, lv.filesystem) == (8 * MIB, expected)
    assert cloud.steps == [("solo1", "disk-blank")]


def test_a_large_disk_gets_the_time_that_zeroing_takes(cloud: Cloud) -> None:
    """Storage that cannot zero by itself writes every byte, 50 MiB/s perhaps."""
    with pytest.raises(RefusedError, match="MiB free"):
        run(cloud, "mkimage", str(3 << 20), "raw", cloud.place("solo1", "disk.1"), "42", "0")
    assert cloud.limit_s > (3 << 20) / 50
