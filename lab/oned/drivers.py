# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns how oned's drivers start scripts: on the frontend, by an ssh, or in a stream over ssh.

A stream is one ``ssh HOST bash -s`` for all steps of an action: each command is written to it in a
subshell, its input follows as a here-document, and two words on its output streams tell its end.
"""

import base64
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from cxm.errors import CommandError
from cxm.run import Runner
from lab.oned.place import Place
from lab.oned.profiles import Profile

# A script exits with this code, or a check in its stead, when it is missing on the host.
MISSING: Final = 42
_ANY: Final = range(256)
_BROKEN: Final = 255
_LIMIT_S: Final = 1800.0
_POLL_S: Final = 0.004
_OPEN, _CLOSE = "ERROR MESSAGE --8<------", "ERROR MESSAGE ------>8--"
_SEVERITY: Final = re.compile(r"(ERROR|INFO|WARN|DEBUG):\s+(\d+)?\s*(.*)")
_END_OUT: Final = "EOF_OUT\n"
_END_ERR: Final = re.compile(r"^ExitCode: (\d*) EOF_ERR\n", re.MULTILINE)
_SSH_END: Final = re.compile(r"^ExitSSHCode: *(\d+)$", re.MULTILINE)

Log = Callable[[str, str], None]  # text, severity


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a script ended."""

    code: int
    stdout: str
    stderr: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What a driver tells oned of a step."""

    ok: bool
    info: str  # the result; of a failure, its reason


def answer(outcome: Outcome, profile: Profile, log: Log) -> Answer:
    """What this version makes of a script's outputs."""
    if not profile.filters_errors:
        _log_lines(outcome.stderr, log)
    if outcome.code == 0:
        info = outcome.stdout.strip()
    elif profile.error_markers:
        found = re.search(rf"^{_OPEN}\n(.*?){_CLOSE}$", outcome.stderr, re.MULTILINE | re.DOTALL)
        info = found[1].strip() if found else "-"
    elif not profile.filters_errors:
        info = outcome.stderr.replace("\n", " ").strip()
    else:
        info = ""
    if profile.filters_errors:
        rest = []
        for line in outcome.stderr.splitlines():
            match = _SEVERITY.match(line.strip())
            if match:
                log(match[3].strip(), match[1][0])
            else:
                rest.append(line.strip())
        if outcome.code != 0:
            info = "".join(rest).strip()
    return Answer(outcome.code == 0, info or "-")


def _log_lines(text: str, log: Log) -> None:
    inside = False
    for raw in text.strip().splitlines():
        line = raw.strip()
        if line in (_OPEN, _CLOSE):
            inside = line == _OPEN
            continue
        match = re.match(r"(ERROR|DEBUG|INFO):(.*)", line)
        if inside:
            log(line, "E")
        elif match:
            log(match[2].strip(), match[1][0])
        else:
            log(line, "I")


class Scripts:
    """Starts scripts as the drivers of one version do."""

    def __init__(self, runner: Runner, place: Place, profile: Profile) -> None:
        self.runner = runner
        self.place = place
        self.profile = profile

    def local(self, command: str, stdin: str = "") -> Outcome:
        """Run a command line on the frontend."""
        try:
            result = self.runner.run(
                self.place.shell(command), stdin=stdin.encode(), timeout_s=_LIMIT_S, ok=_ANY
            )
        except CommandError as error:
            return Outcome(_BROKEN, "", error.stderr or error.message)
        return Outcome(result.code, result.stdout, result.stderr)

    def local_data(self, text: str) -> str:
        """``text`` as a script on the frontend gets it on its standard input."""
        if self.profile.version >= (5, 12):
            return base64.b64encode(text.encode()).decode()
        if self.profile.version >= (5, 0):
            return base64.encodebytes(text.replace("\n", "").encode()).decode()
        return ""

    def remote(self, host: str, command: str, stdin: str | None = None) -> Outcome:
        """Run a script on a host by an ssh of its own; 42 tells that it is missing there."""
        script = command.split(" ", 1)[0]
        # The blanks are oned's: its source has the command on two lines.
        checked = f'if [ -x "{script}" ]; then {command}; else{" " * 30}exit {MISSING}; fi'
        quiet = "-n " if stdin is None else ""
        return self.local(f"ssh {quiet}{host} '{checked}'", stdin or "")

    def copy_remotes(self, host: str) -> Outcome:
        """Copy the frontend's remotes to a host that lacks them."""
        target = self.place.remote_dir
        self.local(f"ssh -n {host} mkdir -p {target}")
        words = self.profile.remotes_copy.format(
            remotes=self.place.remotes, host=host, target=target
        )
        return self.local(words)

    def synchronize(self, host: str) -> Outcome:
        """Make a host's remotes the same as the frontend's, as monitord does first of all."""
        target = self.place.remote_dir
        # oned means to make the directory there, but its shell here takes all words after exec.
        made = self.local(f"ssh -n {host} exec 2>/dev/null")
        if made.code != 0:
            return made
        return self.local(
            f"cd '{self.place.remotes}'/ && rsync -LRaz --delete . '{host}':'{target}'/"
        )

    def stream(self, host: str) -> "Stream":
        """A stream to a host; it connects with its first command."""
        return Stream(self, host)


