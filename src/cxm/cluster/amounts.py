# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns how amounts and spans of time are said to people. Pure."""

from typing import Final

_MINUTE_S: Final = 60
_HOUR_S: Final = 3600
_DAY_S: Final = 86400


def mib(value: int) -> str:
    """An amount of memory for people: MiB below 10 GiB, GiB above."""
    return f"{value} MiB" if abs(value) < 10 * 1024 else f"{value / 1024:.1f} GiB"


def ago(then: float, now: float) -> str:
    """How long ago something was."""
    gone = max(0.0, now - then)
    if gone < 2 * _MINUTE_S:
        return f"{gone:.0f} s ago"
    if gone < 2 * _HOUR_S:
        return f"{gone / _MINUTE_S:.0f} min ago"
    if gone < 2 * _DAY_S:
        return f"{gone / _HOUR_S:.0f} h ago"
    return f"{gone / _DAY_S:.0f} days ago"


def count(number: int, what: str) -> str:
    """``1 node``, ``2 nodes``."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
