# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""The size of a disk and its file system follow one rule in every version of OpenNebula."""

from dataclasses import replace

import pytest

from cxm.errors import ConfigError
from cxm.one import sizes
from cxm.one.sizes import MIB
from cxm.one.xml import Disk, Image

GIB = 1 << 30


def image(*, cd: bool = False, above: str = "", fs: str = "", **template: str) -> Image:
    """An image with a template; ``above`` is the FSTYPE beside it."""
    return Image(7, "web root", cd, above, fs, template)


def image_with(template: dict[str, str]) -> Image:
    """An image with this template."""
    return replace(image(), template=template)


def disk(**attributes: str) -> Disk:
    """Disk 0 with its attributes."""
    return Disk(0, attributes)


@pytest.mark.parametrize(
    ("of_disk", "of_image", "content", "expected", "rule"),
    [
        ({}, {}, 0, 8192, "DEFAULT_LV_SIZE"),
        ({"SIZE": "500", "ORIGINAL_SIZE": "500"}, {}, 0, 8192, "DEFAULT_LV_SIZE"),
        ({"SIZE": "400", "ORIGINAL_SIZE": "500"}, {}, 0, 8192, "DEFAULT_LV_SIZE"),
        ({"SIZE": "500"}, {}, 0, 8192, "DEFAULT_LV_SIZE"),
        ({"SIZE": "501", "ORIGINAL_SIZE": "500"}, {}, 0, 501, "SIZE of the VM's disk"),
        (
            {"SIZE": "501", "ORIGINAL_SIZE": "500"},
            {"LV_SIZE": "2G"},
            0,
            501,
            "SIZE of the VM's disk",
        ),
        ({}, {"LV_SIZE": "2G"}, 0, 2048, "LV_SIZE of image 7"),
        ({"SIZE": "5", "ORIGINAL_SIZE": "5"}, {"LV_SIZE": "2G"}, 0, 2048, "LV_SIZE of image 7"),
        ({}, {"LV_SIZE": "300"}, 0, 300, "LV_SIZE of image 7"),
        ({}, {"SIZE": "3G"}, 0, 3072, "SIZE of image 7"),
        ({}, {"SIZE": "3G", "LV_SIZE": "1g"}, 0, 1024, "LV_SIZE of image 7"),
        ({}, {"LV_SIZE": "1G"}, 5 * GIB, 5120, "the image's content"),
        ({}, {"LV_SIZE": "1G"}, GIB, 1024, "LV_SIZE of image 7"),
        ({}, {"LV_SIZE": "1G"}, GIB + 1, 1025, "the image's content"),
        ({}, {}, 20 * GIB, 20480, "the image's content"),
        ({"SIZE": "600", "ORIGINAL_SIZE": "500"}, {}, GIB, 1024, "the image's content"),
        ({"SIZE": "20480"}, {}, 0, 20480, "SIZE that OpenNebula counts"),
        ({"SIZE": "20480", "ORIGINAL_SIZE": "20480"}, {}, 0, 20480, "SIZE that OpenNebula counts"),
        ({"SIZE": "3000"}, {"LV_SIZE": "2G"}, 0, 3000, "SIZE that OpenNebula counts"),
        ({"SIZE": "3000"}, {"LV_SIZE": "4G"}, 0, 4096, "LV_SIZE of image 7"),
        ({"SIZE": "3000"}, {"LV_SIZE": "2G"}, 5 * GIB, 5120, "the image's content"),
    ],
)
def test_the_first_rule_that_applies_gives_the_size(
    of_disk: dict[str, str], of_image: dict[str, str], content: int, expected: int, rule: str
) -> None:
    """An enlarging DISK/SIZE, LV_SIZE, a kept SIZE, the default; never below what is needed."""
    got = sizes.of_disk(
        disk(**of_disk),
        image_with(of_image),
        content_bytes=content,
        is_optical=False,
        default_mib=8192,
    )
    assert got == sizes.Size(expected, rule, is_content=rule == "the image's content")


def test_3_x_counts_a_disk_by_its_image() -> None:
    """Its disks that are made of images have no SIZE of their own."""
    got = sizes.of_disk(
        disk(),
        replace(image(), size_mib=20480),
        content_bytes=1,
        is_optical=False,
        default_mib=8192,
    )
    assert got == sizes.Size(20480, "SIZE that OpenNebula counts")


