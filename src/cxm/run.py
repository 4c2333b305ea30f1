# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns every process that cxm starts: the only module that imports ``subprocess``.

A command is an argument list, never a shell string. It gets a clean environment, its own process
group, ``/dev/null`` as standard input unless it is given something, and a time limit after which
the whole group is ended. Its failure is one :class:`~cxm.errors.CommandError`.
"""

import logging
import os
import select
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import IO, Protocol

from cxm.errors import CommandError

_log = logging.getLogger(__name__)

CHUNK = 1 << 20
_NOT_FOUND = 127
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_KEPT = ("HOME", "USER", "LOGNAME", "SSH_AUTH_SOCK", "TMPDIR")


@dataclass(frozen=True, slots=True)
class Result:
    """What a finished command left behind."""

    argv: tuple[str, ...]
    code: int
    stdout: str
    stderr: str
    seconds: float


# A running command: iterate its output; leaving the context checks how it ended.
Producer = AbstractContextManager[Iterator[bytes]]


class Runner(Protocol):
    """The door to other programs; tests pass a model of a machine in its place."""

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes | None = None,
        timeout_s: float = 60.0,
        ok: Sequence[int] = (0,),
    ) -> Result:
        """Run a command to its end and return what it printed."""

    def feed(
        self,
        argv: Sequence[str],
        chunks: Iterable[bytes],
        *,
        timeout_s: float | None = None,
        ok: Sequence[int] = (0,),
    ) -> Result:
        """Run a command with ``chunks`` as its standard input and return what it printed."""

    def produce(
        self,
        argv: Sequence[str],
        *,
        chunks: Iterable[bytes] | None = None,
        timeout_s: float | None = None,
        ok: Sequence[int] = (0,),
    ) -> Producer:
        """Run a command, fed with ``chunks`` if given, and hand out its output as it comes."""


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of every command: C locale, a fixed PATH and little else."""
    env = {name: os.environ[name] for name in _KEPT if name in os.environ}
    env |= {"PATH": _PATH, "LC_ALL": "C", "LVM_SUPPRESS_FD_WARNINGS": "1"}
    return env | dict(extra or {})


def become(argv: Sequence[str]) -> None:
    """Let this process be another program, with its input and output; it does not come back."""
    _log.debug("become: %s", shlex.join(argv))
    os.execvpe(argv[0], list(argv), environment())  # noqa: S606 - an argument list, no shell


def tail(text: str, *, limit: int = 300) -> str:
    """The last words of an error output, on one line."""
    line = " ".join(text.split())
    return line if len(line) <= limit else "..." + line[-limit:]


def _failure(
    argv: Sequence[str], code: int, stderr: str, *, timed_out: float | None
) -> CommandError:
    name = os.path.basename(argv[0])
    shown = " ".join(argv[:3]) if name not in ("ssh", "sudo") else name
    if timed_out is not None:
        message = f"'{shown}' did not finish within {timed_out:g} s and was ended"
    elif code < 0:
        message = f"'{shown}' was ended by signal {signal.Signals(-code).name}"
    elif code == _NOT_FOUND:
        message = f"'{name}' is not installed"
    else:
        message = f"'{shown}' failed with exit code {code}"
    if stderr.strip():
        message += f": {tail(stderr)}"
    _log.debug("failed: %s -> %s", shlex.join(argv), message)
    return CommandError(message, argv=tuple(argv), exit_code=code, stderr=stderr)


