# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns nodes that only answer: they have their verbs, and no data goes to them or comes from them.

Each is a :class:`cxm.node.client.Node`.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn

from cxm import wire


class NoTransfers:
    """What a node refuses that only answers: the test fails."""

    def upload(
        self, verb: str, args: dict[str, Any], items: Iterable[wire.Item], *, pack: bool
    ) -> NoReturn:
        raise AssertionError(f"nobody uploads here: {verb}")

    def download(
        self,
        verb: str,
        args: dict[str, Any],
        take: Callable[[Iterator[wire.Item]], None],
        *,
        pack: bool,
    ) -> NoReturn:
        raise AssertionError(f"nobody downloads here: {verb}")


class Answering(NoTransfers):
    """A node whose verbs are a function of the test."""

    def __init__(self, name: str, answer: Callable[[str, dict[str, Any]], dict[str, Any]]) -> None:
        self.name = name
        self._answer = answer

    def call(self, verb: str, args: dict[str, Any], *, timeout_s: float = 0.0) -> dict[str, Any]:
        assert timeout_s > 0, "nobody has said how long this may take"
        return self._answer(verb, args)
