# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what the CIB holds of the cluster's own balancer: whether it is on, and what it has done.

Pure. Pacemaker runs ``cxm-balance`` on one node at most, and there it is what starts a round now
and then (``packaging/ocf/balance``, docs/design/0012). All of this is in the meta attributes of
that resource: to change them restarts nothing, and every node knows them.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final
from xml.etree.ElementTree import Element

from cxm.cluster.amounts import ago
from cxm.cluster.cib import pairs
from cxm.cluster.elements import Operations, attributes, child, merge, primitive, put_pair
from cxm.cluster.pacemaker import Status
from cxm.errors import NotFoundError

RESOURCE: Final = "cxm-balance"
_ROLE: Final = "target-role"
_OFF: Final = "Stopped"
_MOVED: Final = "cxm-moved"  # which VMs it has moved, and when
_LAST: Final = "cxm-last"  # when it did something last, whether that was well, and what
_WELL: Final = {True: "failed", False: "done"}
_WORDS: Final = 2
_CHARS: Final = 300
_OPERATIONS: Final[Operations] = {
    "monitor": {"interval": "300s", "timeout": "60s"},
    "start": {"interval": "0s", "timeout": "60s"},
    # It holds nothing: no node is fenced because it could not be stopped.
    "stop": {"interval": "0s", "timeout": "60s", "on-fail": "ignore"},
}


@dataclass(frozen=True, slots=True)
class Balancer:
    """The balancer of a cluster that has one."""

    on: bool
    node: str = ""  # where it is; empty where it is nowhere
    at: float | None = None  # when it did something last
    last: str = ""  # what that was
    bad: bool = False  # it failed


def of(cib: Element, status: Status) -> Balancer | None:
    """What there is to know of it; None for a cluster that was made before there was one."""
    resource = _find(cib)
    if resource is None:
        return None
    said, placed = pairs(resource, "meta_attributes"), status.resources.get(RESOURCE)
    nodes = placed.nodes if placed is not None and placed.role == "Started" else ()
    on = said.get(_ROLE, "Started").lower() != _OFF.lower()
    words = said.get(_LAST, "").split(" ", _WORDS)
    if len(words) <= _WORDS or not words[0].isdecimal():
        return Balancer(on, nodes[0] if nodes else "")
    return Balancer(on, nodes[0] if nodes else "", float(words[0]), words[2], words[1] != "done")


def told(own: Balancer | None, now: float) -> str:
    """For people: whether the cluster balances itself, and what that did last."""
    if own is None or not own.on:
        state = "off"
    else:
        state = f"on, on {own.node}" if own.node else "on, but it runs nowhere"
    if own is None or own.at is None:
        return state if state == "off" else f"{state}; it has moved nothing yet"
    return f"{state}; {ago(own.at, now)}: {'failed: ' if own.bad else ''}{own.last}"


def edit(resources: Element) -> None:
    """Put it among the resources, off; one that is there stays as it is switched."""
    is_new = resources.find(f"primitive[@id='{RESOURCE}']") is None
    off = [attributes("meta", f"{RESOURCE}-meta", {_ROLE: _OFF})] if is_new else []
    merge(resources, primitive(RESOURCE, "ocf:cxm:balance", _OPERATIONS, *off))


def switch(cib: Element, *, on: bool) -> None:
    """Switch it on or off; raises NotFoundError."""
    put_pair(_meta(cib), _ROLE, "Started" if on else _OFF)


def moved(cib: Element) -> dict[str, float]:
    """When it has moved VMs, by their resources; of a damaged word nothing is known."""
    resource = _find(cib)
    text = "" if resource is None else pairs(resource, "meta_attributes").get(_MOVED, "")
    found = (word.partition("=") for word in text.split())
    return {rid: float(at) for rid, _is, at in found if at.isdecimal()}


def note_moved(cib: Element, times: Mapping[str, float]) -> None:
    """Write which VMs it moves, and those that rest; raises NotFoundError."""
    words = (f"{rid}={at:.0f}" for rid, at in sorted(times.items()))
    put_pair(_meta(cib), _MOVED, " ".join(words))


def forget_moved(cib: Element, ids: Collection[str]) -> None:
    """Write that it has not moved these VMs; raises NotFoundError."""
    known = moved(cib)
    if known.keys() & set(ids):
        note_moved(cib, {rid: at for rid, at in known.items() if rid not in ids})


def note_last(cib: Element, at: float, what: str, *, bad: bool) -> None:
    """Write what it has done; raises NotFoundError."""
    put_pair(_meta(cib), _LAST, f"{at:.0f} {_WELL[bad]} {' '.join(what.split())[:_CHARS]}")


def _find(cib: Element) -> Element | None:
    return cib.find(f"configuration/resources/primitive[@id='{RESOURCE}']")


def _meta(cib: Element) -> Element:
    resource = _find(cib)
    if resource is None:
        raise NotFoundError(
            "this cluster was made before it could balance itself",
            hint="run 'cxm-setup cluster' once more, when all nodes have the new package",
        )
    found = child(resource, "meta_attributes")
    if not found.get("id"):
        found.set("id", f"{RESOURCE}-meta")
    return found
