# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the language between a caller and a node's root helper (docs/design/0002).

A request is one JSON line, after which an upload may follow. A reply is one JSON line, or, for a
download, a stream whose last frame is the reply. A data stream is a sequence of sections; a section
has a name, carries data and runs of zeros, and ends with its length and checksum: a stream that was
cut or damaged on its way never looks complete.
"""

import json
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Protocol

from cxm.errors import BY_NAME, CxmError, DataError

MAX_FRAME: Final = 1 << 20
_HEAD: Final = struct.Struct(">cQ")
_SECTION, _DATA, _ZEROS, _END, _REPLY = b"S", b"D", b"Z", b"E", b"R"
_DIGEST_SIZE: Final = 16
_JSON_LIMIT: Final = 4 << 20

Read = Callable[[int], bytes]


@dataclass(frozen=True, slots=True)
class Section:
    """The beginning of a part of a stream, for example one file of a directory."""

    name: str
    meta: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Zeros:
    """A run of zeros that does not cross the wire."""

    length: int


# What a decoded stream yields: Section, then bytes and Zeros, then the next Section.
Item = Section | Zeros | bytes

# A sender that has nothing to send yet says that it lives; no receiver ever sees it.
BEAT: Final[Item] = Zeros(0)
ENCODED_BEAT: Final = _HEAD.pack(_ZEROS, 0)
BEAT_S: Final = 30.0
SILENCE_S: Final = 300.0  # so long without a byte, and the sender has died


class _Checksum(Protocol):
    """The part of a hash object that a stream needs."""

    def update(self, data: bytes, /) -> None: ...

    def digest(self) -> bytes: ...


def _checksum() -> _Checksum:
    import hashlib  # noqa: PLC0415 - OpenSSL is a tenth of an action's start-up; few need it

    return hashlib.blake2b(digest_size=_DIGEST_SIZE)


def encode_json(value: dict[str, Any]) -> bytes:
    """One line of JSON."""
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode() + b"\n"


def _decode_json(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError as error:
        message = f"not a message of cxm: {line[:120]!r}"
        raise DataError(message) from error
    if not isinstance(value, dict):
        message = f"not a message of cxm: {line[:120]!r}"
        raise DataError(message)
    return value


def read_line(read: Read, head: bytes = b"") -> dict[str, Any]:
    """The JSON line at the front of a stream; takes not one byte more than the line.

    ``read`` must be able to return a single byte, as that of an unbuffered file does. ``head`` is
    what has been read of the line already.
    """
    line = bytearray(head)
    while not line.endswith(b"\n"):
        byte = read(1)
        if not byte:
            message = "the request ended before its first line was complete"
            raise DataError(message)
        line += byte
        if len(line) > _JSON_LIMIT:
            message = "the request's first line is too long"
            raise DataError(message)
    return _decode_json(bytes(line))


def success(result: dict[str, Any], log: Iterable[str] = ()) -> dict[str, Any]:
    """The reply of a verb that did its work; ``log`` says in sentences what it changed."""
    return {"ok": True, "result": result, "log": list(log)}


def failure(error: CxmError, log: Iterable[str] = ()) -> dict[str, Any]:
    """The reply of a verb that failed."""
    name = type(error).__name__
    return {
        "ok": False,
        "error": {
            "type": name if name in BY_NAME else "CxmError",
            "message": error.message,
            "hint": error.hint,
        },
        "log": list(log),
    }


def open_reply(reply: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The result and the log of a reply; raises the failure that it reports."""
    log = [str(line) for line in reply.get("log", [])]
    if reply.get("ok") is True and isinstance(reply.get("result"), dict):
        return reply["result"], log
    error = reply.get("error")
    if not isinstance(error, dict):
        message = "the node's reply is neither a result nor a failure"
        raise DataError(message)
    hint = error.get("hint")
    raise BY_NAME.get(str(error.get("type")), CxmError)(
        str(error.get("message")), hint=None if hint is None else str(hint)
    )


def parse_reply(text: bytes) -> tuple[dict[str, Any], list[str]]:
    """The same for the bytes of a one-line reply."""
    return open_reply(_decode_json(text.strip()))