@pytest.mark.parametrize(
    ("of_disk", "of_image", "is_optical"),
    [
        ({"TYPE": "CDROM"}, image(), False),
        ({"TYPE": "cdrom", "SIZE": "900", "ORIGINAL_SIZE": "4"}, image(), False),
        ({}, image(cd=True), False),
        ({"TYPE": "FILE"}, image(LV_SIZE="8G"), True),
        ({}, None, True),
    ],
)
def test_a_cd_is_as_large_as_its_content(
    of_disk: dict[str, str], of_image: Image | None, *, is_optical: bool
) -> None:
    """A CD, by its type or its content, never becomes a disk of gigabytes."""
    got = sizes.of_disk(
        disk(**of_disk),
        of_image,
        content_bytes=3 * MIB + 1,
        is_optical=is_optical,
        default_mib=8192,
    )
    assert got.mib == 4


def test_a_disk_without_an_image_has_the_default_size() -> None:
    """3.x allows a SOURCE that no image stands for."""
    got = sizes.of_disk(disk(), None, content_bytes=1, is_optical=False, default_mib=512)
    assert got == sizes.Size(512, "DEFAULT_LV_SIZE")


@pytest.mark.parametrize("key", ["LV_SIZE", "SIZE"])
@pytest.mark.parametrize("value", ["big", "-1G", "0", "8 Gigabytes", "1e9"])
def test_a_size_that_cannot_be_read_is_told(key: str, value: str) -> None:
    """The sentence names the image and the attribute; nothing is guessed."""
    with pytest.raises(ConfigError, match=rf"image 7 \('web root'\): {key}: ") as caught:
        sizes.of_disk(
            disk(),
            image_with({key: value}),
            content_bytes=0,
            is_optical=False,
            default_mib=1,
        )
    assert caught.value.hint is not None


@pytest.mark.parametrize(
    ("of_disk", "of_image", "expected"),
    [
        ({}, image(), "ext4"),
        ({}, image(FSTYPE="xfs"), "xfs"),
        ({}, image(FSTYPE="EXT3"), "ext3"),
        ({}, image(above="ext2"), "ext2"),
        ({}, image(above="save_as"), "ext4"),
        ({}, image(above="raw"), "ext4"),
        ({}, image(above="qcow2"), "ext4"),
        ({}, image(above="-"), "ext4"),
        ({}, image(above="save_as", FSTYPE="xfs"), "xfs"),
        ({}, image(above="ext2", FSTYPE="xfs"), "xfs"),
        ({"FSTYPE": "btrfs"}, image(), "btrfs"),
        ({"FSTYPE": "btrfs"}, image(FSTYPE="xfs"), "xfs"),
        ({}, image(fs="ext3"), "ext3"),
        ({"FSTYPE": "vfat"}, None, "vfat"),
        ({}, None, "ext4"),
    ],
)
def test_the_file_system_is_found_wherever_a_version_keeps_it(
    of_disk: dict[str, str], of_image: Image | None, expected: str
) -> None:
    """FSTYPE of the template or above it, FS from 5.12 on; other uses of FSTYPE are ignored."""
    assert sizes.filesystem_of_image(disk(**of_disk), of_image, "ext4") == expected


def test_a_file_system_that_cxm_does_not_make_is_told() -> None:
    """Asked for ntfs, nothing else is made in silence."""
    with pytest.raises(ConfigError, match=r"FSTYPE of image 7: 'ntfs' is not"):
        sizes.filesystem_of_image(disk(), image(FSTYPE="ntfs"), "ext4")


@pytest.mark.parametrize(
    ("form", "of_disk", "expected"),
    [
        ("ext3", {}, "ext3"),
        ("ext4", {"FS": "xfs"}, "ext4"),
        ("raw", {}, "raw"),
        ("raw", {"FS": "xfs"}, "xfs"),
        ("qcow2", {"FS": "ext4"}, "ext4"),
        ("qcow2", {}, "raw"),
        ("raw", {"FSTYPE": "ext2"}, "ext2"),
        ("swap", {}, "swap"),
        ("SWAP", {"FS": "ext4"}, "swap"),
    ],
)
def test_a_volatile_disk_is_made_as_its_version_says(
    form: str, of_disk: dict[str, str], expected: str
) -> None:
    """FORMAT named a file system up to 5.10; later it is raw or qcow2 and FS names it."""
    assert sizes.filesystem_of_volatile(form, disk(**of_disk)) == expected


def test_a_volatile_disk_of_an_unknown_file_system_is_told() -> None:
    """An unknown FORMAT is not made raw in silence."""
    with pytest.raises(ConfigError, match=r"disk 0: 'vmdk_thin' is not"):
        sizes.filesystem_of_volatile("vmdk_thin", disk())
