# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""docs/cxm.md and the completion know the subcommands that there are, and no others."""

import re
from pathlib import Path

from cxm.cli.verbs import VERBS

ROOT = Path(__file__).parents[2]


def test_guide_has_every_subcommand() -> None:
    """A row each."""
    text = (ROOT / "docs/cxm.md").read_text(encoding="utf-8")
    table = text[text.index("| subcommand |") : text.index("## Looking")]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    told = {name for row in rows for name in re.findall(r"`([a-z-]+)", row)}
    assert told == {verb.name for verb in VERBS}


def test_completion_has_every_subcommand() -> None:
    """The same."""
    text = (ROOT / "packaging/bash-completion/cxm").read_text(encoding="utf-8")
    match = re.search(r"words='(\w.*?)'\n", text, re.DOTALL)
    assert match is not None
    words = {word for word in match[1].split() if not word.startswith("-")}
    assert words - {""} == {verb.name for verb in VERBS}
