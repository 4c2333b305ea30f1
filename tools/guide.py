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
from pathlib import Path

from cxm.config import FrontendConfig, NodeConfig
from cxm.sync import decide
from cxm.xen import options
from lab.story import Row, Story

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
SYNC = ROOT / "docs/sync.md"
_ROWS = ROOT / "build/demo.json"
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


def sync_parts() -> dict[str, str | None]:
    """The parts of docs/sync.md."""
    return {"sync calls": decide.table()}


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
