# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what the lab says while it works: one line a step, and which step failed with which log."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from cxm.errors import CxmError


class StepError(CxmError):
    """A step of the lab failed; the message names it, the hint its log."""


class Progress:
    """Tells each step on standard error; silent where nobody wants to read it."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self._started = time.monotonic()

    def say(self, text: str) -> None:
        """Print one line, with the seconds since the start."""
        if not self.quiet:
            seconds = time.monotonic() - self._started
            print(f"{seconds:6.1f} s  {text}", file=sys.stderr, flush=True)

    @contextmanager
    def step(self, name: str, log: str | None = None) -> Iterator[None]:
        """A step: its name is shown when it begins, its seconds when it took some."""
        self.say(f"{name} ...")
        began = time.monotonic()
        try:
            yield
        except CxmError as error:
            if isinstance(error, StepError):
                raise
            hint = f"log: {log}" if log else error.hint
            raise StepError(f"{name}: {error.message}", hint=hint) from error
        took = time.monotonic() - began
        if took >= 1:
            self.say(f"{name}: done in {took:.1f} s")
