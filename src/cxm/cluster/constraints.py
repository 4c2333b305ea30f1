# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what an administrator's constraints in the CIB say of where VMs may be. Pure.

Pacemaker's own are the only ones there are, so a failover keeps what a plan keeps
(docs/design/0012). Those that cxm has written are left out. A VM of which one says what a plan
cannot reckon with stays where it is.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final
from xml.etree.ElementTree import Element

from cxm.cluster.basis import LOCKS
from cxm.cluster.cib import PREFERENCE, TEMPLATE, pairs

_ALWAYS: Final = 1_000_000  # Pacemaker's INFINITY
_NEVER: Final = -_ALWAYS
_WORDS: Final = {"INFINITY": _ALWAYS, "+INFINITY": _ALWAYS, "-INFINITY": _NEVER}
_RUNS: Final = (None, "Started")  # the roles that say of a VM no more than that it runs
_EVERYWHERE: Final = (None, "always", "never")
_STICKINESS: Final = "resource-stickiness"
_PAIR: Final = 2


@dataclass(frozen=True, slots=True)
class Said:
    """What constraints say of a VM. ``stays`` is why a plan must leave it where it is, or empty.

    ``stickiness`` is what the node that it is on is worth to Pacemaker besides, ``pull`` what it is
    worth at most to have others there.
    """

    scores: Mapping[str, int] = field(default_factory=dict)  # of nodes; all others have 0
    stickiness: int = _ALWAYS
    pull: int = 0
    apart: tuple[str, ...] = ()
    together: tuple[str, ...] = ()
    stays: str = ""

    def nodes(self, names: Iterable[str], here: str) -> tuple[str, ...]:
        """Of these nodes, and the one that it is on, those where Pacemaker leaves it.

        An order's wish goes with it (:data:`cxm.cluster.cib.PREFERENCE`); of one that was not
        moved the wish may be for another node.
        """
        known = {name: self.scores.get(name, 0) for name in names}
        best = max(known.values(), default=0)
        keeps = self.stickiness + PREFERENCE
        if self.pull:
            keeps = max(1, self.stickiness - PREFERENCE - self.pull)
        own = known.get(here, _NEVER)
        is_kept = own > _NEVER and best - own < self.stickiness + PREFERENCE
        found = {name for name, score in known.items() if score > _NEVER and best - score < keeps}
        if here and (is_kept or here not in known):
            return tuple(sorted(found | {here}))
        return tuple(sorted(found - {here}))

    def prefers(self, names: Iterable[str]) -> tuple[str, ...]:
        """The best of these nodes; none where no one is better than another."""
        known = {name: self.scores.get(name, 0) for name in names}
        best = max(known.values(), default=0)
        found = tuple(name for name, score in known.items() if score == best)
        return found if len(found) < len(known) else ()


@dataclass(frozen=True, slots=True)
class Constraints:
    """What is said of VMs, by their resources; ``odd`` is what nobody can have meant, in words.

    ``binding``: some may leave a VM down although a node has room for it.
    """

    said: Mapping[str, Said] = field(default_factory=dict)
    odd: tuple[str, ...] = ()
    binding: bool = False

    def of(self, resource: str) -> Said:
        """What is said of a VM."""
        return self.said.get(resource, _NOTHING)


_NOTHING: Final = Said()


def read(cib: Element, vms: Mapping[str, str], nodes: Collection[str]) -> Constraints:
    """What the constraints say of VMs; ``vms`` has the names of all by their resources."""
    reader = _Reader(vms, tuple(nodes), _groups(cib, vms), _stickiness(cib, vms))
    for each in cib.iterfind("configuration/constraints/*"):
        if each.tag == "rsc_location" and not _is_an_orders(each):
            reader.location(each)
        elif each.tag == "rsc_colocation" and not _is_the_locks(each):
            reader.colocation(each)
    return reader.end()


def _is_an_orders(location: Element) -> bool:
    """Whether an order has written it (:mod:`cxm.cluster.cib`)."""
    rid = location.get("rsc")
    return rid is not None and location.get("id") in (f"{rid}-prefer", f"{rid}-place")


def _is_the_locks(colocation: Element) -> bool:
    return (colocation.get("rsc"), colocation.get("with-rsc")) == (TEMPLATE, LOCKS)


def _groups(cib: Element, vms: Collection[str]) -> dict[str, tuple[str, ...]]:
    """The resources that names other than their own mean: of the template, and of tags."""
    found = {TEMPLATE: tuple(vms)}
    for tag in cib.iterfind("configuration/tags/tag"):
        refs = [each.get("id", "") for each in tag.iterfind("obj_ref")]
        members = [rid for ref in refs for rid in found.get(ref, (ref,))]
        found[tag.get("id", "")] = tuple(dict.fromkeys(members))
    return found


