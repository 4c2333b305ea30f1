# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns how a verb of a node's root helper is called: by one ssh, or by sudo on the node itself.

The verbs and their arguments are the contract in docs/design/0002; this module knows none of them.
"""

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import chain
from typing import Any, Final, Protocol

from cxm import API_VERSION, __version__, run, wire
from cxm.errors import CommandError, CxmError, UnreachableError
from cxm.names import CloudId

_log = logging.getLogger(__name__)

HELPER: Final = "/usr/lib/cxm/cxm-helper"
# The helper's exit code when its reply tells of a failure.
FAILURE_CODE: Final = 10
_OK: Final = (0, FAILURE_CODE)
_SSH_FAILED: Final = 255
_NOT_FOUND: Final = 127
# zstd's fastest level outruns a 1 Gbit/s network by a factor of three (docs/design/0003).
_PACK: Final = ("zstd", "-q", "-1", "-c")
_UNPACK: Final = ("zstd", "-q", "-d", "-c")


class Node(Protocol):
    """A node as the drivers see it."""

    @property
    def name(self) -> str:
        """How messages name the node."""

    def call(self, verb: str, args: dict[str, Any], *, timeout_s: float = 120.0) -> dict[str, Any]:
        """Run a verb and return its result; raises the failure that the node reports."""

    def upload(
        self, verb: str, args: dict[str, Any], items: Iterable[wire.Item], *, pack: bool
    ) -> dict[str, Any]:
        """Run a verb that takes data; ``pack`` compresses it on its way."""

    def download(
        self,
        verb: str,
        args: dict[str, Any],
        take: Callable[[Iterator[wire.Item]], None],
        *,
        pack: bool,
    ) -> dict[str, Any]:
        """Run a verb that gives data, hand the data to ``take``, and return the verb's result."""


class Dialogue(Protocol):
    """A process that answers each line with a line, as :class:`cxm.run.Dialogue` does."""

    def ask(self, line: bytes, *, timeout_s: float) -> bytes:
        """Send a line and return the answer."""

    def close(self) -> None:
        """End the process."""


Start = Callable[[Sequence[str]], Dialogue]
Ask = Callable[[Dialogue, dict[str, Any], float], dict[str, Any]]


