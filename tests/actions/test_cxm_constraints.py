# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""An administrator's constraints, as ``cxm`` keeps them: in plans, at a start, in ``check``."""

import json
from pathlib import Path

import pytest

from cxm.cli import main
from cxm.cluster import balancing
from cxm.cluster import cib as documents
from cxm.cluster.alarms import n_plus_one
from cxm.names import VmId, domain_uuid
from tests.fakes.crm import FakeCluster, two_nodes
from tests.fakes.machine import CLOUD


def vm(number: int) -> str:
    """The resource of a VM."""
    return documents.resource_id(CLOUD, VmId(number))


BIG, SMALL, DB, OLD = vm(8), vm(9), vm(42), vm(4)
RULE = """<rsc_location id="rack" rsc="{}"><rule id="r" score="-INFINITY"><expression id="e"
 attribute="rack" operation="eq" value="b"/></rule></rsc_location>"""
SPREAD = f"""<rsc_colocation id="c" score="-100"><resource_set id="s"><resource_ref id="{OLD}"/>
 <resource_ref id="{SMALL}"/><resource_ref id="{DB}"/></resource_set></rsc_colocation>"""


@pytest.fixture
def crm(tmp_path: Path) -> FakeCluster:
    """node1 has more VMs than node2; two of them may move, the larger one is worth it."""
    made = two_nodes(str(tmp_path / "n"))
    for number, memory in ((8, 1024), (9, 64), (10, 1200)):
        made.add_vm(number, "node1", memory=memory, cpu=50)
    made.places[vm(7)].managed = made.places[vm(10)].managed = False
    made.answers["usage"] = {"used": {domain_uuid(CLOUD, VmId(42)): 2.5}}
    return made


def _json(crm: FakeCluster, line: str) -> dict[str, object]:
    crm.said.truncate(0)
    crm.said.seek(0)
    main.main(line.split(), crm.world())
    told: dict[str, object] = json.loads(crm.text)
    return told


def _moved(crm: FakeCluster) -> list[tuple[str, str]]:
    steps = _json(crm, "loadbalance --dry-run --json")["steps"]
    assert isinstance(steps, list)
    return [(move["name"], move["target"]) for step in steps for move in step]


def test_without_any_the_larger_one_moves(crm: FakeCluster) -> None:
    """One that Pacemaker does not manage stays, and that is told."""
    assert _moved(crm) == [("one-8", "node2")]
    assert main.main(["loadbalance", "--dry-run"], crm.world()) == 0
    assert "one-10, web.home.net stay: not managed by Pacemaker\n" in crm.text


@pytest.mark.parametrize(
    "text",
    [
        f'<rsc_location id="l" rsc="{BIG}" node="node2" score="-INFINITY"/>',
        f'<rsc_location id="l" rsc="{BIG}" node="node1" score="INFINITY"/>',
        f'<rsc_colocation id="c" rsc="{BIG}" with-rsc="{DB}" score="-INFINITY"/>',
        f'<rsc_colocation id="c" rsc="{DB}" with-rsc="{BIG}" score="-20"/>',
        f'<rsc_colocation id="c" rsc="{BIG}" with-rsc="{SMALL}" score="INFINITY"/>',
        RULE.format(BIG),
    ],
)
def test_constraint_keeps_a_vm_where_it_is(crm: FakeCluster, text: str) -> None:
    """Another one goes in its place, or none."""
    crm.constrain(text)
    assert "one-8" not in [name for name, _target in _moved(crm)]


def test_vms_that_must_be_apart_are_parted(crm: FakeCluster) -> None:
    """Whatever it gains: Pacemaker has put them together while there was no other place."""
    crm.add_vm(11, "node2", memory=1200)
    assert _moved(crm) == []
    crm.constrain(f'<rsc_colocation id="c" rsc="{BIG}" with-rsc="{SMALL}" score="-100"/>')
    assert _moved(crm) == [("one-9", "node2")]


