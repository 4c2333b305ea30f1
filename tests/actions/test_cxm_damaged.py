# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""One VM that is damaged in the CIB hides nothing else, and is said to be."""

import json
from pathlib import Path

import pytest

from cxm.cli import ctl, main
from cxm.errors import CommandError, DataError, RefusedError
from tests.actions.test_cxm_orders import _changed, _run
from tests.fakes.crm import FakeCluster, two_nodes

SAID = "the resource cxm-cloudone1-42 in the CIB is damaged: it has no cxm-config"


@pytest.fixture
def crm(tmp_path: Path) -> FakeCluster:
    """node1 with a VM, node2 with one that is damaged, and one that is off."""
    made = two_nodes(str(tmp_path / "n"))
    made.damage(42)
    return made


def test_infos_shows_all_else_and_an_alarm(crm: FakeCluster) -> None:
    """What it takes of its node is counted as far as it can be read."""
    assert main.main(["infos", "--json"], crm.world()) == 0
    told = json.loads(crm.text)
    (alarm,) = told["alarms"]
    assert alarm["text"] == (
        "VM db.home.net (VM 42 of cloudone1) IS DAMAGED IN THE CIB (it is on node2): " + SAID
    )
    assert "not started when it or its node dies" in alarm["advice"]
    assert "cibadmin --query" in alarm["advice"]
    assert {vm["vm"] for vm in told["vms"]} == {4, 7}
    assert [node["memory_used_mib"] for node in told["nodes"]] == [1024, 2048]
    assert not told["n_plus_one"]["ok"]
    crm.said.truncate(0)
    assert _run(crm, "infos") == 0
    assert "1 DAMAGED" in crm.text


def test_lists_name_what_they_leave_out(
    crm: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    """For programs beside the document."""
    assert _run(crm, "list") == 0
    assert "IS DAMAGED IN THE CIB" in crm.text
    assert "web.home.net" in crm.text
    assert _run(crm, "search web") == 0
    assert f"not shown: {SAID}" in crm.text
    assert _run(crm, "timeline") == 0
    assert not capsys.readouterr().err


def test_check_fails_and_advises_nobody_to_remove_it(crm: FakeCluster) -> None:
    """Its volumes are no orphans, and its domain is no stranger's."""
    crm.damage(7)
    crm.xen.vm(42, 99)
    assert main.main(["check", "--json"], crm.world()) == 1
    found = [each for each in json.loads(crm.text) if each["level"] != "ok"]
    assert [each["found"] for each in found if each["level"] == "failed"] == [
        f"VM {name} (VM {vm} of cloudone1) IS DAMAGED IN THE CIB (it is on {node}): "
        f"the resource cxm-cloudone1-{vm} in the CIB is damaged: it has no cxm-config"
        for name, vm, node in (("web.home.net", 7, "node1"), ("db.home.net", 42, "node2"))
    ]
    assert {each["name"] for each in found} == {"state", "N+1", "quorum"}


def test_its_node_is_not_emptied_and_others_are(
    crm: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whether it could leave is not known; to the other node nothing of it matters."""
    assert _run(crm, "eject node2") == RefusedError.code
    assert f"can leave node2 is not known: {SAID}" in capsys.readouterr().err
    assert not _changed(crm)
    assert _run(crm, "eject node1") == 0


def test_no_order_is_given_about_it(crm: FakeCluster, capsys: pytest.CaptureFixture[str]) -> None:
    """By name or number, and nothing is planned around it."""
    for order in ("reboot db.home.net", "shutdown 42", "activate cloudone1/42"):
        assert _run(crm, order) == DataError.code
        assert SAID in capsys.readouterr().err
    assert _run(crm, "loadbalance --yes") == RefusedError.code
    assert SAID in capsys.readouterr().err


def test_shutdown_of_all_names_it(crm: FakeCluster, capsys: pytest.CaptureFixture[str]) -> None:
    """All others are off, and nobody takes this one for off."""
    assert _run(crm, "shutdown-all --yes") == CommandError.code
    assert "not shut down: db.home.net (VM 42 of cloudone1)" in capsys.readouterr().err
    assert crm.asked == [("shutdown", 7)]
    crm.said.truncate(0)
    crm.said.seek(0)
    assert _run(crm, "shutdown-all --yes --json") == CommandError.code
    (row,) = json.loads(crm.text)["vms"]
    assert (row["vm"], row["name"]) == (42, "db.home.net")


def test_dead_node_of_it_is_confirmed(crm: FakeCluster) -> None:
    """A human's word must not wait for somebody who mends the CIB; nor must the other commands."""
    crm.answer = "node2"
    assert _run(crm, "fence node2") == 0
    assert "It has 1 VM: db.home.net (VM 42 of cloudone1)" in crm.text
    crm.members["node2"].online = False
    crm.members["node2"].unclean = True
    assert _run(crm, "fence --confirmed --yes node2") == 0
    assert ctl.main(["--ping"], crm.world()) == 0
