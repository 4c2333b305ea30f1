# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what depends on the version of OpenNebula that calls us. Pure but for reading one file."""

import os
import re
from typing import NamedTuple

from cxm.errors import CxmError, DataError


class OneVersion(NamedTuple):
    """A version of OpenNebula; compares as one expects."""

    major: int
    minor: int
    patch: int = 0

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}"

    @property
    def has_error_markers(self) -> bool:
        """Up to 5.12 oned takes the text between two marker lines for the error."""
        return self < (5, 13)

    @property
    def takes_all_stderr(self) -> bool:
        """In 6.x all that an action wrote to its error output is the error that the user sees."""
        return (6, 0) <= self < (6, 99)

    @property
    def deletes_while_it_cancels(self) -> bool:
        """In 3.x oned deletes a VM's disks while it still has its domain destroyed (recorded)."""
        return self < (4, 0)

    @property
    def gives_stdin(self) -> bool:
        """From 5.0 every VMM action gets the VM's XML; before, only deploy may read its input."""
        return self >= (5, 0)


# Up to 4.2 the remotes hold no VERSION file; what 3.8 wants serves all of them.
OLDEST = OneVersion(3, 8)


def text_of_remotes(root: str) -> str:
    """The version as the remotes tree writes it; empty where it has none (up to 4.2)."""
    try:
        with open(os.path.join(root, "VERSION"), encoding="ascii", errors="replace") as file:
            return file.read().strip().rpartition("\n")[2]
    except FileNotFoundError:
        return ""


def parse(text: str) -> OneVersion:
    """The version that a text begins with; raises DataError for anything else."""
    found = re.match(r"([0-9]+)\.([0-9]+)(?:\.([0-9]+))?", text.strip())
    if found is None:
        raise DataError(f"'{text[:40]}' is no version of OpenNebula")
    return OneVersion(int(found[1]), int(found[2]), int(found[3] or 0))


def of_remotes(root: str) -> OneVersion:
    """The version that a remotes tree belongs to, by its VERSION file."""
    try:
        with open(os.path.join(root, "VERSION"), encoding="ascii", errors="replace") as file:
            found = re.findall(r"^([0-9]+)\.([0-9]+)(?:\.([0-9]+))?", file.read(), re.MULTILINE)
    except FileNotFoundError:
        return OLDEST
    if not found:
        return OLDEST
    major, minor, patch = found[-1]
    return OneVersion(int(major), int(minor), int(patch or 0))


def error_output(version: OneVersion, action: str, error: CxmError) -> str:
    """What a failed action prints on its error output so that oned shows the sentence.

    Up to 5.12 oned looks for the text between markers; 6.x takes the whole error output; 7.x drops
    lines with a level and joins the others without a separator. Line based and ASCII always.
    """
    sentence = error.sentence().encode("ascii", "replace").decode()
    if version.has_error_markers:
        return (
            f"ERROR: {action}: {sentence}\n"
            f"ERROR MESSAGE --8<------\n{sentence}\nERROR MESSAGE ------>8--\n"
        )
    return f"{sentence} \n"
