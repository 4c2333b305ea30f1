# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""What Pacemaker's own scheduler leaves down after a node's death, as ``cxm check`` asks it."""

from pathlib import Path

import pytest

from cxm.cluster import basis, nodes, pacemaker
from cxm.errors import DataError
from cxm.run import System
from tests.fakes.cib import Cluster, vm_id

# 600 MiB fit on node2 and 300 on node3; Pacemaker takes VM 1 first and puts it on node2.
SIZES = {1: 300, 2: 600, 3: 400, 4: 700}
VMS = {1: "node1", 2: "node1", 3: "node2", 4: "node3"}


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    """Three nodes of 1000 MiB each."""
    made = Cluster(str(tmp_path), VMS, "node1", "node2", "node3", start=False)
    for primitive in made.cib.iter("primitive"):
        for vm, size in SIZES.items():
            for pair in primitive.iterfind("utilization/nvpair"):
                if primitive.get("id") == vm_id(vm):
                    pair.set("value", str(size))
    for node in made.nodes:
        basis.edit_facts(made.cib, node, {}, {"memory": "1000"})
    made.go_on()
    return made


def test_scheduler_is_taken_at_its_word(cluster: Cluster) -> None:
    """Packing tightly, all would fit; Pacemaker does not pack."""
    stopped = pacemaker.stopped_after(System(), cluster.cib, "--node-fail=node1")
    assert stopped & {vm_id(vm) for vm in VMS} == {vm_id(2)}
    assert vm_id(1) not in pacemaker.stopped_after(System(), cluster.cib, "--node-fail=node2")


def test_standby_is_foreseen_too(cluster: Cluster) -> None:
    """It would stop a VM that finds no place, so it is asked before."""
    nodes.set_attribute(cluster.cib, "node1", "standby", "on")
    assert vm_id(2) in pacemaker.stopped_after(System(), cluster.cib)


def test_nonsense_is_an_error() -> None:
    """Never an empty list."""
    with pytest.raises(DataError):
        pacemaker.parse_stopped("crm_simulate: no")
