# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the choice of how Xen runs a guest: as PV, PVH or HVM, and what boots it. Pure.

PVH comes first: it needs no emulation, and it alone of the two can live-migrate on Debian's
hypervisor, which is built without shadow paging (PV cannot).
"""

from dataclasses import dataclass
from typing import Final

from cxm.config import GuestType
from cxm.errors import RefusedError, UsageError
from cxm.xen.guest import Bootloader
from cxm.xen.kernel import Kernel

# What boots from the guest's own disk, inside of the guest (Debian's package grub-xen-host).
GRUB_PVH: Final = "grub-i386-xen_pvh.bin"
GRUB_PV: Final = "grub-x86_64-xen.bin"
_NO_GRUB: Final = "install the package grub-xen-host on the node, or name a kernel in the template"


@dataclass(frozen=True, slots=True)
class Images:
    """Paths of the grub images of this node, None for one that is not installed."""

    pvh: str | None
    pv: str | None


@dataclass(frozen=True, slots=True)
class Choice:
    """How a guest will run, and why in one sentence."""

    guest_type: GuestType  # never AUTO
    kernel: str  # empty: the boot loader finds it, or the firmware boots
    reason: str


def _with_kernel(wanted: GuestType, path: str, kernel: Kernel | None) -> Choice:
    """The choice for a guest whose kernel lies on the node; None: its kind is not known."""
    if wanted is GuestType.AUTO:
        if kernel is None:
            raise UsageError(
                f"cxm cannot tell how Xen would run the kernel {path}",
                hint="set XEN_TYPE to pv, pvh or hvm in the template",
            )
        if kernel.pvh:
            return Choice(GuestType.PVH, path, "PVH, since its kernel has the entry for it")
        if kernel.pv:
            return Choice(GuestType.PV, path, "PV, since its kernel has no entry for PVH")
        return Choice(
            GuestType.HVM, path, "HVM, since its kernel has an entry for neither PVH nor PV"
        )
    able = {GuestType.PVH: kernel is None or kernel.pvh, GuestType.PV: kernel is None or kernel.pv}
    if not able.get(wanted, True):
        raise UsageError(
            f"the kernel {path} cannot run as {wanted.upper()}: it has no entry for it",
            hint="leave XEN_TYPE out, or set it to auto",
        )
    return Choice(wanted, path, f"{wanted.upper()}, as asked for")


def choose(
    wanted: GuestType, *, path: str, kernel: Kernel | None, bootloader: Bootloader, images: Images
) -> Choice:
    """How to run a guest.

    ``path`` is its kernel's, empty when it brings none; ``kernel`` what that kernel can. Raises
    UsageError or RefusedError when the guest cannot run as it is wanted.
    """
    if path:
        return _with_kernel(wanted, path, kernel)
    if wanted is GuestType.HVM:
        return Choice(GuestType.HVM, "", "HVM, as asked for")
    if bootloader is Bootloader.PYGRUB:
        if wanted is GuestType.PVH:
            return Choice(GuestType.PVH, "", "PVH, as asked for")
        why = (
            "as asked for" if wanted is GuestType.PV else "since pygrub finds its kernel only then"
        )
        return Choice(GuestType.PV, "", f"PV, {why}")
    if wanted is GuestType.PV:
        if images.pv is None:
            raise RefusedError(
                f"{GRUB_PV} is missing: a PV guest cannot boot from its disk", hint=_NO_GRUB
            )
        return Choice(GuestType.PV, images.pv, "PV, as asked for; grub boots its disk")
    if images.pvh is None:
        raise RefusedError(
            f"{GRUB_PVH} is missing: a guest cannot boot from its disk", hint=_NO_GRUB
        )
    why = "as asked for" if wanted is GuestType.PVH else "since it brings no kernel"
    return Choice(GuestType.PVH, images.pvh, f"PVH, {why}; grub boots its disk")
