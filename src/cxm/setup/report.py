# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns how a check is told: one row each of a table, with what to do about it. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from cxm.errors import RefusedError


class Level(StrEnum):
    """How a check came out."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True)
class Check:
    """What was looked at and what was found."""

    level: Level
    name: str
    found: str
    advice: str = ""


def ok(name: str, found: str) -> Check:
    """Nothing to do."""
    return Check(Level.OK, name, found)


def warning(name: str, found: str, advice: str) -> Check:
    """It works, but the administrator should know."""
    return Check(Level.WARNING, name, found, advice)


def failed(name: str, found: str, advice: str) -> Check:
    """It cannot work like this."""
    return Check(Level.FAILED, name, found, advice)


def table(checks: Sequence[Check]) -> str:
    """The checks as text, one a line; advice is on a line of its own."""
    width = max((len(check.name) for check in checks), default=0)
    lines = []
    for check in checks:
        lines.append(f"  {check.level:<8} {check.name:<{width}}  {check.found}")
        if check.advice:
            lines.append(f"  {'':<8} {'':<{width}}  -> {check.advice}")
    return "\n".join(lines) + "\n"


def require(checks: Sequence[Check], what: str) -> None:
    """Raise RefusedError when a check failed."""
    names = [check.name for check in checks if check.level is Level.FAILED]
    if names:
        plural = "s" if len(names) > 1 else ""
        raise RefusedError(
            f"{what}: nothing was changed, because of the failed check{plural}: {', '.join(names)}",
            hint="the table above says what to do",
        )
