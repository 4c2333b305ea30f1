# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what the kernel of dom0 counts: traffic of guests' network and disk backends, and its own.

Counters begin with a domain and end with it. A device that goes away while we read counts nothing.
"""

import os
import re
from dataclasses import dataclass
from typing import Final

# The second is the emulated card of an HVM guest without drivers of its own.
_VIF: Final = re.compile(r"vif(?P<domid>\d+)\.\d+(?:-emu)?")
_VBD: Final = re.compile(r"vbd-(?P<domid>\d+)-\d+")
_SECTOR: Final = 512


@dataclass(slots=True)
class Traffic:
    """What a guest has sent and received since its domain began; bytes and requests."""

    net_rx: int = 0
    net_tx: int = 0
    read_bytes: int = 0
    write_bytes: int = 0
    reads: int = 0
    writes: int = 0


def _names(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []


def _count(*path: str) -> int:
    try:
        with open(os.path.join(*path), encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return 0


def of_guests(sys_dir: str) -> dict[int, Traffic]:
    """The traffic of each domain that has devices, by its number."""
    found: dict[int, Traffic] = {}
    cards = os.path.join(sys_dir, "class/net")
    for name in _names(cards):
        if match := _VIF.fullmatch(name):
            traffic = found.setdefault(int(match["domid"]), Traffic())
            # A backend receives what its guest sends.
            traffic.net_tx += _count(cards, name, "statistics/rx_bytes")
            traffic.net_rx += _count(cards, name, "statistics/tx_bytes")
    backends = os.path.join(sys_dir, "bus/xen-backend/devices")
    for name in _names(backends):
        if match := _VBD.fullmatch(name):
            traffic = found.setdefault(int(match["domid"]), Traffic())
            counters = os.path.join(backends, name, "statistics")
            traffic.read_bytes += _count(counters, "rd_sect") * _SECTOR
            traffic.write_bytes += _count(counters, "wr_sect") * _SECTOR
            traffic.reads += _count(counters, "rd_req")
            traffic.writes += _count(counters, "wr_req")
    return found


def of_host(sys_dir: str) -> tuple[int, int]:
    """Bytes received and sent by the network cards of the machine: no bridges, no guests."""
    cards = os.path.join(sys_dir, "class/net")
    own = [
        name
        for name in _names(cards)
        if not _VIF.fullmatch(name) and os.path.exists(os.path.join(cards, name, "device"))
    ]
    received = sum(_count(cards, name, "statistics/rx_bytes") for name in own)
    return received, sum(_count(cards, name, "statistics/tx_bytes") for name in own)
