# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns how lab tests call the verbs of a node as the drivers do: from the frontend's place."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from cxm.errors import CommandError
from cxm.node.client import RemoteNode
from cxm.run import Producer, Result, System
from lab import installed
from lab.lab import Lab


@contextmanager
def told_of(argv: Sequence[str]) -> Iterator[None]:
    """A failure is one of the command that was asked for, not of how it gets into the place."""
    try:
        yield
    except CommandError as error:
        raise CommandError(
            error.message, argv=tuple(argv), exit_code=error.exit_code, stderr=error.stderr
        ) from error


class InPlace:
    """A Runner whose commands run in the frontend's place."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._system = System()

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes | None = None,
        timeout_s: float = 60.0,
        ok: Sequence[int] = (0,),
    ) -> Result:
        with told_of(argv):
            inside = self._lab.exec_argv(argv)
            return self._system.run(inside, stdin=stdin, timeout_s=timeout_s, ok=ok)

    def feed(
        self,
        argv: Sequence[str],
        chunks: Iterable[bytes],
        *,
        timeout_s: float | None = None,
        ok: Sequence[int] = (0,),
    ) -> Result:
        with told_of(argv):
            inside = self._lab.exec_argv(argv)
            return self._system.feed(inside, chunks, timeout_s=timeout_s, ok=ok)

    def produce(
        self,
        argv: Sequence[str],
        *,
        chunks: Iterable[bytes] | None = None,
        timeout_s: float | None = None,
        ok: Sequence[int] = (0,),
    ) -> Producer:
        argv = self._lab.exec_argv(argv)
        return self._system.produce(argv, chunks=chunks, timeout_s=timeout_s, ok=ok)


def node_of(lab: Lab, name: str) -> RemoteNode:
    """A host as the drivers see it."""
    return RemoteNode(InPlace(lab), name, installed.cloud(lab.places))
