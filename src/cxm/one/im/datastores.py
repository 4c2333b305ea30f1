# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns which system datastores a host reports by number, and with what space.

A datastore whose directory holds a VM of ours has the space of the volume group. One that another
driver has marked (``.monitor``) has the space of its file system, as OpenNebula's own probe says.
One without either is not named: the scheduler then takes DS_LOCATION_FREE_MB, our volume group's.
"""

import os
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from cxm.one.im.observation import Space

LOCATION: Final = "/var/lib/one/datastores"
_MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Datastore:
    """A system datastore as this host has it."""

    id: int
    total_mib: int
    used_mib: int
    free_mib: int


def _numbers(directory: str) -> set[int]:
    try:
        names = os.listdir(directory)
    except OSError:
        return set()
    return {int(name) for name in names if name.isascii() and name.isdecimal()}


def found(location: str, vms: Collection[int], space: Space) -> list[Datastore]:
    """The datastores below ``location``; ``vms`` are ours with a volume or a domain here."""
    listed = []
    for number in sorted(_numbers(location)):
        directory = os.path.join(location, str(number))
        if _numbers(directory) & set(vms):
            listed.append(Datastore(number, space.total_mib, space.used_mib, space.free_mib))
        elif os.path.exists(os.path.join(directory, ".monitor")):
            disk = os.statvfs(directory)
            listed.append(
                Datastore(
                    number,
                    total_mib=disk.f_blocks * disk.f_frsize // _MIB,
                    used_mib=(disk.f_blocks - disk.f_bfree) * disk.f_frsize // _MIB,
                    free_mib=disk.f_bavail * disk.f_frsize // _MIB,
                )
            )
    return listed
