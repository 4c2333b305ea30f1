#!/usr/bin/python3 -ISB
# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Stands before xl on a node of the lab: it stops a guest that is being received in one phase.

The real xl does everything. What goes over the connection is passed on, until the words that begin
the planned phase have come: then ``/run/stalling/<phase>`` is made, and nothing goes on while it is
there. So a test can break something in exactly that phase. ``PLAN`` names the phase.
"""

import os
import sys
import threading
import time
from subprocess import PIPE, Popen
from typing import IO, Final

XL: Final = "/usr/sbin/xl"
ROOT: Final = "/run/stalling"
_PATIENCE_S: Final = 900.0
_POLL_S: Final = 0.05
_MANY: Final = 8 << 20  # bytes: well in the middle of the guest's memory
_CHUNK: Final = 1 << 16
# What each side says when a phase has begun (tools/xl/xl_migrate.c).
_RECEIVED: Final = b"domain received, ready to unpause"
_GO: Final = b"domain is yours, you are cleared to unpause"
_REPORT: Final = b"my copy unpause results are as follows"


def stall(phase: str) -> None:
    """Wait here if this phase is planned, until the test has done what it wants."""
    try:
        with open(f"{ROOT}/PLAN", encoding="ascii") as file:
            if file.read().strip() != phase:
                return
        os.unlink(f"{ROOT}/PLAN")
    except FileNotFoundError:
        return
    path = f"{ROOT}/{phase}"
    with open(path, "w", encoding="ascii"):
        pass
    until = time.monotonic() + _PATIENCE_S
    while os.path.exists(path) and time.monotonic() < until:
        time.sleep(_POLL_S)


def pump(source: int, target: IO[bytes], phases: dict[bytes, str], many: str = "") -> None:
    """Pass on what comes, but stall before what begins a phase is passed on."""
    last, passed = b"", 0
    while chunk := os.read(source, _CHUNK):
        seen = last + chunk
        for words, phase in phases.items():
            if words in seen:
                stall(phase)
                last = seen = b""
        last = seen[-64:]
        passed += len(chunk)
        if many and passed > _MANY:
            stall(many)
            many = ""
        try:
            target.write(chunk)
            target.flush()
        except OSError:
            return


def receive() -> int:
    """Receive a guest, as xl does."""
    with Popen([XL, *sys.argv[1:]], stdin=PIPE, stdout=PIPE) as child:
        if child.stdin is None or child.stdout is None:
            raise RuntimeError("pipes")
        stdin = child.stdin

        def feed() -> None:
            pump(0, stdin, {_GO: "go"}, many="sending")
            stdin.close()

        threading.Thread(target=feed, daemon=True).start()
        answers = {_RECEIVED: "received", _REPORT: "unpaused"}
        pump(child.stdout.fileno(), sys.stdout.buffer, answers)
        return child.wait()


if sys.argv[1:2] == ["migrate-receive"]:
    sys.exit(receive())
os.execv(XL, [XL, *sys.argv[1:]])
