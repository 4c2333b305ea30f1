# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what the sync remembers between two runs: what failed and when to try again, who answered.

All of it may be lost: then something is tried once more, and a host is asked that is dead. Times
are seconds since 1970, as the sync's runs share no other clock.
"""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Final

from cxm import wholefile

_PAUSES_S: Final = (10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
FILE: Final = "state.json"


@dataclass(frozen=True, slots=True)
class Failure:
    """A VM whose record could not be brought in line, and what oned said."""

    key: str  # what was tried: the same is not tried before its pause is over
    times: int
    at: float
    why: str

    def due(self, key: str, now: float) -> bool:
        """Whether this may be tried now; something else may at once."""
        pause = _PAUSES_S[min(self.times, len(_PAUSES_S)) - 1]
        return self.key != key or not 0 <= now - self.at < pause


@dataclass(frozen=True, slots=True)
class Lasting:
    """What has been said of a VM, by both views, and since when."""

    key: str
    since: float


@dataclass(slots=True)
class Memory:
    """All that is remembered."""

    failures: dict[int, Failure] = field(default_factory=dict)
    answered: list[str] = field(default_factory=list)  # hosts that did, the last time
    clustered: list[str] = field(default_factory=list)  # hosts that are nodes of clusters
    began_at: float = 0.0  # when the last run began
    said: list[str] = field(default_factory=list)  # what was logged and still holds
    said_around: list[str] = field(default_factory=list)  # the same of the last look around
    around_at: float = 0.0  # when the last look around began (:mod:`cxm.sync.around`)
    lasting: dict[int, Lasting] = field(default_factory=dict)  # of VMs

    def lasts(self, keys: Mapping[int, str], now: float) -> dict[int, float]:
        """For how long what is said of VMs has been the same; of others nothing is kept."""
        kept = {}
        for vm, key in keys.items():
            known = self.lasting.get(vm)
            same = known is not None and known.key == key and known.since <= now
            kept[vm] = known if known is not None and same else Lasting(key, now)
        self.lasting = kept
        return {vm: now - each.since for vm, each in kept.items()}

    def failed(self, vm: int, key: str, now: float, why: str) -> None:
        """Something could not be done; each time in a row the pause is longer."""
        known = self.failures.get(vm)
        times = known.times + 1 if known is not None and known.key == key else 1
        self.failures[vm] = Failure(key, times, now, why)

    def blocked(self, vm: int, key: str, now: float) -> Failure | None:
        """The failure after which this is not tried yet."""
        known = self.failures.get(vm)
        return None if known is None or known.due(key, now) else known


def load(place: str) -> Memory:
    """What was remembered; nothing where that cannot be read."""
    try:
        with open(os.path.join(place, FILE), encoding="utf-8") as file:
            raw = json.load(file)
        failures: Mapping[str, Mapping[str, object]] = raw["failures"]
        return Memory(
            {int(vm): _failure(row) for vm, row in failures.items()},
            [str(host) for host in raw["answered"]],
            [str(host) for host in raw["clustered"]],
            float(raw["began_at"]),
            [str(each) for each in raw["said"]],
            [str(each) for each in raw["said_around"]],
            float(raw["around_at"]),
            {
                int(vm): Lasting(str(row["key"]), float(row["since"]))
                for vm, row in raw["lasting"].items()
            },
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return Memory()


def _failure(row: Mapping[str, object]) -> Failure:
    times, at = row["times"], row["at"]
    if not isinstance(times, int) or not isinstance(at, int | float) or times < 1:
        raise ValueError(row)
    return Failure(str(row["key"]), times, float(at), str(row["why"]))


def store(place: str, memory: Memory) -> None:
    """Keep it; where the disk is full it is lost."""
    with suppress(OSError):
        path = os.path.join(place, FILE)
        text = json.dumps(asdict(memory))
        wholefile.write(path, text, directory_mode=0o700, fresh=f"{path}.new")
