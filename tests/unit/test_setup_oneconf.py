# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""OpenNebula's configuration is read strictly, and edited without touching what is not ours."""

import pytest

from cxm.errors import ConfigError
from cxm.setup import oneconf

TEXT = """\
# the timer
TIMER = 15   # seconds
 empty =
Path="/a b/c # no comment"

MAD = [
    name = "one",      # the first
    ARGUMENTS = "-t 15 -d a,b"
    # last = "gone"
]
MAD=[NAME=two,ARGUMENTS="said \\"hello\\""]
"""


def test_values_vectors_and_comments_are_read() -> None:
    """Every form that oned takes is understood; names are upper case for us."""
    entries = oneconf.parse(TEXT, "oned.conf")
    assert [entry.name for entry in entries] == ["TIMER", "EMPTY", "PATH", "MAD", "MAD"]
    singles = [entry.single.text for entry in entries if entry.single is not None]
    assert singles == ["15", "", "/a b/c # no comment"]
    assert entries[3].get("NAME") == "one"
    assert entries[3].get("LAST") is None
    assert entries[4].get("arguments") == 'said "hello"'


def test_last_of_a_doubled_key_counts() -> None:
    """As oned takes it."""
    (entry,) = oneconf.parse('A = [ K = "1", K = "2" ]', "x")
    assert entry.get("K") == "2"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("A = [ B = 1", "oned.conf:1: ',' or ']' is missing here"),
        ("A = 1\n\nB", "oned.conf:3: '=' after B is missing here"),
        ('A = "never\nends', "oned.conf:1: the closing quote is missing here"),
        ("A = [ B = 1 C = 2 ]", "oned.conf:1: ',' or ']' is missing here"),
        ("A = ]", "oned.conf:1: a value is missing here"),
        ("= 1", "oned.conf:1: the name of an attribute is missing here"),
    ],
)
def test_what_oned_could_not_read_is_refused(text: str, message: str) -> None:
    """A damaged file is never edited: the error names file and line."""
    with pytest.raises(ConfigError) as failure:
        oneconf.parse(text, "oned.conf")
    assert message in failure.value.message


def test_replaced_value_changes_nothing_else() -> None:
    """Comments, order and layout stay."""
    entry = oneconf.parse(TEXT, "x")[3]
    pair = entry.find("ARGUMENTS")
    assert pair is not None
    changed = oneconf.replace_value(TEXT, pair.value, "-t 1")
    assert changed == TEXT.replace('"-t 15 -d a,b"', '"-t 1"')


def test_added_pair_follows_the_layout() -> None:
    """A pair a line, or all on one line, as it is already; comments behind the last one stay."""
    first, second = oneconf.parse(TEXT, "x")[3:]
    on_lines = oneconf.add_pair(TEXT, first, "TYPE", 'a "b"')
    assert '-d a,b",\n    TYPE = "a \\"b\\""\n    # last = "gone"\n]' in on_lines
    assert oneconf.parse(on_lines, "x")[3].get("TYPE") == 'a "b"'
    on_one = oneconf.add_pair(TEXT, second, "TYPE", "x")
    assert on_one.endswith('hello\\"", TYPE = "x"]\n')
    (empty,) = oneconf.parse("A = [ ]", "x")
    assert oneconf.parse(oneconf.add_pair("A = [ ]", empty, "B", "1"), "x")[0].get("B") == "1"


def test_appended_blocks_share_one_comment() -> None:
    """A file without a last line end gets one; the comment is written once."""
    text = oneconf.append("A = 1", oneconf.vector("B", {"LONG_KEY": "x", "C": "y"}), "ours")
    text = oneconf.append(text, 'D = "z"\n', "ours")
    assert text == 'A = 1\n\n# ours\nB = [\n    LONG_KEY = "x",\n    C        = "y"\n]\nD = "z"\n'
    assert [entry.name for entry in oneconf.parse(text, "x")] == ["A", "B", "D"]