class Conversation:
    """A helper that stays for one request after the other; started when it is needed."""

    def __init__(self, start: Callable[[], Dialogue], ask: Ask) -> None:
        self._start = start
        self._ask = ask
        self._dialogue: Dialogue | None = None

    def ask(self, args: dict[str, Any], *, timeout_s: float) -> dict[str, Any]:
        """The verb's result; raises as a call does, and the next request starts a new helper."""
        if self._dialogue is None:
            self._dialogue = self._start()
        try:
            return self._ask(self._dialogue, args, timeout_s)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let the helper go."""
        dialogue, self._dialogue = self._dialogue, None
        if dialogue is not None:
            dialogue.close()


class RemoteNode:
    """A node reached by ssh, or the machine itself when ``host`` is None."""

    def __init__(
        self,
        runner: run.Runner,
        host: str | None,
        cloud: CloudId,
        *,
        block_mib: int = 1,
        beat_s: float = wire.BEAT_S,
    ) -> None:
        self._runner = runner
        self._host = host
        self._cloud = cloud
        self._block_mib = block_mib
        self._beat_s = beat_s

    @property
    def name(self) -> str:
        return os.uname().nodename if self._host is None else self._host

    def _argv(self, verb: str) -> list[str]:
        local = ["sudo", "-n", HELPER, verb]
        return local if self._host is None else run.ssh(self._host, local)

    def _request(self, args: dict[str, Any], *, pack: bool, stay: bool = False) -> bytes:
        request: dict[str, Any] = {
            "api": API_VERSION,
            "version": __version__,
            "cloud": self._cloud,
            "pack": pack,
            "args": args,
        }
        if self._block_mib != 1:
            request["block_mib"] = self._block_mib
        return wire.encode_json(request | ({"stay": True} if stay else {}))

    def call(self, verb: str, args: dict[str, Any], *, timeout_s: float = 120.0) -> dict[str, Any]:
        try:
            result = self._runner.run(
                self._argv(verb), stdin=self._request(args, pack=False), timeout_s=timeout_s, ok=_OK
            )
        except CommandError as error:
            raise self._explain(verb, error) from error
        return self._open(wire.parse_reply(result.stdout.encode()))

    def converse(self, verb: str, start: Start = run.Dialogue) -> "Conversation":
        """Run a verb again and again in one helper process; for verbs that change nothing."""

        def ask(dialogue: Dialogue, args: dict[str, Any], timeout_s: float) -> dict[str, Any]:
            request = self._request(args, pack=False, stay=True)
            try:
                reply = dialogue.ask(request, timeout_s=timeout_s)
            except CommandError as error:
                raise self._explain(verb, error) from error
            return self._open(wire.parse_reply(reply))

        return Conversation(lambda: start(self._argv(verb)), ask)

    def upload(
        self, verb: str, args: dict[str, Any], items: Iterable[wire.Item], *, pack: bool
    ) -> dict[str, Any]:
        try:
            with self._beating(items) as sent:
                encoded = wire.encode(sent)
                data = self._packed(encoded) if pack else encoded
                chunks = chain([self._request(args, pack=pack)], data)
                result = self._runner.feed(self._argv(verb), chunks, ok=_OK)
        except CommandError as error:
            raise self._explain(verb, error) from error
        return self._open(wire.parse_reply(result.stdout.encode()))

    def _beating(self, items: Iterable[wire.Item]) -> AbstractContextManager[Iterator[wire.Item]]:
        """The same, with a beat whenever a slow store, another host or many zeros give nothing."""
        from cxm.pipe import piped  # noqa: PLC0415 - few actions send data

        def make(put: Callable[[wire.Item], None]) -> None:
            for item in items:
                put(item)

        return piped(make, beat=wire.BEAT, beat_s=self._beat_s)

    def _packed(self, encoded: Iterator[bytes]) -> Iterator[bytes]:
        """The same compressed; with a beat goes all that zstd would keep until it has more."""
        ended = False

        def part() -> Iterator[bytes]:
            nonlocal ended
            for chunk in encoded:
                yield chunk
                if chunk == wire.ENCODED_BEAT:
                    return
            ended = True

        while not ended:
            # Each part is a zstd frame of its own; a decoder takes them as one stream.
            with self._runner.produce(_PACK, chunks=part()) as packed:
                yield from packed

    def download(
        self,
        verb: str,
        args: dict[str, Any],
        take: Callable[[Iterator[wire.Item]], None],
        *,
        pack: bool,
    ) -> dict[str, Any]:
        request = self._request(args, pack=pack)
        try:
            with self._runner.produce(self._argv(verb), chunks=[request], ok=_OK) as output:
                if not pack:
                    return self._take(output, take)
                with self._runner.produce(_UNPACK, chunks=output) as unpacked:
                    return self._take(unpacked, take)
        except CommandError as error:
            raise self._explain(verb, error) from error

    def _take(
        self, chunks: Iterator[bytes], take: Callable[[Iterator[wire.Item]], None]
    ) -> dict[str, Any]:
        decoder = wire.Decoder(wire.reader(chunks), expect_reply=True)
        items = iter(decoder)
        take(items)
        for _rest in items:
            pass
        return self._open(wire.open_reply(decoder.reply or {}))

    def _open(self, opened: tuple[dict[str, Any], list[str]]) -> dict[str, Any]:
        result, log = opened
        for line in log:
            _log.info("%s: %s", self.name, line)
        return result

    def _explain(self, verb: str, error: CommandError) -> CxmError:
        """What a failed ssh, sudo or missing helper means for the operator."""
        said = run.tail(error.stderr)
        if error.argv[:1] not in (("ssh",), ("sudo",)):
            return error
        if error.exit_code == _SSH_FAILED and self._host is not None:
            return UnreachableError(
                f"{self.name} cannot be reached by ssh, or the connection broke during {verb}: "
                f"{said or 'no reason given'}",
                hint=f"as oneadmin on this machine, 'ssh {self._host} true' must work",
            )
        if "sudo:" in error.stderr or error.exit_code == _NOT_FOUND or "not found" in said:
            return CommandError(
                f"{self.name} does not run cxm's helper ({verb}): {said}",
                hint="install the package cxm-node there and run 'cxm-setup node'",
                argv=error.argv,
                exit_code=error.exit_code,
                stderr=error.stderr,
            )
        return CommandError(
            f"{self.name}: {verb} failed: {error.message}",
            argv=error.argv,
            exit_code=error.exit_code,
            stderr=error.stderr,
        )
