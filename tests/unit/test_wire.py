# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""A stream arrives whole and unchanged, or its reader says that it did not."""

import io
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxm import wire
from cxm.errors import CxmError, DataError, NotFoundError, RefusedError

ITEMS = st.lists(
    st.one_of(
        st.binary(min_size=1, max_size=300),
        st.integers(min_value=1, max_value=2**50).map(wire.Zeros),
        st.text(max_size=8).map(lambda name: wire.Section(name, {"mode": 420})),
    ),
    max_size=12,
).map(lambda items: [wire.Section("first", {}), *items])


def decode(data: bytes, *, expect_reply: bool = False) -> list[wire.Item]:
    """All items of an encoded stream."""
    return list(wire.Decoder(io.BytesIO(data).read, expect_reply=expect_reply))


def merged(items: list[wire.Item]) -> list[wire.Item]:
    """Items with neighbouring data joined: how it was cut does not matter."""
    out: list[wire.Item] = []
    for item in items:
        if isinstance(item, bytes) and out and isinstance(out[-1], bytes):
            out[-1] += item
        else:
            out.append(item)
    return out


@given(ITEMS)
def test_stream_comes_back_as_sent(items: list[wire.Item]) -> None:
    """Sections, data and zeros survive in their order."""
    assert merged(decode(b"".join(wire.encode(items)))) == merged(items)


@given(ITEMS, st.data())
def test_stream_cut_anywhere_is_noticed(items: list[wire.Item], data: st.DataObject) -> None:
    """No prefix of a download passes for the whole of it."""
    whole = b"".join(wire.encode(items)) + wire.encode_reply(wire.success({}))
    cut = data.draw(st.integers(min_value=0, max_value=len(whole) - 1))
    with pytest.raises(DataError):
        decode(whole[:cut], expect_reply=True)


@given(st.binary(min_size=1, max_size=100), st.data())
def test_damaged_byte_is_noticed(payload: bytes, data: st.DataObject) -> None:
    """A changed byte of the data or of its checksum never arrives as good data."""
    whole = bytearray(b"".join(wire.encode([wire.Section("s", {}), payload])))
    place = data.draw(
        st.integers(min_value=len(whole) - 25 - len(payload), max_value=len(whole) - 1)
    )
    whole[place] ^= data.draw(st.integers(min_value=1, max_value=255))
    with pytest.raises(DataError):
        decode(bytes(whole))


@given(ITEMS, st.data())
def test_beats_are_heard_by_nobody(items: list[wire.Item], data: st.DataObject) -> None:
    """A sender may say anywhere that it lives; data, zeros and checksum stay what they are."""
    beating = list(items)
    for place in data.draw(st.lists(st.integers(min_value=0, max_value=len(items)), max_size=3)):
        beating.insert(place, wire.BEAT)
    sent = b"".join(wire.encode(beating))
    assert sent.count(wire.ENCODED_BEAT) >= len(beating) - len(items)
    assert merged(decode(sent)) == merged(items)


def test_zeros_in_another_place_are_noticed() -> None:
    """The checksum covers where zeros lie, not only how many there are."""
    first = b"".join(wire.encode([wire.Section("s", {}), b"a", wire.Zeros(5), b"b"]))
    other = b"".join(wire.encode([wire.Section("s", {}), b"ab", wire.Zeros(5)]))
    with pytest.raises(DataError):
        decode(other[:-16] + first[-16:])


def test_large_data_is_split_into_frames() -> None:
    """A chunk of any size may be sent; no frame is larger than the receiver takes."""
    payload = bytes(range(256)) * 10_000
    frames = decode(b"".join(wire.encode([wire.Section("s", {}), payload])))
    assert all(len(item) <= wire.MAX_FRAME for item in frames if isinstance(item, bytes))
    assert merged(frames)[1] == payload


def test_request_line_takes_not_one_byte_of_the_data() -> None:
    """What follows the request's line stays in the stream for its reader."""
    stream = io.BytesIO(wire.encode_json({"api": 1}) + b"data")
    assert wire.read_line(stream.read) == {"api": 1}
    assert stream.read() == b"data"


@pytest.mark.parametrize("line", [b"", b'{"api":1}', b"[]\n", b"nonsense\n", b"\xff\xfe\n"])
def test_broken_request_is_an_error(line: bytes) -> None:
    """An incomplete or foreign first line is refused."""
    with pytest.raises(DataError):
        wire.read_line(io.BytesIO(line).read)


def test_reply_carries_result_and_log() -> None:
    """A verb's result and the sentences about what it changed reach the caller."""
    reply = wire.encode_json(wire.success({"lv": "x"}, ["LV x created"]))
    assert wire.parse_reply(reply) == ({"lv": "x"}, ["LV x created"])


def test_failure_is_raised_again_as_what_it_was() -> None:
    """The caller sees the class, the sentence and the hint of the node's failure."""
    reply = wire.encode_json(wire.failure(RefusedError("LV x is in use", hint="stop the VM")))
    with pytest.raises(RefusedError, match="LV x is in use") as caught:
        wire.parse_reply(reply)
    assert caught.value.hint == "stop the VM"


def test_private_error_class_crosses_as_its_base() -> None:
    """A class that the other side does not know arrives as a plain failure."""

    class OddError(NotFoundError):
        pass

    with pytest.raises(CxmError, match="gone") as caught:
        wire.open_reply(wire.failure(OddError("gone")))
    assert type(caught.value) is CxmError


def test_reader_serves_any_count_from_any_chunks() -> None:
    """Reads are independent of how the bytes arrived."""

    def chunks() -> Iterator[bytes]:
        yield from (b"ab", b"c", b"defg")

    read = wire.reader(chunks())
    assert [read(1), read(3), read(9), read(9), read(9)] == [b"a", b"b", b"c", b"defg", b""]
