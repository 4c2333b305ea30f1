# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns whether nodes have processors between which a running guest can move. Pure.

A guest sees what the processor it was started on can do, and goes on using it after a move.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import zip_longest


@dataclass(frozen=True, slots=True)
class Row:
    """A node's processor beside those of the others."""

    node: str
    same: bool
    known: bool
    text: str


def _words(caps: str) -> list[int]:
    try:
        return [int(word, 16) for word in caps.split(":")]
    except ValueError:
        return []


def lacking(caps: str, other: str) -> int:
    """How many features ``other`` has that ``caps`` has not."""
    pairs = zip_longest(_words(caps), _words(other), fillvalue=0)
    return sum((theirs & ~mine).bit_count() for mine, theirs in pairs)


def compare(caps: Mapping[str, str | None]) -> list[Row]:
    """Each node against the others; a node that has not told counts as different."""
    found = []
    for node, own in sorted(caps.items()):
        if not own:
            text = f"not known: run 'cxm check-cpu' on {node}"
            found.append(Row(node, same=False, known=False, text=text))
            continue
        parts = []
        for other, theirs in sorted(caps.items()):
            missing = lacking(own, theirs) if theirs else 0
            if missing:
                parts.append(
                    f"lacks {missing} feature{'s' if missing > 1 else ''} of {other}: guests "
                    f"started there may not survive a live migration to {node}"
                )
        text = "; ".join(parts) or own
        richer = any(theirs and lacking(theirs, own) for theirs in caps.values())
        found.append(Row(node, same=not parts and not richer, known=True, text=text))
    return found
