# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""A verb's failure reaches the operator as what it means, whichever link of the chain broke."""

import io
import json
import os
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import pytest

from cxm import wire
from cxm.errors import CommandError, CxmError, DataError, RefusedError, UnreachableError
from cxm.names import cloud_id
from cxm.node.client import FAILURE_CODE, RemoteNode
from cxm.run import Producer, Result, System

CLOUD = cloud_id("c0ffee0042")


class Recorder:
    """A runner whose ssh and sudo answer as told; everything else really runs."""

    def __init__(self, answer: bytes, *, code: int = 0, stderr: str = "") -> None:
        self.answer, self.code, self.stderr = answer, code, stderr
        self.calls: list[tuple[list[str], bytes]] = []

    def _result(self, argv: Sequence[str], sent: bytes, ok: Sequence[int]) -> Result:
        self.calls.append((list(argv), sent))
        if self.code not in ok:
            message = f"'{argv[0]}' failed with exit code {self.code}"
            raise CommandError(message, argv=tuple(argv), exit_code=self.code, stderr=self.stderr)
        return Result(
            tuple(argv), self.code, self.answer.decode(errors="replace"), self.stderr, 0.0
        )

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes | None = None,
        timeout_s: float = 60.0,
        ok: Sequence[int] = (0,),
    ) -> Result:
        return self._result(argv, stdin or b"", ok)

    def feed(
        self,
        argv: Sequence[str],
        chunks: Iterable[bytes],
        *,
        timeout_s: float | None = None,
        ok: Sequence[int] = (0,),
    ) -> Result:
        return self._result(argv, b"".join(chunks), ok)

    def produce(
        self,
        argv: Sequence[str],
        *,
        chunks: Iterable[bytes] | None = None,
        timeout_s: float | None = None,
        ok: Sequence[int] = (0,),
    ) -> Producer:
        if argv[0] == "zstd":
            return System().produce(argv, chunks=chunks)

        @contextmanager
        def answer() -> Iterator[Iterator[bytes]]:
            self.calls.append((list(argv), b"".join(chunks or ())))
            yield iter([self.answer])
            self._result(argv, b"", ok)

        return answer()


def reply(value: dict[str, object]) -> bytes:
    """A reply line of the helper."""
    return wire.encode_json(wire.success(value))


def test_call_is_one_ssh_with_the_verb_as_its_only_argument() -> None:
    """Everything but the verb travels inside the request."""
    runner = Recorder(reply({"lv": "x"}))
    assert RemoteNode(runner, "solo1", CLOUD).call("vg-usage", {"a": 1}) == {"lv": "x"}
    [(argv, sent)] = runner.calls
    assert argv[-1] == "sudo -n /usr/lib/cxm/cxm-helper vg-usage"
    assert json.loads(sent) | {"version": ""} == {
        "api": 1,
        "version": "",
        "cloud": CLOUD,
        "pack": False,
        "args": {"a": 1},
    }


def test_call_on_this_node_needs_no_ssh() -> None:
    """A VMM action runs where its domain is."""
    runner = Recorder(reply({}))
    RemoteNode(runner, None, CLOUD).call("observe", {})
    assert runner.calls[0][0][:2] == ["sudo", "-n"]


def test_request_carries_the_size_of_a_block_when_it_is_not_the_default() -> None:
    """BLOCK_SIZE is the frontend's setting, and the host reads and writes by it."""
    runner = Recorder(reply({}))
    RemoteNode(runner, "solo1", CLOUD, block_mib=4).call("disk-blank", {})
    RemoteNode(runner, "solo1", CLOUD).call("disk-blank", {})
    assert [json.loads(sent).get("block_mib") for _argv, sent in runner.calls] == [4, None]


def test_this_node_is_called_by_its_name() -> None:
    """An operator reads the sentence on another machine, where 'this node' means nothing."""
    runner = Recorder(b"", code=1, stderr="sudo: a password is required")
    with pytest.raises(CommandError, match=f"^{os.uname().nodename} does not run cxm's helper"):
        RemoteNode(runner, None, CLOUD).call("observe", {})


def test_failure_reply_is_raised_as_it_was() -> None:
    """The helper's sentence is the operator's sentence."""
    line = wire.encode_json(wire.failure(RefusedError("LV x on solo1 is in use")))
    runner = Recorder(line, code=FAILURE_CODE)
    with pytest.raises(RefusedError, match="LV x on solo1 is in use"):
        RemoteNode(runner, "solo1", CLOUD).call("disk-remove", {})


@pytest.mark.parametrize(
    ("code", "stderr", "kind", "words"),
    [
        (255, "ssh: connect to host solo1 port 22: timed out", UnreachableError, "solo1 .*timed"),
        (255, "Permission denied (publickey).", UnreachableError, "Permission denied"),
        (127, "bash: sudo: command not found", CommandError, "solo1 does not run cxm's helper"),
        (1, "sudo: a password is required", CommandError, "solo1 does not run cxm's helper"),
        (1, "Traceback", CommandError, "solo1: vg-usage failed"),
    ],
)
def test_broken_chain_is_explained(
    code: int, stderr: str, kind: type[CxmError], words: str
) -> None:
    """A dead host, a wrong key and a missing package each have their own sentence."""
    runner = Recorder(b"", code=code, stderr=stderr)
    with pytest.raises(kind, match=words):
        RemoteNode(runner, "solo1", CLOUD).call("vg-usage", {})


