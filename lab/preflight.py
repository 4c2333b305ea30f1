# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what a machine must have before a lab is begun: programs, a tap device, memory, disk."""

import os
import shutil

from cxm.errors import CxmError
from lab import room
from lab.image import image_key
from lab.places import Places
from lab.spec import LabSpec

# What runs them is in tools/packages.
_PROGRAMS = (
    *("mmdebstrap", "dpkg-deb", "apt-config", "mke2fs", "systemctl"),
    *("qemu-system-x86_64", "qemu-img", "zstd", "ip", "nsenter", "unshare", "mount"),
    *("ssh", "ssh-keygen", "rsync", "tar"),
)
_TAP = "/dev/net/tun"
_OVERHEAD_MIB = 450  # QEMU itself beside a node's memory
_IMAGE_DISK_MIB = 1500
_HOST_DISK_MIB = 700  # overlay, snapshots


def memory_mib(spec: LabSpec) -> int:
    """The memory that a lab takes when its nodes have touched all of theirs."""
    return sum(host.memory_mib + _OVERHEAD_MIB for host in spec.hosts)


def disk_mib(spec: LabSpec, places: Places) -> int:
    """The disk that a lab takes: the image unless it is there, and what its hosts write."""
    built = os.path.exists(places.cached("images", image_key(), "complete"))
    return (0 if built else _IMAGE_DISK_MIB) + _HOST_DISK_MIB * len(spec.hosts)


def check(places: Places, spec: LabSpec) -> None:
    """Raise one sentence that names everything that is missing."""
    if problems := _problems(places, spec):
        raise CxmError(f"this machine cannot carry the lab: {'; '.join(problems)}")


def _problems(places: Places, spec: LabSpec) -> list[str]:
    problems = []
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    missing = [name for name in _PROGRAMS if shutil.which(name, path=path) is None]
    if missing:
        problems.append(f"not installed: {' '.join(missing)} (run tools/setup)")
    try:
        os.close(os.open(_TAP, os.O_RDWR))
    except OSError as error:
        problems.append(f"{_TAP} cannot be opened: {error.strerror}")
    if (need := memory_mib(spec)) > (have := room.memory_mib()):
        problems.append(f"{need} MiB of free memory are needed, {have} are there")
    os.makedirs(places.cache, exist_ok=True)
    free = room.disk_mib(places.cache)
    if (need := disk_mib(spec, places)) > free:
        problems.append(f"{need} MiB of free disk are needed in {places.cache}, {free} are there")
    return problems
