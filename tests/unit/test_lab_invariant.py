# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""The watch over a cluster sees what must never be, and nothing else."""

from dataclasses import replace

from tests.lab.invariant import Sample, broken, in_our_time, parse

UUID = "60821187-6a94-831b-aa2c-cb2200000001"
LISTED = "\n".join(
    (
        "at 100.5",
        "Name  ID  Mem VCPUs  State  Time(s)  UUID  Reason-Code  Security Label",
        f"Domain-0 0 768 1 r----- 614.4 {'0' * 8}-0000-0000-0000-{'0' * 12} - -",
        f"vm1 1 112 1 -b---- 8.0 {UUID} - -",
        f"vm2--incoming 2 112 1 --p--- 0.0 {UUID[:-1]}2 - -",
        "volumes",
        "LVM_XEN-lv--one--1--0\t(253:0)",
        "moving",
        "/run/cxm/moving/acloud00-1",
        "end",
        "at 101.5",
    )
)


def _samples(*at: float, running: bool = True, moving: str = "") -> list[Sample]:
    uuids = frozenset([UUID] if running else [])
    volumes = frozenset(["LVM_XEN-lv--one--1--0"] if running else [])
    marks = frozenset([moving] if moving else [])
    return [Sample(moment, uuids, volumes, marks) for moment in at]


def test_a_node_is_understood() -> None:
    """Half of a migration does not run; a sample that was cut off is none."""
    volumes = frozenset(["LVM_XEN-lv--one--1--0"])
    assert list(parse(LISTED.splitlines())) == [
        Sample(100.5, frozenset([UUID]), volumes, frozenset(["1"]))
    ]


def test_two_at_once_are_seen() -> None:
    """Both domains and volumes."""
    seen = broken({"node1": _samples(1, 2, 3), "node2": _samples(2.5, 3.5)})
    assert seen == [
        f"{UUID} ran on node1 and node2 at once",
        "LVM_XEN-lv--one--1--0 was active on node1 and node2",
    ]


def test_one_after_the_other_is_right() -> None:
    """As after a failover, and after a migration between two samples."""
    assert broken({"node1": _samples(1, 2), "node2": _samples(2.5, 3.5)}) == []
    late = [*_samples(1, 2, running=False), *_samples(3, 4)]
    assert broken({"node1": _samples(1, 2.5), "node2": late}) == []


def test_volumes_may_be_shared_while_their_vm_moves() -> None:
    """But it never runs twice."""
    seen = broken({"node1": _samples(1, 2, moving="1"), "node2": _samples(1, 2)})
    assert seen == [f"{UUID} ran on node1 and node2 at once"]
    others = broken({"node1": _samples(1, 2, moving="11"), "node2": _samples(1, 2)})
    assert len(others) == len(seen) + 1


def test_what_a_frozen_node_says_counts_when_it_is_heard() -> None:
    """Its clock lags after that; what it has then must not pass for what it had before."""
    before = [replace(each, heard=each.at + 0.5) for each in _samples(1, 2)]
    after = [replace(each, heard=each.at + 60) for each in _samples(3, 4)]
    # The slow way of one sample is no lag, and another connection's node may have another clock.
    slow = replace(_samples(4.5)[0], heard=70)
    again = replace(_samples(90, running=False)[0], heard=91, stream=1)
    told = in_our_time([*before, *after, slow, again])
    assert [each.at for each in told] == [1.5, 2.5, 63, 64, 70, 91]
    seen = broken({"node1": told, "node2": _samples(62, 63.5)})
    assert f"{UUID} ran on node1 and node2 at once" in seen
    # Its guests stood still as it did.
    assert broken({"node1": told, "node2": _samples(3, 4)}) == []
