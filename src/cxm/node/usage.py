# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what the domains of this node used of its processors over a window, not at an instant.

Every five minutes (``cxm-gather.timer``), and each time somebody asks, a sample is kept; a window
reaches back to the oldest that is young enough. Who asks before there is one waits until there is a
short one. The file lives in ``/run``: it counts by the monotonic clock, and begins anew when the
machine boots.
"""

import json
import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from cxm import wholefile
from cxm.errors import CxmError
from cxm.node.machine import Machine
from cxm.node.sight import Sample
from cxm.xen import xl

_log = logging.getLogger(__name__)

WINDOW_S: Final = 3600.0
_LEAST_S: Final = 10.0  # xl counts CPU time in tenths of a second
_EVERY_S: Final = 60.0


def measure(machine: Machine) -> dict[str, float]:
    """Percent of one processor that each domain used, by its UUID; none of one that just came."""
    now = _sample(machine)
    kept = _kept(machine, now)
    if not kept or now.at - kept[0].at < _LEAST_S:
        kept = kept or [now]
        machine.sleep(_LEAST_S)
        now = _sample(machine)
    _store(machine, kept, now)
    return _percentages(kept, now)


def keep(machine: Machine) -> None:
    """Keep a sample for whoever asks later; without one they wait, and know less."""
    try:
        now = _sample(machine)
    except CxmError as error:
        _log.debug("what the guests use is not known: %s", error)
    else:
        _store(machine, _kept(machine, now), now)


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


def _path(machine: Machine) -> str:
    return os.path.join(machine.run_dir, "usage.json")


def _kept(machine: Machine, now: Sample) -> list[Sample]:
    """The samples of the window, oldest first; none at first, or when the file is damaged."""
    try:
        with open(_path(machine), encoding="utf-8") as file:
            found = [
                Sample(float(at), {str(key): float(used) for key, used in seconds.items()})
                for at, seconds in json.load(file)
            ]
    except (OSError, ValueError, TypeError, AttributeError):
        return []
    return [each for each in found if 0 <= now.at - each.at <= WINDOW_S]


def _store(machine: Machine, kept: list[Sample], now: Sample) -> None:
    """Add a sample if the last one is old enough; a full ``/run`` only makes us forgetful."""
    if not kept or now.at - kept[-1].at >= _EVERY_S:
        kept.append(now)
    with suppress(OSError):
        samples = [(each.at, each.seconds) for each in kept]
        wholefile.write(_path(machine), json.dumps(samples))
