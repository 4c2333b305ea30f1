# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the lab's namespaces: one for its bridges, machines and BMCs, one is the frontend's place.

A namespace lives as long as its keeper, a sleeping process. Nothing is registered anywhere outside
of the lab, so nothing is left when the keepers are gone. Without root, the first keeper also makes
the user namespace in which all of the lab is "root".
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

from cxm.errors import CommandError, CxmError
from cxm.run import Result, System
from lab import process
from lab.places import OUTER_UID

_START_S = 10.0


@dataclass(frozen=True, slots=True)
class Namespace:
    """A network and mount namespace, kept by a process."""

    pid: int
    user: bool = False  # enter its user namespace too (for callers outside of it)

    def prefix(self, *, keep_directory: bool = False) -> list[str]:
        """The words before a command that make it run in here."""
        words = ["nsenter", f"--target={self.pid}"]
        if self.user:
            words += ["--user", "--preserve-credentials"]
        words += ["--net", "--mount"]
        if keep_directory:
            words.append(f"--wdns={os.getcwd()}")
        return [*words, "--"]

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes | None = None,
        timeout_s: float = 30.0,
        ok: Sequence[int] = (0,),
    ) -> Result:
        return System().run([*self.prefix(), *argv], stdin=stdin, timeout_s=timeout_s, ok=ok)

    def network_id(self) -> str:
        return process.namespace(self.pid, "net")

    def alive(self, lab_id: str) -> bool:
        return process.alive(self.pid) and process.belongs(self.pid, lab_id)


def make(*, log: str, lab_id: str) -> Namespace:
    """Make a namespace for the lab; it ends with :func:`lab.process.end` of its keeper."""
    before = process.namespace(os.getpid(), "net")
    pid = process.start(
        ["unshare", "--net", "--mount", "--propagation=slave", "--", "sleep", "infinity"],
        log=log,
        lab_id=lab_id,
    )
    process.wait_until(
        lambda: process.namespace(pid, "net") not in ("", before) and _name(pid) == "sleep",
        timeout_s=_START_S,
        what="making a network namespace",
        pid=pid,
        log=log,
    )
    return Namespace(pid)


def _name(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8") as file:
            return file.read().strip()
    except OSError:
        return ""


def inside() -> bool:
    """Whether we may make namespaces: as root, or inside the lab's user namespace."""
    return os.geteuid() == 0


def as_seen_from_outside(namespace: Namespace) -> Namespace:
    """The same namespace for callers that are not in the lab's user namespace."""
    return replace(namespace, user=OUTER_UID in os.environ)


def enter_user_namespace(argv: Sequence[str], keeper: int | None) -> None:
    """Run this program again as "root" of a user namespace: the running lab's, or a new one."""
    uid = os.getuid()
    environment = os.environ | {OUTER_UID: str(uid)}
    if keeper is None:
        _check_user_namespaces()
        words = ["unshare", "--user", "--mount", "--map-root-user", "--map-auto", "--"]
    else:
        words = ["nsenter", f"--target={keeper}", "--user", "--preserve-credentials", "--"]
    try:
        os.execvpe(words[0], [*words, sys.executable, "-m", "lab.main", *argv], environment)  # noqa: S606 - replaces this process, no shell
    except OSError as error:
        raise CxmError(f"cannot make a user namespace: {error}") from error


def _check_user_namespaces() -> None:
    try:
        System().run(["unshare", "--user", "--mount", "--map-root-user", "--map-auto", "true"])
    except CommandError as error:
        raise CxmError(
            f"this machine gives you no user namespace of your own: {error.message}",
            hint="run as root; or have user namespaces allowed and a range of ids for you in "
            "/etc/subuid and /etc/subgid (package uidmap)",
        ) from error