class _Child:
    """One process in its own group, its error output kept in memory."""

    def __init__(
        self, argv: Sequence[str], *, stdin: int, stdout: int, timeout_s: float | None
    ) -> None:
        self.argv = tuple(argv)
        # In memory and without a name; the module tempfile costs more than the commands we run.
        self._stderr = open(os.memfd_create("cxm-stderr"), "r+b")
        self._started = time.monotonic()
        self._timeout_s = timeout_s
        self.timed_out = False
        _log.debug("run: %s", shlex.join(argv))
        try:
            self.process: subprocess.Popen[bytes] | None = subprocess.Popen(
                self.argv,
                stdin=stdin,
                stdout=stdout,
                stderr=self._stderr,
                env=environment(),
                process_group=0,
            )
        except (FileNotFoundError, PermissionError, NotADirectoryError):
            self.process = None
        self._alarm: threading.Timer | None = None
        if timeout_s is not None and self.process is not None:
            self._alarm = threading.Timer(timeout_s, self._expire)
            self._alarm.daemon = True
            self._alarm.start()

    def _expire(self) -> None:
        self.timed_out = True
        self.kill()

    def kill(self) -> None:
        """End the whole group: TERM first, KILL if that is not enough."""
        process = self.process
        if process is None or process.poll() is not None:
            return
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(2.0)
        # The leader may have gone while one of its children ignores TERM.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def has_ended(self, *, patience_s: float) -> bool:
        """Whether the process is gone, or goes within ``patience_s``."""
        if self.process is None:
            return True
        try:
            self.process.wait(patience_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    @property
    def stdin(self) -> IO[bytes] | None:
        return None if self.process is None else self.process.stdin

    @property
    def stdout(self) -> IO[bytes] | None:
        return None if self.process is None else self.process.stdout

    def finish(self, stdout: bytes, ok: Sequence[int]) -> Result:
        """Wait for the end and return the result, or raise how it failed."""
        code = _NOT_FOUND if self.process is None else self.process.wait()
        if self._alarm is not None:
            self._alarm.cancel()
        self._stderr.seek(0)
        stderr = self._stderr.read().decode(errors="replace")
        self._stderr.close()
        if self.timed_out or code not in ok:
            raise _failure(
                self.argv, code, stderr, timed_out=self._timeout_s if self.timed_out else None
            )
        seconds = time.monotonic() - self._started
        _log.debug("done in %.2f s: %s", seconds, self.argv[0])
        return Result(self.argv, code, stdout.decode(errors="replace"), stderr, seconds)

    def abandon(self) -> None:
        """End the process and forget it: its reader has failed already."""
        if self._alarm is not None:
            self._alarm.cancel()
        # First of all: a thread that writes to a process which reads no more holds the pipe's lock.
        self.kill()
        for pipe in (self.stdin, self.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        self._stderr.close()


class _Feeder:
    """Writes chunks into a child from a thread and remembers what went wrong at their source."""

    def __init__(self, child: _Child, chunks: Iterable[bytes]) -> None:
        self._child = child
        self._chunks = chunks
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._write, daemon=True)
        self._thread.start()

    def _write(self) -> None:
        pipe = self._child.stdin
        if pipe is None:
            return
        try:
            for chunk in self._chunks:
                pipe.write(chunk)
            pipe.close()
        except BrokenPipeError:
            # The child has gone; its exit code tells why, better than a broken pipe does.
            with suppress(OSError):
                pipe.close()
        except BaseException as error:  # noqa: BLE001 - carried to the caller's thread, not swallowed
            self.error = error
            # A source that failed must not look like a complete stream to the child.
            self._child.kill()
            with suppress(OSError):
                pipe.close()

    def join(self) -> BaseException | None:
        """Wait for the last chunk; returns what the source of the chunks raised."""
        self._thread.join()
        return self.error


@contextmanager
def _produced(
    argv: Sequence[str],
    chunks: Iterable[bytes] | None,
    timeout_s: float | None,
    ok: Sequence[int],
) -> Iterator[Iterator[bytes]]:
    child = _Child(
        argv,
        stdin=subprocess.DEVNULL if chunks is None else subprocess.PIPE,
        stdout=subprocess.PIPE,
        timeout_s=timeout_s,
    )
    feeder = None if chunks is None else _Feeder(child, chunks)

    def output() -> Iterator[bytes]:
        pipe = child.stdout
        if pipe is None:
            return
        while chunk := os.read(pipe.fileno(), CHUNK):
            yield chunk
        ended.set()

    ended = threading.Event()
    try:
        yield output()
    except BaseException as error:
        if isinstance(error, Exception) and child.has_ended(patience_s=5.0 * ended.is_set()):
            # What failed first is the cause; the reader's complaint is only its echo.
            _settle(child, None if feeder is None else feeder.error, ok)
        child.abandon()
        raise
    if child.stdout is not None:
        while os.read(child.stdout.fileno(), CHUNK):
            pass
        child.stdout.close()
    _settle(child, None if feeder is None else feeder.join(), ok)


def _settle(child: _Child, source: BaseException | None, ok: Sequence[int]) -> None:
    """Raise what a child died of: the source of its input, or itself."""
    if source is not None:
        child.abandon()
        raise source
    child.finish(b"", ok)


class Dialogue:
    """A running command that answers each line of its input with one line.

    A question must be short enough for a pipe's buffer (64 KiB); an answer may have any length.
    """

    def __init__(self, argv: Sequence[str]) -> None:
        self._child = _Child(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, timeout_s=None)
        self._rest = b""

    def ask(self, line: bytes, *, timeout_s: float) -> bytes:
        """Send a line and return the answer; raises CommandError, and the dialogue is over then."""
        deadline = time.monotonic() + timeout_s
        pipe, output = self._child.stdin, self._child.stdout
        if pipe is None or output is None:
            raise _failure(self._child.argv, _NOT_FOUND, "", timed_out=None)
        with suppress(BrokenPipeError):  # its output ends as well, and its exit code tells why
            pipe.write(line)
            pipe.flush()
        while b"\n" not in self._rest:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([output], [], [], left)[0]:
                self._child.abandon()
                raise _failure(self._child.argv, 0, "", timed_out=timeout_s)
            part = os.read(output.fileno(), CHUNK)
            if not part:
                self._child.finish(b"", ())
            self._rest += part
        answer, _newline, self._rest = self._rest.partition(b"\n")
        return answer

    def close(self) -> None:
        """End the input; a command that does not end by itself then is ended."""
        if self._child.stdin is not None:
            with suppress(OSError):
                self._child.stdin.close()
        self._child.has_ended(patience_s=5.0)
        self._child.abandon()


class Within:
    """A :class:`Runner` whose commands end within ``seconds``, all of them together.

    Each gets one second at least. ``clock`` tells seconds that only go forward.
    """

    def __init__(self, runner: Runner, seconds: float, clock: Callable[[], float]) -> None:
        self._runner = runner
        self._clock = clock
        self._end = clock() + seconds

    def _limit(self, timeout_s: float | None) -> float:
        left = max(1.0, self._end - self._clock())
        return left if timeout_s is None else min(timeout_s, left)

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes | None = None,
        timeout_s: float = 60.0,
        ok: Sequence[int] = (0,),
    ) -> Result:
        """See :class:`Runner`."""
        return self._runner.run(argv, stdin=stdin, timeout_s=self._limit(timeout_s), ok=ok)

    def feed(
        self,
        argv: Sequence[str],
        chunks: Iterable[bytes],
        *,
        timeout_s: float | None = None,
        ok: Sequence[int] = (0,),
    ) -> Result:
        """See :class:`Runner`."""
        return self._runner.feed(argv, chunks, timeout_s=self._limit(timeout_s), ok=ok)

    def produce(
        self,
        argv: Sequence[str],
        *,
        chunks: Iterable[bytes] | None = None,
        timeout_s: float | None = None,
        ok: Sequence[int] = (0,),
    ) -> Producer:
        """See :class:`Runner`."""
        return self._runner.produce(argv, chunks=chunks, timeout_s=self._limit(timeout_s), ok=ok)


