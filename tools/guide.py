# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what the guides take from the program; ``python -m tools.guide`` renews them.

Each part stands between ``<!-- NAME -->`` and ``<!-- end -->``. The demo's table comes from
build/demo.json, and stays as it is where there is none.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import fields
from itertools import groupby
from pathlib import Path

from cxm.config import FrontendConfig, NodeConfig
from cxm.one.version import OneVersion
from cxm.setup import oneconf
from cxm.setup import parts as setup
from cxm.sync import decide
from cxm.xen import options
from lab.story import Row, Story

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
SYNC = ROOT / "docs/sync.md"
_ROWS = ROOT / "build/demo.json"
# What cxm-setup adds to.
_ONED = """\
TM_MAD = [ EXECUTABLE = "one_tm", ARGUMENTS = "" ]
DATASTORE_MAD = [ EXECUTABLE = "one_datastore", ARGUMENTS = "" ]
"""
_MINORS = {3: (6, 8), 4: range(0, 15, 2), 5: range(0, 13, 2), 6: range(0, 11, 2), 7: range(0, 5, 2)}
_VERSIONS = [OneVersion(major, minor) for major in _MINORS for minor in _MINORS[major]]
_PART = re.compile(r"(<!-- (?P<name>[a-z ]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def settings(cls: type[FrontendConfig] | type[NodeConfig]) -> str:
    """The table of one file's settings."""
    lines = ["| key | default | meaning |", "|---|---|---|"]
    for row in fields(cls):
        default = f"`{row.metadata['default']}`" if row.metadata["default"] else "(none)"
        lines.append(f"| `{row.name.upper()}` | {default} | {row.metadata['help']} |")
    return "\n".join(lines) + "\n"


def raw_options() -> str:
    """What RAW takes."""
    return ", ".join(f"`{key}`" for key in sorted(options.ALLOWED)) + "\n"


def demo() -> str | None:
    """The demo's last table; None when no demo has run here."""
    if not _ROWS.exists():
        return None
    rows = [Row(**row) for row in json.loads(_ROWS.read_text(encoding="utf-8"))]
    return f"```\n{Story(rows).table()}\n```\n"


def renewed(text: str, parts: Mapping[str, str | None]) -> str:
    """The text with its parts renewed; one that is None stays as it is."""

    def one(match: re.Match[str]) -> str:
        new = parts[match["name"]]
        return match[0] if new is None else f"{match[1]}{new}{match[3]}"

    return _PART.sub(one, text)


def vm_arguments(version: OneVersion) -> str:
    """ARGUMENTS of cxm's VM_MAD in an oned.conf that cxm-setup has written."""
    text, _changes = setup.apply(_ONED, "oned.conf", setup.of_oned(version, setup.Choices()))
    drivers = [each for each in oneconf.parse(text, "oned.conf") if each.name == "VM_MAD"]
    return drivers[-1].get("ARGUMENTS") or ""


def drivers() -> str:
    """The table of these arguments, a row for versions that have the same."""
    rows = ["| OpenNebula | ARGUMENTS |", "|---|---|"]
    for arguments, group in groupby(_VERSIONS, vm_arguments):
        first, *later = [f"{each.major}.{each.minor}" for each in group]
        rows.append(f"| {' to '.join([first, *later[-1:]])} | `{arguments}` |")
    return "\n".join(rows) + "\n"


def sync_parts() -> dict[str, str | None]:
    """The parts of docs/sync.md."""
    return {"sync calls": decide.table(), "vm driver": drivers()}


def parts() -> dict[str, str | None]:
    """All parts that are made from the program."""
    return {
        "demo": demo(),
        "frontend settings": settings(FrontendConfig),
        "node settings": settings(NodeConfig),
        "raw options": raw_options(),
    }


if __name__ == "__main__":
    for path, made in ((README, parts()), (SYNC, sync_parts())):
        path.write_text(renewed(path.read_text(encoding="utf-8"), made), encoding="utf-8")
