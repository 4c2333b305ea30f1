# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Operations whose time depends on a VM's memory get what they need, and stay what they are."""

from dataclasses import replace
from pathlib import Path
from xml.etree.ElementTree import Element, SubElement

import pytest

from cxm.cluster import basis, cib, limits
from cxm.cluster.cib import Resource
from cxm.names import CloudId, VmId
from tests.fakes.cib import Cluster, section

_LARGE = 256 * 1024
_VM = Resource(
    cloud=CloudId("lab"),
    vm=VmId(9),
    name="big",
    config="name = 'big'",
    memory_mib=1024,
    cpu=100,
    migratable=True,
    started=True,
    preferred="node1",
)


def operations(root: Element) -> dict[str, dict[str, str]]:
    """The VM's own operations."""
    found = root.iterfind(f".//primitive[@id='{_VM.id}']/operations/op")
    return {each.get("name", ""): dict(each.attrib) for each in found}


def guests(cluster: Cluster, *events: str) -> list[str]:
    """What Pacemaker would do with the VM."""
    return [step.what for step in cluster.ask(*events) if step.what.endswith(_VM.id)]


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    """A VM of 1 GiB runs on node1; the nodes have room for the largest."""
    made = Cluster(str(tmp_path), {}, start=False)
    for node in made.nodes:
        basis.edit_facts(made.cib, node, {}, {"memory": "600000", "cpu": "400"})
    cib.put(made.cib, _VM)
    made.go_on()
    assert made.runs_on(9) == {"node1"}
    return made


def test_template_has_what_a_small_vm_needs(cluster: Cluster) -> None:
    """So that it has no operations of its own."""
    found = cluster.cib.iterfind(".//template/operations/op")
    given = {each.get("name"): limits.seconds(each.get("timeout", "")) for each in found}
    for name, needed_s in limits.OPERATIONS.items():
        assert given[name] == needed_s == limits.operation_s(name, 1024)
    assert operations(cluster.cib) == {}


def test_large_vm_has_its_own_and_nothing_restarts(cluster: Cluster) -> None:
    """All else that the template says of an operation is said again; Pacemaker is content."""
    cib.put(cluster.cib, replace(_VM, memory_mib=_LARGE))
    found = operations(cluster.cib)
    assert {name: each["timeout"] for name, each in found.items()} == {
        "start": "5363s",
        "stop": "356s",
        "migrate_to": "5663s",
    }
    assert found["migrate_to"]["on-fail"] == "block"
    assert guests(cluster) == []
    assert cluster.verify() == ""
    cib.attract(cluster.cib, _VM.id, "node2", until="2099-01-01T00:00:00Z")
    cluster.go_on("--op-fail", f"{_VM.id}_migrate_to_0@node1=1")
    assert guests(cluster) == []  # blocked, not stopped on both nodes


def test_smaller_again_it_has_the_templates(cluster: Cluster) -> None:
    """And the primitive is as it was."""
    cib.put(cluster.cib, replace(_VM, memory_mib=_LARGE))
    cib.put(cluster.cib, _VM)
    assert cluster.cib.find(f".//primitive[@id='{_VM.id}']/operations") is None


def test_administrators_choice_stays(cluster: Cluster) -> None:
    """A template that allows more, and an operation of the VM that somebody else wrote."""
    for each in cluster.cib.iterfind(".//template/operations/op"):
        if each.get("name") == "start":
            each.set("timeout", "2h")
    primitive = section(cluster.cib, "resources").find(f"primitive[@id='{_VM.id}']")
    assert primitive is not None
    theirs = {"id": "theirs", "name": "stop", "interval": "0s", "timeout": "60s"}
    SubElement(SubElement(primitive, "operations"), "op", theirs)
    cib.put(cluster.cib, replace(_VM, memory_mib=_LARGE))
    found = operations(cluster.cib)
    assert found.keys() == {"stop", "migrate_to"}
    assert found["stop"] == theirs


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("900s", 900), ("15min", 900), ("2h", 7200), ("500ms", 0.5), ("60", 60), ("PT15M", None)],
)
def test_times_as_pacemaker_has_them(text: str, seconds: float | None) -> None:
    """One that is not understood is left alone."""
    assert limits.seconds(text) == seconds


def test_agent_gives_up_before_pacemaker_does() -> None:
    """So that it can put things right; a small guest that does not go over never will."""
    assert limits.sending_s(112, 900.0) == 328.0
    assert limits.sending_s(_LARGE, 5663.0) == 5543.0
    assert limits.sending_s(112, 0.0) == 328.0


def test_dying_target_does_not_stop_a_guest_that_was_to_move_there(cluster: Cluster) -> None:
    """A rule 'there or not at all' would: the guest would be off for as long as the order waits."""
    cib.attract(cluster.cib, _VM.id, "node2", until="2099-01-01T00:00:00Z")
    cib.prefer(cluster.cib, _VM.id, "node2")
    assert guests(cluster, "--node-fail", "node2") == []
    cib.confine(cluster.cib, _VM.id, "node2", until="2099-01-01T00:00:00Z")
    assert guests(cluster, "--node-fail", "node2") == [f"stop {_VM.id}"]
