# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns how this machine's own apt sources and settings reach the build of an image.

No address of a mirror is written in the project: a machine that can install packages can build
the lab.
"""

import glob
import os
import re
from collections.abc import Iterable

from cxm.errors import ConfigError
from cxm.run import System

_KEPT = re.compile(
    r"Acquire::(?:(?:http|https|ftp)::|Retries|Check-Valid-Until|Check-Date|ForceIPv|Languages)"
)
_LINE = re.compile(r"^\s*deb\s+(?:\[[^\]]*\]\s+)?\S+\s+(\S+)\s+\S")


def machine_settings() -> list[str]:
    """This machine's apt settings that decide how packages are fetched (proxies and the like)."""
    dump = System().run(["apt-config", "dump", "Acquire"]).stdout
    lines = [line.rstrip(";") for line in dump.splitlines()]
    return [line for line in lines if _KEPT.match(line) and not line.endswith(' ""')]


def one_line_entries(text: str, suite: str) -> list[str]:
    """The lines of a sources.list for ``suite`` and its updates."""
    return [
        line.strip()
        for line in text.splitlines()
        if (found := _LINE.match(line)) and _belongs([found[1]], suite) and _is_debian(line)
    ]


def deb822_entries(text: str, suite: str) -> list[str]:
    """The stanzas of a .sources file for ``suite`` and its updates."""
    stanzas = re.split(r"\n\s*\n", text)
    return [stanza.strip() for stanza in stanzas if _wanted(_fields(stanza), suite)]


def _fields(stanza: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    last = ""
    for line in stanza.splitlines():
        if line.startswith("#"):
            continue
        if line[:1].isspace() and last:
            fields[last] += " " + line.strip()
        elif ":" in line:
            name, _, value = line.partition(":")
            last = name.strip().lower()
            fields[last] = value.strip()
    return fields


def _wanted(fields: dict[str, str], suite: str) -> bool:
    return (
        "deb" in fields.get("types", "").split()
        and fields.get("enabled", "yes").lower() not in ("no", "false", "0")
        and _belongs(fields.get("suites", "").split(), suite)
        and _is_debian(fields.get("uris", "") + " " + fields.get("signed-by", ""))
    )


def _belongs(suites: Iterable[str], suite: str) -> bool:
    mine = {suite, f"{suite}-updates", f"{suite}-security", f"{suite}/updates"}
    return any(name.rstrip("/") in mine for name in suites)


def _is_debian(text: str) -> bool:
    """Whether an entry is Debian's own archive, by what its path or its key is called."""
    return "debian" in text.lower()


def write_sources(directory: str, suite: str, etc: str = "/etc/apt") -> str:
    """Write this machine's entries for ``suite`` to one file in ``directory``; return its path."""
    lines: list[str] = []
    stanzas: list[str] = []
    lists = [f"{etc}/sources.list", *sorted(glob.glob(f"{etc}/sources.list.d/*.list"))]
    for path in filter(os.path.exists, lists):
        with open(path, encoding="utf-8") as file:
            lines += one_line_entries(file.read(), suite)
    for path in sorted(glob.glob(f"{etc}/sources.list.d/*.sources")):
        with open(path, encoding="utf-8") as file:
            stanzas += deb822_entries(file.read(), suite)
    if lines:
        stanzas += [_as_stanza(line) for line in lines]
    if not stanzas:
        raise ConfigError(
            f"this machine's apt has no sources of Debian's suite {suite}",
            hint=f"the nodes are made of its packages: add its sources under {etc}/sources.list.d",
        )
    path = os.path.join(directory, "lab.sources")
    with open(path, "w", encoding="utf-8") as file:
        file.write("\n\n".join(stanzas) + "\n")
    return path


def _as_stanza(line: str) -> str:
    """A one-line entry written as a stanza, so that one file can hold both kinds."""
    words = re.match(r"deb\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+(\S+)\s+(.*)", line)
    if words is None:
        raise ConfigError(f"cannot read this apt source: {line}")
    fields = [f"Types: deb\nURIs: {words[2]}\nSuites: {words[3]}"]
    if components := words[4].partition("#")[0].strip():
        fields.append(f"Components: {components}")
    names = {"signed-by": "Signed-By", "arch": "Architectures", "trusted": "Trusted"}
    for option in (words[1] or "").split():
        name, _, value = option.partition("=")
        if name.lower() in names:
            fields.append(f"{names[name.lower()]}: {value.replace(',', ' ')}")
    return "\n".join(fields)
