# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns ``xl``: the only caller of Xen's command line, and what its output means.

A domain is addressed by its number, never by its name: xl takes a name of digits for a number, and
a name may change while a domain moves. Which domain belongs to which VM says its UUID
(:func:`cxm.names.vm_of_uuid`).
"""

import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from cxm.errors import CommandError, DataError
from cxm.run import Runner

# A domain's keeper must outlive the service or the session that started it (systemd ends all that
# is left of those): it gets a scope of its own.
_SCOPE: Final = ("systemd-run", "--scope", "--collect", "--quiet", "--")
# xl serialises the building of domains by a lock of its own: a create may wait for several others.
_CREATE_TIMEOUT_S: Final = 600.0
# Xen takes the memory back at a GiB/s or so, and the largest guests have TiBs.
_DESTROY_TIMEOUT_S: Final = 3600.0
_ASK_TIMEOUT_S: Final = 30.0
# libxl waits for 60 s for a guest to acknowledge a request, and then says so itself.
_REQUEST_TIMEOUT_S: Final = 90.0
# Memory goes to a disk at 50 MiB/s at the very least, and a guest has at least this long.
_MEMORY_TIMEOUT_S: Final = 600.0
SECONDS_PER_MIB: Final = 1 / 50

# The name is whatever stands before the number: other people's names may hold blanks.
_ROW: Final = re.compile(
    r"(?P<name>.*?)\s+(?P<domid>\d+)\s+(?P<memory>\d+)\s+(?P<vcpus>\d+)\s+"
    r"(?P<state>[r-][b-][p-][s-].[d-])\s+(?P<time>\d+\.\d+)\s+"
    r"(?P<uuid>[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12})\s+(?P<reason>-|[0-9a-fA-F]+)"
    r"(?:\s.*)?"
)
# The first error is the cause, the others are its consequences.
_CAUSE: Final = re.compile(
    r"^(?:libxl|xc): error: (?:panic: )?(?:\S+\.c:\d+:\s?)?(?:\w+: )?(?:Domain \d+:)?(?P<text>.*)$",
    re.MULTILINE,
)
_QEMU: Final = "HVM guests and VNC need qemu: install the package qemu-system-xen on the node"
_HINTS: Final = (
    ("Out of memory", "the node has too little free memory; 'xl info' shows free_memory"),
    ("failed to free memory", "the node has too little free memory; 'xl info' shows free_memory"),
    ("device model", _QEMU),
    ("failed to read BIOS file", _QEMU),
    ("no loader found", "it is not a kernel that Xen can start"),
    ("Could not find bridge device", "set BRIDGE of the virtual network to a bridge of the node"),
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


def dom0_mib(runner: Runner) -> int:
    """The memory of Domain-0, which no guest can have."""
    return sum(each.memory_mib for each in all_domains(runner) if each.domid == 0)


@dataclass(frozen=True, slots=True)
class Info:
    """What Xen says of this machine."""

    version: str
    cpus: int
    mhz: int
    total_mib: int
    free_mib: int
    dom0_fixed: bool  # Xen was told how much memory Domain-0 has; else it shrinks on demand
    hw_caps: str = ""  # what its processor can do, as words of 32 bits: 078bf3fd:80982201:...


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
            hw_caps=rows.get("hw_caps", ""),
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
    _run(runner, [*_SCOPE, "xl", "create", "-q", config], _CREATE_TIMEOUT_S)


def destroy(runner: Runner, domid: int) -> None:
    """End a domain at once; a domain that is gone already is success."""
    try:
        _run(runner, ["xl", "destroy", str(domid)], _DESTROY_TIMEOUT_S)
    except CommandError:
        if any(domain.domid == domid and not domain.dying for domain in domains(runner)):
            raise


def ask_shutdown(runner: Runner, domid: int, *, timeout_s: float) -> None:
    """Ask the guest to switch itself off; an HVM guest without PV drivers gets an ACPI event.

    Raises CommandError when the guest does not acknowledge that, for example while it boots.
    """
    argv = ["xl", "shutdown", "-F", str(domid)]
    _run(runner, argv, min(timeout_s, _REQUEST_TIMEOUT_S))


def ask_reboot(runner: Runner, domid: int, *, timeout_s: float = _REQUEST_TIMEOUT_S) -> None:
    """Ask the guest to reboot, as :func:`ask_shutdown` does."""
    _run(runner, ["xl", "reboot", "-F", str(domid)], timeout_s)


def unpause(runner: Runner, domid: int) -> None:
    """Let a paused domain run."""
    _run(runner, ["xl", "unpause", str(domid)], _ASK_TIMEOUT_S)


def memory_timeout_s(memory_mib: int) -> float:
    """How long saving or restoring so much memory may take."""
    return _MEMORY_TIMEOUT_S + memory_mib * SECONDS_PER_MIB


def save(runner: Runner, domid: int, path: str, *, memory_mib: int) -> None:
    """Write a domain's memory to ``path`` and end the domain; on failure it runs on."""
    _run(runner, ["xl", "save", str(domid), path], memory_timeout_s(memory_mib))


