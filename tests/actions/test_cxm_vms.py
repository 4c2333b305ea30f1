# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""What ``cxm`` orders of VMs: the same orders as OpenNebula's, in an operator's name."""

import os
from pathlib import Path

import pytest

from cxm.cli import main
from cxm.cluster import cib as documents
from cxm.cluster import nodes
from cxm.cluster.cib import Resource
from cxm.errors import CommandError, LockTimeoutError, NotFoundError, RefusedError, UsageError
from cxm.names import VmId
from cxm.node.guests import Life
from tests.fakes.crm import FakeCluster, two_nodes
from tests.fakes.machine import CLOUD


@pytest.fixture
def crm(tmp_path: Path) -> FakeCluster:
    """node1 and node2, a VM on each, one that is off."""
    return two_nodes(str(tmp_path / "n"))


def _run(crm: FakeCluster, line: str) -> int:
    return main.main(line.split(), crm.world())


def _known(crm: FakeCluster, vm: int) -> Resource:
    found = documents.find(crm.cib, CLOUD, VmId(vm))
    assert found is not None
    return found


def test_migrate_returns_when_it_is_there(crm: FakeCluster) -> None:
    """From any node, of any VM; a second time there is nothing to do."""
    assert _run(crm, "migrate db.home.net node1") == 0
    assert crm.text.endswith("db.home.net (VM 42) runs on node1\n")
    assert _known(crm, 42).preferred == "node1"
    assert not crm._confined(crm.cib, "cxm-cloudone1-42")
    assert _run(crm, "migrate 42 node1") == 0
    assert crm.text.endswith("is already on node1\n")


