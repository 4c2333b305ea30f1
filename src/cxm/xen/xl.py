# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns ``xl``: the only caller of Xen's command line, and what its output means.

A domain is addressed by its number, never by its name: xl takes a name of digits for a number, and
a name may change while a domain moves. Which domain belongs to which VM says its UUID
(:func:`cxm.names.vm_of_uuid`).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from cxm.errors import CommandError, DataError
from cxm.run import Runner

# xl serialises the building of domains by a lock of its own: a create may wait for several others.
_CREATE_TIMEOUT_S: Final = 600.0
_DESTROY_TIMEOUT_S: Final = 120.0
_ASK_TIMEOUT_S: Final = 30.0
# Memory goes to a disk at 50 MiB/s at the very least, and a guest has at least this long.
_MEMORY_TIMEOUT_S: Final = 600.0
_SECONDS_PER_MIB: Final = 1 / 50

# The name is whatever stands before the number: other people's names may hold blanks.
_ROW: Final = re.compile(
    r"(?P<name>.*?)\s+(?P<domid>\d+)\s+(?P<memory>\d+)\s+(?P<vcpus>\d+)\s+"
    r"(?P<state>[r-][b-][p-][s-].[d-])\s+(?P<time>\d+\.\d+)\s+"
    r"(?P<uuid>[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12})\s+(?P<reason>-|[0-9a-fA-F]+)"
    r"(?:\s.*)?"
)
# Names that xl gives to the two halves of a domain that is on its way to another node.
_MOVING: Final = ("--incoming", "--migratedaway")


class Reason(IntEnum):
    """Why a domain stopped running, as its guest or Xen said."""

    POWEROFF = 0
    REBOOT = 1
    SUSPEND = 2
    CRASH = 3
    WATCHDOG = 4
    SOFT_RESET = 5


@dataclass(frozen=True, slots=True)
class Domain:
    """One row of ``xl list -v``."""

    name: str  # "(null)" while a domain is being made or taken apart
    domid: int
    memory_mib: int
    vcpus: int
    state: str  # six letters: running blocked paused shutdown <why> dying; "-" for no
    time_s: float  # CPU seconds used so far; 0.0: it has never run
    uuid: str  # lower case
    reason: int | None  # of a domain that has shut down; see Reason

    @property
    def paused(self) -> bool:
        return self.state[2] == "p"

    @property
    def dying(self) -> bool:
        """It is being taken apart: gone soon, or kept by something that holds its memory."""
        return self.state[5] == "d"

    @property
    def shut_down(self) -> bool:
        """It runs no more, but its remains are kept (``on_poweroff=preserve`` and the like)."""
        return self.state[3] == "s"

    @property
    def crashed(self) -> bool:
        return self.shut_down and self.reason in (Reason.CRASH, Reason.WATCHDOG)

    @property
    def powered_off(self) -> bool:
        """The guest switched itself off."""
        return self.shut_down and self.reason == Reason.POWEROFF

    @property
    def moving(self) -> bool:
        """Half of a migration: it never counts as running under its final name."""
        return self.name.endswith(_MOVING)

    @property
    def alive(self) -> bool:
        """The guest runs, or would if it were not paused."""
        return not self.shut_down and not self.dying and not self.moving


def parse_list(text: str) -> list[Domain]:
    """The domains in the output of ``xl list -v``, Domain-0 among them; raises DataError."""
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines or not lines[0].startswith("Name") or "UUID" not in lines[0]:
        message = f"not the output of 'xl list -v': {text[:80]!r}"
        raise DataError(message)
    found = []
    for line in lines[1:]:
        row = _ROW.fullmatch(line)
        if row is None:
            message = f"'xl list -v' printed a line that cannot be read: {line!r}"
            raise DataError(message)
        found.append(
            Domain(
                name=row["name"],
                domid=int(row["domid"]),
                memory_mib=int(row["memory"]),
                vcpus=int(row["vcpus"]),
                state=row["state"],
                time_s=float(row["time"]),
                uuid=row["uuid"].lower(),
                reason=None if row["reason"] == "-" else int(row["reason"], 16),
            )
        )
    return found


def all_domains(runner: Runner) -> list[Domain]:
    """All domains of this machine, Domain-0 among them."""
    return parse_list(runner.run(["xl", "list", "-v"], timeout_s=_ASK_TIMEOUT_S).stdout)


def domains(runner: Runner) -> list[Domain]:
    """All domains of this machine but Domain-0."""
    return [domain for domain in all_domains(runner) if domain.domid != 0]


