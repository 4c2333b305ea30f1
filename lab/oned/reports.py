# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what oned makes of monitoring: values of VMs and hosts, and the states that follow."""

import base64
import shlex
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final
from xml.etree import ElementTree as ET

from cxm.errors import DataError
from lab.oned import templates
from lab.oned.model import Datastore, Host, Vm
from lab.oned.profiles import Profile
from lab.oned.templates import Template, single, vectors

# STATE of a VM that is polled -> what it means.
_LETTERS: Final = {"a": "RUNNING", "p": "SUSPENDED", "e": "FAILURE", "d": "POWEROFF"}
_STATES: Final = ("RUNNING", "SUSPENDED", "POWEROFF", "FAILURE")
# Messages of monitord's clients in the order in which oned takes them from a first answer.
_KINDS: Final = ("MONITOR_VM", "BEACON_HOST", "MONITOR_HOST", "SYSTEM_HOST", "STATE_VM", "EXEC_VM")

Report = Callable[[Vm, str], None]


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a host's monitoring client."""

    kind: str
    ok: bool
    host: int
    stamp: int
    text: str


def decode(line: bytes) -> Message:
    """A message as it comes over the network; raises DataError for anything else."""
    words = line.decode("ascii", "replace").split()
    if len(words) != 5 or words[0] not in _KINDS or words[1] not in ("SUCCESS", "FAILURE"):  # noqa: PLR2004
        raise DataError(f"not a monitoring message: {line[:80]!r}")
    try:
        text = zlib.decompress(base64.b64decode(words[4], validate=True)).decode()
        return Message(words[0], words[1] == "SUCCESS", int(words[2]), int(words[3]), text)
    except (ValueError, zlib.error) as error:
        raise DataError(f"a damaged monitoring message: {error}") from error


def first_messages(host: int, text: str) -> list[Message]:
    """The messages in a client's first answer, ``<MONITOR_MESSAGES>``."""
    try:
        root = ET.fromstring(text.strip())  # noqa: S314 - from the lab's own host
    except ET.ParseError as error:
        raise DataError(f"the client's first answer is no XML: {text[:120]!r}") from error
    stamp = int(root.findtext("TIMESTAMP") or 0)
    found = []
    for kind in _KINDS:
        for element in root.findall(kind):
            payload = base64.b64decode(element.text or "").decode()
            found.append(Message(kind, ok=True, host=host, stamp=stamp, text=payload))
    return found


def _oldest_facts(text: str) -> Template:
    """What the probes of 3.x printed: ``NAME=value`` after each other, some values in quotes."""
    facts: Template = []
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise DataError(f"Error parsing host information: {error}: {text[:120]!r}") from error
    for word in words:
        name, equal, value = word.partition("=")
        if not equal:
            raise DataError(f"Error parsing host information: {word!r}")
        facts.append((name, value))
    return facts