def test_one_that_no_plan_reckons_with_is_told(crm: FakeCluster) -> None:
    """With the constraint."""
    crm.constrain(RULE.format(BIG))
    why = "one-8 stays: the constraint rack has a rule, which no plan reckons with"
    told = _json(crm, "loadbalance --dry-run --json")
    assert told["stays"] == ["one-10, web.home.net stay: not managed by Pacemaker", why]


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        (f'<rsc_location id="l" rsc="{BIG}" node="node2" score="-INFINITY"/>', "only_on",
         ["node1"]),
        (f'<rsc_location id="l" rsc="{BIG}" node="node2" score="9"/>', "prefers", ["node2"]),
        (f'<rsc_colocation id="c" rsc="{BIG}" with-rsc="{DB}" score="-20"/>', "apart", ["c"]),
        (f'<rsc_colocation id="c" rsc="{BIG}" with-rsc="{DB}" score="20"/>', "together", ["c"]),
        (RULE.format(BIG), "stays", "the constraint rack has a rule, which no plan reckons with"),
    ],
)  # fmt: skip
def test_description_of_the_cluster_has_them(
    crm: FakeCluster, tmp_path: Path, text: str, key: str, value: object
) -> None:
    """Planned for elsewhere, it is the same plan."""
    crm.constrain(text)
    told = _json(crm, "infos --json --metrics")
    assert isinstance(told["vms"], list)
    (big,) = (each for each in told["vms"] if each["name"] == "one-8")
    assert big[key] == value
    path = tmp_path / "told.json"
    path.write_text(json.dumps(told))
    assert _json(crm, f"loadbalance --from {path} --json") == _json(
        crm, "loadbalance --dry-run --json"
    )


def test_node_in_maintenance_is_told_once(crm: FakeCluster) -> None:
    """Not again for each VM that is not managed for that."""
    crm.until_reboot("node1", "maintenance")
    assert _json(crm, "loadbalance --dry-run --json")["stays"] == []


# --- a start --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "node"),
    [
        ("", "node1"),
        (f'<rsc_colocation id="c" rsc="{OLD}" with-rsc="{DB}" score="100"/>', "node2"),
        (f'<rsc_colocation id="c" rsc="{SMALL}" with-rsc="{OLD}" score="-100"/>', "node2"),
        (f'<rsc_location id="l" rsc="{OLD}" node="node1" score="-INFINITY"/>', "node2"),
        # Nobody can keep all of them: what Pacemaker says of it, the order asks.
        (SPREAD, "node1"),
    ],
)  # fmt: skip
def test_start_goes_where_it_may(crm: FakeCluster, text: str, node: str) -> None:
    """Where it was last, unless something says that it belongs elsewhere."""
    documents.prefer(crm.cib, OLD, "node1")
    if text:
        crm.constrain(text)
    cluster = crm.world().cluster()
    (old,) = (each for each in cluster.vms if each.resource.id == OLD)
    assert balancing.best_start(cluster, old, crm.node.machine().config) == node


# --- N+1, check -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "known"),
    [
        (f'<rsc_location id="l" rsc="{BIG}" node="node2" score="INFINITY"/>', True),
        (f'<rsc_location id="l" rsc="{BIG}" node="node2" score="-INFINITY"/>', False),
        (f'<rsc_colocation id="c" rsc="{BIG}" with-rsc="{DB}" score="-500"/>', True),
        (f'<rsc_colocation id="c" rsc="{BIG}" with-rsc="{DB}" score="-INFINITY"/>', False),
    ],
)
def test_room_is_not_all_that_a_failover_needs(crm: FakeCluster, text: str, known: bool) -> None:
    """Where a constraint may keep a VM down, nobody says that all is well."""
    crm.add_node("node3", memory=8192, cpu=800)
    crm.constrain(text)
    fine, told = n_plus_one(crm.world().cluster())
    assert fine
    assert ("asks Pacemaker" not in told) is known


def test_what_cannot_be_meant_is_found(crm: FakeCluster) -> None:
    """And who is looked after by nobody; a cluster without any has no line."""
    crm.constrain(f'<rsc_location id="l" rsc="{BIG}" node="gone" score="5"/>')
    main.main(["check"], crm.world())
    assert "the constraint l names 'gone', which is no node" in crm.text
    assert "VM web.home.net (VM 7) is not managed" in crm.text
