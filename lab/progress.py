# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what the lab says while it works: each step, its seconds, which failed and its log."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cxm.errors import CxmError

_REMIND_S = 10.0


class StepError(CxmError):
    """A step of the lab failed; the message names it, the hint its log."""


class Progress:
    """Tells each step on standard error; silent where nobody wants to read it."""

    def __init__(self, *, quiet: bool = False, about: str = "") -> None:
        self.quiet = quiet
        self._about = about  # what each line begins with
        self._started = time.monotonic()

    def say(self, text: str) -> None:
        """Print one line, with the seconds since the start."""
        if not self.quiet:
            seconds = time.monotonic() - self._started
            print(f"{seconds:6.1f} s  {self._about}{text}", file=sys.stderr, flush=True)

    @contextmanager
    def step(
        self,
        name: str,
        log: str | None = None,
        *,
        usual: str = "",
        look: Callable[[], str] = str,
    ) -> Iterator[None]:
        """A step: named when it begins, reminded of while it lasts, its seconds told at its end.

        ``usual`` says how long it takes ("60 s"), ``look`` where it is just now.
        """
        self.say(f"{name} ..." + (f" (usually {usual})" if usual else ""))
        began = time.monotonic()
        ended = threading.Event()
        reminder = threading.Thread(target=self._remind, args=(name, ended, look), daemon=True)
        if not self.quiet:
            reminder.start()
        try:
            yield
        except CxmError as error:
            if isinstance(error, StepError):
                raise
            hint = f"log: {log}" if log else error.hint
            raise StepError(f"{name}: {error.message}", hint=hint) from error
        finally:
            ended.set()
        took = time.monotonic() - began
        if took >= 1:
            self.say(f"{name}: done in {took:.1f} s")

    def _remind(self, name: str, ended: threading.Event, look: Callable[[], str]) -> None:
        began = time.monotonic()
        while not ended.wait(_REMIND_S):
            where = look()
            self.say(f"{name}: {time.monotonic() - began:.0f} s{f', {where}' if where else ''}")