def _stickiness(cib: Element, vms: Collection[str]) -> dict[str, int]:
    """What a VM's own node is worth to Pacemaker; the least where that depends on something."""
    defaults = [
        _score(pair.get("value")) or 0
        for pair in cib.iterfind("configuration/rsc_defaults/meta_attributes/nvpair")
        if pair.get("name") == _STICKINESS
    ]
    general = min(defaults, default=0)
    for template in cib.iterfind(f"configuration/resources/template[@id='{TEMPLATE}']"):
        text = pairs(template, "meta_attributes").get(_STICKINESS)
        general = general if text is None else _score(text) or 0
    own = {
        each.get("id", ""): pairs(each, "meta_attributes").get(_STICKINESS)
        for each in cib.iterfind("configuration/resources/primitive")
    }
    return {rid: general if (text := own.get(rid)) is None else _score(text) or 0 for rid in vms}


def _score(text: str | None) -> int | None:
    """A score as Pacemaker takes it; None for what is none."""
    word = (text or "0").strip().upper()
    if word in _WORDS:
        return _WORDS[word]
    try:
        return max(_NEVER, min(_ALWAYS, int(word)))
    except ValueError:
        return None


def _sum(one: int, other: int) -> int:
    """As Pacemaker adds scores up: never is stronger than always."""
    if _NEVER in (one, other):
        return _NEVER
    return _ALWAYS if _ALWAYS in (one, other) else max(_NEVER, min(_ALWAYS, one + other))


@dataclass(slots=True)
class _Notes:
    """What was read of a VM so far."""

    scores: dict[str, int] = field(default_factory=dict)
    pull: int = 0  # how much it is drawn to where others are
    apart: list[str] = field(default_factory=list)
    together: list[str] = field(default_factory=list)
    stays: str = ""


