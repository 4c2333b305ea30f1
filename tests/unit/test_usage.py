# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""What domains use is told over a window that grows to an hour, whoever asks and how often."""

from pathlib import Path

import pytest

from cxm.names import VmId, domain_uuid
from cxm.node import usage
from tests.fakes.machine import CLOUD, FakeNode, Outcome
from tests.fakes.xl_list import Xen

UUID = domain_uuid(CLOUD, VmId(7))


@pytest.fixture
def node(tmp_path: Path) -> FakeNode:
    """A node whose clock only moves when somebody sleeps."""
    return FakeNode(str(tmp_path / "n"))


def _told(node: FakeNode, xen: Xen, seconds: float) -> dict[str, float]:
    """What is told when VM 7 has used so many seconds of CPU."""
    xen.rows = xen.rows[:1]
    xen.vm(7, 17, seconds=seconds)
    return usage.measure(node.machine())


def test_the_first_who_asks_waits_for_a_window(node: FakeNode) -> None:
    """Ten seconds, in which nothing is known of who came meanwhile."""
    xen = Xen(node)
    begun = node.clock
    assert _told(node, xen, 100.0) == {UUID: 0.0}
    assert node.clock - begun >= 10


def test_the_window_reaches_back_an_hour(node: FakeNode) -> None:
    """A burst of the last minute counts as a part of the hour; what is older is forgotten."""
    xen = Xen(node)
    _told(node, xen, 0.0)
    node.sleep(1790)
    assert _told(node, xen, 180.0) == {UUID: 10.0}
    node.sleep(1790)
    assert _told(node, xen, 1975.0)[UUID] == pytest.approx(55, abs=0.5)
    node.sleep(3000)
    assert _told(node, xen, 2275.0)[UUID] == pytest.approx(10, abs=0.5)


def test_what_was_kept_is_there_for_who_asks_first(node: FakeNode) -> None:
    """So a plan by hand goes by minutes, and waits for nothing; a node without Xen keeps none."""
    xen = Xen(node)
    xen.vm(7, 17, seconds=30.0)
    usage.keep(node.machine())
    node.sleep(300)
    begun = node.clock
    assert _told(node, xen, 90.0) == {UUID: 20.0}
    assert node.clock == begun
    node.model("xl", lambda *_: Outcome(stderr="cannot open libxl", code=1))
    usage.keep(node.machine())


def test_a_domain_that_came_back_is_another(node: FakeNode) -> None:
    """Its seconds began anew; until it has been there for a while nothing is said of it."""
    xen = Xen(node)
    _told(node, xen, 500.0)
    node.sleep(100)
    xen.rows = xen.rows[:1]
    xen.vm(7, 18, seconds=3.0)
    assert usage.measure(node.machine()) == {}


def test_a_damaged_file_is_a_new_beginning(node: FakeNode) -> None:
    """It is only what was seen."""
    xen = Xen(node)
    _told(node, xen, 1.0)
    path = Path(node.machine().run_dir, "usage.json")
    for text in ("{", "[1]", '{"a": 1}'):
        path.write_text(text)
        assert _told(node, xen, 1.0) == {UUID: 0.0}
