# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns how lab tests break something in a phase of a live migration: stalling_xl.py on the target.

sending: in the middle of the guest's memory. received: all of it has come, the guest is suspended.
go: the source has given the guest away, the target does not know yet. unpaused: it runs on the
target, the source does not know yet.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Final

from lab import faults
from lab.lab import Lab
from lab.machine import Machine

_SCRIPT: Final = "/usr/local/sbin/xl"
_ROOT: Final = "/run/stalling"
_HERE: Final = os.path.dirname(os.path.abspath(__file__))
# Measured: 25 to 50 s until a guest's memory is under way.
_REACHED_S: Final = 400.0


class Phase(StrEnum):
    """How far a migration is, in the order of its phases."""

    SENDING = "sending"
    RECEIVED = "received"
    GO = "go"
    UNPAUSED = "unpaused"


class Deed(StrEnum):
    """What is broken."""

    SOURCE_DIES = "source dies"
    TARGET_DIES = "target dies"
    LINK = "link"
    XL_SENDING = "xl of the source"
    XL_RECEIVING = "xl of the target"
    SSH = "ssh"
    ALL_XL = "xl of both"


@contextmanager
def stalled(target: Machine, phase: Phase) -> Iterator[None]:
    """What receives a guest on ``target`` stops in a phase; the block's end takes that away."""
    with open(os.path.join(_HERE, "stalling_xl.py"), encoding="utf-8") as file:
        target.write(_SCRIPT, file.read())
    target.run(["sh", "-c", f"chmod 755 {_SCRIPT}; mkdir -p {_ROOT}; echo {phase} >{_ROOT}/PLAN"])
    yield


def await_phase(target: Machine, phase: Phase) -> None:
    """Wait until a migration is in this phase, and stands still."""
    target.wait_until(["test", "-e", f"{_ROOT}/{phase}"], timeout_s=_REACHED_S)


def go_on(target: Machine) -> None:
    """Let the migration go on, and every later one."""
    target.run(["sh", "-c", f"rm -rf {_ROOT} {_SCRIPT}"])


def do(lab: Lab, deed: Deed, source: Machine, target: Machine) -> None:
    """Break something while a migration stands still; what stands still then goes on."""
    if deed is Deed.SOURCE_DIES:
        source.power_off()
    elif deed is Deed.TARGET_DIES:
        target.power_off()
        return
    elif deed is Deed.LINK:
        faults.cut(lab, source.name, "cluster")
    if deed in (Deed.XL_SENDING, Deed.ALL_XL):
        _kill(source, "xl migrate ")
    if deed in (Deed.XL_RECEIVING, Deed.ALL_XL):
        _kill(target, "xl migrate-receive")
    if deed is Deed.SSH:
        # Not xl, whose arguments have all of that too.
        _kill(source, "^[^ ]*ssh .*receive")
    go_on(target)


def _kill(machine: Machine, pattern: str) -> None:
    machine.run(["pkill", "-KILL", "-f", pattern])
