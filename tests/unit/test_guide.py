# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""The guide says what the program does: its tables and commands are compared with it."""

import argparse
import re

import pytest

from cxm.setup import main
from tools import guide

TEXT = guide.README.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", sorted(set(guide.parts()) - {"demo"}))
def test_tables_are_those_of_the_program(name: str) -> None:
    """A new setting appears in the guide, with its default and meaning."""
    text = guide.parts()[name]
    assert f"<!-- {name} -->\n{text}<!-- end -->" in TEXT, "run: python -m tools.guide"


def test_table_of_calls_is_that_of_the_code() -> None:
    """By version and state, which calls bring OpenNebula's record in line."""
    text = guide.SYNC.read_text(encoding="utf-8")
    for name, made in guide.sync_parts().items():
        assert f"<!-- {name} -->\n{made}<!-- end -->" in text, "run: python -m tools.guide"


def test_guide_has_the_table_of_the_demo() -> None:
    """Its place is there, and filled by the demo's own rows."""
    assert re.search(r"<!-- demo -->\n.*<!-- end -->", TEXT, re.DOTALL)


def test_options_of_cxm_setup_are_spelt_as_the_command_takes_them() -> None:
    """What the guide tells people to type is accepted."""
    known = set()
    parser = main.parser()
    for action in parser._actions:  # argparse has no other way to ask
        if isinstance(action, argparse._SubParsersAction):
            for verb in action.choices.values():
                known |= set(verb._option_string_actions)
    lines = [line for line in TEXT.splitlines() if "cxm-setup" in line]
    used = {word for line in lines for word in re.findall(r"(?<![\w-])--[a-z-]+", line)}
    others = {"--im", "--vm", "--net", "--cluster", "--prefix", "--force"}
    assert used - others <= known


def test_make_targets_in_the_guide_exist() -> None:
    """The first commands a reader types."""
    makefile = (guide.ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"(?:^ {4}|`)make ([a-z-]+)", TEXT, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
