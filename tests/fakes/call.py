# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns how tests call a verb of the root helper: in-process, by the bytes of a real request."""

import io
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from cxm import API_VERSION, __version__, wire
from cxm.node import helper
from cxm.node.machine import Machine
from cxm.node.verbs import VERBS, Data
from cxm.run import System
from tests.fakes.machine import CLOUD


@dataclass(slots=True)
class Answer:
    """What a verb replied."""

    code: int
    result: dict[str, Any]
    log: list[str]
    items: list[wire.Item] = field(default_factory=list)


def request(args: dict[str, Any], *, pack: bool = False, **changes: Any) -> bytes:
    """The line that begins a request."""
    head = {"api": API_VERSION, "version": __version__, "cloud": CLOUD, "pack": pack, "args": args}
    return wire.encode_json(head | changes)


def typed(sent: bytes) -> BinaryIO:
    """A standard input that holds these bytes and has ended; one that can be waited for."""
    file = open(os.memfd_create("stdin"), "r+b", buffering=0)
    file.write(sent)
    file.seek(0)
    return file


def ask(
    machine: Machine,
    verb: str,
    items: Iterable[wire.Item] | None = None,
    *,
    body: bytes | None = None,
    **args: Any,
) -> Answer:
    """Call a verb; raises the failure that it replies. ``body`` is an upload as bytes.

    An argument that Python keeps for itself is given with an underscore: ``as_="raw"``.
    """
    given = {name.rstrip("_"): value for name, value in args.items()}
    data = b"".join(wire.encode(items)) if items is not None else body or b""
    return send(machine, verb, request(given) + data)


def send(machine: Machine, verb: str, sent: bytes, *, pack: bool = False) -> Answer:
    """Call a verb with these very bytes as its input."""
    stdout = io.BytesIO()
    with typed(sent) as stdin:
        code = helper.serve(verb, stdin, stdout, machine)
    said = stdout.getvalue()
    if verb not in VERBS or VERBS[verb].data is not Data.DOWN:
        result, log = wire.parse_reply(said)
        return Answer(code, result, log)
    if pack:
        with System().produce(["zstd", "-q", "-d", "-c"], chunks=[said]) as unpacked:
            said = b"".join(unpacked)
    decoder = wire.Decoder(io.BytesIO(said).read, expect_reply=True)
    items = list(decoder)
    result, log = wire.open_reply(decoder.reply or {})
    return Answer(code, result, log, items)
