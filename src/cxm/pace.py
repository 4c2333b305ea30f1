# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns how often somebody who waits looks again. Pure."""

from typing import Final

# Looking is work too: at most a quarter of what a slow machine can do, which does what is waited
# for. On a quick one the least pause is longer.
_REST: Final = 3.0
_MOST_S: Final = 6.0


def pause(looked_s: float, *, least_s: float) -> float:
    """Seconds until the next look, after one that took ``looked_s``."""
    return max(least_s, min(_REST * looked_s, _MOST_S))
