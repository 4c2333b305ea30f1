# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Each version of OpenNebula gets the error text in the form that it reads."""

from pathlib import Path

import pytest

from cxm.errors import RefusedError
from cxm.one import version
from cxm.one.version import OneVersion

ERROR = RefusedError("LV lv-one-1-0 on solo1 is in use", hint="stop\nVM 1 \u00e9 first")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("7.4.0\n", OneVersion(7, 4, 0)),
        ("junk\n5.12.0.4\n", OneVersion(5, 12, 0)),
        ("4.4\n", OneVersion(4, 4, 0)),
        ("", version.OLDEST),
        ("nonsense", version.OLDEST),
    ],
)
def test_version_file_is_understood(tmp_path: Path, text: str, expected: OneVersion) -> None:
    """The VERSION file of a remotes tree says which OpenNebula calls."""
    (tmp_path / "VERSION").write_text(text, encoding="utf-8")
    assert version.of_remotes(str(tmp_path)) == expected


def test_tree_without_version_file_is_a_very_old_one(tmp_path: Path) -> None:
    """Up to 4.2 there is no VERSION file."""
    assert version.of_remotes(str(tmp_path)) == version.OLDEST


def test_old_versions_find_the_sentence_between_markers() -> None:
    """Up to 5.12 the text between the markers is the error."""
    lines = version.error_output(OneVersion(5, 12), "clone", ERROR).splitlines()
    inside = lines[lines.index("ERROR MESSAGE --8<------") + 1]
    assert inside == "LV lv-one-1-0 on solo1 is in use (stop VM 1 ? first)"
    assert lines[-1] == "ERROR MESSAGE ------>8--"


@pytest.mark.parametrize("number", [OneVersion(6, 0), OneVersion(6, 10, 5), OneVersion(7, 4)])
def test_new_versions_get_one_plain_line(number: OneVersion) -> None:
    """From 6.0 the error is one line without a level, ASCII, ended by a blank."""
    text = version.error_output(number, "clone", ERROR)
    assert text == "LV lv-one-1-0 on solo1 is in use (stop VM 1 ? first) \n"
