# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""The main job on real Xen, as the demo plays it: every step of it checks itself from outside."""

# Requirements: 6.5 GiB of memory for solo1, node1 and node2.

import json
from pathlib import Path

from lab import demo


def test_every_step_of_the_demo_happens() -> None:
    """Two VMs live on a lone host and leave nothing; one moves on a cluster, and survives it."""
    assert demo.main([]) == 0
    rows = json.loads(Path("build/demo.json").read_text(encoding="utf-8"))
    assert all(row["ok"] for row in rows)
    steps = [row["step"] for row in rows]
    assert "See that nothing is left" in steps
    assert steps[-1] == "See what the cluster did, and why"
