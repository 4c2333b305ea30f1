# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns OpenNebula's configuration syntax: reads it strictly and edits it where it stands. Pure.

``NAME = value``, ``NAME = "text"`` and ``NAME = [ KEY = value, ... ]``, with comments from ``#`` to
the end of the line. Names are case-insensitive, as oned takes them. An edit changes the characters
it must and nothing else: comments, order and layout stay.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, NoReturn

from cxm.errors import ConfigError

_SKIP: Final = re.compile(r"(?:[ \t\r\n]+|#[^\n]*)*")
_NAME: Final = re.compile(r"[A-Za-z0-9_]+")
_EQUAL: Final = re.compile(r"[ \t]*=[ \t]*")
_QUOTED: Final = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_BARE: Final = re.compile(r"[^=#\s,\[\]\"]+")


@dataclass(frozen=True, slots=True)
class Value:
    """A text value and the place of its characters, quotes included."""

    text: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Pair:
    """A key of a vector and its value."""

    key: str  # upper case
    start: int
    value: Value


@dataclass(frozen=True, slots=True)
class Entry:
    """One attribute of a configuration: a single value, or a vector of pairs."""

    name: str  # upper case
    start: int
    end: int
    single: Value | None
    pairs: tuple[Pair, ...] = ()

    def get(self, key: str) -> str | None:
        """The value of a key of the vector; None when it is absent."""
        found = self.find(key)
        return None if found is None else found.value.text

    def find(self, key: str) -> Pair | None:
        """The last pair with this key: the one that oned uses."""
        found = [pair for pair in self.pairs if pair.key == key.upper()]
        return found[-1] if found else None


class _Reader:
    """Reads one configuration from its text."""

    def __init__(self, text: str, source: str) -> None:
        self._text = text
        self._source = source
        self._at = 0

    def _fail(self, what: str) -> NoReturn:
        line = self._text.count("\n", 0, self._at) + 1
        raise ConfigError(
            f"{self._source}:{line}: {what}", hint="oned cannot read this file either; mend it"
        )

    def _skip(self) -> None:
        found = _SKIP.match(self._text, self._at)
        self._at = found.end() if found else self._at

    def _take(self, pattern: re.Pattern[str], what: str) -> re.Match[str]:
        found = pattern.match(self._text, self._at)
        if found is None:
            self._fail(f"{what} is missing here")
        self._at = found.end()
        return found

    def _here(self, mark: str) -> bool:
        return self._text.startswith(mark, self._at)

    def _value(self) -> Value:
        start = self._at
        if self._here('"'):
            text = self._take(_QUOTED, "the closing quote")[1].replace('\\"', '"')
        elif self._at == len(self._text) or self._text[self._at] in "\r\n#":
            text = ""
        else:
            text = self._take(_BARE, "a value")[0]
        return Value(text, start, self._at)

    def _pairs(self) -> Iterator[Pair]:
        self._skip()
        while not self._here("]"):
            start = self._at
            key = self._take(_NAME, "the name of an attribute")[0].upper()
            self._take(_EQUAL, f"'=' after {key}")
            yield Pair(key, start, self._value())
            self._skip()
            if self._here(","):
                self._at += 1
                self._skip()
            elif not self._here("]"):
                self._fail("',' or ']' is missing here")
        self._at += 1

    def entries(self) -> Iterator[Entry]:
        """All attributes, in order."""
        self._skip()
        while self._at < len(self._text):
            start = self._at
            name = self._take(_NAME, "the name of an attribute")[0].upper()
            self._take(_EQUAL, f"'=' after {name}")
            if self._here("["):
                self._at += 1
                pairs = tuple(self._pairs())
                yield Entry(name, start, self._at, None, pairs)
            else:
                value = self._value()
                yield Entry(name, start, self._at, value)
            self._skip()


def parse(text: str, source: str) -> list[Entry]:
    """The attributes of a configuration; raises ConfigError with file and line."""
    return list(_Reader(text, source).entries())


def quote(text: str) -> str:
    """A value as it is written."""
    escaped = text.replace('"', '\\"')
    return f'"{escaped}"'


def replace_value(text: str, value: Value, new: str) -> str:
    """The configuration with one value replaced."""
    return text[: value.start] + quote(new) + text[value.end :]


def _indent_of(text: str, position: int) -> str | None:
    """The blanks before ``position`` when nothing else is before it on its line."""
    line = text.rfind("\n", 0, position) + 1
    before = text[line:position]
    return before if not before.strip() else None


def add_pair(text: str, entry: Entry, key: str, new: str) -> str:
    """The configuration with a further pair at the end of a vector."""
    if not entry.pairs:
        at = text.index("[", entry.start) + 1
        return f"{text[:at]} {key} = {quote(new)}{text[at:]}"
    last = entry.pairs[-1]
    at = last.value.end
    indent = _indent_of(text, last.start)
    gap = " " if indent is None else f"\n{indent}"
    return f"{text[:at]},{gap}{key} = {quote(new)}{text[at:]}"


def vector(name: str, pairs: Mapping[str, str]) -> str:
    """A vector as we write it: one pair a line."""
    width = max(len(key) for key in pairs)
    body = ",\n".join(f"    {key:<{width}} = {quote(value)}" for key, value in pairs.items())
    return f"{name} = [\n{body}\n]\n"


def append(text: str, block: str, comment: str) -> str:
    """The configuration with a block at its end, under a comment that is given once in a file."""
    head = text if not text or text.endswith("\n") else f"{text}\n"
    note = f"# {comment}\n"
    return f"{head}{block}" if note in head else f"{head}\n{note}{block}"
