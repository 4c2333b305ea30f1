# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""What Pacemaker's real scheduler makes of our CIB, in simulation; skipped where it is not."""

import re
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree as ET
from xml.etree.ElementTree import Element

import pytest

from cxm.cluster import nodes
from cxm.errors import CommandError
from cxm.run import System

DATA = Path(__file__).parents[1] / "data/pacemaker"


def _deeds(tmp_path: Path, edit: Callable[[Element], None]) -> list[tuple[str, str, str]]:
    """What is done after a change: resource, action, node; in the order of the simulation."""
    root = ET.fromstring((DATA / "cib-2.1.5-settled.xml").read_text())
    edit(root)
    path = tmp_path / "cib.xml"
    path.write_bytes(ET.tostring(root))
    try:
        System().run(["crm_verify", "--xml-file", str(path)])
        said = System().run(["crm_simulate", "--xml-file", str(path), "--simulate"]).stdout
    except CommandError as error:
        if error.exit_code == 127:
            pytest.skip("pacemaker-cli-utils is not installed")
        raise
    return re.findall(r"Resource action: (\S+)\s+(\S+) on (\S+)", said)


def test_ejected_node_keeps_its_locks_while_its_vm_moves(tmp_path: Path) -> None:
    """Nothing but the VM is touched."""
    deeds = _deeds(tmp_path, lambda cib: nodes.empty(cib, "node1"))
    assert deeds == [
        ("cxm-labcloud0-1", "migrate_to", "node1"),
        ("cxm-labcloud0-1", "migrate_from", "node2"),
        ("cxm-labcloud0-1", "stop", "node1"),
        ("cxm-labcloud0-1", "monitor=10000", "node2"),
    ]


def test_other_node_may_rest(tmp_path: Path) -> None:
    """Where no VM is, the locks stop, and the VM elsewhere does not notice."""

    def edit(cib: Element) -> None:
        nodes.empty(cib, "node2")
        nodes.rest(cib, "node2")

    deeds = _deeds(tmp_path, edit)
    assert ("cxm-lockspace", "stop", "node2") in deeds
    assert not [deed for deed in deeds if deed[0] == "cxm-labcloud0-1"]


def test_node_that_is_given_back_gets_no_vm_by_itself(tmp_path: Path) -> None:
    """Its VMs stay where they are well."""

    def edit(cib: Element) -> None:
        nodes.empty(cib, "node2")
        nodes.rest(cib, "node2")
        nodes.give_back(cib, "node2")

    deeds = _deeds(tmp_path, edit)
    assert not [deed for deed in deeds if deed[0].startswith("cxm-")]
