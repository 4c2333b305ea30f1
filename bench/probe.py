# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Put into the stub and the helper while they are measured: notes when they start what.

Its place is behind the line that makes cxm importable. It costs under a millisecond, is never
installed by a package, and writes nothing before the process ends.
"""

import atexit
import logging
import os
import sys
import time
from typing import SupportsIndex

BEGAN = "CXM_BENCH_BEGAN"  # when the shell started us
SLEEP = time.sleep
PATH = "/var/tmp/cxm-bench"  # noqa: S108 - the bench puts another name here


class Notes(logging.Handler):
    """Takes what cxm.run logs about the commands it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.started: list[tuple[str, float]] = []
        self.spans: list[tuple[str, float, float]] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Note a start, or an end with its seconds."""
        words = record.args if isinstance(record.args, tuple) else ()
        name = os.path.basename(str(words[-1]).split()[0]) if words else ""
        if record.msg.startswith("run:"):
            self.started.append((name, record.created))
        elif record.msg.startswith("done in"):
            seconds = float(str(words[0]))
            self.spans.append((name, record.created - seconds, record.created))

    def sleep(self, seconds: SupportsIndex | float, /) -> None:
        """Sleep, and note it: whoever sleeps waits for a guest."""
        begin = time.time()
        SLEEP(seconds)
        self.spans.append(("sleep", begin, time.time()))

    def write(self) -> None:
        """One line for this process."""
        import json  # noqa: PLC0415 - an action may do without it, and is measured

        verb = sys.argv[1] if sys.argv[0].endswith("cxm-helper") else ""
        # An action's name is its path below the remotes: .../tm/cxm/clone.
        name = verb or "/".join(os.path.abspath(sys.argv[0]).split("/")[-3:])
        row = {
            "name": name,
            "began": os.environ.get(BEGAN, ""),
            "ended": time.time(),
            "started": self.started,
            "spans": self.spans,
        }
        with open(f"{PATH}.{os.geteuid()}", "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def install() -> None:
    """Begin to note."""
    notes = Notes()
    atexit.register(notes.write)
    time.sleep = notes.sleep
    logger = logging.getLogger("cxm.run")
    logger.addHandler(notes)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
