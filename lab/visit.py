# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns how the lab looks at a guest: its status page says who it is and since when."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from cxm.errors import CommandError, CxmError
from lab.lab import Lab

_ANSWER_S = 120.0  # measured 10 to 25 s from start to first answer
_POLL_S = 0.3
# Each look makes an emulated guest, and the node under it, work: it is not to be what slows a move.
_FOLLOW_S = 1.0
# How long a guest that moves may stand still; measured: 8 to 11 s, nested and emulated.
LONGEST_PAUSE_S = 45.0


@dataclass(frozen=True, slots=True)
class Status:
    """What a guest says about itself."""

    boot: str  # changes with every boot
    count: int  # seconds since that boot, as the guest counts them
    boots: int  # how often this disk has been booted
    kind: str  # PV or PVH, as its kernel sees it
    name: str
    note: str  # a word kept on its disk


def fetch(lab: Lab, address: str, path: str = "") -> str:
    """The text that a guest serves; raises CxmError when it does not answer."""
    url = f"http://{address}/{path}"
    argv = ["curl", "-sS", "--fail", "--noproxy", "*", "--max-time", "5", url]
    try:
        return lab.core.run(argv, timeout_s=15).stdout
    except CommandError as error:
        raise CxmError(f"the guest at {address} does not answer: {error.message}") from error


def status(lab: Lab, address: str) -> Status:
    """What the guest at ``address`` says now."""
    pairs = dict(word.partition("=")[::2] for word in fetch(lab, address).split())
    try:
        return Status(
            boot=pairs["boot"],
            count=int(pairs["count"]),
            boots=int(pairs["boots"]),
            kind=pairs["kind"],
            name=pairs["name"],
            note=pairs["note"],
        )
    except (KeyError, ValueError) as error:
        raise CxmError(f"the guest at {address} gives no status: {pairs}") from error


def await_status(
    lab: Lab,
    address: str,
    wanted: Callable[[Status], bool] = lambda _status: True,
    *,
    timeout_s: float = _ANSWER_S,
) -> Status:
    """Wait until the guest answers with a status that is ``wanted``."""
    until = time.monotonic() + timeout_s
    while True:
        try:
            seen = status(lab, address)
            if wanted(seen):
                return seen
            problem = f"the guest at {address} answers, but not as expected: {seen}"
        except CxmError as error:
            problem = error.message
        if time.monotonic() > until:
            raise CxmError(f"{problem}, after {timeout_s:g} s")
        time.sleep(_POLL_S)


@dataclass(slots=True)
class Pulse:
    """A guest's counter, as it was followed from outside."""

    first: Status
    last: Status
    longest_pause_s: float = 0.0  # for how long it did not go on, as seen over the network
    faults: list[str] = field(default_factory=list)  # what a guest that just moves never does

    def see(self, now: Status, since_s: float) -> bool:
        """Take a look into account; whether the counter has gone on ``since_s`` after it did."""
        if now.boot != self.first.boot:
            self.faults.append(f"it was booted again after count {self.last.count}")
            return False
        if now.count < self.last.count:
            self.faults.append(f"it went back from {self.last.count} to {now.count}")
        if now.count == self.last.count:
            return False
        self.longest_pause_s = max(self.longest_pause_s, since_s)
        self.last = now
        return True


@contextmanager
def followed(lab: Lab, address: str) -> Iterator[Pulse]:
    """Follow a guest's counter while the block runs; raises CxmError at its end for a fault.

    It must neither go back nor stand still for longer than :data:`LONGEST_PAUSE_S`.
    """
    begun = await_status(lab, address)
    pulse, done = Pulse(begun, begun), threading.Event()

    def follow() -> None:
        went_on = time.monotonic()
        while not done.wait(_FOLLOW_S):
            with suppress(CxmError):
                now = status(lab, address)
                moment = time.monotonic()
                if pulse.see(now, moment - went_on):
                    went_on = moment

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield pulse
        await_status(lab, address, lambda now: now.count > pulse.first.count)
    finally:
        done.set()
        thread.join()
    if pulse.longest_pause_s > LONGEST_PAUSE_S:
        pulse.faults.append(f"it stood still for {pulse.longest_pause_s:.0f} s")
    if pulse.faults:
        raise CxmError(f"the guest at {address} did not simply go on: {'; '.join(pulse.faults)}")