class System:
    """The real :class:`Runner`: commands of this machine."""

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes | None = None,
        timeout_s: float = 60.0,
        ok: Sequence[int] = (0,),
    ) -> Result:
        """Run a command to its end and return what it printed."""
        return self.feed(argv, () if stdin is None else (stdin,), timeout_s=timeout_s, ok=ok)

    def feed(
        self,
        argv: Sequence[str],
        chunks: Iterable[bytes],
        *,
        timeout_s: float | None = None,
        ok: Sequence[int] = (0,),
    ) -> Result:
        """Run a command with ``chunks`` as its standard input and return what it printed."""
        child = _Child(
            argv,
            stdin=subprocess.DEVNULL if chunks == () else subprocess.PIPE,
            stdout=subprocess.PIPE,
            timeout_s=timeout_s,
        )
        feeder = None if chunks == () else _Feeder(child, chunks)
        try:
            pipe = child.stdout
            output = b"" if pipe is None else pipe.read()
            if pipe is not None:
                pipe.close()
            source = None if feeder is None else feeder.join()
        except BaseException:
            child.abandon()
            raise
        if source is not None:
            child.abandon()
            raise source
        return child.finish(output, ok)

    def produce(
        self,
        argv: Sequence[str],
        *,
        chunks: Iterable[bytes] | None = None,
        timeout_s: float | None = None,
        ok: Sequence[int] = (0,),
    ) -> Producer:
        """Run a command, fed with ``chunks`` if given, and hand out its output as it comes."""
        return _produced(argv, chunks, timeout_s, ok)


def ssh(host: str, argv: Sequence[str], *, options: Sequence[str] = ()) -> list[str]:
    """The command that runs ``argv`` on ``host``: it never asks and soon gives up on a dead one."""
    return [
        "ssh",
        "-o", "BatchMode=yes",
        "-o", "ConnectTimeout=10",
        "-o", "ServerAliveInterval=5",
        "-o", "ServerAliveCountMax=6",
        *options,
        host,
        "--",
        shlex.join(argv),
    ]  # fmt: skip


def foreground(argv: Sequence[str]) -> int:
    """Give the terminal to a command until it ends, as a shell would; returns its exit code."""
    _log.debug("run in the foreground: %s", shlex.join(argv))
    terminal = {"TERM": os.environ.get("TERM", "dumb")}
    # Ctrl-C is for the command; a handler, unlike SIG_IGN, is not handed down to it.
    before = signal.signal(signal.SIGINT, lambda _number, _frame: None)
    try:
        return subprocess.Popen(argv, env=environment(terminal)).wait()
    except FileNotFoundError as error:
        raise _failure(argv, _NOT_FOUND, "", timed_out=None) from error
    finally:
        signal.signal(signal.SIGINT, before)
