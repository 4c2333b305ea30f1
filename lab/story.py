# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns how a demonstration tells itself: each step as it happens, then a table of all of them.

What the reader need not watch can go on beside the steps (:meth:`Story.beside`) and is told when
the story comes to it.
"""

import itertools
import json
import os
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Generic, TypeVar

from cxm.errors import CxmError

_STEP_WIDTH = 34
_TEXT_WIDTH = 72

T = TypeVar("T")


@dataclass(slots=True)
class Row:
    """One step: what it was to show, what happened, how long it took."""

    step: str
    happened: str = ""
    seconds: float = 0.0
    ok: bool = False
    waited: float | None = None  # of one that went on beside others: how long they waited for it

    @property
    def time(self) -> str:
        """Its seconds; in brackets where other steps were done meanwhile."""
        return f"{self.seconds:.1f}" if self.waited is None else f"({self.seconds:.1f})"


@dataclass(slots=True)
class Story:
    """The steps of a demonstration so far."""

    rows: list[Row] = field(default_factory=list)
    aloud: bool = True

    @contextmanager
    def step(self, name: str) -> Iterator[Row]:
        """Tell a step; the block sets ``happened``, an error there becomes the step's end."""
        row = Row(name)
        self.rows.append(row)
        began = time.monotonic()
        self._begin(name)
        try:
            yield row
            row.ok = True
        except CxmError as error:
            row.happened = f"FAILED: {error.sentence()}"
            raise
        finally:
            row.seconds = round(time.monotonic() - began, 1)
            self._end(row)

    def beside(self, work: Callable[["Story"], T]) -> "Aside[T]":
        """Begin steps that go on beside those that follow here, until :meth:`Aside.join`."""
        return Aside(self, work)

    def take(self, rows: list[Row], waited_s: float) -> None:
        """Tell steps that were done meanwhile; the first of them was waited for."""
        for number, row in enumerate(rows):
            row.waited = 0.0 if number else round(waited_s, 1)
            self.rows.append(row)
            self._begin(f"{row.step} (meanwhile, {row.seconds:.0f} s)")
            self._end(row)

    def _begin(self, name: str) -> None:
        if self.aloud:
            _say(f"\n[{len(self.rows)}] {name}")

    def _end(self, row: Row) -> None:
        if not self.aloud:
            return
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
            seconds = [row.time]
            lines.extend(
                _line(*cells)
                for cells in itertools.zip_longest(left, middle, seconds, fillvalue="")
            )
        total = sum(row.seconds if row.waited is None else row.waited for row in self.rows)
        return "\n".join([*lines, rule, _line("", "all together", f"{total:.1f}"), rule])

    def write(self, path: str) -> None:
        """The same rows as JSON."""
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8") as file:
            json.dump([asdict(row) for row in self.rows], file, indent=1)
            file.write("\n")


class Aside(Generic[T]):
    """Steps that go on beside a story, in a thread."""

    def __init__(self, story: Story, work: Callable[[Story], T]) -> None:
        self._story = story
        self._own = Story(aloud=False)
        self._result: list[T] = []
        self._error: CxmError | None = None
        self._thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        self._thread.start()

    def _run(self, work: Callable[[Story], T]) -> None:
        try:
            self._result.append(work(self._own))
        except CxmError as error:
            self._error = error

    def join(self) -> T:
        """Wait for the steps and tell them; returns what the work returned, raises its error."""
        began = time.monotonic()
        self._thread.join()
        self._story.take(self._own.rows, time.monotonic() - began)
        if self._error is not None:
            raise self._error
        return self._result[0]


def _line(step: str, text: str, seconds: str) -> str:
    return f"| {step:<{_STEP_WIDTH}} | {text:<{_TEXT_WIDTH}} | {seconds:>7} |"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