def encode(items: Iterable[Item]) -> Iterator[bytes]:
    """A stream of sections as bytes; the caller starts each section with a :class:`Section`."""
    digest = _checksum()
    length = 0
    is_open = False
    for item in items:
        if isinstance(item, Section):
            if is_open:
                yield _end(length, digest.digest())
            body = encode_json({"name": item.name, "meta": item.meta})
            yield _HEAD.pack(_SECTION, len(body)) + body
            digest, length, is_open = _checksum(), 0, True
        elif isinstance(item, Zeros):
            yield _HEAD.pack(_ZEROS, item.length)
            digest.update(_zeros_mark(length, item.length))
            length += item.length
        else:
            for start in range(0, len(item), MAX_FRAME):
                part = item[start : start + MAX_FRAME]
                yield _HEAD.pack(_DATA, len(part))
                yield part
                digest.update(part)
                length += len(part)
    if is_open:
        yield _end(length, digest.digest())


def encode_reply(reply: dict[str, Any]) -> bytes:
    """The last frame of a download."""
    body = encode_json(reply)
    return _HEAD.pack(_REPLY, len(body)) + body


def _end(length: int, digest: bytes) -> bytes:
    return _HEAD.pack(_END, length) + digest


def _zeros_mark(offset: int, length: int) -> bytes:
    return b"Z" + struct.pack(">QQ", offset, length) if length else b""


class Decoder:
    """Reads a stream back, checks it, and keeps the reply that ends a download.

    ``read(n)`` returns up to n bytes, none at the end. Iterate for the items; afterwards
    ``reply`` holds the reply, if the stream had one.
    """

    def __init__(self, read: Read, *, expect_reply: bool) -> None:
        self._read = read
        self._expect_reply = expect_reply
        self.reply: dict[str, Any] | None = None

    def _exactly(self, count: int) -> bytes:
        first = self._read(count)
        if len(first) == count:
            return first
        parts, missing = [first], count - len(first)
        while missing:
            part = self._read(missing) if parts[-1] else b""
            if not part:
                message = "the data stream was cut before its end"
                hint = "the connection or its other end died; run the action again"
                raise DataError(message, hint=hint)
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)

    def _head(self) -> tuple[bytes, int] | None:
        while first := self._read(1):
            head = first + self._exactly(_HEAD.size - 1)
            if head != ENCODED_BEAT:
                kind, size = _HEAD.unpack(head)
                return kind, size
        return None

    def __iter__(self) -> Iterator[Item]:
        digest = _checksum()
        length = 0
        is_open = False
        while (head := self._head()) is not None:
            kind, size = head
            if kind in (_SECTION, _REPLY) and not (is_open and kind == _SECTION):
                if size > _JSON_LIMIT:
                    break
                value = _decode_json(self._exactly(size))
                if kind == _REPLY:
                    self.reply = value
                    return
                digest, length, is_open = _checksum(), 0, True
                yield Section(str(value.get("name", "")), dict(value.get("meta", {})))
            elif kind == _DATA and is_open and size <= MAX_FRAME:
                data = self._exactly(size)
                digest.update(data)
                length += size
                yield data
            elif kind == _ZEROS and is_open:
                digest.update(_zeros_mark(length, size))
                length += size
                yield Zeros(size)
            elif kind == _END and is_open:
                if self._exactly(_DIGEST_SIZE) != digest.digest() or size != length:
                    message = "the data stream was damaged on its way: its checksum does not fit"
                    raise DataError(
                        message, hint="run the action again; if it stays, check the network"
                    )
                is_open = False
            else:
                break
        else:
            if is_open or self._expect_reply:
                self._exactly(1)
            return
        message = "the data stream holds something that is not cxm's"
        raise DataError(message)


def reader(chunks: Iterator[bytes]) -> Read:
    """A ``read(n)`` over chunks of any size."""
    rest = b""
    at = 0

    def read(count: int) -> bytes:
        nonlocal rest, at
        if at >= len(rest):
            rest, at = next(chunks, b""), 0
        if at == 0 and len(rest) <= count:
            part, rest = rest, b""
            return part
        part = rest[at : at + count]
        at += len(part)
        return part

    return read
