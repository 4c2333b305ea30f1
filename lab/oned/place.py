# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns where the stand-in for oned lives: its directories, and how its drivers are started.

The drivers run as the user that runs the stand-in (root in the lab), because the machine need not
have a user oneadmin. On the hosts they are oneadmin all the same: ssh's configuration in the
frontend's place says that user, and only oneadmin's key is there.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from lab.oned.profiles import Profile

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SYSTEM_WIDE = "/var/lib/one"


@dataclass(frozen=True, slots=True)
class Place:
    """An installation whose files lie below ``files``; its drivers see them below ``var``."""

    files: str
    var: str = SYSTEM_WIDE
    location: str = ""  # ONE_LOCATION of a self-contained installation
    hostname: str = "frontend"
    prefix: tuple[str, ...] = ()  # the words that make a command run in the frontend's place
    remote_dir: str = "/var/tmp/one"  # noqa: S108 - SCRIPTS_REMOTE_DIR of every installation
    path: str = _PATH
    xmlrpc_port: int = 2633
    monitor_port: int = 4124
    extra: Mapping[str, str] = field(default_factory=dict)

    @property
    def remotes(self) -> str:
        return os.path.join(self.var, "remotes")

    @property
    def auth_file(self) -> str:
        return os.path.join(self.var, ".one", "one_auth")

    @property
    def scratch(self) -> str:
        return os.path.join(self.var, ".standin")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.xmlrpc_port}/RPC2"

    def here(self, path: str) -> str:
        """Where this process finds what the drivers see as ``path``."""
        inside = path == self.var or path.startswith(f"{self.var}/")
        return os.path.normpath(self.files + path[len(self.var) :]) if inside else path

    def datastores(self, profile: Profile) -> str:
        """The frontend's DATASTORE_LOCATION as this version spells it."""
        return f"{self.var}/datastores" if profile.version < (5, 0) else f"{self.var}//datastores"

    def host_datastores(self) -> str:
        """The hosts' DATASTORE_LOCATION: oned writes two slashes when it takes its default."""
        return f"{self.var}//datastores"

    def vm_dir(self, vm: int) -> str:
        """Where oned keeps a VM's deployment, transfer and context files."""
        return os.path.join(self.var, "vms", str(vm))

    def environment(self) -> dict[str, str]:
        """What oned's drivers find in their environment."""
        own = {"ONE_LOCATION": self.location} if self.location else {}
        return {
            "PATH": self.path,
            "HOME": self.var,
            "LANG": "C.UTF-8",
            "ONE_AUTH": self.auth_file,
            "ONE_XMLRPC": self.url,
            "ONE_MAD_DEBUG": "",
            **own,
            **self.extra,
        }

    def shell(self, command: str) -> list[str]:
        """The command line that runs a shell command as one of oned's drivers does."""
        words = [f"{name}={value}" for name, value in self.environment().items()]
        return [*self.prefix, "env", "-i", "-C", self.var, *words, "sh", "-c", command]

    def prepare(self) -> None:
        """Make the directories."""
        for name in ("vms", "datastores", "remotes", ".one", ".standin"):
            os.makedirs(os.path.join(self.files, name), exist_ok=True)
