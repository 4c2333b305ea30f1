# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns where the lab keeps its files: the cache, the state of a running lab, the logs.

The cache holds what costs time to make (images, keys, snapshots) and outlives a lab. The state of
a lab (sockets, disks, process ids) ends with it. The logs of the last run of each name are kept.
"""

import os
import re
import shutil
import stat
from collections.abc import Mapping
from dataclasses import dataclass

from cxm.errors import CxmError, UsageError

OUTER_UID = "CXM_LAB_OUTER_UID"  # who we are outside of our user namespace
_NAME = re.compile(r"[a-z][a-z0-9-]{0,19}")


def check_name(name: str, what: str = "the lab's name") -> str:
    """Return ``name`` if it can be part of a path and of a socket's name."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{what} is '{name}', but must be 1 to 20 of a-z, 0-9 and '-', a letter first"
        )
    return name


@dataclass(frozen=True, slots=True)
class Places:
    """The directories of the lab called ``name``."""

    name: str
    cache: str
    state: str
    logs: str

    def cached(self, *parts: str) -> str:
        """A path in the cache; its directory exists."""
        path = os.path.join(self.cache, *parts)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        return path

    def of(self, *parts: str) -> str:
        """A path in the state of the lab; its directory exists."""
        path = os.path.join(self.state, *parts)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        return path

    def log(self, name: str) -> str:
        """The path of a log file."""
        os.makedirs(self.logs, exist_ok=True)
        return os.path.join(self.logs, f"{name}.log")

    def make_state(self) -> None:
        """Make the state directory, ours alone."""
        parent = os.path.dirname(self.state)
        os.makedirs(parent, mode=0o700, exist_ok=True)
        found = os.lstat(parent)
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            raise CxmError(f"{parent} is not a directory of ours", hint="set CXM_LAB_STATE")
        os.makedirs(self.state, mode=0o700, exist_ok=True)

    def remove_state(self) -> None:
        shutil.rmtree(self.state, ignore_errors=True)


def outer_uid() -> int:
    """The user id of whoever started the lab, also inside its user namespace."""
    return int(os.environ.get(OUTER_UID, os.getuid()))


def places(name: str | None = None, env: Mapping[str, str] = os.environ) -> Places:
    """The directories of the lab called ``name`` (``CXM_LAB_NAME`` or "default" when not given)."""
    chosen = check_name(name or env.get("CXM_LAB_NAME") or "default")
    home = env.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    cache = os.path.abspath(env.get("CXM_LAB_CACHE") or os.path.join(home, "cxm-lab"))
    root = os.path.abspath(env.get("CXM_LAB_STATE") or f"/var/tmp/cxm-lab-{outer_uid()}")  # noqa: S108 - make_state checks its owner
    return Places(chosen, cache, os.path.join(root, chosen), os.path.join(cache, "logs", chosen))
