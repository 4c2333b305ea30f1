# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns OpenNebula's template syntax as probes print it: names, values, vectors. Pure.

oned's parser knows no way to write a double quote or ``]]>`` inside of a value; 3.x turns every
comma into a line break, and its shell expands patterns. Such characters leave our values.
"""

import re
from collections.abc import Mapping
from typing import Final

Value = str | int | float

_UNSPEAKABLE: Final = re.compile(r'["\\\x00-\x1f\x7f]|\]\]>')
_UNSPEAKABLE_3: Final = re.compile(r"[,*?\[\]`$~{}]")


def text(value: str, *, old: bool = False) -> str:
    """A text as a value can carry it; ``old`` also for 3.6 to 4.2."""
    cleaned = _UNSPEAKABLE.sub(" ", value)
    if old:
        cleaned = _UNSPEAKABLE_3.sub(" ", cleaned)
    return " ".join(cleaned.split())


def _spoken(value: Value, *, old: bool = False) -> str:
    return f'"{text(value, old=old)}"' if isinstance(value, str) else str(value)


def lines(values: Mapping[str, Value], *, old: bool = False) -> str:
    """``NAME=VALUE`` lines; a text that is empty is not said (3.x cannot read it)."""
    return "".join(
        f"{name}={_spoken(value, old=old)}\n"
        for name, value in values.items()
        if not isinstance(value, str) or text(value, old=old)
    )


def vector(name: str, values: Mapping[str, Value]) -> str:
    """One line ``NAME=[A=1,B="two"]``."""
    return f"{name}=[{','.join(f'{key}={_spoken(value)}' for key, value in values.items())}]\n"
