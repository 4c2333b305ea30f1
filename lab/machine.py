# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns one running node: its QEMU, its power, its faults, and root's login on it."""

import os
import shlex
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum

from cxm.errors import CommandError, CxmError, RefusedError
from cxm.run import Result, System
from lab import process, qemu
from lab.image import NodeImage
from lab.namespaces import Namespace
from lab.places import Places
from lab.qmp import Qmp
from lab.spec import HostSpec

SSH_FAILED = 255
START_S = 20.0
BOOT_S = 480.0  # measured 50 s for one node; 230 s for two beside other work
SETTLE_S = 240.0
LOAD_S = 60.0  # measured 1 to 6 s
RUN_S = 120.0
_XENS_OWN = range(0xFFFF800000000000, 0xFFFF880000000000)  # addresses, by Xen's config.h


class Power(Enum):
    """What a machine is doing, as its hardware sees it."""

    RUNNING = "running"
    HUNG = "hung"
    OFF = "off"
    GONE = "gone"  # its QEMU has died: never part of a test


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all machines of a lab share."""

    places: Places
    image: NodeImage
    core: Namespace
    accelerator: str
    lab_id: str


class Machine:
    """One node of the lab."""

    def __init__(self, host: HostSpec, around: Surroundings, pid: int = 0) -> None:
        self.host = host
        self.name = host.name
        self.files = qemu.Files(around.places, host.name)
        self.pid = pid
        self._around = around

    # Hardware.

    def start(self, *, incoming: bool = False) -> None:
        """Start the machine's QEMU; the machine itself stands still."""
        for path in (self.files.control, self.files.bmc_control, self.files.console):
            with suppress(FileNotFoundError):
                os.unlink(path)
        around = self._around
        words = qemu.arguments(
            around.image, self.files, self.host, around.accelerator, incoming=incoming
        )
        self.pid = process.start(
            [*around.core.prefix(), *words], log=self.files.log, lab_id=around.lab_id
        )
        process.wait_until(
            lambda: os.path.exists(self.files.console),
            timeout_s=START_S,
            what=f"starting QEMU for {self.name}",
            pid=self.pid,
            log=self.files.log,
        )

    def qmp(self) -> Qmp:
        """Talk to the machine's QEMU."""
        if not self.alive():
            raise CxmError(f"the QEMU of {self.name} is not running", hint=f"log: {self.files.log}")
        return Qmp(self.files.control)

    def alive(self) -> bool:
        return self.pid > 0 and process.alive(self.pid)

    def end(self) -> None:
        """End the machine's QEMU."""
        if self.pid > 0:
            process.end([self.pid])
        self.pid = 0

    def power(self) -> Power:
        """What the machine is doing."""
        if not self.alive():
            return Power.GONE
        if os.path.exists(self.files.off):
            return Power.OFF
        with self.qmp() as qmp:
            return power_of(qmp.status())

    def power_off(self) -> None:
        """Take the power away, now."""
        switch_off(self.files.control, self.files.off)

    def power_on(self) -> None:
        """Give the power back: the machine boots."""
        switch_on(self.files.control, self.files.off)

    def reset(self) -> None:
        """Press the reset button: the machine boots."""
        if self.power() is Power.OFF:
            raise RefusedError(f"{self.name} is off; there is nothing to reset")
        with self.qmp() as qmp:
            qmp.execute("system_reset")
            qmp.execute("cont")

    def hang(self) -> None:
        """Freeze the machine, as a hypervisor stuck with interrupts off would be."""
        if self.power() is Power.OFF:
            raise RefusedError(f"{self.name} is off; it cannot hang")
        with self.qmp() as qmp:
            qmp.execute("stop")

    def in_guest(self) -> bool:
        """Whether a processor of the frozen machine is inside a guest, not in Xen or dom0.

        Dom0, a PV guest, runs on Xen's own interrupt table. Also true before Xen has started.
        """
        with self.qmp() as qmp:
            shown = qmp.monitor("info registers -a")
        return any(base not in _XENS_OWN for base in interrupt_tables(shown))

    def go(self) -> None:
        """Let a machine that was just started, or loaded, run."""
        with self.qmp() as qmp:
            qmp.execute("cont")

    def resume(self) -> None:
        """Let a frozen machine go on."""
        if self.power() is Power.OFF:
            raise RefusedError(
                f"{self.name} is off, not hung", hint=f"cxm-lab power on {self.name}"
            )
        self.go()

    # Login.

    def ssh(self, argv: Sequence[str], *, options: Sequence[str] = ()) -> list[str]:
        """The command that runs ``argv`` on the node as root; the frontend has no part in it."""
        config = self._around.places.of("ssh_config")
        words = [*self._around.core.prefix(), "ssh", "-F", config, *options, self.name]
        return [*words, "--", shlex.join(argv)] if argv else words

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes | None = None,
        timeout_s: float = RUN_S,
        ok: Sequence[int] = (0,),
    ) -> Result:
        """Run a command on the node as root."""
        return System().run(self.ssh(argv), stdin=stdin, timeout_s=timeout_s, ok=ok)

    def feed(self, argv: Sequence[str], chunks: Iterable[bytes], *, timeout_s: float) -> Result:
        """Run a command on the node as root, with ``chunks`` as its input."""
        return System().feed(self.ssh(argv), chunks, timeout_s=timeout_s)

    def push(self, local: str, remote: str, *, timeout_s: float = 600.0) -> None:
        """Copy a file or a directory's content to the node."""
        config = self._around.places.of("ssh_config")
        source = os.path.join(local, "") if os.path.isdir(local) else local
        System().run(
            [*self._around.core.prefix(), "rsync", "-a", "--mkpath", "--no-owner",
             "--no-group", "-e", f"ssh -F {shlex.quote(config)}", source,
             f"{self.name}:{remote}"],
            timeout_s=timeout_s,
        )  # fmt: skip

    def write(self, remote: str, content: bytes | str) -> None:
        """Make a file on the node."""
        data = content.encode() if isinstance(content, str) else content
        self.run(["sh", "-c", 'cat >"$1"', "sh", remote], stdin=data)

    def wait_until(
        self,
        condition: Sequence[str] | Callable[[], bool],
        *,
        timeout_s: float = 60.0,
        pause_s: float = 0.3,
    ) -> float:
        """Wait until a command succeeds on the node, or a function is true; return the seconds."""
        began = time.monotonic()
        if callable(condition):
            check, what = condition, f"a condition on {self.name}"
        else:
            command = condition
            check, what = lambda: self._succeeds(command), f"{self.name}: {shlex.join(command)}"
        process.wait_until(check, timeout_s=timeout_s, what=what, pause_s=pause_s)
        return time.monotonic() - began

    def _succeeds(self, argv: Sequence[str]) -> bool:
        with suppress(CommandError):
            return self.run(argv, ok=range(256), timeout_s=15.0).code == 0
        return False

    def forget_connection(self) -> None:
        """Close the shared ssh connection; the machine at its other end is about to change."""
        System().run(self.ssh([], options=["-O", "exit"]), ok=range(256), timeout_s=10)

    def wait_for_ssh(self, *, timeout_s: float = BOOT_S) -> None:
        """Wait until root can log in."""
        process.wait_until(
            self._ssh_works,
            timeout_s=timeout_s,
            what=f"waiting for ssh on {self.name}",
            pause_s=0.3,
            pid=self.pid,
            log=self.files.console_log,
        )

    def _ssh_works(self) -> bool:
        with suppress(CommandError):
            return self.run(["true"], ok=(0, SSH_FAILED), timeout_s=20.0).code == 0
        return False

    def wait_for_services(self) -> list[str]:
        """Wait until all units have started and Xen answers; return the units that failed."""
        self.run(["systemctl", "is-system-running", "--wait"], ok=(0, 1), timeout_s=SETTLE_S)
        self.run(["xl", "info"], timeout_s=SETTLE_S)
        failed = self.run(["systemctl", "list-units", "--failed", "--plain", "--no-legend"])
        return [line.split()[0] for line in failed.stdout.splitlines() if line.strip()]

    def set_clock(self) -> None:
        """Give the node our time: a restored machine lives in the past."""
        self.run(["date", "--utc", f"--set=@{time.time():.3f}"])


def interrupt_tables(registers: str) -> list[int]:
    """Where each processor's interrupt table is, from what QEMU's monitor shows."""
    lines = (line.split() for line in registers.splitlines() if line.startswith("IDT="))
    return [int(words[1], 16) for words in lines]


def power_of(status: str) -> Power:
    """What QEMU's word for its state means for a machine that was not switched off."""
    if status in ("running", "inmigrate"):
        return Power.RUNNING
    if status in ("shutdown", "guest-panicked", "prelaunch"):
        return Power.OFF
    return Power.HUNG


def switch_off(control: str, marker: str) -> None:
    """Take a machine's power away; ``marker`` remembers it."""
    with Qmp(control) as qmp:
        qmp.execute("stop")
        with open(marker, "w", encoding="ascii"):
            pass
        # The memory's content goes now, not at the next start.
        qmp.execute("system_reset")


def switch_on(control: str, marker: str) -> None:
    """Give a machine its power back; one that has power goes on undisturbed."""
    with Qmp(control) as qmp:
        if not os.path.exists(marker) and power_of(qmp.status()) is not Power.OFF:
            return
        with suppress(FileNotFoundError):
            os.unlink(marker)
        qmp.execute("system_reset")
        qmp.execute("cont")
