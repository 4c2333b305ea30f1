# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the words of VM templates that mean something to Xen, in either form of deployment file."""

import os
from typing import Final

from cxm.config import GuestType
from cxm.errors import UsageError
from cxm.xen.guest import Bootloader

# A boot loader of this name means: none on the host; the guest's disk boots by itself.
_GRUB: Final = ("grub", "grub-xen")


def bootloader(text: str) -> Bootloader:
    """The boot loader that OS/BOOTLOADER names; raises UsageError for an unknown one."""
    name = os.path.basename(text)
    if name == Bootloader.PYGRUB:
        return Bootloader.PYGRUB
    if text in ("", *_GRUB):
        return Bootloader.NONE
    raise UsageError(
        f"the boot loader '{text}' is not one that cxm runs",
        hint="OS/BOOTLOADER may be pygrub, or grub to boot from the guest's disk",
    )


def boot_order(text: str) -> str:
    """Xen's boot order of OS/BOOT: ``hd,cdrom,network`` (and 5.x's ``disk0,nic0``)."""
    letters = {"hd": "c", "disk": "c", "cdrom": "d", "fd": "a", "network": "n", "nic": "n"}
    found = ""
    for word in text.lower().replace(",", " ").split():
        letter = letters.get(word.rstrip("0123456789"))
        if letter is None:
            raise UsageError(
                f"'{word}' of OS/BOOT is not a device to boot from",
                hint="it takes hd, cdrom, network and fd",
            )
        found += letter if letter not in found else ""
    return found


def guest_type(text: str) -> GuestType:
    """The guest type that XEN_TYPE or an option ``type`` names; raises UsageError."""
    try:
        return GuestType(text.lower())
    except ValueError:
        raise UsageError(
            f"'{text}' is not a type of guest", hint="XEN_TYPE takes auto, pv, pvh and hvm"
        ) from None
