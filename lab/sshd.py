# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the ssh server of a frontend's place: through it the nodes of a cluster nudge OpenNebula.

It is Debian's, unpacked beside the lab and never installed: it would serve this machine. Whoever
logs in as oneadmin there gets the account that runs OpenNebula in the lab: its own, or the one that
runs the stand-in.
"""

import glob
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Final

from cxm.errors import CxmError
from cxm.run import System
from lab import process
from lab.lab import Lab
from lab.spec import FRONTEND_ADDRESS

_PACKAGES: Final = ("openssh-server", "libwrap0")
_FETCH_S: Final = 300.0
_START_S: Final = 60.0
_RUN: Final = "/run/sshd"  # where it must be able to lock itself up


@dataclass(slots=True)
class Server:
    """An ssh server that can be stopped and started."""

    lab: Lab
    command: list[str]
    pid: int = 0

    def start(self) -> None:
        """Serve, from now on."""
        log = self.lab.places.log("sshd")
        self.pid = process.start(self.command, log=log, lab_id=self.lab.lab_id)
        process.wait_until(self._answers, timeout_s=_START_S, what="sshd", pid=self.pid, log=log)

    def _answers(self) -> bool:
        argv = ["ssh-keyscan", "-T", "2", "-t", "ed25519", FRONTEND_ADDRESS]
        return "ssh-ed25519" in self.lab.frontend.run(argv, ok=(0, 1)).stdout

    def stop(self) -> None:
        """The frontend refuses connections from now on."""
        process.end([self.pid])


@contextmanager
def serving(lab: Lab, home: str) -> Iterator[Server]:
    """A server in the frontend's place; ``home`` is that of oneadmin, where there is no such."""
    top = lab.places.of("sshd")
    programs = _unpacked(top)
    passwd = os.path.join(top, "passwd")
    with open(passwd, "w", encoding="utf-8") as file:
        file.write(_accounts(lab.frontend.run(["cat", "/etc/passwd"]).stdout, home))
    server = Server(lab, [*lab.frontend.prefix(), *programs, "-D", "-e", "-f", _configured(top)])
    with ExitStack() as undo:
        lab.frontend.run(["mkdir", "-p", _RUN])
        undo.callback(lab.frontend.run, ["rmdir", _RUN], ok=(0, 1))
        lab.frontend.run(["mount", "--bind", passwd, "/etc/passwd"])
        undo.callback(lab.frontend.run, ["umount", "--lazy", "/etc/passwd"])
        undo.callback(server.stop)
        server.start()
        yield server


def _unpacked(top: str) -> list[str]:
    """Fetch the server by this machine's apt and unpack it; returns the words that begin it."""
    tree = os.path.join(top, "tree")
    if not os.path.isdir(tree):
        debs = os.path.join(top, "deb")
        os.makedirs(debs, exist_ok=True)
        System().run(
            ["env", "-C", debs, "apt-get", "download", "-qq", *_PACKAGES], timeout_s=_FETCH_S
        )
        for path in glob.glob(os.path.join(debs, "*.deb")):
            System().run(["dpkg-deb", "-x", path, f"{tree}.new"])
        os.rename(f"{tree}.new", tree)
    libraries = glob.glob(os.path.join(tree, "**", "libwrap.so.0"), recursive=True)
    if not libraries:
        raise CxmError("Debian's libwrap0 has no library of that name any more")
    sshd = os.path.join(tree, "usr", "sbin", "sshd")
    return ["env", f"LD_LIBRARY_PATH={os.path.dirname(libraries[0])}", sshd]


def _configured(top: str) -> str:
    key = os.path.join(top, "host_key")
    if not os.path.exists(key):
        System().run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key])
    path = os.path.join(top, "sshd_config")
    with open(path, "w", encoding="utf-8") as file:
        file.write(
            f"ListenAddress {FRONTEND_ADDRESS}\nHostKey {key}\nPidFile none\nUsePAM no\n"
            "PasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin yes\n"
            "AllowUsers oneadmin\n"
        )
    return path


def _accounts(known: str, home: str) -> str:
    """The place's accounts, with sshd's own and with oneadmin: else who runs the stand-in."""
    lines = [line for line in known.splitlines() if not line.startswith("sshd:")]
    if not any(line.startswith("oneadmin:") for line in lines):
        lines.append(f"oneadmin:x:{os.getuid()}:{os.getgid()}::{home}:/bin/sh")
    lines.append(f"sshd:x:9870:65534::{_RUN}:/usr/sbin/nologin")
    return "".join(f"{line}\n" for line in lines)
