# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Commands get what they were given, end in time, and fail in one sentence."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cxm import run
from cxm.errors import CommandError, DataError

SYSTEM = run.System()


def alive(pid: int) -> bool:
    """Whether a process exists and is more than a dead entry that nobody has collected yet."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_output_and_code_come_back() -> None:
    """A command's output is returned, an accepted exit code is no failure."""
    result = SYSTEM.run(["sh", "-c", "echo out; echo err >&2; exit 3"], ok=(0, 3))
    assert (result.stdout, result.stderr, result.code) == ("out\n", "err\n", 3)


def test_failure_names_command_code_and_reason() -> None:
    """One sentence says what failed and why."""
    with pytest.raises(CommandError, match=r"'ls /nowhere' failed with exit code 2: .*nowhere"):
        SYSTEM.run(["ls", "/nowhere"])


def test_missing_command_is_said_plainly() -> None:
    """A tool that is not installed is not a traceback."""
    with pytest.raises(CommandError, match="'cxm-no-such-tool' is not installed"):
        SYSTEM.run(["cxm-no-such-tool"])


def test_time_limit_ends_the_whole_group() -> None:
    """Children of a command that is too slow do not outlive it."""
    with pytest.raises(CommandError, match=r"did not finish within 0.2 s") as caught:
        SYSTEM.run(["sh", "-c", "sleep 60 & echo $! >&2; wait"], timeout_s=0.2)
    child = int(caught.value.stderr.split()[0])
    deadline = time.monotonic() + 5
    while alive(child) and time.monotonic() < deadline:  # a killed process takes a moment to go
        time.sleep(0.01)
    assert not alive(child)


def test_environment_is_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command sees the C locale and nothing of the caller's private settings."""
    monkeypatch.setenv("LVM_SYSTEM_DIR", "/tmp/evil")
    monkeypatch.setenv("LANG", "de_DE.UTF-8")
    lines = SYSTEM.run(["env"]).stdout.splitlines()
    assert "LC_ALL=C" in lines
    assert not [line for line in lines if line.startswith(("LVM_SYSTEM_DIR", "LANG="))]


def test_standard_input_is_empty_unless_given() -> None:
    """A command that asks gets no answer instead of hanging."""
    assert SYSTEM.run(["cat"]).stdout == ""
    assert SYSTEM.run(["cat"], stdin=b"given").stdout == "given"


def test_more_data_than_a_pipe_holds_passes_both_ways() -> None:
    """Feeding and reading at once does not block."""
    data = [os.urandom(100_000) for _ in range(30)]
    with SYSTEM.produce(["cat"], chunks=data) as output:
        assert b"".join(output) == b"".join(data)


def test_failing_source_is_reported_and_ends_the_command() -> None:
    """A source that breaks is the error; the command never sees a complete input."""

    def source() -> Iterator[bytes]:
        yield b"half"
        message = "source broke"
        raise DataError(message)

    with pytest.raises(DataError, match="source broke"):
        SYSTEM.feed(["cat"], source())


def test_command_that_dies_early_is_the_cause() -> None:
    """Not the broken pipe but the command's own words are reported."""
    chunks = [b"x" * 1_000_000] * 20
    with pytest.raises(CommandError, match="exit code 9: full"):
        SYSTEM.feed(["sh", "-c", "echo full >&2; exit 9"], chunks)


def test_exit_code_of_a_producer_counts() -> None:
    """Output that looks complete is worth nothing when its command failed."""
    with (
        pytest.raises(CommandError, match="exit code 4"),
        SYSTEM.produce(["sh", "-c", "echo data; exit 4"]) as output,
    ):
        assert b"".join(output) == b"data\n"


def test_abandoned_producer_is_ended() -> None:
    """A reader that fails does not leave the command running."""
    pids: list[int] = []

    def read_a_line_and_fail() -> None:
        with SYSTEM.produce(["sh", "-c", "echo $$; exec sleep 60"]) as output:
            pids.append(int(next(output)))
            message = "enough"
            raise DataError(message)

    with pytest.raises(DataError, match="enough"):
        read_a_line_and_fail()
    assert not alive(pids[0])


def test_interrupted_pipeline_ends_though_all_its_pipes_are_full() -> None:
    """Whoever is interrupted while nobody reads gets away: no thread holds what it waits for."""

    def endless() -> Iterator[bytes]:
        while True:
            yield bytes(run.CHUNK)

    def interrupted() -> None:
        with SYSTEM.produce(["cat"], chunks=endless()) as first:
            next(first)
            time.sleep(0.2)
            raise KeyboardInterrupt

    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert time.monotonic() - begin < 5


def test_source_that_fails_is_the_cause_for_the_reader_too() -> None:
    """Of a broken source, the program it feeds, and the reader of that, the source is named."""

    def broken() -> Iterator[bytes]:
        yield b"abc"
        raise DataError("the source is broken")

    def whole(chunks: Iterator[bytes]) -> None:
        if b"".join(chunks) != b"abcdef":
            raise DataError("the reader has too little")

    for take in (whole, list):
        with (
            pytest.raises(DataError, match="the source is broken"),
            SYSTEM.produce(["cat"], chunks=broken()) as output,
        ):
            take(output)


def test_ssh_quotes_what_the_remote_shell_would_split() -> None:
    """Arguments reach the remote command as they are."""
    argv = run.ssh("node1", ["printf", "%s", "a b;c"])
    assert argv[-1] == "printf %s 'a b;c'"
    assert argv[argv.index("node1") + 1] == "--"
    assert "BatchMode=yes" in argv
