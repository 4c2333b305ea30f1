# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the instruments: scripts that are told when they were started, and the probe in place."""

import os
import re
from collections.abc import Callable
from contextlib import suppress

from bench import notes, probe
from bench.notes import Process
from lab.lab import Lab
from lab.machine import Machine
from lab.oned.drivers import Outcome, Scripts, Stream
from lab.oned.place import Place

_HELPER = "/usr/lib/cxm/cxm-helper"
_STUB = "cxm/action"
_IMPORTABLE = re.compile(r"^sys\.path\.insert\(.*\)\n", re.MULTILINE)
_PATH = re.compile(r"^PATH = .*\n", re.MULTILINE)


def instrumented(program: str, source: str, path: str) -> str:
    """A program of cxm with the probe's source behind the line that makes cxm importable."""
    telling = _PATH.sub(f"PATH = {path!r}\n", source)
    changed, count = _IMPORTABLE.subn(lambda found: f"{found[0]}{telling}\ninstall()\n", program)
    if count != 1:
        raise ValueError("the program does not say where cxm is")
    return changed


class _TimedStream(Stream):
    """A stream whose scripts know when the shell of the host started them."""

    def _execute(self, command: str, stdin: str = "") -> Outcome:
        return super()._execute(f"export {probe.BEGAN}=$EPOCHREALTIME; {command}", stdin)


class TimedScripts(Scripts):
    """Scripts that know when the shell started them."""

    def local(self, command: str, stdin: str = "") -> Outcome:
        return super().local(f"export {probe.BEGAN}=$(date +%s.%N); {command}", stdin)

    def stream(self, host: str) -> Stream:
        return _TimedStream(self, host)


class Instruments:
    """The probe in the stub of a frontend and in the helper of a node, and the notes of both."""

    def __init__(self, lab: Lab, place: Place, machine: Machine) -> None:
        self._machine = machine
        self._path = f"/var/tmp/cxm-bench-{lab.places.name}"  # noqa: S108 - ours while it runs
        self._here = f"{self._path}.{os.geteuid()}"
        with open(probe.__file__, encoding="utf-8") as file:
            source = file.read()
        stub = place.here(os.path.join(place.remotes, _STUB))
        with open(stub, encoding="utf-8") as file:
            program = file.read()
        with open(stub, "w", encoding="utf-8") as file:
            file.write(instrumented(program, source, self._path))
        helper = machine.run(["cat", _HELPER]).stdout
        machine.write(_HELPER, instrumented(helper, source, self._path))
        self.clear()

    def clear(self) -> None:
        """Forget all notes."""
        with suppress(FileNotFoundError):
            os.unlink(self._here)
        self._machine.run(["sh", "-c", f"rm -f {self._path}.*"])

    def noted(self, work: Callable[[], object]) -> tuple[list[Process], list[Process]]:
        """What the frontend's and the host's processes of cxm noted during ``work``."""
        self.clear()
        work()
        here = ""
        with suppress(FileNotFoundError), open(self._here, encoding="utf-8") as file:
            here = file.read()
        # Services of the host that run all the time have no probe: they are no helper's call.
        there = self._machine.run(["sh", "-c", f"cat {self._path}.* 2>/dev/null || true"]).stdout
        return notes.parse(here), notes.parse(there)
