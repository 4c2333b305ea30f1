# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what a standalone host remembers of each guest: whether it should run, and how it ended.

One JSON file a VM in ``/var/lib/cxm/guests``, replaced in one step, written only by root under the
VM's lock (docs/design/0004-guest-life.md). The node's probes read it without a lock.
"""

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any, Final

from cxm import names, wholefile
from cxm.errors import DataError, UsageError
from cxm.names import CloudId, VmId
from cxm.node.machine import Machine

_VERSION: Final = 1


class Life(StrEnum):
    """What should be of a guest, or what became of it."""

    RUNNING = "running"  # it should run
    CRASHED = "crashed"  # it should run, has crashed, and will be started again
    OFF = "off"  # it switched itself off
    STOPPED = "stopped"  # it was stopped as OpenNebula asked, or is being stopped


@dataclass(frozen=True, slots=True)
class Guest:
    """The record of one guest; times are seconds since 1970."""

    cloud: CloudId
    vm: VmId
    name: str
    life: Life
    reason: str  # one sentence
    since: float
    boot_id: str = ""  # of the host, when its domain was last started
    falls: tuple[float, ...] = ()  # when it crashed or vanished, while that still counts
    next_start: float | None = None  # when a crashed guest is started again
    released: bool = False  # it has no domain, and its disks have been deactivated

    @property
    def wanted(self) -> bool:
        """Whether a domain of it should be there."""
        return self.life in (Life.RUNNING, Life.CRASHED)

    def now(self, life: Life, reason: str, *, since: float) -> "Guest":
        """The record after a change."""
        return replace(self, life=life, reason=reason, since=since, next_start=None, released=False)


def _directory(machine: Machine) -> str:
    return os.path.join(machine.state_dir, "guests")


def _path(machine: Machine, cloud: CloudId, vm: VmId) -> str:
    return os.path.join(_directory(machine), f"{cloud}-{vm}.json")


def _unfinished(path: str) -> str:
    return f"{path}.new"


def write(machine: Machine, guest: Guest) -> None:
    """Store a record; after a power loss there is the old one or the new one."""
    path = _path(machine, guest.cloud, guest.vm)
    text = json.dumps({"version": _VERSION, **asdict(guest)}, indent=1)
    wholefile.write(path, text, directory_mode=0o755, fresh=_unfinished(path), sync=True)


def forget(machine: Machine, cloud: CloudId, vm: VmId) -> None:
    """Remove the record of a VM that is gone for good, and one whose writing was killed."""
    path = _path(machine, cloud, vm)
    for each in (_unfinished(path), path):
        with suppress(FileNotFoundError):
            os.unlink(each)


def _parse(text: str, path: str) -> Guest:
    try:
        raw: dict[str, Any] = json.loads(text)
        if raw["version"] != _VERSION:
            raise DataError(f"the record {path} is of version {raw['version']}")
        following = raw["next_start"]
        return Guest(
            cloud=names.cloud_id(str(raw["cloud"])),
            vm=VmId(int(raw["vm"])),
            name=str(raw["name"]),
            life=Life(raw["life"]),
            reason=str(raw["reason"]),
            since=float(raw["since"]),
            boot_id=str(raw["boot_id"]),
            falls=tuple(float(at) for at in raw["falls"]),
            next_start=None if following is None else float(following),
            released=raw["released"] is True,
        )
    except (ValueError, KeyError, TypeError, UsageError) as error:
        raise DataError(f"the record {path} cannot be read: {error}") from error


def read(machine: Machine, cloud: CloudId, vm: VmId) -> Guest | None:
    """The record of a VM, None where there is none; raises DataError for a damaged one."""
    path = _path(machine, cloud, vm)
    try:
        with open(path, encoding="utf-8") as file:
            return _parse(file.read(), path)
    except FileNotFoundError:
        return None


def read_all(machine: Machine) -> tuple[list[Guest], list[DataError]]:
    """All records, and what is wrong with those that cannot be read."""
    found: list[Guest] = []
    wrong: list[DataError] = []
    with suppress(FileNotFoundError):
        for name in sorted(os.listdir(_directory(machine))):
            path = os.path.join(_directory(machine), name)
            if not name.endswith(".json"):
                continue
            try:
                with open(path, encoding="utf-8") as file:
                    found.append(_parse(file.read(), path))
            except FileNotFoundError:
                continue
            except DataError as error:
                wrong.append(error)
    return found, wrong
