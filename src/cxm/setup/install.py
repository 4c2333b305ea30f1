# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns where things are on this machine: its OpenNebula, its version and account, and programs."""

import os
import pwd
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cxm.errors import CommandError, NotFoundError
from cxm.one import version as one_version
from cxm.one.version import OneVersion
from cxm.run import Runner, environment


@dataclass(frozen=True, slots=True)
class Account:
    """The account that oned runs in."""

    name: str
    uid: int
    gid: int
    home: str


@dataclass(frozen=True, slots=True)
class Installation:
    """An OpenNebula on this machine."""

    location: str | None  # ONE_LOCATION of a self-contained one
    etc: str
    remotes: str
    version: OneVersion
    account: Account
    owner: tuple[int, int]  # of the remotes directory: its user and group

    @property
    def described(self) -> str:
        """The installation in a few words."""
        where = f"in {self.location}" if self.location else "installed system wide"
        return f"OpenNebula {self.version} {where}, account {self.account.name}"

    def path(self, name: str) -> str:
        """The path of a configuration file."""
        return os.path.join(self.etc, name)


def account_of(remotes: str) -> Account:
    """Who oned runs as: the owner of its remotes tree; raises NotFoundError."""
    uid = os.stat(remotes).st_uid
    try:
        entry = pwd.getpwuid(uid) if uid else pwd.getpwnam("oneadmin")
    except KeyError as error:
        raise NotFoundError(
            f"the account of OpenNebula was not found: {error}",
            hint=f"oned's account owns {remotes}",
        ) from error
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid, entry.pw_dir)


def find(
    one_location: str | None,
    environ: Mapping[str, str],
    runner: Runner,
    account: Callable[[str], Account] = account_of,
) -> Installation:
    """The OpenNebula of this machine; raises NotFoundError where there is none."""
    location = one_location or environ.get("ONE_LOCATION") or None
    if location:
        location = os.path.abspath(location)
        etc, remotes = os.path.join(location, "etc"), os.path.join(location, "var", "remotes")
        binary = os.path.join(location, "bin", "oned")
    else:
        etc, remotes, binary = "/etc/one", "/var/lib/one/remotes", "oned"
    for path in (os.path.join(etc, "oned.conf"), remotes):
        if not os.path.exists(path):
            raise NotFoundError(
                f"there is no OpenNebula here: {path} does not exist",
                hint="run this on the frontend; --one-location DIR names a self-contained one",
            )
    version = _version(remotes, binary, runner)
    status = os.stat(remotes)
    owner = (status.st_uid, status.st_gid)
    return Installation(location, etc, remotes, version, account(remotes), owner)


def _version(remotes: str, binary: str, runner: Runner) -> OneVersion:
    if os.path.exists(os.path.join(remotes, "VERSION")):
        return one_version.of_remotes(remotes)
    try:
        said = runner.run([binary, "-v"], timeout_s=20).stdout
    except CommandError:
        said = ""
    found = re.search(r"OpenNebula ([0-9]+)\.([0-9]+)(?:\.([0-9]+))?", said)
    if found is None:
        return one_version.OLDEST
    return OneVersion(int(found[1]), int(found[2]), int(found[3] or 0))


def find_program(name: str) -> str | None:
    """Where cxm would find a program; None when it is not installed."""
    return shutil.which(name, path=environment()["PATH"])
