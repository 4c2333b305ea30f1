# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""What an administrator's constraints say of VMs, as it is read out of the CIB."""

from xml.etree.ElementTree import Element, fromstring

import pytest

from cxm.cluster import basis, constraints
from cxm.cluster import cib as documents
from cxm.cluster.constraints import Constraints, Said
from cxm.cluster.datastore import Datastore, Kind
from tests.fakes.cib import EMPTY, of_nodes, section

A, B, C = (f"cxm-cloudone1-{number}" for number in (1, 2, 3))
VMS = {A: "a", B: "b", C: "c"}
NODES = ("node1", "node2", "node3")
PAIR = f'<rsc_colocation id="c" rsc="{A}" with-rsc="{B}" score="{{}}"/>'


def _cib(*texts: str, tags: str = "") -> Element:
    cib = fromstring(EMPTY)
    basis.edit(cib, of_nodes(*NODES))
    for rid in VMS:
        vm = {"id": rid, "template": "cxm-domain"}
        section(cib, "resources").append(Element("primitive", vm))
    for text in texts:
        section(cib, "constraints").append(fromstring(text))
    if tags:
        configuration = cib.find("configuration")
        assert configuration is not None
        configuration.append(fromstring(f"<tags>{tags}</tags>"))
    return cib


def _read(*texts: str, tags: str = "") -> Constraints:
    return constraints.read(_cib(*texts, tags=tags), VMS, NODES)


def _location(rsc: str, node: str, score: str, more: str = "") -> str:
    name = f"l-{node}-{score}"
    return f'<rsc_location id="{name}" {rsc} node="{node}" score="{score}" {more}/>'


def _set(*rids: str, score: str = "-INFINITY", more: str = "") -> str:
    refs = "".join(f'<resource_ref id="{rid}"/>' for rid in rids)
    inner = f'<resource_set id="s" {more}>{refs}</resource_set>'
    return f'<rsc_colocation id="c" score="{score}">{inner}</rsc_colocation>'


# --- what is cxm's own ----------------------------------------------------------------------------


def test_constraints_of_cxm_are_nobodys_wishes() -> None:
    """Those of the basis, of a system datastore, and of orders that are at work."""
    cib = fromstring(EMPTY)
    given = of_nodes(*NODES)
    given = basis.Basis(
        given.nodes,
        given.vg,
        given.device,
        given.fencing,
        basis.Sbd("/dev/sbd", 60),
        Datastore(Kind.GFS2, "one-system", "/var/lib/one/datastores/0"),
    )
    basis.edit(cib, given)
    for node, edit in (("node1", documents.confine), ("node2", documents.attract)):
        for rid in VMS:
            documents.prefer(cib, rid, node)
            edit(cib, rid, node, until="2099-01-01T00:00:00Z")
        assert len(cib.findall("configuration/constraints/rsc_location")) > len(VMS)
        assert constraints.read(cib, VMS, NODES) == Constraints()


# --- a VM and nodes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "here", "nodes", "prefers"),
    [
        ({}, "node1", NODES, ()),
        ({"node1": "-INFINITY"}, "node2", ("node2", "node3"), ("node2", "node3")),
        ({"node1": "INFINITY"}, "node1", ("node1",), ("node1",)),
        ({"node1": "INFINITY", "node2": "-INFINITY"}, "node1", ("node1",), ("node1",)),
        ({"node2": "200"}, "node1", NODES, ("node2",)),
        # Pacemaker takes a VM away from where it is for so much; for less an order's wish holds it.
        ({"node2": "1100"}, "node2", ("node2",), ("node2",)),
        ({"node2": "1099"}, "node2", NODES, ("node2",)),
        ({"node1": "-50"}, "node2", NODES, ("node2", "node3")),
        ({"node1": "-INFINITY", "node2": "-INFINITY", "node3": "-5000"}, "node3", ("node3",),
         ("node3",)),
    ],
)  # fmt: skip
def test_nodes_of_a_vm(
    scores: dict[str, str], here: str, nodes: tuple[str, ...], prefers: tuple[str, ...]
) -> None:
    """Where it may be is where Pacemaker leaves it; what is finite and small is a preference."""
    found = _read(*(_location(f'rsc="{A}"', *each) for each in scores.items()))
    assert found.of(A).nodes(NODES, here) == nodes
    assert found.of(A).prefers(NODES) == prefers
    assert found.of(A).stays == ""
    assert found.of(B) == Said()


