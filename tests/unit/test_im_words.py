# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""What we say is what oned reads, whatever a name holds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxm.one.im import words
from tests.fakes import template

NASTY = ['a"b', "a\\", "]]>", "x]]>y", "[a,b]", "# no comment", "a=b", "\n", "\x00\x1b", "é ü", ""]


@pytest.mark.parametrize("name", NASTY)
def test_any_name_is_read_as_one_value(name: str) -> None:
    """Nothing in a value can end it or begin something else."""
    said = words.lines({"A": 1, "NAME": name, "B": 2}) + words.vector("V", {"N": name, "Z": 3})
    read = template.parse(said)
    assert template.singles(read)["B"] == "2"
    assert template.vectors(read, "V") == [{"N": words.text(name), "Z": "3"}]


@given(st.text())
def test_every_text_survives_the_reader(text: str) -> None:
    """A value comes back as we meant it, in all versions and as 3.x cuts at commas."""
    said = words.lines({"A": text, "B": 1}, old=True)
    assert "," not in said
    assert template.singles(template.parse(said, old=True))["B"] == "1"
    said = words.vector("V", {"A": text, "B": 1})
    assert template.vectors(template.parse(said), "V")[0]["B"] == "1"


def test_empty_text_is_not_said() -> None:
    """3.x has no way to write it."""
    assert words.lines({"MODELNAME": "", "ARCH": "x86_64"}) == 'ARCH="x86_64"\n'
