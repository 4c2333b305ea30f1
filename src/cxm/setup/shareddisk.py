# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the disk that the nodes share: what is on it, and the volume group that is made there."""

import os
from typing import Final

from cxm import run
from cxm.errors import CommandError, CxmError, RefusedError, system_error
from cxm.run import Runner
from cxm.setup.nodecheck import Host
from cxm.setup.report import Check, failed, ok

_TIMEOUT_S: Final = 60.0
_CREATE_S: Final = 300.0
_SEVERAL: Final = 8  # blkid's code for signatures that contradict each other
_EMPTY: Final = 2  # blkid's code for a disk on which it finds nothing, or that it cannot open
# The first bytes of an SBD device: neither blkid, nor LVM, nor wipefs knows them.
_SBD: Final = b"SBD_SBD_"
_BY_SBD: Final = "SBD, by which nodes order each other to die"
_MIB: Final = 1 << 20
# What LVM says of the first group: it starts the lockspace of all groups, and does not wait.
_STARTING: Final = "lockspace is starting"
# LVM's own 1 MiB is full after some 700 volumes with our tags.
_METADATA: Final = "16m"


def check(host: Host, device: str, vg: str) -> Check:
    """Whether the disk is there, and empty or with exactly this group."""
    name = "shared disk"
    if not os.path.exists(host.path(device)):
        return failed(name, f"{device} is not there", "ls -l /dev/disk/by-id /dev/mapper")
    try:
        group = group_on(host.runner, device)
        found = "" if group else _signature(host, device)
    except (CommandError, OSError) as error:
        return failed(name, why(error), f"can {device} be read?")
    if group == vg:
        return ok(name, f"{device}, with the volume group {vg}")
    if group:
        advice = f"--vg {group} if it is the one to be used, else another --device"
        return failed(name, f"{device} has the volume group {group}", advice)
    if found:
        wipe = f"dd if=/dev/zero of={device} count=1" if found == _BY_SBD else f"wipefs -a {device}"
        advice = f"another --device; or, if nobody needs what is on it: {wipe}"
        return failed(name, f"{device} is in use: {found}", advice)
    return ok(name, f"{device}, empty")


def why(error: CxmError | OSError) -> str:
    """Why a disk could not be looked at."""
    return run.tail(error.sentence()) if isinstance(error, CxmError) else system_error(error)


def content(host: Host, device: str) -> str:
    """What is on a disk, for people; empty for nothing. Raises CommandError and OSError."""
    group = group_on(host.runner, device)
    return f"the volume group {group}" if group else _signature(host, device)


def is_sbd(host: Host, device: str) -> bool:
    """Whether nodes order each other to die by this disk; raises OSError."""
    with open(host.path(device), "rb", buffering=0) as disk:
        # Another machine may have made it one since this one has read it.
        os.posix_fadvise(disk.fileno(), 0, _MIB, os.POSIX_FADV_DONTNEED)
        return disk.read(len(_SBD)) == _SBD


def group_on(runner: Runner, device: str) -> str:
    """The volume group that a disk belongs to, also a shared one whose locks cannot be had yet."""
    argv = ["pvs", "--shared", "--noheadings", "-o", "vg_name", device]
    said = runner.run(argv, timeout_s=_TIMEOUT_S, ok=(0, 5))  # 5: it is no physical volume
    return said.stdout.strip()


def _signature(host: Host, device: str) -> str:
    """What is on a disk, in a word; empty for nothing."""
    if is_sbd(host, device):
        return _BY_SBD
    argv = ["blkid", "-p", "-o", "export", device]
    said = host.runner.run(argv, timeout_s=_TIMEOUT_S, ok=(0, _EMPTY, _SEVERAL))
    if said.code == _SEVERAL:
        return "signatures of several kinds"
    # Of a partition it always tells where it is in its table.
    pairs = dict(line.partition("=")[::2] for line in said.stdout.splitlines())
    return pairs.get("TYPE") or pairs.get("PTTYPE") or ""


def has_group(runner: Runner, vg: str) -> bool:
    """Whether the shared group can be used here; raises RefusedError for one that is not shared."""
    argv = ["vgs", "--noheadings", "-o", "vg_lock_type", vg]
    said = runner.run(argv, timeout_s=_TIMEOUT_S, ok=(0, 5))
    kind = said.stdout.strip()
    if said.code == 0 and kind != "dlm":
        raise RefusedError(
            f"the volume group {vg} exists and is not shared by DLM, but '{kind or 'none'}'",
            hint="another --vg; or, with nothing active in it: vgchange --lock-type dlm " + vg,
        )
    return said.code == 0


def create(vg: str, device: str) -> list[str]:
    """The command that makes the shared group.

    LVM's question about what is on the disk is never answered: it makes nothing then. No volume of
    the group becomes active by itself when a node starts.
    """
    argv = ["vgcreate", "--shared", "--setautoactivation", "n", "--metadatasize", _METADATA]
    return [*argv, vg, device]


def make_group(runner: Runner, vg: str, device: str) -> bool:
    """Make the shared group; False while the locks of all groups are still being started."""
    try:
        runner.run(create(vg, device), timeout_s=_CREATE_S)
    except CommandError as error:
        if _STARTING in error.stderr:
            return False
        raise
    return True