def test_node_that_takes_no_vms_is_no_better() -> None:
    """A VM that is bound to a dead node may move among the others; one on it is not driven away."""
    said = _read(_location(f'rsc="{A}"', "node1", "INFINITY")).of(A)
    assert said.nodes(("node2", "node3"), "node2") == ("node2", "node3")
    assert said.nodes(("node2", "node3"), "node1") == ("node1", "node2", "node3")


@pytest.mark.parametrize(
    ("which", "meant"),
    [
        (f'rsc="{A}"', {A}),
        ('rsc="cxm-domain"', {A, B, C}),
        ('rsc="both"', {A, B}),
        ('rsc-pattern="cxm-.*-[12]$"', {A, B}),
        ('rsc-pattern="!-1$"', {B, C}),
        ('rsc-pattern="^fence-"', set()),
        ('rsc="fence-node1"', set()),
    ],
)
def test_all_ways_to_name_vms(which: str, meant: set[str]) -> None:
    """By themselves, by the template, by a tag, by a pattern; scores of several are added."""
    tags = f'<tag id="both"><obj_ref id="{A}"/><obj_ref id="{B}"/></tag>'
    found = _read(_location(which, "node1", "-70"), _location(which, "node1", "-30"), tags=tags)
    assert set(found.said) == meant
    assert all(said.scores == {"node1": -100} for said in found.said.values())


def test_set_of_a_location_may_have_a_score_of_its_own() -> None:
    """As Pacemaker has it."""
    text = f"""<rsc_location id="l" node="node1" score="7">
     <resource_set id="s1" score="-9"><resource_ref id="{A}"/></resource_set>
     <resource_set id="s2"><resource_ref id="{B}"/></resource_set></rsc_location>"""
    found = _read(text)
    assert [found.of(rid).scores for rid in (A, B, C)] == [{"node1": -9}, {"node1": 7}, {}]


RULE = '<rule id="r" score="-INFINITY"><expression id="e" attribute="rack" operation="defined"/>'


@pytest.mark.parametrize(
    ("text", "who", "why"),
    [
        (f'<rsc_location id="l" rsc="{A}">{RULE}</rule></rsc_location>', {A}, "l has a rule"),
        (_location(f'rsc="{A}"', "node1", "5", 'role="Promoted"'), {A}, "reckons with what"),
        (_location(f'rsc="{A}"', "node1", "5", 'resource-discovery="exclusive"'), {A}, "reckons"),
        (_location(f'rsc="{A}"', "node1", "much"), {A}, "reckons with what"),
        (_location('rsc-pattern="(["', "node1", "5"), {A, B, C}, "the pattern (["),
        (_location('rsc-pattern="[[:digit:]]"', "node1", "5"), {A, B, C}, "the pattern"),
        (PAIR.format("-5").replace("/>", ' node-attribute="rack"/>'), {A, B}, "reckons with what"),
        (PAIR.format("-5").replace("/>", ' rsc-role="Stopped"/>'), {A, B}, "reckons with what"),
        (PAIR.format("-5").replace(B, "cxm-locks-clone"), {A}, "cxm-locks-clone, which is no VM"),
        (PAIR.format("-5").replace(A, "cxm-domain"), {A, B, C}, "reckons with what"),
        (PAIR.format("INFINITY"), {A, B}, "ties it to"),
        (PAIR.format("1000"), {A, B}, "Pacemaker moves none alone"),
        (_set(A, B, C, score="600"), {A, B, C}, "draw it to them more"),
        (_set(A, B, "cxm-watch"), {A, B}, "cxm-watch, which is no VM"),
        (_set(A, B, more='role="Stopped"'), {A, B}, "reckons with what"),
        (_set(A, B).replace("</rsc", '<resource_set id="t"/></rsc'), {A, B}, "reckons with"),
    ],
)  # fmt: skip
def test_what_no_plan_reckons_with_leaves_a_vm_where_it_is(
    text: str, who: set[str], why: str
) -> None:
    """And says which constraint it is."""
    found = _read(text)
    stays = {rid: said.stays for rid, said in found.said.items() if said.stays}
    assert set(stays) == who
    assert all(why in each for each in stays.values()), stays


def test_two_nodes_of_infinity_leave_no_order_a_choice() -> None:
    """An order's own INFINITY is no more than theirs."""
    found = _read(*(_location(f'rsc="{A}"', node, "INFINITY") for node in ("node1", "node2")))
    assert "INFINITY for each of node1 and node2" in found.of(A).stays


