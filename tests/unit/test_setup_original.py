# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""An original cxm.conf is read without being run, and each of its keys gets an answer."""

import re
from pathlib import Path

import pytest

from cxm.errors import ConfigError
from cxm.setup import original

TEXT = """# cxm configuration, in Python's syntax
CLUSTER_NAME="prod"
ALLOWED_NODES=['node1', "node2"]
TIMER=3
FENCE_CMD="my_fencing.sh"
HB_DISK="/dev/shared"
"""


def test_what_counts_is_taken_and_the_rest_is_answered() -> None:
    """Name, nodes, timer; for everything else what replaces it."""
    found = original.read(TEXT, "cxm.conf")
    assert (found.name, found.nodes, found.token_ms) == ("prod", ["node1", "node2"], 6000)
    assert found.told[0].startswith("cxm.conf: FENCE_CMD does not count any more; instead: --fence")
    assert "HB_DISK" in found.told[1]


def test_every_key_of_the_original_has_an_answer() -> None:
    """And one that it never had is named too."""
    keys = [*original._REPLACED, "OTHER"]
    told = original.read("\n".join(f"{key}=1" for key in keys), "f").told
    assert len(told) == len(keys)


def test_guide_answers_every_key() -> None:
    """And no other."""
    text = (Path(__file__).parents[2] / "docs/cluster.md").read_text(encoding="utf-8")
    part = text[text.index("### From the original cxm") : text.index("### SBD")]
    rows = [line.split("|")[1] for line in part.splitlines() if line.startswith("| `")]
    told = {key for row in rows for key in re.findall(r"`([A-Z_]+)`", row)}
    assert told == {*original._REPLACED, *original._OURS}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import os", "f:1: this is a program's line"),
        ("\nTIMER=1+int('2')", "f:2: TIMER is calculated"),
        ("TIMER='3'", "TIMER is '3'"),
        ("ALLOWED_NODES='a'", "ALLOWED_NODES is 'a'"),
        ("A = (", "f cannot be read"),
        ("\0", "f cannot be read"),
    ],
)
def test_what_is_no_value_is_an_error(text: str, message: str) -> None:
    """Nothing of it is run."""
    with pytest.raises(ConfigError, match=message):
        original.read(text, "f")