@pytest.mark.parametrize("pack", [True, False])
def test_upload_follows_the_request_line(pack: bool) -> None:
    """The node finds the request first and the data right behind it."""
    runner = Recorder(reply({}))
    items: list[wire.Item] = [wire.Section("disk", {}), b"data", wire.Zeros(9)]
    RemoteNode(runner, "solo1", CLOUD).upload("disk-write", {}, items, pack=pack)
    line, _newline, data = runner.calls[0][1].partition(b"\n")
    assert json.loads(line)["pack"] is pack
    if pack:
        with System().produce(["zstd", "-qdc"], chunks=[data]) as unpacked:
            data = b"".join(unpacked)
    assert data == b"".join(wire.encode(items))


@pytest.mark.parametrize("pack", [True, False])
def test_source_that_is_slow_is_not_a_silent_caller(pack: bool) -> None:
    """The node hears that we live while a store hangs or zeros are read; the data stay the same."""
    items: list[wire.Item] = [wire.Section("disk", {}), b"data", wire.Zeros(9), b"more"]
    heard = threading.Event()

    class Listener(Recorder):
        """Notes when the first data arrive."""

        def feed(
            self,
            argv: Sequence[str],
            chunks: Iterable[bytes],
            *,
            timeout_s: float | None = None,
            ok: Sequence[int] = (0,),
        ) -> Result:
            def noted() -> Iterator[bytes]:
                for number, chunk in enumerate(chunks):
                    if number > 0:
                        heard.set()
                    yield chunk

            return super().feed(argv, noted(), ok=ok)

    def slowly() -> Iterator[wire.Item]:
        for item in items:
            heard.clear()
            assert heard.wait(10), "a beat comes before each item"
            yield item

    runner = Listener(reply({}))
    RemoteNode(runner, "solo1", CLOUD, beat_s=0.01).upload("disk-write", {}, slowly(), pack=pack)
    _line, _newline, data = runner.calls[0][1].partition(b"\n")
    if pack:
        with System().produce(["zstd", "-qdc"], chunks=[data]) as unpacked:
            data = b"".join(unpacked)
    assert wire.ENCODED_BEAT in data
    decoder = wire.Decoder(io.BytesIO(data).read, expect_reply=False)
    assert list(decoder) == items


@pytest.mark.parametrize("pack", [True, False])
def test_failure_of_the_source_ends_the_upload(pack: bool) -> None:
    """The sentence is that of the source, not that of a torn stream."""

    def failing() -> Iterator[wire.Item]:
        yield wire.Section("disk", {})
        raise DataError("the image changed while it was read")

    with pytest.raises(DataError, match="image changed"):
        RemoteNode(Recorder(reply({})), "solo1", CLOUD).upload("x", {}, failing(), pack=pack)


@pytest.mark.parametrize("pack", [True, False])
def test_download_hands_out_data_and_returns_the_reply(pack: bool) -> None:
    """What the node sends arrives, and the last frame is the verb's result."""
    items: list[wire.Item] = [wire.Section("disk", {"content": "raw"}), b"data"]
    data = b"".join(wire.encode(items)) + wire.encode_reply(wire.success({"lv": "x"}))
    if pack:
        with System().produce(["zstd", "-qc"], chunks=[data]) as packed:
            data = b"".join(packed)
    taken: list[wire.Item] = []
    node = RemoteNode(Recorder(data), "solo1", CLOUD)
    assert node.download("disk-read", {}, taken.extend, pack=pack) == {"lv": "x"}
    assert taken == items


def test_download_cut_before_the_reply_is_an_error() -> None:
    """Data without the final reply is not a success."""
    data = b"".join(wire.encode([wire.Section("disk", {}), b"data"]))
    node = RemoteNode(Recorder(data), "solo1", CLOUD)
    with pytest.raises(DataError, match="cut"):
        node.download("disk-read", {}, lambda items: [*items].clear(), pack=False)


def test_connection_that_breaks_in_mid_stream_is_named_as_such() -> None:
    """Not the torn data but the dead connection is the operator's sentence."""
    data = b"".join(wire.encode([wire.Section("disk", {}), b"data"]))[:-4]

    class Torn(Recorder):
        def produce(self, argv: Sequence[str], **_options: object) -> Producer:
            script = f"import os, sys; os.write(1, {data!r}); sys.exit('broken')"
            return System().produce([sys.executable, "-c", script])

    node = RemoteNode(Torn(b""), "solo1", CLOUD)
    with pytest.raises(CxmError, match="broken"):
        node.download("disk-read", {}, lambda items: [*items].clear(), pack=False)
