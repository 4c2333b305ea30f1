# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns data that goes from one host to another through the frontend, without a copy there."""

from collections.abc import Callable, Iterator
from typing import Any

from cxm import wire
from cxm.errors import DataError
from cxm.node.client import Node
from cxm.pipe import piped


def relay(
    source: Node,
    verb: str,
    args: dict[str, Any],
    deliver: Callable[[Iterator[wire.Item]], None],
) -> None:
    """Download from ``source`` and hand its items to ``deliver``, which uploads them.

    Returns when both have succeeded; raises the first failure of either.
    """

    def download(put: Callable[[wire.Item], None]) -> None:
        def take(items: Iterator[wire.Item]) -> None:
            for item in items:
                put(item)

        source.download(verb, args, take, pack=True)

    with piped(download) as items:
        deliver(items)


def first_section(items: Iterator[wire.Item]) -> wire.Section:
    """The section that a stream begins with."""
    first = next(items, None)
    if not isinstance(first, wire.Section):
        raise DataError("the content of the disk is missing")
    return first
