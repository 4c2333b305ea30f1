# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the errors an operator can meet, sorted by what the operator does next.

Library code raises these; only the boundaries (``one/action.py``, ``node/helper.py`` and the
``main`` of a command) catch, print and exit. A message is one sentence that names the object, the
host and the cause; the hint says what to do next.
"""

import logging
from typing import ClassVar


class CxmError(Exception):
    """A failure with one clear sentence for the operator.

    ``code`` is the exit status of a command that ends with this error. It is never 42 (OpenNebula
    takes it for "scripts are missing on the host") nor 255 (ssh's own failure).
    """

    code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        # Whoever passes an error on may put before it what it was about.
        return self.message

    def sentence(self) -> str:
        """The message and what to do next, on one line."""
        text = self.message if self.hint is None else f"{self.message} ({self.hint})"
        return " ".join(text.split())


def system_error(error: OSError) -> str:
    """What the system refused and where, without Python's number."""
    return f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")


def explained(error: BaseException, what: str, log: logging.Logger) -> CxmError:
    """Any failure of ``what`` as one sentence; a defect's traceback goes to the log."""
    if isinstance(error, CxmError):
        return error
    if isinstance(error, OSError):
        return CxmError(f"{what}: {system_error(error)}")
    log.error("unexpected failure of %s", what, exc_info=error)
    return CxmError(
        f"{what} failed unexpectedly: {type(error).__name__}: {error}",
        hint="this is a defect of cxm; please report it with the node's log",
    )


class UsageError(CxmError):
    """The caller's arguments are wrong; call again, corrected."""

    code = 2


class ConfigError(CxmError):
    """A setting or a configuration file is wrong; edit it."""

    code = 3


class CommandError(CxmError):
    """A command failed; ``argv``, ``exit_code`` and ``stderr`` say which and how."""

    code = 4

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        argv: tuple[str, ...] = (),
        exit_code: int | None = None,
        stderr: str = "",
    ) -> None:
        super().__init__(message, hint=hint)
        self.argv = argv
        self.exit_code = exit_code
        self.stderr = stderr


class LockTimeoutError(CxmError):
    """The time is over: another action holds a lock, or what was ordered is not done; try later."""

    code = 5


class RefusedError(CxmError):
    """The action would be unsafe as things stand; nothing was changed."""

    code = 6


class NotFoundError(CxmError):
    """The named object does not exist where it was looked for."""

    code = 7


class DataError(CxmError):
    """An image, a stream or a message is damaged or not what it claims to be."""

    code = 8


class UnreachableError(CxmError):
    """A host did not answer; nothing is known about what it did."""

    code = 9


# A verb's failure crosses the wire by class name; the caller raises the same class again.
BY_NAME: dict[str, type[CxmError]] = {
    cls.__name__: cls
    for cls in (
        CxmError,
        UsageError,
        ConfigError,
        CommandError,
        LockTimeoutError,
        RefusedError,
        NotFoundError,
        DataError,
        UnreachableError,
    )
}