def restore(runner: Runner, config: str, path: str, *, memory_mib: int) -> None:
    """Make a domain from saved memory, and leave it paused.

    The configuration is always given: the one inside the saved memory has been where others than
    root could write it, and it could name any program or device.
    """
    argv = [*_SCOPE, "xl", "restore", "-p", config, path]
    _run(runner, argv, memory_timeout_s(memory_mib))


def migrate(
    runner: Runner, domid: int, config: str, receiver: Sequence[str], *, timeout_s: float
) -> None:
    """Move a running domain to another node, where ``receiver`` runs :func:`receive_argv`.

    The configuration is always given, as for :func:`restore`. After a failure the domain may run
    here, may run there, or may be lost: whoever calls this looks.
    """
    # An empty -s makes xl take the last argument as the whole command, for a shell.
    argv = ["xl", "migrate", "-C", config, "-s", "", str(domid), shlex.join(receiver)]
    _run(runner, argv, timeout_s)


def receive_argv(scope: str) -> list[str]:
    """The command that takes a domain from :func:`migrate`: from its input, answers to its output.

    It stays behind as the domain's keeper, in the systemd scope ``scope-<number>``.
    """
    unit = f"--unit={scope}-{os.getpid()}"
    return [*_SCOPE[:-1], unit, "--", "xl", "migrate-receive"]


def _run(runner: Runner, argv: Sequence[str], timeout_s: float) -> None:
    """Run a command of xl; its failure names the cause among the many lines that xl prints."""
    try:
        runner.run(argv, timeout_s=timeout_s)
    except CommandError as error:
        cause = _CAUSE.search(error.stderr)
        if cause is None:
            raise
        verb = argv[argv.index("xl") + 1]
        raise CommandError(
            f"xl {verb} failed: {cause['text'].strip()}",
            hint=next((hint for text, hint in _HINTS if text in error.stderr), None),
            argv=error.argv,
            exit_code=error.exit_code,
            stderr=error.stderr,
        ) from error


def keepers(runner: Runner, configs: Sequence[str], scope: str = "") -> list[int]:
    """The processes that started a domain from one of ``configs`` and keep it, by process id.

    Those too that received it from another node, in a scope as :func:`receive_argv` makes it.
    While one lives, a missing domain is only between two lives (its guest reboots) or is being
    made; without one it has vanished. Only root's count: anybody may call a process as he likes.
    """
    argv = ["ps", "-e", "-ww", "-o", "pid=,ruid=,unit=,args="]
    listed = runner.run(argv, timeout_s=_ASK_TIMEOUT_S).stdout
    rows = map(str.split, listed.splitlines())
    return [int(words[0]) for words in rows if _keeps(words, configs, scope)]


def end_keeper(runner: Runner, pid: int) -> None:
    """End a keeper that hangs; one that is gone already is success."""
    runner.run(["kill", "-KILL", str(pid)], ok=(0, 1))


def _keeps(words: Sequence[str], configs: Sequence[str], scope: str) -> bool:
    # <pid> 0 <unit> [/usr/lib/xen-4.17/bin/]xl create [-q] CONFIG, or: xl restore [-p] CONFIG
    # CHECKPOINT, or: xl migrate-receive
    if len(words) < 5 or words[1] != "0" or os.path.basename(words[3]) != "xl":  # noqa: PLR2004 - see above
        return False
    if words[4] == "migrate-receive":
        return scope != "" and re.fullmatch(rf"{re.escape(scope)}-\d+\.scope", words[2]) is not None
    return words[4] in ("create", "restore") and any(word in configs for word in words[5:])