class _Reader:
    """Takes one constraint after the other."""

    def __init__(
        self,
        vms: Mapping[str, str],
        nodes: Sequence[str],
        groups: Mapping[str, tuple[str, ...]],
        stickiness: Mapping[str, int],
    ) -> None:
        self._vms = vms
        self._nodes = nodes
        self._groups = groups
        self._stickiness = stickiness
        self._notes = {rid: _Notes() for rid in vms}
        self._relations: list[_Relation] = []
        self._odd: list[str] = []

    def _meant(self, *names: str | None) -> list[str]:
        """The resources that names mean, VMs and others."""
        found = [rid for name in names if name for rid in self._groups.get(name, (name,))]
        return list(dict.fromkeys(found))

    def _stay(self, rids: Iterable[str], why: str) -> None:
        """Leave VMs where they are; the first reason is told."""
        for rid in rids:
            if rid in self._notes and not self._notes[rid].stays:
                self._notes[rid].stays = why

    # --- a VM and nodes ---------------------------------------------------------------------------

    def location(self, given: Element) -> None:
        """A constraint that says where VMs may be, or are better."""
        name = given.get("id", "")
        sets = given.findall("resource_set")
        for each in sets or [given]:
            refs = [ref.get("id") for ref in each.iterfind("resource_ref")]
            rids = self._meant(each.get("rsc"), *refs)
            rids += self._matching(given.get("rsc-pattern"))
            mine = [rid for rid in rids if rid in self._vms]
            score = _score(each.get("score") or given.get("score"))
            if len(sets) < len(given):
                self._stay(mine, f"the constraint {name} has a rule, which no plan reckons with")
            elif (
                score is None
                or each.get("role", given.get("role")) not in _RUNS
                or given.get("resource-discovery") not in _EVERYWHERE
            ):
                self._stay(mine, f"no plan reckons with what the constraint {name} says")
            else:
                self._weigh(name, mine, given.get("node", ""), score)

    def _weigh(self, name: str, rids: Sequence[str], node: str, score: int) -> None:
        if rids and node not in self._nodes:
            self._odd.append(f"the constraint {name} names '{node}', which is no node")
        for rid in rids:
            scores = self._notes[rid].scores
            scores[node] = _sum(scores.get(node, 0), score)

    def _matching(self, pattern: str | None) -> Iterator[str]:
        """The VMs that a pattern means; all of them where it is not ours to understand."""
        if pattern is None:
            return
        wanted = not pattern.startswith("!")
        try:
            # A class of characters means something else to Python.
            found = None if "[[" in pattern else re.compile(pattern.removeprefix("!"))
        except re.error:
            found = None
        if found is None:
            self._stay(self._vms, f"no plan reckons with the pattern {pattern}")
            return
        yield from (rid for rid in self._vms if (found.search(rid) is not None) is wanted)

    # --- VMs and others ---------------------------------------------------------------------------

    def colocation(self, given: Element) -> None:
        """A constraint that says which VMs shall be together, or apart."""
        name = given.get("id", "")
        sets = given.findall("resource_set")
        ones, others = self._meant(given.get("rsc")), self._meant(given.get("with-rsc"))
        refs = [ref.get("id") for ref in given.iter("resource_ref")]
        involved = [*ones, *others, *self._meant(*refs)]
        score = _score((sets[0] if sets else given).get("score") or given.get("score"))
        roles = [given.get("rsc-role"), given.get("with-rsc-role")]
        if score == 0:
            return
        if (
            score is None
            or len(sets) < len(given)
            or len(sets) > 1
            or given.get("node-attribute") is not None
            or not {*roles, *(each.get("role") for each in sets)} <= set(_RUNS)
            or set(ones) & set(others)
        ):
            self._stay(involved, f"no plan reckons with what the constraint {name} says")
        elif not sets:
            single = len(ones) * len(others) == 1
            for one in ones:
                for other in others:
                    self._relate(name if single else f"{name} {one} {other}", [one, other], score)
        elif sets[0].get("sequential", "true").lower() not in ("false", "off", "no", "n", "0"):
            self._relate(name, involved, score)  # else Pacemaker makes nothing of a single set

    def _relate(self, name: str, rids: Sequence[str], score: int) -> None:
        """Some VMs are together, or all of them apart."""
        mine = [rid for rid in rids if rid in self._vms]
        which = f"the constraint {name.partition(' ')[0]}"
        if len(rids) < _PAIR:
            return
        if len(mine) < len(rids):
            foreign = next(rid for rid in rids if rid not in self._vms)
            self._stay(mine, f"{which} ties it to {foreign}, which is no VM")
            return
        self._relations.append(_Relation(name, score, tuple(mine)))
        for rid in mine:
            notes = self._notes[rid]
            if score < 0:
                notes.apart.append(name)
                continue
            notes.together.append(name)
            notes.pull += score * min(len(mine) - 1, _PAIR)  # in a set, both neighbours draw it
            if score >= min(self._stickiness[each] for each in mine):
                rest = " and ".join(self._vms[each] for each in mine if each != rid)
                self._stay([rid], f"{which} ties it to {rest} so that Pacemaker moves none alone")

    # --- all of it --------------------------------------------------------------------------------

    def end(self) -> Constraints:
        """What all of them say."""
        self._contradictions()
        self._tangles()
        said = {}
        for rid, notes in self._notes.items():
            stickiness = self._stickiness[rid]
            bound = [name for name in self._nodes if notes.scores.get(name, 0) >= _ALWAYS]
            if notes.pull and notes.pull >= stickiness:
                self._stay([rid], "others draw it to them more than its stickiness holds it")
            elif len(bound) > 1:
                names = " and ".join(bound)
                self._stay([rid], f"INFINITY for each of {names} is stronger than an order")
            if self._nodes and all(notes.scores.get(name) == _NEVER for name in self._nodes):
                self._odd.append(f"constraints leave no node for {self._vms[rid]}")
            if notes != _Notes():
                said[rid] = Said(
                    notes.scores,
                    stickiness,
                    notes.pull,
                    tuple(notes.apart),
                    tuple(notes.together),
                    notes.stays,
                )
        binding = any(abs(each.score) == _ALWAYS for each in self._relations) or any(
            _NEVER in notes.scores.values() for notes in self._notes.values()
        )
        return Constraints(said, tuple(dict.fromkeys(self._odd)), binding)

    def _contradictions(self) -> None:
        """Leave those alone that shall be together and apart, and all that have to do with them."""
        for bundle in _joined(each.vms for each in self._relations if each.score > 0):
            inside = set(bundle)
            for each in self._relations:
                both = [rid for rid in each.vms if rid in inside]
                if each.score < 0 and len(both) > 1:
                    names = " and ".join(sorted(self._vms[rid] for rid in both))
                    self._odd.append(f"{names} shall be together, and by {each.which} apart")
                    for rid in bundle:
                        self._notes[rid].together.clear()
                    self._stay(self._near(both), self._odd[-1])

    def _tangles(self) -> None:
        """Leave those alone whose orders would move others.

        Pacemaker hands on where a VM is wanted to those that it is told apart from, and from them
        to others, with the sign turned round each time: an order about a VM draws one after it that
        it has nothing to do with, if what is handed on is more than what holds that in place.
        """
        for group in _joined(each.vms for each in self._relations):
            about = [each for each in self._relations if not set(group).isdisjoint(each.vms)]
            weight = sum(abs(each.score) for each in about)
            if len(about) > 1 and weight >= min(self._stickiness[rid] for rid in group):
                which = " and ".join(dict.fromkeys(each.which for each in about))
                why = "are about some of the same VMs, and their scores together are too high"
                self._stay(group, f"{which} {why}")

    def _near(self, rids: Collection[str]) -> list[str]:
        """All that have to do with VMs."""
        groups = _joined(each.vms for each in self._relations)
        return [rid for group in groups if not set(group).isdisjoint(rids) for rid in group]


@dataclass(frozen=True, slots=True)
class _Relation:
    """How VMs are to each other."""

    name: str
    score: int
    vms: tuple[str, ...]

    @property
    def which(self) -> str:
        """The constraint that says so."""
        return f"the constraint {self.name.partition(' ')[0]}"


def _joined(groups: Iterable[Sequence[str]]) -> list[list[str]]:
    """All that have to do with each other, directly or not."""
    group_of: dict[str, list[str]] = {}
    for each in groups:
        for other in each[1:]:
            one, two = (group_of.setdefault(name, [name]) for name in (each[0], other))
            if one is not two:
                one += two
                group_of |= dict.fromkeys(two, one)
    return list({id(group): group for group in group_of.values()}.values())
