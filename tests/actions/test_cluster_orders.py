# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Orders about a VM of a cluster, on two modelled nodes and Pacemaker's real scheduler."""

from pathlib import Path

import pytest

from tests.fakes.pair import Pair


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    """Two nodes, and the disk of VM 7."""
    return Pair(tmp_path)


def test_start(pair: Pair) -> None:
    assert not pair.start("node2").result["adopted"]
    assert pair.runs_on() == ["node2"]
    assert pair.locks() == {"node2": "ex"}
    assert pair.constraints() == {"prefer": "node2"}
    print(pair.pacemaker.done)
    assert pair.move("node2", "node1").result == {"node": "node1", "moved": True}
    assert pair.runs_on() == ["node1"]
    assert pair.locks() == {"node1": "ex"}
    assert pair.constraints() == {"prefer": "node1"}
    print(pair.pacemaker.done)
    pair.stop("node1")
    assert pair.runs_on() == []
    assert pair.locks() == {}
    print(pair.pacemaker.done)
