# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""The main job on real Xen, as the demo plays it: every step of it checks itself from outside."""

# Requirements: the lab's solo1.

import json
from pathlib import Path

from lab import demo


def test_every_step_of_the_demo_happens() -> None:
    """Deploy, watch, suspend, stop, save back and delete two VMs; nothing is left."""
    assert demo.main([]) == 0
    rows = json.loads(Path("build/demo.json").read_text(encoding="utf-8"))
    assert all(row["ok"] for row in rows)
    assert rows[-1]["step"] == "See that nothing is left"
