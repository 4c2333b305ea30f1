# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns how tables, bars and boxes look. Pure: values in, text out."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

_FULL: Final = 0.9  # from here on a bar is shown as a warning


class Tint(StrEnum):
    """What a text's colour says."""

    PLAIN = ""
    GOOD = "32"
    NOTICE = "33"
    BAD = "1;31"
    HEAD = "1"
    FAINT = "2"


@dataclass(frozen=True, slots=True)
class Cell:
    """A word of a table."""

    text: str
    tint: Tint = Tint.PLAIN
    right: bool = False


@dataclass(frozen=True, slots=True)
class Style:
    """What the reader's terminal can show."""

    color: bool = False
    unicode: bool = False

    def paint(self, text: str, tint: Tint) -> str:
        """The text in a colour, if there are any."""
        if not self.color or tint is Tint.PLAIN or not text:
            return text
        return f"\x1b[{tint.value}m{text}\x1b[0m"

    def bar(self, used: float, total: float, width: int = 16) -> Cell:
        """How full something is."""
        share = min(1.0, used / total) if total > 0 else 0.0
        count = round(share * width)
        if used > 0 and count == 0:
            count = 1
        full, empty = ("█", "░") if self.unicode else ("#", ".")
        return Cell(
            full * count + empty * (width - count),
            Tint.BAD if share >= _FULL else Tint.GOOD,
        )

    def box(self, lines: Sequence[str]) -> str:
        """Lines in a frame that nobody overlooks."""
        left, right, across, down = (
            ("╔╚", "╗╝", "═", "║") if self.unicode else ("++", "++", "=", "|")
        )
        width = max(map(len, lines))
        edge = across * (width + 2)
        rows = [f"{down} {line:<{width}} {down}" for line in lines]
        framed = [f"{left[0]}{edge}{right[0]}", *rows, f"{left[1]}{edge}{right[1]}"]
        return "\n".join(self.paint(row, Tint.BAD) for row in framed) + "\n"

    def table(self, head: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
        """Columns as wide as they must be; a column is as its first cell: left or right."""
        columns = range(len(head))
        widths = [max([len(head[at]), *(len(row[at].text) for row in rows)]) for at in columns]
        to_right = [bool(rows) and rows[0][at].right for at in columns]
        titles = [Cell(name, Tint.HEAD) for name in head]
        lines = []
        for row in [titles, *rows]:
            parts = []
            for at, cell in enumerate(row):
                gap = " " * (widths[at] - len(cell.text))
                word = self.paint(cell.text, cell.tint)
                parts.append(gap + word if to_right[at] else word + gap)
            lines.append("  ".join(parts).rstrip())
        return "\n".join(lines) + "\n"


def moment(at: float) -> str:
    """A time as this machine's clock shows it."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
