# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Data goes from host to host without a copy, and neither side waits for one that has failed."""

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from cxm import wire
from cxm.errors import DataError, NotFoundError, RefusedError
from cxm.one.tm import relay

HEAD = wire.Section("disk.0", {"size_mib": 4})
MANY: list[wire.Item] = [HEAD, *(bytes([number % 256]) * 1000 for number in range(5000))]


class Source:
    """A host that sends items; a :class:`cxm.node.client.Node` of which only download is used."""

    def __init__(self, items: Iterable[wire.Item], failure: Exception | None = None) -> None:
        self._items = items
        self._failure = failure
        self.sent = 0
        self.ended = threading.Event()

    @property
    def name(self) -> str:
        return "source"

    def call(self, verb: str, args: dict[str, Any], *, timeout_s: float = 120.0) -> dict[str, Any]:
        raise AssertionError("not used")

    def upload(
        self, verb: str, args: dict[str, Any], items: Iterable[wire.Item], *, pack: bool
    ) -> dict[str, Any]:
        raise AssertionError("not used")

    def download(
        self,
        verb: str,
        args: dict[str, Any],
        take: Callable[[Iterator[wire.Item]], None],
        *,
        pack: bool,
    ) -> dict[str, Any]:
        try:
            take(self._counted())
            if self._failure is not None:
                raise self._failure
            return {}
        finally:
            self.ended.set()

    def _counted(self) -> Iterator[wire.Item]:
        for item in self._items:
            self.sent += 1
            yield item


def test_all_items_arrive_in_order() -> None:
    """What is delivered is what was sent."""
    got: list[wire.Item] = []
    relay.relay(Source(MANY), "disk-read", {}, got.extend)
    assert got == MANY


def test_a_target_that_fails_at_once_ends_the_source() -> None:
    """A full volume group is told at once; the source is not read to its end."""
    source = Source(MANY)

    def refuse(_items: Iterator[wire.Item]) -> None:
        raise RefusedError("full")

    with pytest.raises(RefusedError, match="full"):
        relay.relay(source, "disk-read", {}, refuse)
    assert source.ended.wait(5)
    assert source.sent < 100


def test_a_target_that_fails_half_way_ends_the_source() -> None:
    """The first failure is the one that is told."""
    source = Source(MANY)

    def break_off(items: Iterator[wire.Item]) -> None:
        for _item, _number in zip(items, range(1000), strict=False):
            continue
        raise DataError("cut")

    with pytest.raises(DataError, match="cut"):
        relay.relay(source, "disk-read", {}, break_off)
    assert source.ended.wait(5)
    assert source.sent < len(MANY)


@pytest.mark.parametrize("items", [[], MANY[:10]])
def test_a_source_that_fails_never_looks_complete(items: list[wire.Item]) -> None:
    """The target's stream ends by the failure, so that it is thrown away there."""
    completed = []

    def deliver(got: Iterator[wire.Item]) -> None:
        for _item in got:
            continue
        completed.append(True)

    with pytest.raises(NotFoundError, match="no disk"):
        relay.relay(Source(items, NotFoundError("no disk")), "disk-read", {}, deliver)
    assert not completed


def test_a_failure_after_the_last_item_counts() -> None:
    """Even a target that stopped listening at the end does not hide the source's reply."""
    source = Source(MANY[:3], DataError("the checksum does not fit"))

    def deliver(got: Iterator[wire.Item]) -> None:
        for _item, _number in zip(got, range(3), strict=False):
            continue

    with pytest.raises(DataError, match="checksum"):
        relay.relay(source, "disk-read", {}, deliver)


def test_a_disk_begins_with_its_head() -> None:
    """Its size is known before its data."""
    assert relay.first_section(iter(MANY)) == HEAD
    bad: list[list[wire.Item]] = [[], [b"data"]]
    for items in bad:
        with pytest.raises(DataError):
            relay.first_section(iter(items))
