# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns how long what depends on a VM's memory may take. Pure; MiB in, seconds out.

One assumption for all: memory goes over a network, or to and from the SAN, at 50 MiB/s on the whole
(:data:`cxm.xen.xl.SECONDS_PER_MIB`). That is half of what 1 Gbit/s carries, because pages which the
guest writes to go over again, and two moves share the network.
"""

import re
from collections.abc import Mapping
from typing import Final

from cxm.xen.xl import SECONDS_PER_MIB

# What an operation gets in any case; the template has the same.
OPERATIONS: Final[Mapping[str, float]] = {"start": 300.0, "stop": 120.0, "migrate_to": 900.0}
# What of it is not the memory's: disks, devices, a busy dom0.
_START_S: Final = 120.0
_STOP_S: Final = 100.0
_MOVE_S: Final = 420.0
# Xen takes a domain's memory back at a GiB/s or more.
_FREEING_S_PER_MIB: Final = 1 / 1024
# How long Pacemaker gets beyond an operation's own limit: it may be busy with others, or with
# fencing a node.
_PATIENCE_S: Final[Mapping[str, float]] = {"start": 300.0, "stop": 180.0, "migrate_to": 300.0}
# A small guest that has not gone over by then never will; far slower than anything but the lab.
_SENDING_S: Final = 300.0
_SENDING_S_PER_MIB: Final = 1 / 4
# What is left of Pacemaker's own limit to put things right again.
_RESERVE_S: Final = 120.0
_TIME: Final = re.compile(r"\s*(\d+)\s*([a-z]*)\s*", re.IGNORECASE)
_UNITS: Final = {
    "": 1.0,
    "s": 1.0,
    "sec": 1.0,
    "ms": 0.001,
    "msec": 0.001,
    "us": 1e-6,
    "usec": 1e-6,
    "m": 60.0,
    "min": 60.0,
    "h": 3600.0,
    "hr": 3600.0,
}


def operation_s(name: str, memory_mib: int) -> float:
    """What an operation of the agent needs for so much memory; 0 where memory does not matter."""
    needed = {
        "start": _START_S + memory_mib * SECONDS_PER_MIB,
        "stop": _STOP_S + memory_mib * _FREEING_S_PER_MIB,
        "migrate_to": _MOVE_S + memory_mib * SECONDS_PER_MIB,
    }
    return max(OPERATIONS[name], needed[name]) if name in needed else 0.0


def order_s(name: str, memory_mib: int) -> float:
    """How long an order waits for Pacemaker to do an operation."""
    return operation_s(name, memory_mib) + _PATIENCE_S[name]


def sending_s(memory_mib: int, pacemaker_s: float) -> float:
    """How long a guest's memory may take to go over, well within Pacemaker's limit (0: none)."""
    wanted = _SENDING_S + memory_mib * _SENDING_S_PER_MIB
    return min(wanted, pacemaker_s - _RESERVE_S) if pacemaker_s > 2 * _RESERVE_S else wanted


def seconds(text: str) -> float | None:
    """A time as Pacemaker's operations have it (``900s``, ``15min``); None for any other form."""
    match = _TIME.fullmatch(text)
    unit = None if match is None else _UNITS.get(match[2].lower())
    return None if match is None or unit is None else int(match[1]) * unit
