# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns where messages go: the error output in OpenNebula's form, and syslog.

OpenNebula's drivers read lines ``LEVEL: text`` on the error output. A text never begins with a
digit (7.x takes it for the id of a VM) and never holds a line break.
"""

import logging
import syslog
from typing import Final, TextIO


class _OneLine(logging.Formatter):
    """``LEVEL: action: text`` on one line, whatever the text holds."""

    def __init__(self, action: str) -> None:
        super().__init__()
        self._action = action

    def format(self, record: logging.LogRecord) -> str:
        text = " ".join(record.getMessage().split())
        level = "WARN" if record.levelno == logging.WARNING else record.levelname
        return f"{level}: {self._action}: {text}"


def to_stream(stream: TextIO, *, action: str, debug: bool) -> None:
    """Send messages to ``stream`` for oned: INFO and above, all of them with DEBUG."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_OneLine(action))
    _install(handler, debug=debug)


class _Syslog(logging.Handler):
    """Hands messages to the system's log; the module logging.handlers costs a driver too much."""

    _PRIORITIES: Final = (
        (logging.ERROR, syslog.LOG_ERR),
        (logging.WARNING, syslog.LOG_WARNING),
        # A change of the world is worth a notice: the units of timers log nothing below that.
        (logging.INFO, syslog.LOG_NOTICE),
    )

    def emit(self, record: logging.LogRecord) -> None:
        priority = next(
            (found for level, found in self._PRIORITIES if record.levelno >= level),
            syslog.LOG_DEBUG,
        )
        for line in self.format(record).splitlines():
            syslog.syslog(priority, line)


def to_syslog(*, ident: str, debug: bool) -> None:
    """Send messages to the system's log; where there is none, they vanish."""
    syslog.openlog(ident, syslog.LOG_PID, syslog.LOG_DAEMON)
    _install(_Syslog(), debug=debug)


def _install(handler: logging.Handler, *, debug: bool) -> None:
    root = logging.getLogger("cxm")
    root.addHandler(handler)
    root.setLevel(logging.DEBUG if debug else logging.INFO)
    root.propagate = False
