# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the elements that the basis of a CIB is built of, and how they get into one. Pure."""

from collections.abc import Mapping
from typing import Final
from xml.etree.ElementTree import Element, SubElement

# The operations' names, and what is said of each.
Operations = Mapping[str, Mapping[str, str]]
# Of an operation that is there, an administrator may know better.
_TUNED: Final = ("interval", "timeout")


def attributes(kind: str, set_id: str, values: Mapping[str, str]) -> Element:
    """A set of names and values; ``kind`` is meta or instance."""
    made = Element(f"{kind}_attributes", {"id": set_id})
    for name, value in values.items():
        SubElement(made, "nvpair", {"id": f"{set_id}-{name}", "name": name, "value": value})
    return made


def operations(owner: str, given: Operations) -> Element:
    """The operations of the resource ``owner``."""
    made = Element("operations")
    for name, settings in given.items():
        SubElement(made, "op", {"id": f"{owner}-{name}", "name": name, **settings})
    return made


def primitive(name: str, agent: str, given: Operations, *sets: Element) -> Element:
    """A resource of the agent ``CLASS:PROVIDER:TYPE`` or ``CLASS:TYPE``."""
    words = agent.split(":")
    provider = {"provider": words[1]} if words[0] == "ocf" else {}
    made = Element("primitive", {"id": name, "class": words[0], **provider, "type": words[-1]})
    made.extend([*sets, operations(name, given)])
    return made


def with_locks(what: str, locks: str) -> list[Element]:
    """Constraints that keep ``what`` where the locks are, and stop it before they stop.

    The order is of one direction: a symmetrical one of the kind Optional does not make the locks
    wait for a guest that leaves alive, and one of the kind Mandatory stops all when lvmlockd is
    started again.
    """
    name = what.removesuffix("-clone")
    where = {"rsc": what, "with-rsc": locks, "score": "INFINITY"}
    stop = {"first": what, "then": locks, "kind": "Mandatory", "symmetrical": "false"}
    stop |= {"first-action": "stop", "then-action": "stop"}
    return [
        Element("rsc_colocation", {"id": f"{name}-with-locks", **where}),
        Element("rsc_order", {"id": f"{name}-then-locks", **stop}),
    ]


def start_order(what: str, locks: str) -> Element:
    """The order that starts ``what`` after the locks: those of all nodes that are starting them.

    A VM must not wait for another node's, nor for ever where those do not start.
    """
    name = what.removesuffix("-clone").removeprefix("cxm-")
    start = {"first": locks, "then": what, "kind": "Optional", "symmetrical": "false"}
    return Element("rsc_order", {"id": f"cxm-locks-then-{name}", **start})


def child(parent: Element, tag: str) -> Element:
    """The first child with this tag, made where there is none."""
    found = parent.find(tag)
    return SubElement(parent, tag) if found is None else found


def put_pair(holder: Element, name: str, value: str) -> None:
    """Set one value of a set."""
    pair = next((each for each in holder.iter("nvpair") if each.get("name") == name), None)
    if pair is None:
        pair = SubElement(holder, "nvpair", {"id": f"{holder.get('id')}-{name}", "name": name})
    pair.set("value", value)


def merge(parent: Element, ours: Element) -> None:
    """Put an element of ours among the children of ``parent``, or into the one that is there."""
    there = next((each for each in parent.findall(ours.tag) if _same(each, ours)), None)
    if there is None:
        parent.append(ours)
        return
    for key, value in ours.attrib.items():
        if not (key in _TUNED and key in there.attrib):
            there.set(key, value)
    for each in ours:
        if each.tag == "nvpair":
            put_pair(there, each.get("name", ""), each.get("value", ""))
        else:
            merge(there, each)


def _same(one: Element, other: Element) -> bool:
    if one.tag == "operations":
        return True
    return one.get("id") == other.get("id")