class Reports:
    """Takes reports of hosts into the model, as one version of oned does."""

    def __init__(
        self,
        profile: Profile,
        vms: Mapping[int, Vm],
        stores: Mapping[int, Datastore],
        report: Report,
        *,
        quiet_s: float,
    ) -> None:
        self._profile = profile
        self._vms = vms
        self._stores = stores
        self._report = report
        # 7.x ignores states that are reported this soon after a change of its own.
        self._quiet_s = quiet_s if profile.version >= (7, 0) else 0.0
        self._stamps: dict[tuple[int, str], int] = {}

    def of_host(self, host: Host) -> list[Vm]:
        """The VMs that oned believes on a host."""
        return [
            vm
            for vm in self._vms.values()
            if vm.histories
            and vm.history.host is host
            and vm.state not in ("DONE", "STOPPED", "UNDEPLOYED", "PENDING")
        ]

    # Up to 5.10: the answer of the probes, and of poll.

    def probed(self, host: Host, text: str) -> None:
        """Take what a host's probes printed."""
        read = _oldest_facts if self._profile.polls_vms else templates.parse
        facts = read(text)
        self._alive(host, facts)
        if self._profile.polls_vms or single(facts, "VM_POLL").upper() != "YES":
            return
        found = {int(row.get("ID", "-1")): row.get("POLL", "") for row in vectors(facts, "VM")}
        missing = set()
        for vm in self.of_host(host):
            values = found.get(vm.id, "")
            if "STATE=" in values:
                self.polled(vm, values)
            else:
                missing.add(vm.id)
        for number in missing & host.lost:  # missing for the second time
            self._tell(
                self._vms[number], "POWEROFF" if self._profile.lost_is_poweroff else "UNKNOWN"
            )
        host.lost = missing

    def polled(self, vm: Vm, text: str) -> None:
        """Take ``STATE=a NAME=VALUE ...`` of one VM."""
        values = dict(word.split("=", 1) for word in text.split() if "=" in word)
        letter = values.pop("STATE", "-")
        values.pop("DISK_SIZE", None)
        if self._profile.version < (4, 14):
            renamed = {"USEDCPU": "CPU", "USEDMEMORY": "MEMORY"}
            values = {renamed.get(name, name): value for name, value in values.items()}
        self._values(vm, values)
        state = _LETTERS.get(letter)
        if state == "POWEROFF" and not self._profile.lost_is_poweroff:
            state = "UNKNOWN"
        if state:
            self._tell(vm, state)

    # From 5.12 on: messages of the host's client.

    def message(self, host: Host, message: Message) -> None:
        """Take one message."""
        host.last_seen = time.time()
        if not message.ok:
            if message.kind.endswith("_HOST"):
                host.state, host.reason = "ERROR", message.text
            return
        key = (host.id, message.kind)
        if message.kind != "BEACON_HOST":
            if self._profile.version >= (7, 0) and message.stamp <= self._stamps.get(key, 0):
                return
            self._stamps[key] = message.stamp
        if message.kind == "SYSTEM_HOST":
            self._alive(host, templates.parse(message.text))
        elif message.kind == "MONITOR_HOST":
            self._merge(host, templates.parse(message.text))
        elif message.kind == "MONITOR_VM":
            self._monitored(templates.parse(message.text))
        elif message.kind == "STATE_VM":
            self._states(host, templates.parse(message.text))

    def _monitored(self, rows: Template) -> None:
        for row in vectors(rows, "VM"):
            vm = self._vms.get(int(row.get("ID", "-1")))
            if vm is not None:
                inner = templates.parse(base64.b64decode(row.get("MONITOR", "")).decode())
                self._values(vm, {k: v for k, v in inner if isinstance(v, str)})

    def _states(self, host: Host, rows: Template) -> None:
        seen = set()
        for row in vectors(rows, "VM"):
            vm = self._vms.get(int(row.get("ID", "-1")))
            if vm is None:
                continue
            seen.add(vm.id)
            if not vm.histories or vm.history.host is not host:
                continue
            state = row.get("STATE", "")
            if state == "RUNNING" and row.get("DEPLOY_ID"):
                vm.deploy_id = row["DEPLOY_ID"]
            if state in _STATES:
                self._tell(vm, state)
        missing_state = single(rows, "MISSING_STATE")
        if single(rows, "SYNC_STATE").upper() != "YES" or not missing_state:
            return
        for vm in self.of_host(host):
            if vm.id not in seen:
                self._tell(vm, "UNKNOWN" if missing_state == "UNKNOWN" else "POWEROFF")

    def lost(self, host: Host, reason: str) -> None:
        """The host cannot be monitored."""
        host.state, host.reason = "ERROR", reason
        if self._profile.version >= (4, 0):
            for vm in self.of_host(host):
                self._tell(vm, "UNKNOWN")

    # Parts.

    def _tell(self, vm: Vm, state: str) -> None:
        if self._quiet_s and time.monotonic() - vm.state_since < self._quiet_s:
            return
        self._report(vm, state)

    def _alive(self, host: Host, facts: Template) -> None:
        self._merge(host, facts)
        host.state, host.reason = "MONITORED", ""
        host.last_seen = time.time()

    def _merge(self, host: Host, facts: Template) -> None:
        names = {name for name, _value in facts}
        kept = [row for row in host.facts if row[0] not in names]
        host.facts = kept + [row for row in facts if row[0] not in ("VM", "VM_POLL")]

    def _values(self, vm: Vm, values: Mapping[str, str]) -> None:
        vm.monitoring |= {name: value for name, value in values.items() if value}
        vm.last_poll = int(time.time())


def space_of(host: Host, store: Datastore) -> int:
    """The MiB that a host says are free for a datastore that is not shared."""
    for row in vectors(host.facts, "DS"):
        if row.get("ID") == str(store.id):
            return int(row.get("FREE_MB", "0"))
    return host.number("DS_LOCATION_FREE_MB")


def store_space(store: Datastore, text: str) -> None:
    """Take what the TM action ``monitor`` printed of a shared system datastore."""
    rows = templates.parse(text)
    store.used_mib = int(single(rows, "USED_MB", "0"))
    store.total_mib = int(single(rows, "TOTAL_MB", "0"))
    store.free_mib = int(single(rows, "FREE_MB", "0"))