class Stream:
    """One ``ssh HOST bash -s``, for the steps of one action."""

    def __init__(self, scripts: Scripts, host: str) -> None:
        self._scripts = scripts
        self.host = host
        self._thread: threading.Thread | None = None
        self._dead: Outcome | None = None
        self._read = {"out": 0, "err": 0}

    @property
    def is_dead(self) -> bool:
        """Whether its ssh has ended: the host cannot be reached."""
        return self._dead is not None

    def run(self, command: str, stdin: str | None = None) -> Outcome:
        """Run a script on the host; copies the remotes first when it is missing there."""
        self._open()
        script = command.split(" ", 1)[0]
        # oned's check spans three lines of source; the blanks reach the host.
        gap = " " * 27
        check = f'if [ ! -x "{script}" ];{gap}then exit {MISSING} 1>&2;{gap[:-2]}fi'
        if self._execute(check).code == MISSING:
            self._scripts.copy_remotes(self.host)
        if stdin is None:
            return self._execute(command)
        mark = "'EOT'" if self._scripts.profile.quotes_here_document else "EOT"
        return self._execute(f"cat << {mark} | {command}", f"{stdin}\nEOT\n")

    def _open(self) -> None:
        if self._thread is not None:
            return
        place = self._scripts.place
        base = tempfile.mkdtemp(prefix="stream-", dir=place.here(place.scratch))
        self._base = base
        pipe = os.path.join(base, "in")
        os.mkfifo(pipe)
        for name in ("out", "err"):
            with open(os.path.join(base, name), "wb"):
                pass
        # Opened for both, so that neither end waits for the other.
        self._input = os.open(pipe, os.O_RDWR)
        seen = os.path.join(place.scratch, os.path.basename(base))
        command = (
            f"exec <{seen}/in >>{seen}/out 2>>{seen}/err; "
            f"ssh {self.host} bash -s ; echo ExitSSHCode:  $? 1>&2"
        )
        self._thread = threading.Thread(
            target=self._scripts.local, args=(command,), daemon=True, name=f"stream-{self.host}"
        )
        self._thread.start()

    def _execute(self, command: str, stdin: str = "") -> Outcome:
        if self._dead:
            return self._dead
        end = 'echo "ExitCode: $? EOF_ERR" 1>&2; echo "EOF_OUT"'
        self._write(f"({command}); {end}\n{stdin}".encode())
        out = err = ""
        until = time.monotonic() + _LIMIT_S
        while time.monotonic() < until:
            out += self._more("out")
            err += self._more("err")
            lost = _SSH_END.search(err)
            if lost:
                self._dead = Outcome(int(lost[1]), out, err + self._lost())
                return self._dead
            ended = _END_ERR.search(err)
            if ended and _END_OUT in out:
                code = int(ended[1] or _BROKEN)
                return Outcome(code, out.replace(_END_OUT, "", 1), err.replace(" EOF_ERR\n", "", 1))
            time.sleep(_POLL_S)
        return Outcome(_BROKEN, out, err + "\nTimeout Error")

    def _lost(self) -> str:
        text = f"Error connecting to {self.host}"
        marked = self._scripts.profile.error_markers
        return f"{_OPEN}\n{text}\n{_CLOSE}" if marked else text

    def _write(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._input, data[:4096]) :]

    def _more(self, name: str) -> str:
        with open(os.path.join(self._base, name), "rb") as file:
            file.seek(self._read[name])
            data = file.read()
        self._read[name] += len(data)
        return data.decode(errors="replace")

    def close(self) -> None:
        """End the stream as oned's driver does."""
        if self._thread is None:
            return
        if not self._dead:
            self._write(b"\nexit\n")
        os.close(self._input)
        self._thread.join(timeout=10)
        for name in os.listdir(self._base):
            os.unlink(os.path.join(self._base, name))
        os.rmdir(self._base)
