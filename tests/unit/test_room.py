# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""What guests can have of a node's memory, and when what the CIB says of it is wrong."""

from pathlib import Path

import pytest

from cxm.cluster import capacity
from cxm.cluster.cib import needed_mib
from cxm.node import room
from cxm.node.room import Seen
from tests.fakes.machine import FakeNode
from tests.fakes.xl_list import Xen

_HAS = 65000  # free, without guests


@pytest.fixture
def xen(tmp_path: Path) -> Xen:
    """A node without guests."""
    made = Xen(FakeNode(str(tmp_path / "n")))
    made.room_mib = _HAS
    return made


def _look(xen: Xen) -> Seen:
    return room.look(xen.node)


def _guest(xen: Xen, memory: int) -> None:
    """A guest comes, and Xen keeps something for it besides."""
    number = len(xen.rows)
    xen.vm(number, number, memory=memory)
    xen.room_mib -= needed_mib(memory, 1) - memory


def test_neither_dom0s_memory_nor_xens_own_is_in_it(xen: Xen) -> None:
    """As OpenNebula is told (test_observe.py)."""
    xen.vm(1, 1, memory=256)
    assert _look(xen).room.total_mib == _HAS
    assert _look(xen).room.guests_mib == 256


def test_a_guest_that_comes_while_one_looks_is_counted_once(xen: Xen) -> None:
    """The commands are given again until none came between them."""
    run, comes = xen.node.run, [True]

    def busy(argv: list[str], **more: object) -> object:
        if argv == ["xl", "info"] and comes:
            comes.pop()
            xen.vm(1, 1, memory=256)
        return run(argv, **more)  # type: ignore[arg-type]  # handed through

    xen.node.run = busy  # type: ignore[method-assign, assignment]  # guests come between commands
    seen = _look(xen)
    assert (seen.room.total_mib, seen.is_steady) == (_HAS, True)


@pytest.mark.parametrize(
    ("said", "excess"),
    [(_HAS, 0), (_HAS + 16, 0), (_HAS + 17, 17), (_HAS - 1900, 0), (_HAS - 2200, -2200)],
)
def test_small_differences_are_none(xen: Xen, said: int, excess: int) -> None:
    """A few MiB come and go; less than there is does no harm, more is believed to be free."""
    assert capacity.excess(said, _look(xen)) == excess


def test_what_xen_keeps_for_guests_is_not_missing(xen: Xen) -> None:
    """Pacemaker counts it for each of them."""
    for _guest_of_many in range(30):
        _guest(xen, 2048)
    seen = _look(xen)
    assert seen.room.total_mib < _HAS - 500
    assert capacity.excess(_HAS, seen) == 0
    # Xen's own memory, a part in 128 of the machine's, was believed to be the guests'.
    assert capacity.excess(_HAS + 512, seen) > 512


def test_of_a_node_where_guests_come_and_go_nothing_is_said(xen: Xen) -> None:
    """It would be wrong by a whole guest."""
    seen = _look(xen)
    assert capacity.excess(2 * _HAS, Seen(seen.info, seen.domains, is_steady=False)) == 0
