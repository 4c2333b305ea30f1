# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what is remembered between two observations: what looked odd, CPU time, who is off.

Pure but for reading and writing its file. The file lives in ``/run`` and counts by the monotonic
clock: both begin anew when the machine boots. Two observers at the same time may each overwrite
what the other saw, which only makes a wait longer.
"""

import json
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Final

from cxm import wholefile
from cxm.names import VmId
from cxm.node.guests import Life
from cxm.xen.xl import Domain

# A domain is paused while it is built, restored or moved; only one left paused is suspended.
PAUSED_S: Final = 60.0
# A guest that reboots has no domain for some seconds; on a slow machine for more.
GAP_S: Final = 60.0
# When an action has ended here, its driver is still at work: OpenNebula's network scripts follow.
SETTLE_S: Final = 30.0
# xl counts CPU time in tenths of a second: a shorter interval would show steps of percents.
_SPAN_S: Final = 15.0
_SAMPLE_EVERY_S: Final = 10.0
_KEEP_S: Final = 120.0


class GuestState(StrEnum):
    """What a VM of OpenNebula does on this node."""

    RUNNING = "running"
    PAUSED = "paused"
    POWEROFF = "poweroff"  # it switched itself off
    FAILURE = "failure"  # it crashed
    VANISHED = "vanished"  # it should run, but has been without a domain for too long
    ELSEWHERE = "elsewhere"  # it runs on another node, and OpenNebula looks for it here
    BUSY = "busy"  # an action is, or just was, at work on it: nothing new can be said


@dataclass(slots=True)
class Seen:
    """Since when a guest has looked odd, by the monotonic clock."""

    odd: str = ""  # "busy", "paused", "gap" or nothing; busy was last seen at ``since``
    since: float = 0.0
    here: bool = False  # it has had a domain on this node since it was last off


@dataclass(slots=True)
class Sample:
    """CPU seconds of every domain at one moment; a domain's key never comes back."""

    at: float
    seconds: dict[str, float]


@dataclass(slots=True)
class Off:
    """What the cluster last said of its VMs that are off, and of which this node says so."""

    vms: dict[int, str] = field(default_factory=dict)  # their names
    changing: bool = False  # there are others, which are still being stopped
    ours: dict[int, str] = field(default_factory=dict)  # that should run, by OpenNebula's word here
    elsewhere: list[int] = field(default_factory=list)  # those of them that run on other nodes
    looked_at: float | None = None  # when it was last asked where they are
    mark: str = ""  # of what the cluster's configuration was then
    asked_at: float | None = None  # by the monotonic clock; None: never


@dataclass(slots=True)
class Memory:
    """All that is remembered."""

    guests: dict[int, Seen] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    off: Off = field(default_factory=Off)


def _as_odd(seen: Seen, odd: str, now: float) -> float:
    """Mark a guest as odd; returns for how many seconds it has been so."""
    if seen.odd != odd:
        seen.odd, seen.since = odd, now
    return now - seen.since


def judge(
    domain: Domain | None, life: Life | None, seen: Seen, *, busy: bool, now: float
) -> GuestState | None:
    """What to report of a guest, None for nothing; design note 0006 has the table.

    ``life`` is what the node's record says, in a cluster the CIB; ``busy`` that an action is at
    work on the VM. ``seen`` is brought up to date.
    """
    if busy:
        seen.odd, seen.since = "busy", now
    if seen.odd == "busy" and 0 <= now - seen.since < SETTLE_S:
        return GuestState.BUSY
    if domain is not None and domain.alive and domain.paused:
        long = _as_odd(seen, "paused", now) >= PAUSED_S
        return GuestState.PAUSED if long else GuestState.RUNNING
    if domain is None or not domain.alive:
        ended = _how_it_ended(domain, life)
        between = domain is not None or life is Life.RUNNING
        if between and ended is None and life is not Life.STOPPED:
            # It reboots, or it has vanished and nobody has noticed yet.
            long = _as_odd(seen, "gap", now) >= GAP_S
            return GuestState.VANISHED if long else GuestState.RUNNING
        seen.odd = ""
        # What is left of a guest that is being stopped is the business of who stops it.
        return None if life is Life.STOPPED else ended
    seen.odd = ""
    return GuestState.RUNNING


def _how_it_ended(domain: Domain | None, life: Life | None) -> GuestState | None:
    """What the remains of a domain, or what is known of a guest without one, say of its end."""
    if domain is not None and domain.powered_off:
        return GuestState.POWEROFF
    if domain is not None and domain.crashed:
        return GuestState.FAILURE
    return {Life.OFF: GuestState.POWEROFF, Life.CRASHED: GuestState.FAILURE}.get(
        life or Life.RUNNING
    )


def remember(memory: Memory, sample: Sample) -> None:
    """Keep a sample of CPU time if the last one is old enough; forget those of no more use."""
    if memory.samples and sample.at - memory.samples[-1].at < _SAMPLE_EVERY_S:
        return
    memory.samples = [old for old in memory.samples if sample.at - old.at <= _KEEP_S]
    memory.samples.append(sample)


def percentages(memory: Memory, current: Sample) -> dict[str, float]:
    """CPU use of each domain in percent of one CPU, over a span of at least some seconds.

    Zero at first sight, when there is nothing to compare with: for all at the very first
    observation, later for a domain that comes with more seconds than the span could hold.
    """
    older = [sample for sample in memory.samples if current.at - sample.at >= _SPAN_S]
    base = older[-1] if older else next(iter(memory.samples), current)
    span = current.at - base.at
    if span < 1.0:
        return dict.fromkeys(current.seconds, 0.0)
    found = {}
    for key, seconds in current.seconds.items():
        used = seconds - base.seconds.get(key, 0.0 if seconds <= span else seconds)
        found[key] = round(max(0.0, used) * 100.0 / span, 1)
    return found


def load(path: str) -> Memory:
    """What was remembered; nothing at first, or when the file is of another version."""
    try:
        with open(path, encoding="utf-8") as file:
            raw = json.load(file)
        guests = {
            int(vm): Seen(str(odd), float(since), here is True)
            for vm, (odd, since, here) in raw["guests"].items()
        }
        samples = [
            Sample(float(at), {str(key): float(used) for key, used in seconds.items()})
            for at, seconds in raw["samples"]
        ]
        off = _off(raw["off"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return Memory()
    return Memory(guests, samples, off)


def _off(raw: dict[str, Any]) -> Off:
    def moment(value: object) -> float | None:
        return float(value) if isinstance(value, int | float) else None

    return Off(
        vms={int(vm): str(name) for vm, name in raw["vms"].items()},
        changing=raw["changing"] is True,
        ours={int(vm): str(name) for vm, name in raw["ours"].items()},
        elsewhere=[int(vm) for vm in raw["elsewhere"]],
        looked_at=moment(raw["looked_at"]),
        mark=str(raw["mark"]),
        asked_at=moment(raw["asked_at"]),
    )


def store(path: str, memory: Memory) -> None:
    """Replace what is remembered in one step; a full ``/run`` only makes us forgetful."""
    raw = {
        "guests": {
            str(vm): (seen.odd, seen.since, seen.here) for vm, seen in memory.guests.items()
        },
        "samples": [(sample.at, sample.seconds) for sample in memory.samples],
        "off": asdict(memory.off),
    }
    with suppress(OSError):
        wholefile.write(path, json.dumps(raw), directory_mode=0o700)


def forget_all_but(memory: Memory, vms: set[VmId]) -> None:
    """Drop guests that are neither here nor expected."""
    memory.guests = {vm: seen for vm, seen in memory.guests.items() if vm in vms}
