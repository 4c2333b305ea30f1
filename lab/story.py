# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns how a demonstration tells itself: each step as it happens, then a table of all of them."""

import itertools
import json
import os
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

from cxm.errors import CxmError

_STEP_WIDTH = 34
_TEXT_WIDTH = 72


@dataclass(slots=True)
class Row:
    """One step: what it was to show, what happened, how long it took."""

    step: str
    happened: str = ""
    seconds: float = 0.0
    ok: bool = False


@dataclass(slots=True)
class Story:
    """The steps of a demonstration so far."""

    rows: list[Row] = field(default_factory=list)

    @contextmanager
    def step(self, name: str) -> Iterator[Row]:
        """Tell a step; the block sets ``happened``, an error there becomes the step's end."""
        row = Row(name)
        self.rows.append(row)
        began = time.monotonic()
        _say(f"\n[{len(self.rows)}] {name}")
        try:
            yield row
            row.ok = True
        except CxmError as error:
            row.happened = f"FAILED: {error.sentence()}"
            raise
        finally:
            row.seconds = round(time.monotonic() - began, 1)
            mark = "ok" if row.ok else "!!"
            for line in textwrap.wrap(row.happened, 90) or [""]:
                _say(f"    {mark} {line}")
                mark = "  "

    def table(self) -> str:
        """All steps as a table that people read."""
        rule = f"+{'-' * (_STEP_WIDTH + 2)}+{'-' * (_TEXT_WIDTH + 2)}+{'-' * 9}+"
        lines = [rule, _line("step", "what happened", "seconds"), rule]
        for row in self.rows:
            left = textwrap.wrap(row.step, _STEP_WIDTH)
            middle = textwrap.wrap(row.happened, _TEXT_WIDTH) or [""]
            seconds = [f"{row.seconds:.1f}"]
            lines.extend(
                _line(*cells)
                for cells in itertools.zip_longest(left, middle, seconds, fillvalue="")
            )
        total = sum(row.seconds for row in self.rows)
        return "\n".join([*lines, rule, _line("", "all together", f"{total:.1f}"), rule])

    def write(self, path: str) -> None:
        """The same rows as JSON."""
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8") as file:
            json.dump([asdict(row) for row in self.rows], file, indent=1)
            file.write("\n")


def _line(step: str, text: str, seconds: str) -> str:
    return f"| {step:<{_STEP_WIDTH}} | {text:<{_TEXT_WIDTH}} | {seconds:>7} |"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