def test_migrate_refuses_what_cannot_be(
    crm: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    """An unknown node, a VM that is off."""
    assert _run(crm, "migrate 42 node9") == NotFoundError.code
    assert "no node of this cluster is called 'node9'" in capsys.readouterr().err
    assert _run(crm, "migrate 4 node1") == RefusedError.code
    assert _run(crm, "migrate 99 node1") == NotFoundError.code


def test_create_starts_what_the_cluster_knows(
    crm: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the node that is named."""
    assert _run(crm, "create 4 node2") == 0
    assert crm.places["cxm-cloudone1-4"].nodes == ("node2",)
    known = _known(crm, 4)
    assert (known.life, known.started, known.preferred) == (Life.RUNNING, True, "node2")
    assert known.reason.endswith("started it")
    assert _run(crm, "create 4") == RefusedError.code
    assert "is running on node2" in capsys.readouterr().err


def test_create_knows_a_host_by_opennebulas_name(
    crm: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    """As migrate does; what is no node is said at once."""
    assert _run(crm, "create 4 node9") == NotFoundError.code
    assert "no node of this cluster is called 'node9'" in capsys.readouterr().err
    assert not _known(crm, 4).started
    nodes.set_attribute(crm.cib, "node2", nodes.HOST, "10.0.0.2")
    assert _run(crm, "create 4 10.0.0.2") == 0
    assert crm.text.endswith("old.home.net (VM 4) runs on node2\n")
    assert _known(crm, 4).preferred == "node2"


def test_create_needs_the_bridges_and_a_node_that_takes_vms(
    crm: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    """Asked of the node before anything is ordered."""
    crm.answers["bridges"] = {"missing": ["xenbr1"]}
    assert _run(crm, "create 4 node2") == RefusedError.code
    assert "node2 lacks xenbr1, a bridge that VM 4 needs" in capsys.readouterr().err
    crm.answers["bridges"] = {"missing": []}
    os.rmdir(crm.node.path("sys/class/net/xenbr0"))
    assert _run(crm, "create 4 node1") == RefusedError.code
    assert "node1 lacks xenbr0, a bridge that VM 4 needs" in capsys.readouterr().err
    nodes.set_attribute(crm.cib, "node2", "standby", "on")
    assert _run(crm, "create 4 node2") == RefusedError.code
    assert "node2 takes no VMs at the moment" in capsys.readouterr().err
    assert not _known(crm, 4).started


def test_create_goes_where_it_was_last(crm: FakeCluster) -> None:
    """So it comes back after a shutdown."""
    assert _run(crm, "shutdown 42") == 0
    assert _run(crm, "create 42") == 0
    assert crm.places["cxm-cloudone1-42"].nodes == ("node2",)


def test_create_goes_where_there_is_room(
    crm: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where it was last is full: another node; none has room: that is said, with what it needs."""
    crm.add_vm(50, "node1", memory=3000)
    crm.add_vm(51, None, memory=1024, preferred="node1")
    assert _run(crm, "create 51") == 0
    assert "one-51 (VM 51) runs on node2" in crm.text
    crm.add_vm(52, None, memory=2048, preferred="node1")
    assert _run(crm, "create 52") == RefusedError.code
    assert "no node has room for one-52 (VM 52), which needs 2048 MiB" in capsys.readouterr().err


def test_create_does_not_throw_saved_memory_away(
    crm: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    """A cold start must drop it: old memory on a changed disk would destroy that."""
    tags = ["cxm.cloud=cloudone1", "cxm.vm=4", "cxm.disk=checkpoint", "cxm.state=ready"]
    crm.node.add_lv("lv-one-4-checkpoint", 4, tags=tags, content=b"")
    assert _run(crm, "create 4") == RefusedError.code
    assert "the memory of VM 4 is saved" in capsys.readouterr().err


@pytest.mark.parametrize("vm", [7, 42])
def test_shutdown_asks_the_guest_where_it_is(crm: FakeCluster, vm: int) -> None:
    """Here by xl, elsewhere by that node; OpenNebula will hear that it is off."""
    assert _run(crm, f"shutdown {vm}") == 0
    assert crm.asked == [("shutdown", vm)]
    known = _known(crm, vm)
    assert (known.life, known.started) == (Life.OFF, False)
    assert known.reason.endswith("ordered its shutdown")
    assert crm.text.endswith(f"(VM {vm}) is off\n")


def test_guest_that_does_not_listen_is_ended(crm: FakeCluster) -> None:
    """When its time is up."""
    crm.deaf = {42}
    assert _run(crm, "shutdown 42 --timeout 60") == 0
    assert len(crm.asked) > 1
    assert not crm.places["cxm-cloudone1-42"].nodes


def test_destroy_asks_nobody(crm: FakeCluster) -> None:
    """At once."""
    assert _run(crm, "destroy 42") == 0
    assert not crm.asked
    assert not _known(crm, 42).started


@pytest.mark.parametrize("line", ["migrate 42 node1", "destroy 42", "create 4"])
def test_an_order_whose_time_is_over_is_no_failed_command(
    crm: FakeCluster, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It may still come about, so whoever reads exit codes looks before it orders again."""
    crm.stuck = {f"cxm-cloudone1-{line.split()[1]}"}
    assert _run(crm, line) == LockTimeoutError.code
    assert "is not as ordered after" in capsys.readouterr().err


def test_reboot(crm: FakeCluster, capsys: pytest.CaptureFixture[str]) -> None:
    """The guest is asked; it stays a VM that runs."""
    assert _run(crm, "reboot 42") == 0
    assert crm.asked == [("reboot", 42)]
    assert _known(crm, 42).started
    assert _run(crm, "reboot 4") == RefusedError.code
    assert "does not run" in capsys.readouterr().err


def test_shutdown_all(crm: FakeCluster, capsys: pytest.CaptureFixture[str]) -> None:
    """A word is typed; what did not end is named."""
    assert _run(crm, "shutdown-all") == UsageError.code
    crm.answer = "all"
    crm.stuck = {"cxm-cloudone1-42"}
    crm.deaf = {42}
    assert _run(crm, "shutdown-all --timeout 2") == CommandError.code
    assert "not shut down: db.home.net (VM 42)" in capsys.readouterr().err
    assert not crm.places["cxm-cloudone1-7"].nodes
    crm.stuck = set()
    assert _run(crm, "shutdown-all --yes") == 0
    assert _run(crm, "shutdown-all --yes") == 0
    assert crm.text.endswith("no VM runs\n")
