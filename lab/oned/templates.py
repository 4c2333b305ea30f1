# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns OpenNebula's template language: ``NAME="value"`` and ``NAME=[A="1", B="2"]``."""

import re
from collections.abc import Iterator, Sequence

from cxm.errors import DataError

Vector = dict[str, str]
# Attributes in their order; a name may come several times.
Template = list[tuple[str, str | Vector]]

_SPACE = re.compile(r"(?:\s|#[^\n]*(?:\n|$))*")
_NAME = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)\s*=\s*")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_BARE = re.compile(r"[^\n]*")
_BARE_IN_VECTOR = re.compile(r"[^,\]\n]*")


def parse(text: str) -> Template:
    """The attributes of a template; raises DataError where it is none."""
    found: Template = []
    position = _skip(text, 0)
    while position < len(text):
        match = _NAME.match(text, position)
        if not match:
            raise DataError(f"not a template: {text[position : position + 60]!r}")
        name = match[1].upper()
        position = match.end()
        if text.startswith("[", position):
            vector, position = _vector(text, position + 1)
            found.append((name, vector))
        else:
            value, position = _value(text, position, _BARE)
            found.append((name, value))
        position = _skip(text, position)
    return found


def _skip(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    return position if match is None else match.end()


def _value(text: str, position: int, bare: re.Pattern[str]) -> tuple[str, int]:
    quoted = _QUOTED.match(text, position)
    if quoted:
        return re.sub(r"\\(.)", r"\1", quoted[1], flags=re.DOTALL), quoted.end()
    match = bare.match(text, position)
    return ("", position) if match is None else (match[0].strip(), match.end())


def _vector(text: str, position: int) -> tuple[Vector, int]:
    vector: Vector = {}
    while True:
        position = _skip(text, position)
        if text.startswith(",", position):
            position = _skip(text, position + 1)
        if text.startswith("]", position):
            return vector, position + 1
        match = _NAME.match(text, position)
        if not match:
            raise DataError(f"not a template: {text[position : position + 60]!r}")
        vector[match[1].upper()], position = _value(text, match.end(), _BARE_IN_VECTOR)


def single(template: Template, name: str, default: str = "") -> str:
    """The value of the last plain attribute called ``name``."""
    found = [value for key, value in template if key == name and isinstance(value, str)]
    return found[-1] if found else default


def vectors(template: Template, name: str) -> list[Vector]:
    """All vector attributes called ``name``."""
    return [value for key, value in template if key == name and isinstance(value, dict)]


def take(template: Template, names: Sequence[str]) -> tuple[Template, Template]:
    """Split off the attributes called ``names``: (those, the others)."""
    mine = [row for row in template if row[0] in names]
    return mine, [row for row in template if row[0] not in names]


def cdata(name: str, value: str) -> str:
    """An element whose text is taken literally."""
    return f"<{name}><![CDATA[{value}]]></{name}>"


def _elements(template: Template) -> Iterator[str]:
    for name, value in sorted(template, key=lambda row: row[0]):
        if isinstance(value, str):
            yield cdata(name, value)
        else:
            inner = "".join(cdata(key, text) for key, text in sorted(value.items()))
            yield f"<{name}>{inner}</{name}>"


def to_xml(template: Template, name: str = "TEMPLATE") -> str:
    """The XML that oned makes of a template: attributes sorted by name."""
    return f"<{name}>{''.join(_elements(template))}</{name}>"