@dataclass(frozen=True, slots=True)
class Info:
    """What Xen says of this machine."""

    version: str
    cpus: int
    mhz: int
    total_mib: int
    free_mib: int
    dom0_fixed: bool  # Xen was told how much memory Domain-0 has; else it shrinks on demand


def parse_info(text: str) -> Info:
    """The meaning of the output of ``xl info``; raises DataError."""
    parts = [line.partition(":") for line in text.splitlines()]
    rows = {key.strip(): value.strip() for key, _colon, value in parts}
    try:
        return Info(
            version=rows["xen_version"],
            cpus=int(rows["nr_cpus"]),
            mhz=int(float(rows["cpu_mhz"])),
            total_mib=int(rows["total_memory"]),
            free_mib=int(rows["free_memory"]),
            dom0_fixed="dom0_mem=" in rows.get("xen_commandline", ""),
        )
    except (KeyError, ValueError) as error:
        raise DataError(f"not the output of 'xl info': {text[:80]!r} ({error})") from error


def info(runner: Runner) -> Info:
    """This machine as Xen sees it."""
    return parse_info(runner.run(["xl", "info"], timeout_s=_ASK_TIMEOUT_S).stdout)


def create(runner: Runner, config: str) -> None:
    """Start a domain from the configuration file ``config``.

    A process ``xl create CONFIG`` stays behind as the domain's keeper: it restarts the domain when
    its guest reboots (see :func:`keepers`).
    """
    runner.run(["xl", "create", config], timeout_s=_CREATE_TIMEOUT_S)


def check(runner: Runner, config: str) -> None:
    """Have xl read a configuration without doing anything; raises CommandError if it refuses."""
    runner.run(["xl", "create", "-n", "-q", config], timeout_s=_ASK_TIMEOUT_S)


def destroy(runner: Runner, domid: int) -> None:
    """End a domain at once; a domain that is gone already is success."""
    try:
        runner.run(["xl", "destroy", str(domid)], timeout_s=_DESTROY_TIMEOUT_S)
    except CommandError:
        if any(domain.domid == domid and not domain.dying for domain in domains(runner)):
            raise


def ask_shutdown(runner: Runner, domid: int) -> None:
    """Ask the guest to switch itself off; an HVM guest without PV drivers gets an ACPI event."""
    runner.run(["xl", "shutdown", "-F", str(domid)], timeout_s=_ASK_TIMEOUT_S)


def ask_reboot(runner: Runner, domid: int) -> None:
    """Ask the guest to reboot; an HVM guest without PV drivers gets an ACPI event."""
    runner.run(["xl", "reboot", "-F", str(domid)], timeout_s=_ASK_TIMEOUT_S)


def unpause(runner: Runner, domid: int) -> None:
    """Let a paused domain run."""
    runner.run(["xl", "unpause", str(domid)], timeout_s=_ASK_TIMEOUT_S)


def memory_timeout_s(memory_mib: int) -> float:
    """How long saving or restoring so much memory may take."""
    return _MEMORY_TIMEOUT_S + memory_mib * _SECONDS_PER_MIB


def save(runner: Runner, domid: int, path: str, *, memory_mib: int) -> None:
    """Write a domain's memory to ``path`` and end the domain; on failure it runs on."""
    runner.run(["xl", "save", str(domid), path], timeout_s=memory_timeout_s(memory_mib))


def restore(runner: Runner, config: str, path: str, *, memory_mib: int) -> None:
    """Start a domain from saved memory.

    The configuration is always given: the one inside the saved memory has been where others than
    root could write it, and it could name any program or device.
    """
    runner.run(["xl", "restore", config, path], timeout_s=memory_timeout_s(memory_mib))


def keepers(runner: Runner, config: str) -> list[int]:
    """The processes that started a domain from ``config`` and keep it, by process id.

    While one lives, a missing domain is only between two lives (its guest reboots) or is being
    made; without one it has vanished.
    """
    listed = runner.run(["ps", "-e", "-ww", "-o", "pid=,args="], timeout_s=_ASK_TIMEOUT_S).stdout
    return [int(words[0]) for words in map(str.split, listed.splitlines()) if _keeps(words, config)]


def _keeps(words: Sequence[str], config: str) -> bool:
    # <pid> [/usr/sbin/]xl create CONFIG, or: xl restore CONFIG CHECKPOINT
    if len(words) < 4 or not re.fullmatch(r"(?:.*/)?xl", words[1]):  # noqa: PLR2004 - see above
        return False
    return words[2] in ("create", "restore") and config in words[3:]
