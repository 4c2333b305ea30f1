# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns when 5.12 to 7.4 are told a VM's state: at each change, and all of them now and then. Pure.

oned acts on what it hears, so that a state is said as seldom as possible; but from 7.0 on it
ignores what it hears within 30 s of its own change of the VM, so that a change is said twice. What
could not be delivered was not said: a report carries the memory that holds once it has been.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from cxm.node.sight import GuestState
from cxm.one.im.observation import Guest
from cxm.one.im.words import vector

# oned takes a VM that is not named for missing, and MISSING_STATE decides what becomes of it.
_SYNC: Final = "SYNC_STATE=yes\nMISSING_STATE=UNKNOWN\n"
_REPEAT_S: Final = 35.0

_WORDS: Final = {
    GuestState.RUNNING: "RUNNING",
    GuestState.PAUSED: "SUSPENDED",
    GuestState.POWEROFF: "POWEROFF",
    GuestState.FAILURE: "FAILURE",
    # The last host vouches for it until the sync has told OpenNebula where it is.
    GuestState.ELSEWHERE: "RUNNING",
}
# Counts as named, and changes nothing.
_NOTHING_NEW: Final = "UNKNOWN"


@dataclass(frozen=True, slots=True)
class Said:
    """What oned knows from us; times are those of the caller's clock."""

    words: Mapping[int, str] = field(default_factory=dict)
    again_at: Mapping[int, float] = field(default_factory=dict)
    all_at: float | None = None  # when all were said; None: never


@dataclass(frozen=True, slots=True)
class Report:
    """A message, empty for none, and what oned will know when it has got it."""

    text: str
    then: Said


def _line(guest: Guest, word: str) -> str:
    return vector("VM", {"ID": str(guest.vm), "DEPLOY_ID": guest.name, "STATE": word})


def report(said: Said, guests: Iterable[Guest], *, now: float, sync_every_s: float) -> Report:
    """What to say now: changes, changes once more, or everything."""
    here = {guest.vm: guest for guest in guests if guest.state is not GuestState.VANISHED}
    words = {
        vm: _WORDS.get(guest.state, said.words.get(vm, _NOTHING_NEW)) for vm, guest in here.items()
    }
    gone = set(said.words) - set(words)
    everything = said.all_at is None or gone or not 0 <= now - said.all_at < sync_every_s
    changed = {vm for vm, word in words.items() if said.words.get(vm, _NOTHING_NEW) != word}
    again = {vm for vm, at in said.again_at.items() if vm in words and at <= now} - changed
    lines = []
    for vm, guest in sorted(here.items()):
        if guest.state is GuestState.BUSY:
            lines += [_line(guest, _NOTHING_NEW)] if everything else []
        elif everything or vm in changed or vm in again:
            lines.append(_line(guest, words[vm]))
    again_at = {
        vm: at for vm, at in said.again_at.items() if vm in words and vm not in changed | again
    } | dict.fromkeys(changed, now + _REPEAT_S)
    then = Said(words, again_at, now if everything else said.all_at)
    return Report((_SYNC if everything else "") + "".join(lines), then)


def dump(said: Said) -> str:
    """As text, for a probe that is a process of its own each time."""
    return json.dumps(
        {"words": said.words, "again_at": said.again_at, "all_at": said.all_at}, sort_keys=True
    )


def load(text: str) -> Said:
    """The reverse; anything else means that nothing was said."""
    try:
        raw: dict[str, Any] = json.loads(text)
        return Said(
            {int(vm): str(word) for vm, word in raw["words"].items()},
            {int(vm): float(at) for vm, at in raw["again_at"].items()},
            None if raw["all_at"] is None else float(raw["all_at"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return Said()
