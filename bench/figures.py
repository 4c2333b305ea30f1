# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what is made of measured values: medians, ratios, tables and bars. Runs nothing."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_BAR_WIDTH = 40


@dataclass(frozen=True, slots=True)
class Series:
    """The same thing measured several times, in the order of the rounds."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def low(self) -> float:
        return min(self.values)

    @property
    def high(self) -> float:
        return max(self.values)

    def shown(self, digits: int = 0) -> str:
        """Median, and in brackets the smallest and the largest value."""
        return f"{self.median:.{digits}f} ({self.low:.{digits}f}-{self.high:.{digits}f})"

    def to_json(self) -> dict[str, Any]:
        rounded = [round(value, 3) for value in self.values]
        return {
            "median": round(self.median, 3),
            "min": min(rounded),
            "max": max(rounded),
            "rounds": rounded,
        }


def series(values: Sequence[float]) -> Series:
    """A series of at least one value."""
    if not values:
        raise ValueError("nothing was measured")
    return Series(tuple(values))


def ratio(other: Series, ours: Series) -> Series:
    """How many times longer the other way took, round by round: what a round shares cancels out."""
    if len(other.values) != len(ours.values):
        raise ValueError("the two were not measured in the same rounds")
    return Series(tuple(a / b for a, b in zip(other.values, ours.values, strict=True)))


def covered(spans: Sequence[tuple[float, float]]) -> float:
    """The length of the union of spans (begin, end): what runs side by side counts once."""
    total, until = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total


def bar(value: float, longest: float, *, width: int = _BAR_WIDTH) -> str:
    """A bar whose length is in proportion to the longest one; what is there at all is visible."""
    if value <= 0 or longest <= 0:
        return ""
    return "#" * max(1, round(width * value / longest))


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """Rows below their heads; the first ``left`` columns are words, the others figures."""
    widths = [max(len(row[column]) for row in (heads, *rows)) for column in range(len(heads))]

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join(padded).rstrip()

    return "\n".join([line(heads), "  ".join("-" * width for width in widths), *map(line, rows)])


def chart(rows: Sequence[tuple[str, float, str]]) -> str:
    """A bar for each row of name, value and the value's text."""
    longest = max(value for _name, value, _text in rows)
    names = max(len(name) for name, _value, _text in rows)
    texts = max(len(text) for _name, _value, text in rows)
    return "\n".join(
        f"{name:<{names}}  {text:>{texts}}  {bar(value, longest)}" for name, value, text in rows
    )
