# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the reading of OpenNebula's template syntax as oned reads it: the same words, no more.

A value is a quoted text or a run without ``= # , [ ]`` and blanks; ``]]>`` in a value's line is
taken for something else and ends in a syntax error, as in oned. ``old`` is 3.x: no empty texts.
"""

import re
from typing import Final

Vector = dict[str, str]
Attribute = tuple[str, str | Vector]

_SPACE: Final = re.compile(r"[ \t\n]*(?:#[^\n]*\n[ \t\n]*)*")
_NAME: Final = re.compile(r"[A-Za-z0-9_]+")
_EQUAL: Final = re.compile(r"[ \t]*=[ \t]*")
_OPEN: Final = re.compile(r"[ \t]*\[[ \t\n]*")
_CLOSE: Final = re.compile(r"[ \t\n]*\][ \t\n]*")
_COMMA: Final = re.compile(r"[ \t\n]*,[ \t\n]*")
_PLAIN: Final = re.compile(r"[^=# \t\n,\[\]]+")
_QUOTED: Final = re.compile(r'"((?:[^"\\]|\\"|\\)*)"')
_QUOTED_OLD: Final = re.compile(r'"((?:[^"\\]|\\"|\\)+)"')
_CDATA: Final = re.compile(r"[^\n]*\]\]>")


class NotATemplateError(Exception):
    """oned would call it a syntax error."""


class _Reader:
    def __init__(self, text: str, *, old: bool) -> None:
        self.text = text
        self.at = 0
        self.quoted = _QUOTED_OLD if old else _QUOTED

    def take(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        match = pattern.match(self.text, self.at)
        if match is not None:
            self.at = match.end()
        return match

    def need(self, pattern: re.Pattern[str]) -> str:
        match = self.take(pattern)
        if match is None:
            raise NotATemplateError(f"at {self.text[self.at : self.at + 40]!r}")
        return match.group()

    def value(self) -> str:
        if _CDATA.match(self.text, self.at):
            raise NotATemplateError(f"]]> at {self.text[self.at : self.at + 40]!r}")
        if match := self.take(self.quoted):
            return match[1]
        return self.need(_PLAIN)

    def vector(self) -> Vector:
        found: Vector = {}
        while True:
            name = self.need(_NAME)
            self.need(_EQUAL)
            found[name] = self.value()
            if not self.take(_COMMA):
                break
        self.need(_CLOSE)
        return found


def parse(text: str, *, old: bool = False) -> list[Attribute]:
    """The attributes in their order; raises NotATemplateError."""
    reader = _Reader(text, old=old)
    found: list[Attribute] = []
    reader.take(_SPACE)
    while reader.at < len(text):
        name = reader.need(_NAME)
        reader.need(_EQUAL)
        found.append((name, reader.vector() if reader.take(_OPEN) else reader.value()))
        reader.take(_SPACE)
    return found


def singles(attributes: list[Attribute]) -> dict[str, str]:
    """The attributes that are no vectors; the last of a name wins, as in oned."""
    return {name: value for name, value in attributes if isinstance(value, str)}


def vectors(attributes: list[Attribute], name: str) -> list[Vector]:
    """The vectors of a name."""
    return [value for each, value in attributes if each == name and isinstance(value, dict)]
