# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what the domains of this node used of its processors over a window, not at an instant.

Each time somebody asks, a sample is kept; a window reaches back to the oldest that is young enough.
Who asks for the first time waits until there is a short one. The file lives in ``/run``: it counts
by the monotonic clock, and begins anew when the machine boots.
"""

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from cxm import wholefile
from cxm.node.machine import Machine
from cxm.node.sight import Sample
from cxm.xen import xl

WINDOW_S: Final = 3600.0
_LEAST_S: Final = 10.0  # xl counts CPU time in tenths of a second
_EVERY_S: Final = 60.0


def measure(machine: Machine) -> dict[str, float]:
    """Percent of one processor that each domain used, by its UUID; none of one that just came."""
    path = os.path.join(machine.run_dir, "usage.json")
    now = _sample(machine)
    kept = [each for each in _load(path) if 0 <= now.at - each.at <= WINDOW_S]
    if not kept or now.at - kept[0].at < _LEAST_S:
        kept = kept or [now]
        machine.sleep(_LEAST_S)
        now = _sample(machine)
    if now.at - kept[-1].at >= _EVERY_S:
        kept.append(now)
    _store(path, kept)
    return _percentages(kept, now)


def _sample(machine: Machine) -> Sample:
    domains = xl.domains(machine.runner)
    seconds = {f"{each.uuid}/{each.domid}": each.time_s for each in domains if each.alive}
    return Sample(machine.monotonic(), seconds)


def _percentages(kept: Sequence[Sample], now: Sample) -> dict[str, float]:
    """Of each domain since it was first seen: it may have come within the window."""
    found = {}
    for key, seconds in now.seconds.items():
        first = next((each for each in kept if key in each.seconds), None)
        if first is not None and now.at - first.at >= _LEAST_S:
            used = max(0.0, seconds - first.seconds[key])
            found[key.partition("/")[0]] = round(100 * used / (now.at - first.at), 1)
    return found


def _load(path: str) -> list[Sample]:
    """The samples, oldest first; none at first, or when the file is damaged."""
    try:
        with open(path, encoding="utf-8") as file:
            return [
                Sample(float(at), {str(key): float(used) for key, used in seconds.items()})
                for at, seconds in json.load(file)
            ]
    except (OSError, ValueError, TypeError, AttributeError):
        return []


def _store(path: str, samples: Sequence[Sample]) -> None:
    """Replace what is kept in one step; a full ``/run`` only makes us forgetful."""
    with suppress(OSError):
        wholefile.write(path, json.dumps([(each.at, each.seconds) for each in samples]))
