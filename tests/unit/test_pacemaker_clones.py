# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""A clone is one resource with several nodes: what is said of it is what matters."""

import itertools
from pathlib import Path

import pytest

from cxm.cluster import pacemaker
from cxm.cluster.pacemaker import Placed

RECORDED = Path(__file__).parents[1] / "data/pacemaker/crm_mon-2.1.5-locks.xml"
STARTED = '<resource id="x" role="Started"><node name="a"/></resource>'
STARTING = '<resource id="x" role="Starting" pending="Starting"><node name="b"/></resource>'
STOPPED = '<resource id="x" role="Stopped"/>'


def _placed(*instances: str) -> Placed:
    text = RECORDED.read_text()
    head, tail = text.index("<resources>"), text.index("</resources>")
    clone = f"<clone id='c'>{''.join(instances)}</clone>"
    return pacemaker.parse_status(text[:head] + f"<resources>{clone}" + text[tail:]).resources["x"]


@pytest.mark.parametrize("order", list(itertools.permutations([STARTED, STARTING, STOPPED])))
def test_an_instance_that_is_being_started_is_what_is_said(order: tuple[str, ...]) -> None:
    """Whatever its place among the others."""
    found = _placed(*order)
    assert (found.role, found.pending, sorted(found.nodes)) == ("Starting", "Starting", ["a", "b"])


@pytest.mark.parametrize("order", list(itertools.permutations([STARTED, STOPPED])))
def test_a_node_in_standby_stops_no_clone(order: tuple[str, ...]) -> None:
    """It runs where it may."""
    found = _placed(*order)
    assert (found.role, found.nodes) == ("Started", ("a",))
