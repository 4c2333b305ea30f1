# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""A command that answers line by line: what it says is heard, and how it ends is told."""

import time

import pytest

from cxm import run
from cxm.errors import CommandError, RefusedError
from cxm.names import CloudId
from cxm.node.client import Dialogue, RemoteNode
from cxm.one.im.observation import Watcher


def test_each_line_has_its_answer() -> None:
    """Long answers are heard to their end; the next question gets the next answer."""
    script = "while read n; do head -c $n /dev/zero | tr '\\0' x; echo; done"
    dialogue = run.Dialogue(["sh", "-c", script])
    for length in (3, 200_000, 5):
        assert dialogue.ask(f"{length}\n".encode(), timeout_s=10) == b"x" * length
    dialogue.close()


def test_death_is_told_with_its_reason() -> None:
    """The exit code and the last words of a command that ends instead of answering."""
    dialogue = run.Dialogue(["sh", "-c", "read line; echo no good >&2; exit 3"])
    with pytest.raises(CommandError, match="exit code 3: no good"):
        dialogue.ask(b"one\n", timeout_s=10)


def test_silence_ends_the_command() -> None:
    """Who does not answer in time is not waited for any longer."""
    dialogue = run.Dialogue(["sleep", "60"])
    started = time.monotonic()
    with pytest.raises(CommandError, match=r"did not finish within 0\.2 s"):
        dialogue.ask(b"one\n", timeout_s=0.2)
    assert time.monotonic() - started < 10


def test_a_missing_command_is_told() -> None:
    """As for any other command."""
    with pytest.raises(CommandError, match="not installed"):
        run.Dialogue(["/nowhere/cxm-helper"]).ask(b"one\n", timeout_s=1)


class Scripted:
    """A helper that says what it was told to say."""

    def __init__(self, *answers: bytes) -> None:
        self.answers = list(answers)
        self.asked: list[bytes] = []
        self.closed = False

    def ask(self, line: bytes, *, timeout_s: float) -> bytes:
        self.asked.append(line)
        return self.answers.pop(0)

    def close(self) -> None:
        self.closed = True


def test_a_conversation_begins_anew_after_a_failure() -> None:
    """The helper that failed goes; the next question starts another."""
    failure = b'{"ok":false,"error":{"type":"RefusedError","message":"no","hint":null}}'
    good = b'{"ok":true,"result":{"a":1},"log":[]}'
    helpers = [Scripted(good, failure), Scripted(good)]
    left = list(helpers)

    def start(argv: object) -> Dialogue:
        assert argv == ["sudo", "-n", "/usr/lib/cxm/cxm-helper", "observe"]
        return left.pop(0)

    talk = RemoteNode(run.System(), None, CloudId("cloudone1")).converse("observe", start)
    assert talk.ask({}, timeout_s=1) == {"a": 1}
    with pytest.raises(RefusedError, match="no"):
        talk.ask({}, timeout_s=1)
    assert helpers[0].closed
    assert talk.ask({}, timeout_s=1) == {"a": 1}
    assert b'"stay":true' in helpers[1].asked[0]
    talk.close()
    assert helpers[1].closed


def test_a_helper_is_replaced_now_and_then() -> None:
    """Ten minutes after its start, so that new settings of the node count."""
    answer = b'{"ok":true,"result":{"guests":[],"foreign":[]},"log":[]}'
    helpers = [Scripted(*[answer] * 9) for _each in range(2)]
    left, times = list(helpers), iter([0.0, 5.0, 599.0, 600.0, 600.0, 605.0])
    talk = RemoteNode(run.System(), None, CloudId("cloudone1")).converse(
        "observe", lambda _argv: left.pop(0)
    )
    watcher = Watcher(talk, lambda: next(times))
    for _look in range(4):
        watcher.look("state")
    assert [len(helper.asked) for helper in helpers] == [2, 2]
    assert helpers[0].closed
