# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns when the cluster balances itself: seldom enough that noise never makes VMs wander. Pure."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from cxm.balance.model import Plan, Snapshot
from cxm.balance.planner import plan
from cxm.cluster.amounts import count

ROUNDS: Final = 3  # that a plan must be worth it one after the other
REST_S: Final = 6 * 3600.0  # a VM that has moved stays for so long
LAPSE_S: Final = 3600.0  # after so long without a round the next one is the first again
# Of all that a plan by hand would do only what is worth this much more is done unasked.
_WORTH: Final = 4.0
_MIN_GAIN: Final = 15.0


@dataclass(frozen=True, slots=True)
class Memory:
    """What is remembered from round to round; times by any clock, in seconds."""

    wanted: int = 0  # rounds in which a plan was worth it
    moved: Mapping[str, float] = field(default_factory=dict)  # when each VM moved last
    seen: float | None = None  # when the last round was


def to_text(memory: Memory) -> str:
    """What is remembered, to be kept in a file."""
    kept = {"wanted": memory.wanted, "moved": dict(memory.moved), "seen": memory.seen}
    return json.dumps(kept)


def from_text(text: str) -> Memory:
    """The same back; nothing is remembered of a damaged one."""
    try:
        raw = json.loads(text)
        moved = {str(name): float(at) for name, at in raw["moved"].items()}
        seen = raw.get("seen")
        return Memory(int(raw["wanted"]), moved, None if seen is None else float(seen))
    except (ValueError, TypeError, KeyError, AttributeError):
        return Memory()


def consider(snapshot: Snapshot, memory: Memory, now: float) -> tuple[Plan, Memory]:
    """The plan of this round, and what to remember: it has moves only when they are to be made.

    ``snapshot`` has what VMs use over an hour or so. They are expected where the plan has them in
    the next round; it does no harm if they are not. A memory of before, or of another node whose
    clock is ahead, never makes anything move earlier.
    """
    moved = {name: at for name, at in memory.moved.items() if abs(now - at) < REST_S}
    in_a_row = memory.seen is not None and abs(now - memory.seen) < LAPSE_S
    own = snapshot.settings
    wary = replace(own, worth=max(own.worth, _WORTH), min_gain=max(own.min_gain, _MIN_GAIN))
    vms = tuple(replace(vm, movable=False) if vm.name in moved else vm for vm in snapshot.vms)
    made = plan(replace(snapshot, vms=vms, settings=wary))
    if not made.moves:
        return made, Memory(0, moved, now)
    wanted = 1 + (memory.wanted if in_a_row else 0)
    if wanted < ROUNDS:
        reason = (
            f"to be seen {count(ROUNDS - wanted, 'time')} more before anything moves: {made.reason}"
        )
        return replace(made, steps=(), after=made.before, reason=reason), Memory(wanted, moved, now)
    return made, Memory(0, moved | {move.vm.name: now for move in made.moves}, now)
