# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""The main job on real Xen, as the demo plays it: every step of it checks itself from outside.

What the demo does not show is seen on the same cluster, whose frontend is there no more.
"""

# Requirements: 6.5 GiB of memory for solo1, node1 and node2.

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lab import demo, demo_cluster
from lab.lab import Lab
from tests.lab.invariant import watched
from tests.lab.test_cluster_life import crashed


def test_every_step_of_the_demo_happens_and_its_cluster_lives_on() -> None:
    """Two VMs live on a lone host and leave nothing; one moves on a cluster, and survives it.

    Then its guest crashes, and it lives all the same.
    """
    assert demo.main([], around=_watched_and_lived_on) == 0
    rows = json.loads(Path("build/demo.json").read_text(encoding="utf-8"))
    assert all(row["ok"] for row in rows)
    steps = [row["step"] for row in rows]
    assert "See that nothing is left" in steps
    assert steps[-1] == "See what the cluster did, and why"


@contextmanager
def _watched_and_lived_on(pair: Lab) -> Iterator[None]:
    with watched(pair):
        yield
    crashed(demo_cluster.town_of(pair))
