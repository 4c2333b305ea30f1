# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what a host's monitoring client (5.12 to 7.4) says, and when: one observation a round.

It knows no process, socket or clock of its own; :mod:`cxm.one.im.control` gives it those.
"""

import base64
import logging
from dataclasses import replace
from typing import Final, Protocol

from cxm.errors import CxmError
from cxm.one.im import datastores, messages, status
from cxm.one.im.channel import Kind, message
from cxm.one.im.observation import Observation
from cxm.one.im.settings import Settings

_log = logging.getLogger(__name__)

# What a message needs to be seen; the first that is due decides, for each sees all of the next.
_DETAIL: Final = {
    Kind.SYSTEM_HOST: "all",
    Kind.MONITOR_HOST: "host",
    Kind.MONITOR_VM: "usage",
}
# One slow xl must not turn a host to ERROR, and its VMs to UNKNOWN with it.
_FAILURES: Final = 3


class World(Protocol):
    """What a client needs of its surroundings."""

    def observe(self, detail: str) -> Observation:
        """Let this node observe itself."""

    def deliver(self, kind: Kind, line: bytes) -> None:
        """Send a message to monitord; raises OSError."""

    def now(self) -> float:
        """Seconds that only go forward."""

    def stamp(self) -> int:
        """Seconds since 1970, as this host believes."""


class Client:
    """The client of one host."""

    def __init__(self, settings: Settings, world: World, remotes_version: str) -> None:
        self._settings = settings
        self._world = world
        self._remotes_version = remotes_version
        self._due: dict[Kind, float] = {}
        self._said = status.Said()
        self._failures = 0
        self._unreachable = False
        self._stamp = 0
        self._vms: frozenset[int] = frozenset()
        self._disks: dict[int, dict[str, int]] = {}

    # --- the first words ----------------------------------------------------------------------

    def greeting(self) -> str:
        """``<MONITOR_MESSAGES>``, everything at once; raises what the observation raises."""
        seen = self._observe({*Kind})
        now = self._world.now()
        self._due = {kind: now + period for kind, period in self._settings.periods.items()}
        report = self._report(seen, now)
        self._said = report.then
        texts = {
            Kind.SYSTEM_HOST: self._text(Kind.SYSTEM_HOST, seen),
            Kind.MONITOR_HOST: self._text(Kind.MONITOR_HOST, seen),
            Kind.STATE_VM: report.text,
            Kind.MONITOR_VM: self._text(Kind.MONITOR_VM, seen),
        }
        elements = "".join(
            f"<{kind}>{base64.b64encode(text.encode()).decode()}</{kind}>"
            for kind, text in texts.items()
            if text
        )
        stamp = self._next_stamp()
        return f"<MONITOR_MESSAGES>{elements}<TIMESTAMP>{stamp}</TIMESTAMP></MONITOR_MESSAGES>"

    # --- a round ------------------------------------------------------------------------------

    def next_at(self) -> float:
        """When the next round is due."""
        return min(self._due.values())

    def round(self) -> None:
        """Say what is due."""
        now = self._world.now()
        due = {kind for kind, at in self._due.items() if at <= now}
        for kind in due:
            self._due[kind] = _after(self._due[kind], self._settings.periods[kind], now)
        if due - {Kind.BEACON_HOST}:
            try:
                seen = self._observe(due)
            except CxmError as error:
                self._failed(error, due)
            else:
                self._recovered()
                self._tell(due, seen)
        if Kind.BEACON_HOST in due and self._failures < _FAILURES:
            self._send(Kind.BEACON_HOST, "alive")

    def _observe(self, due: set[Kind]) -> Observation:
        detail = next((detail for kind, detail in _DETAIL.items() if kind in due), "state")
        seen = self._world.observe(detail)
        if detail == "all":
            self._disks = {guest.vm: guest.disks for guest in seen.guests}
        vms = frozenset(guest.vm for guest in seen.guests)
        if vms != self._vms and detail != "all":
            # Disks have come or gone with them: the scheduler should know the room before long.
            self._due[Kind.SYSTEM_HOST] = self._world.now()
        self._vms = vms
        return seen

    def _tell(self, due: set[Kind], seen: Observation) -> None:
        for kind in (Kind.SYSTEM_HOST, Kind.MONITOR_HOST, Kind.MONITOR_VM):
            if kind in due:
                self._send(kind, self._text(kind, seen))
        if Kind.STATE_VM in due:
            report = self._report(seen, self._world.now())
            if not report.text or self._send(Kind.STATE_VM, report.text):
                self._said = report.then

    def _report(self, seen: Observation, now: float) -> status.Report:
        return status.report(
            self._said, seen.guests, now=now, sync_every_s=self._settings.sync_every_s
        )

    def _text(self, kind: Kind, seen: Observation) -> str:
        if kind is Kind.SYSTEM_HOST:
            ours = {guest.vm for guest in seen.guests} | set(seen.held)
            stores = datastores.found(self._settings.datastores, ours, seen.space())
            return messages.system_host(seen, stores, self._remotes_version)
        if kind is Kind.MONITOR_HOST:
            return messages.monitor_host(seen)
        return messages.monitor_vm(
            replace(guest, disks=guest.disks or self._disks.get(guest.vm, {}))
            for guest in seen.guests
        )

    # --- trouble ------------------------------------------------------------------------------

    def _failed(self, error: CxmError, due: set[Kind]) -> None:
        self._failures += 1
        _log.warning("the node cannot be observed: %s", error.sentence())
        # What was due is still unsaid: try it again with the next look at the VMs.
        for kind in due - {Kind.BEACON_HOST, Kind.STATE_VM}:
            self._due[kind] = self._due[Kind.STATE_VM]
        if self._failures == _FAILURES or Kind.BEACON_HOST in due:
            self._send_failure(error)

    def _send_failure(self, error: CxmError) -> None:
        if self._failures >= _FAILURES:
            # Only a failing beacon is a failure of the host in every version.
            self._send(Kind.BEACON_HOST, error.sentence(), ok=False)

    def _recovered(self) -> None:
        if self._failures >= _FAILURES:
            # The host is in ERROR and its VMs are UNKNOWN: this brings both back.
            self._due[Kind.SYSTEM_HOST] = self._world.now()
            self._said = status.Said()
            _log.warning("the node can be observed again")
        self._failures = 0

    def _next_stamp(self) -> int:
        """The time, which never goes back: monitord drops what looks older than what it has."""
        self._stamp = max(self._stamp, self._world.stamp())
        return self._stamp

    def _send(self, kind: Kind, text: str, *, ok: bool = True) -> bool:
        if not text:
            return True
        settings = self._settings
        line = message(kind, settings.host_id, self._next_stamp(), text, ok=ok, key=settings.key)
        try:
            self._world.deliver(kind, line)
        except OSError as error:
            if not self._unreachable:
                _log.warning(
                    "monitord at %s port %d cannot be reached: %s",
                    settings.address,
                    settings.port,
                    error,
                )
            self._unreachable = True
            return False
        if self._unreachable and kind is Kind.STATE_VM:
            _log.warning("monitord at %s port %d answers again", settings.address, settings.port)
            self._unreachable = False
        return True


def _after(due: float, period: float, now: float) -> float:
    """The next time on the same grid: messages that can go together stay together."""
    return due + period * (int((now - due) / period) + 1)
