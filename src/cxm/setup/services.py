# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns which services of a machine run: what is not as it shall be, and its change."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from cxm.run import Runner

_TIMEOUT_S: Final = 180.0
_CODES: Final = range(5)  # systemctl's answers; 4: there is no such unit


class Wish(StrEnum):
    """What a service shall be."""

    ON = "enable --now"
    # Another service starts it.
    ENABLED = "enable"
    OFF = "disable --now"
    # Not stopped: what it does when it is stopped is what is not wanted.
    MASKED = "mask"


@dataclass(frozen=True, slots=True)
class Change:
    """A service that is to become something else."""

    name: str
    wish: Wish

    @property
    def argv(self) -> list[str]:
        """The command that makes it so."""
        return ["systemctl", *self.wish.split(), self.name]


def unmet(runner: Runner, wishes: Sequence[Change]) -> list[Change]:
    """The wishes that are not true yet."""
    return [each for each in wishes if not _is_met(runner, each)]


def _is_met(runner: Runner, change: Change) -> bool:
    ask = ["systemctl", "is-enabled", change.name]
    enabled = runner.run(ask, ok=_CODES).stdout.strip()
    if change.wish is Wish.MASKED:
        return enabled == "masked"
    if change.wish is Wish.ENABLED:
        return enabled == "enabled"
    active = is_active(runner, change.name)
    if change.wish is Wish.ON:
        return enabled == "enabled" and active
    return enabled != "enabled" and not active


def is_active(runner: Runner, name: str) -> bool:
    """Whether a service runs."""
    return runner.run(["systemctl", "is-active", "-q", name], ok=_CODES).code == 0


def apply(runner: Runner, change: Change) -> None:
    """Make a wish true; raises CommandError."""
    runner.run(change.argv, timeout_s=_TIMEOUT_S)


def stop(runner: Runner, name: str) -> None:
    """Stop a service until it is started again."""
    runner.run(["systemctl", "stop", name], timeout_s=_TIMEOUT_S)
