# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns how a demonstration tells itself: each step as it happens, then a table of all of them.

What the reader need not watch can go on beside the steps (:meth:`Story.beside`) and is told when
the story comes to it.
"""

import itertools
import json
import math
import os
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
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
    shown: list[str] = field(default_factory=list)  # what is printed above its end

    @property
    def time(self) -> str:
        """Its seconds; in brackets where other steps were done meanwhile."""
        return f"{self.seconds:.1f}" if self.waited is None else f"({self.seconds:.1f})"


@dataclass(slots=True)
class Story:
    """The steps of a demonstration so far."""

    rows: list[Row] = field(default_factory=list)
    aloud: bool = True
    before: int = 0  # steps of the story that this one goes on beside
    _open: Row | None = None
    _heard_since: float = -math.inf
    _told: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def step(self, name: str) -> Iterator[Row]:
        """Tell a step; the block sets ``happened``, an error there becomes the step's end."""
        row = Row(name)
        began = time.monotonic()
        with self._told:
            self.rows.append(row)
            self._open = row
            self._begin(row.step)
        try:
            yield row
            row.ok = True
        except CxmError as error:
            row.happened = f"FAILED: {error.sentence()}"
            raise
        finally:
            now = time.monotonic()
            with self._told:
                self._open = None
                row.seconds = round(now - began, 1)
                if began < self._heard_since:
                    row.waited = round(now - self._heard_since, 1)
                self._end(row)

    def beside(self, work: Callable[["Story"], T]) -> "Aside[T]":
        """Begin steps that go on beside those that follow here, until :meth:`Aside.join`."""
        return Aside(self, work)

    def hear(self, before: int) -> None:
        """Tell the steps so far, and from now on each as it happens."""
        with self._told:
            self.aloud, self.before, self._heard_since = True, before, time.monotonic()
            rows, self.rows = self.rows, []
            for row in rows:
                self.rows.append(row)
                if row is self._open:
                    self._begin(f"{row.step} (begun meanwhile)")
                else:
                    row.waited = 0.0
                    self._begin(f"{row.step} (meanwhile, {row.seconds:.0f} s)")
                    self._end(row)

    def _begin(self, name: str) -> None:
        if self.aloud:
            _say(f"\n[{self.before + len(self.rows)}] {name}")

    def _end(self, row: Row) -> None:
        if not self.aloud:
            return
        for line in row.shown:
            _say(f"    {line}")
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
        self._result: Future[T] = Future()
        threading.Thread(target=self._run, args=(work,), daemon=True).start()

    def _run(self, work: Callable[[Story], T]) -> None:
        try:
            self._result.set_result(work(self._own))
        except BaseException as error:  # noqa: BLE001 - whoever joins is told, whatever it is
            self._result.set_exception(error)

    def join(self) -> T:
        """Tell the steps and wait for their end; returns what the work returned, or raises."""
        self._own.hear(len(self._story.rows))
        try:
            return self._result.result()
        finally:
            self._story.rows += self._own.rows


def _line(step: str, text: str, seconds: str) -> str:
    return f"| {step:<{_STEP_WIDTH}} | {text:<{_TEXT_WIDTH}} | {seconds:>7} |"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
