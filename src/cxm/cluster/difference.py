# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns how a change of the CIB is told to people, a line for each part of it. Pure.

The value of a secret is never in a line, only that there is one and whether it is another.
"""

from typing import Final
from xml.etree.ElementTree import Element

from cxm.cluster import nodes

# What stands for itself, by a name for people, and what is only a holder of values.
_SECTIONS: Final = {"crm_config": "properties", "rsc_defaults": "defaults of resources"}
_HOLDERS: Final = {
    "cluster_property_set": "",
    "instance_attributes": "",
    "meta_attributes": "meta ",
    "utilization": "",
    "operations": "",
}
_AGENT: Final = ("class", "provider", "type")
_NAMES: Final = ("id", "uname")


def told(before: Element, after: Element) -> list[str]:
    """What differs between two CIBs: parts that are new, that are gone, that say something else."""
    old, new = _parts(before), _parts(after)
    lines = [f"- {name}" for name in old if name not in new]
    for name, words in new.items():
        if name not in old:
            said = ", ".join(_word(key, value) for key, value in words.items())
            lines.append(f"+ {name}" + f": {said}" * bool(said))
        elif words != old[name]:
            lines.append(f"~ {name}: {', '.join(_changes(old[name], words))}")
    return lines


def _changes(old: dict[str, str], new: dict[str, str]) -> list[str]:
    gone = [f"{key} is taken away" for key in old if key not in new]
    added = [_word(key, value) for key, value in new.items() if key not in old]
    changed = [
        f"{_word(key, old[key])} -> {_shown(key, value) if not nodes.is_secret(key) else 'another'}"
        for key, value in new.items()
        if old.get(key, value) != value
    ]
    return [*gone, *added, *changed]


def _word(key: str, value: str) -> str:
    return f"{key} {_shown(key, value)}".strip()


def _shown(key: str, value: str) -> str:
    return nodes.MASK if nodes.is_secret(key) else value


def _parts(cib: Element) -> dict[str, dict[str, str]]:
    """All that a CIB says, by what it says it of."""
    found: dict[str, dict[str, str]] = {}
    for section in cib.iterfind("configuration/*"):
        _collect(section, _SECTIONS.get(section.tag, section.tag), "", found)
    return found


def _collect(element: Element, owner: str, prefix: str, found: dict[str, dict[str, str]]) -> None:
    for each in element:
        name = each.get("name", "")
        if each.tag == "nvpair":
            found.setdefault(owner, {})[prefix + name] = each.get("value", "")
        elif each.tag == "op":
            said = (f"{key} {value}" for key, value in each.items() if key not in ("id", "name"))
            found.setdefault(owner, {})[name] = " ".join(said)
        elif each.tag in _HOLDERS:
            _collect(each, owner, _HOLDERS[each.tag], found)
        else:
            part = f"{each.tag} {each.get('uname') or each.get('id', '')}".strip()
            found[part] = _own(each)
            _collect(each, part, "", found)


def _own(element: Element) -> dict[str, str]:
    """What an element says by itself; its agent in one word."""
    agent = ":".join(element.get(key, "") for key in _AGENT if element.get(key))
    said = {"agent": agent} if agent else {}
    skipped = (*_NAMES, *_AGENT)
    return said | {key: value for key, value in element.items() if key not in skipped}
