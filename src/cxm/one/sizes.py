# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns how large a disk's volume becomes and which file system it gets. Pure; asks nobody."""

from dataclasses import dataclass
from typing import Final

from cxm import config
from cxm.errors import ConfigError, UsageError
from cxm.one.xml import Disk, Image

MIB: Final = 1 << 20

_DEFAULT: Final = "DEFAULT_LV_SIZE"
# Values of FSTYPE that OpenNebula or its users keep there and that name no file system.
_NO_FILESYSTEM: Final = frozenset(("", "-", "save_as", "raw", "qcow2"))
# Values of FORMAT that leave the file system of a volatile disk to other attributes.
_NO_FORMAT: Final = frozenset(("", "-", "raw", "qcow2"))


@dataclass(frozen=True, slots=True)
class Size:
    """The size of a volume, and which rule gave it."""

    mib: int
    rule: str
    is_content: bool = False

    @property
    def is_default(self) -> bool:
        """Whether nobody has said anything about this disk."""
        return self.rule == _DEFAULT


def mib(count: int) -> int:
    """Bytes in whole MiB, rounded up."""
    return -(-count // MIB)


def _of_template(image: Image, key: str) -> Size | None:
    """A size that the image's template gives in LVM's syntax."""
    given = image.template.get(key, "")
    if not given:
        return None
    try:
        return Size(config.size_mib(given), f"{key} of image {image.image_id}")
    except UsageError as error:
        raise ConfigError(
            f"image {image.image_id} ('{image.name}'): {key}: {error.message}",
            hint=f"correct it with 'oneimage update {image.image_id}'",
        ) from error


def _wanted(disk: Disk, image: Image | None, default_mib: int) -> Size:
    size, original = disk.number("SIZE"), disk.number("ORIGINAL_SIZE")
    if size is not None and original is not None and size > original:
        return Size(size, "SIZE of the VM's disk")
    if image is not None:
        for key in ("LV_SIZE", "SIZE"):
            found = _of_template(image, key)
            if found is not None:
                return found
    return Size(default_mib, _DEFAULT)


def _counted(disk: Disk, image: Image | None) -> Size:
    """What OpenNebula counts: the disk's size; the image's where the disk has none (3.x)."""
    counted = disk.number("SIZE")
    if counted is None and image is not None:
        counted = image.size_mib
    return Size(counted or 0, "SIZE that OpenNebula counts")


def of_disk(
    disk: Disk,
    image: Image | None,
    *,
    content_bytes: int,
    is_optical: bool,
    default_mib: int,
) -> Size:
    """The size of a disk that is filled from an image.

    The first that applies: SIZE of the VM's disk where it enlarges the image (5.0 on), LV_SIZE of
    the image's template, SIZE where OpenNebula kept it there, ``default_mib``. Never below the
    size that OpenNebula counts: a disk that was saved back as files would shrink. Never below
    ``content_bytes``, what the content is known to need. A CD or DVD is as large as its content.
    Raises ConfigError for a size that cannot be read.
    """
    content = Size(max(1, mib(content_bytes)), "the image's content", is_content=True)
    if is_optical or disk.is_cdrom or (image is not None and image.is_cdrom):
        return content
    wanted = _wanted(disk, image, default_mib)
    return max(wanted, _counted(disk, image), content, key=lambda size: size.mib)


def filesystem_of_image(disk: Disk, image: Image | None, default: str) -> str:
    """The file system for a disk that is filled from a tar image.

    FSTYPE of the image, wherever its version keeps it, FS from 5.12 on, else ``default``. Raises
    ConfigError for one that cxm does not make.
    """
    if image is None:
        given = [disk["FSTYPE"]]
    else:
        template = image.template.get("FSTYPE", "")
        given = [template, disk["FSTYPE"], image.fstype, image.filesystem]
    for text in given:
        if text.lower() not in _NO_FILESYSTEM:
            try:
                return config.filesystem(text.lower())
            except UsageError as error:
                whose = f"disk {disk.disk_id}" if image is None else f"image {image.image_id}"
                raise ConfigError(f"FSTYPE of {whose}: {error.message}") from error
    return default


def filesystem_of_volatile(form: str, disk: Disk) -> str:
    """What a volatile disk is made as: ``raw``, ``swap`` or a file system.

    ``form`` is FORMAT: up to 5.10 it may name a file system; from 5.12 on it is raw or qcow2, and
    FS names the file system. Raises ConfigError for one that cxm does not make.
    """
    if form.lower() == "swap":
        return "swap"
    for text in (form.lower(), disk["FS"].lower(), disk["FSTYPE"].lower()):
        if text not in _NO_FORMAT:
            try:
                return config.filesystem(text)
            except UsageError as error:
                raise ConfigError(f"disk {disk.disk_id}: {error.message}") from error
    return "raw"
