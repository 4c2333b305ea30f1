# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the file system of the shared system datastore: its words, its volume, its directory."""

import os
import re
from dataclasses import dataclass
from typing import Final

from cxm import lvm
from cxm.cluster.datastore import Datastore, Kind
from cxm.errors import CxmError, NotFoundError, RefusedError, UsageError
from cxm.lvm import Group
from cxm.names import LvName
from cxm.run import Runner
from cxm.setup import nodecheck
from cxm.setup.clusterargs import MOST_NODES
from cxm.setup.install import Account
from cxm.setup.nodecheck import Host
from cxm.setup.report import Check, failed, ok

NONE: Final = "none"
# No volume of a VM is called so (its name ends in two numbers), and its tag is none of theirs.
VOLUME: Final = LvName("cxm-system-datastore")
_READY, _FILLING = "cxm_system_datastore", "cxm_system_datastore_filling"
_WHERE: Final = "/var/lib/one/datastores"
_SIZE_MIB: Final = 4096
# A node mounts it with a journal of its own, as soon as it is in the cluster: one for each that may
# ever be added. Small files only: journals of the usual 128 MiB would be half of it.
_JOURNAL_MIB: Final = 32
_LEAST_MIB: Final = 1024
_MKFS_S: Final = 600.0
_NFS: Final = re.compile(r"nfs:(?P<source>[A-Za-z0-9.:\[\]_-]+:/[A-Za-z0-9/._-]*)")
_DIRECTORY: Final = re.compile(r"(/[A-Za-z0-9._-]+){2,}")
_FORM: Final = "gfs2,id=NUMBER or nfs:SERVER:/PATH,id=NUMBER; directory=/PATH in place of id"


@dataclass(frozen=True, slots=True)
class Wanted:
    """A datastore, and how large its volume is made where it has one."""

    datastore: Datastore
    size_mib: int = _SIZE_MIB


def parse(word: str) -> Wanted | None:
    """The datastore of ``--system-datastore``, None for none; raises UsageError."""
    what, *rest = word.split(",")
    if word == NONE:
        return None
    given = dict(each.partition("=")[::2] for each in rest)
    nfs = _NFS.fullmatch(what)
    known = {"id", "directory"} | (set() if nfs else {"size"})
    where = _directory(given)
    if not (nfs or what == Kind.GFS2) or not set(given) <= known or where is None:
        raise UsageError(f"'--system-datastore {word}' is not understood", hint=_FORM)
    if nfs:
        return Wanted(Datastore(Kind.NFS, nfs["source"], where))
    size = given.get("size", str(_SIZE_MIB))
    if not size.isdecimal() or int(size) < _LEAST_MIB:
        raise UsageError(f"size={size} is not a number of MiB from {_LEAST_MIB} on")
    return Wanted(Datastore(Kind.GFS2, VOLUME, where), int(size))


def _directory(given: dict[str, str]) -> str | None:
    if ("id" in given) == ("directory" in given):
        return None
    if "id" in given:
        return f"{_WHERE}/{int(given['id'])}" if given["id"].isdecimal() else None
    path = given["directory"]
    is_plain = _DIRECTORY.fullmatch(path) and os.path.normpath(path) == path
    return path if is_plain else None


def check(host: Host, directory: str) -> Check:
    """Whether something would be hidden below the file system."""
    path = host.path(directory)
    if os.path.ismount(path):
        return ok("datastore", f"{directory} is mounted")
    if os.path.lexists(path) and (not os.path.isdir(path) or os.listdir(path)):
        advice = "move what is in it away: it would be hidden below the shared file system"
        return failed("datastore", f"{directory} is not empty", advice)
    return ok("datastore", f"{directory} is free")


def make(runner: Runner, cluster: str, vg: str, size_mib: int) -> bool:
    """Make the volume and its file system; False where it is there.

    One that was broken off is made anew: until it is ready it is this node's alone, so no other
    has it mounted. Raises RefusedError for a volume of that name that is not ours.
    """
    group = lvm.group(runner, vg)
    there = group.find(VOLUME)
    if there is None:
        lvm.create(runner, group, VOLUME, size_mib, [_FILLING])
    elif _READY in there.tags:
        return False
    elif _FILLING not in there.tags:
        raise RefusedError(
            f"the volume {vg}/{VOLUME} exists, and was not made by cxm-setup",
            hint="rename it, or remove it if nobody needs it",
        )
    else:
        lvm.activate(runner, group, VOLUME)
    runner.run(mkfs(cluster, vg), timeout_s=_MKFS_S)
    _let_go(runner, group)
    return True


def mkfs(cluster: str, vg: str) -> list[str]:
    """The command that makes the file system."""
    argv = ["mkfs.gfs2", "-O", "-p", "lock_dlm", "-t", f"{cluster}:cxm-system"]
    return [*argv, "-j", str(MOST_NODES), "-J", str(_JOURNAL_MIB), f"/dev/{vg}/{VOLUME}"]


def is_made(runner: Runner, vg: str) -> bool:
    """Whether the file system is there and whole; raises CxmError where that cannot be seen."""
    there = lvm.group(runner, vg).find(VOLUME)
    return there is not None and _READY in there.tags


def _let_go(runner: Runner, group: Group) -> None:
    lvm.deactivate(runner, group, VOLUME)
    lvm.retag(runner, group, VOLUME, old=[_FILLING], new=[_READY])


def is_strange(host: Host, directory: str) -> bool:
    """Whether the directory is not there, or not oneadmin's. Raises NotFoundError."""
    account, path = _oneadmin(host), host.path(directory)
    if not os.path.exists(path):
        return True
    status = os.stat(path)
    return (status.st_uid, status.st_gid) != (account.uid, account.gid)


def _oneadmin(host: Host) -> Account:
    account = host.account(nodecheck.USER)
    if account is None:
        raise NotFoundError(f"there is no account {nodecheck.USER}", hint="install cxm-node again")
    return account


def own(host: Host, directory: str) -> bool:
    """Give the mounted file system to oneadmin; whether it was not. Raises CxmError."""
    if not is_strange(host, directory):
        return False
    account = _oneadmin(host)
    try:
        os.chown(host.path(directory), account.uid, account.gid)
    except OSError as error:
        raise CxmError(
            f"{directory} cannot be given to {nodecheck.USER}: {error.strerror}",
            hint=f"on the NFS server: chown {account.uid}:{account.gid} the exported directory",
        ) from error
    return True