def test_stickiness_of_a_vm_counts() -> None:
    """Its own before the template's before the defaults'; where it is less, less draws it away."""
    cib = _cib(_location('rsc="cxm-domain"', "node2", "500"), PAIR.format("300"))
    (vm,) = (each for each in cib.iter("primitive") if each.get("id") == A)
    own = '<meta_attributes id="m"><nvpair id="n" name="resource-stickiness" value="{}"/>'
    vm.append(fromstring(f"{own.format(200)}</meta_attributes>"))
    found = constraints.read(cib, VMS, NODES)
    assert [found.of(rid).stickiness for rid in (A, B, C)] == [200, 1000, 1000]
    assert found.of(A).stays
    (template,) = cib.iter("template")
    (group,) = template.findall("meta_attributes")
    group.append(fromstring('<nvpair id="t" name="resource-stickiness" value="400"/>'))
    found = constraints.read(cib, VMS, NODES)
    assert [found.of(rid).stickiness for rid in (A, B, C)] == [200, 400, 400]
    assert found.of(C).nodes(NODES, "node2") == ("node2",)


# --- VMs and others -------------------------------------------------------------------------------


@pytest.mark.parametrize("score", ["-INFINITY", "-1"])
def test_vms_are_apart(score: str) -> None:
    """Two of them, or all of a set; wished or not makes no difference to a plan."""
    found = _read(PAIR.format(score))
    assert [found.of(rid).apart for rid in (A, B, C)] == [("c",), ("c",), ()]
    found = _read(_set(A, B, C, score=score))
    assert [found.of(rid).apart for rid in (A, B, C)] == [("c",)] * 3
    assert not any(said.stays or said.together for said in found.said.values())


def test_vms_are_together() -> None:
    """Where Pacemaker lets one go before the others."""
    found = _read(PAIR.format("500"))
    assert [found.of(rid).together for rid in (A, B, C)] == [("c",), ("c",), ()]
    assert not any(said.stays or said.apart for said in found.said.values())


def test_one_is_apart_from_each_of_a_tag() -> None:
    """These may be with each other."""
    tags = f'<tag id="g"><obj_ref id="{B}"/><obj_ref id="{C}"/></tag>'
    found = _read('<rsc_colocation id="c" rsc="{A}" with-rsc="g" score="-9"/>'.replace("{A}", A),
                  tags=tags)  # fmt: skip
    assert len(set(found.of(A).apart)) == 2
    assert set(found.of(B).apart) & set(found.of(A).apart)
    assert not set(found.of(B).apart) & set(found.of(C).apart)


@pytest.mark.parametrize("text", [PAIR.format("0"), _set(A, B, more='sequential="false"'), _set(A)])
def test_what_pacemaker_makes_nothing_of_is_nothing(text: str) -> None:
    """A score of 0, a single set without a sequence, or of one."""
    assert _read(text) == Constraints()


def test_contradictions_are_told_and_move_nobody() -> None:
    """Nor anybody who has to do with them; and they are no reason to refuse a plan."""
    one = PAIR.format("500")
    other = f'<rsc_colocation id="d" rsc="{B}" with-rsc="{A}" score="-INFINITY"/>'
    third = f'<rsc_colocation id="e" rsc="{B}" with-rsc="{C}" score="-1"/>'
    found = _read(one, other, third)
    assert found.odd[0] == "a and b shall be together, and by the constraint d apart"
    assert all(found.of(rid).stays == found.odd[0] for rid in VMS)
    assert not any(said.together for said in found.said.values())
    # Where so much is handed on, Pacemaker would move others too.
    tangled = _read(other, third)
    assert tangled.odd == ()
    assert all("the constraint d and the constraint e are" in tangled.of(rid).stays for rid in VMS)
    assert not any(each.stays for each in _read(one, third).said.values())
    assert all(_read(one, third.replace("-1", "-500")).of(rid).stays for rid in VMS)


def test_what_nobody_can_have_meant_is_told() -> None:
    """A node that there is not; no node at all."""
    found = _read(
        _location(f'rsc="{A}"', "node9", "5"),
        *(_location(f'rsc="{B}"', node, "-INFINITY") for node in NODES),
    )
    assert found.odd == (
        "the constraint l-node9-5 names 'node9', which is no node",
        "constraints leave no node for b",
    )
