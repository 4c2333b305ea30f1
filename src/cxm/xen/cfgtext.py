# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the syntax of xl.cfg: reading its statements as data, and quoting values. Pure.

What is read is ``key = value`` with a number, a quoted text or a list of them; a list may span
lines. Nothing is executed or expanded.
"""

import ast
import re
from dataclasses import dataclass
from typing import Any, Final

from cxm.errors import UsageError
from cxm.xen.options import Value

_STATEMENT: Final = re.compile(
    r"\s*(?P<key>[A-Za-z_][A-Za-z0-9_]*)\s*=\s*(?P<value>\S.*)", re.DOTALL
)
_REMARK: Final = re.compile(r"#O\s+(?P<key>[A-Z_]+)\s*=\s*(?P<value>.*?)\s*")
_MAX_LIST_LINES: Final = 300


@dataclass(frozen=True, slots=True)
class Statement:
    """A ``key = value`` and the line it begins on."""

    key: str
    value: Value
    line: int


@dataclass(frozen=True, slots=True)
class Config:
    """A file of xl.cfg: its statements, and its ``#O KEY = value`` remarks for drivers."""

    statements: tuple[Statement, ...]
    remarks: dict[str, str]

    def get(self, key: str) -> Value | None:
        """The last value of a key, as xl takes it; None where there is none."""
        return next((row.value for row in reversed(self.statements) if row.key == key), None)


def _value(text: str) -> Value | None:
    """The value of a literal; None for what is no literal (yet)."""
    try:
        found: Any = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    if isinstance(found, bool):
        return None
    if isinstance(found, int | str):
        return found
    if isinstance(found, list) and all(
        isinstance(part, int | str) and not isinstance(part, bool) for part in found
    ):
        return tuple(str(part) for part in found)
    return None


def parse(text: str, source: str) -> Config:
    """The statements of ``text``; raises UsageError that names ``source`` and the line."""
    # Not splitlines(): a value may hold what Unicode calls a line break.
    lines = text.split("\n")
    statements: list[Statement] = []
    remarks: dict[str, str] = {}
    number = 0
    while number < len(lines):
        line = lines[number]
        number += 1
        if not line.strip() or line.lstrip().startswith("#"):
            remark = _REMARK.fullmatch(line)
            if remark:
                remarks[remark["key"]] = remark["value"]
            continue
        first, whole = number, line
        match = _STATEMENT.fullmatch(whole)
        value = _value(match["value"]) if match else None
        opened = match is not None and match["value"].startswith("[")
        while value is None and opened and number < min(len(lines), first + _MAX_LIST_LINES):
            whole += "\n" + lines[number]
            number += 1
            match = _STATEMENT.fullmatch(whole)
            value = _value(match["value"]) if match else None
        if match is None or value is None:
            raise UsageError(
                f"{source}, line {first}: not a 'key = value' of xl.cfg: '{line.strip()}'"
            )
        statements.append(Statement(match["key"], value, first))
    return Config(tuple(statements), remarks)


def quote(text: str) -> str:
    """A text as xl.cfg wants it; raises UsageError for a control character."""
    if any(char < " " or char == "\x7f" for char in text):
        raise UsageError(f"{text!r} holds a control character")
    # Of C's escapes only these work in xl 4.17: it refuses \x27 and drops \047.
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def write(key: str, value: Value) -> str:
    """One statement."""
    if isinstance(value, tuple):
        return f"{key} = [{', '.join(quote(part) for part in value)}]"
    return f"{key} = {quote(value) if isinstance(value, str) else value}"
