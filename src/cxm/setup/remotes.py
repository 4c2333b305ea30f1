# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns how the drivers get into OpenNebula's remotes directory: planned, then put in place.

The package holds the tree as it lands there, links as links. Directories of ours hold nothing else:
what a former version of cxm left is removed; what somebody else put there (the original drivers
have the same names) is moved out of the tree, which OpenNebula copies to every host.
"""

import filecmp
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from cxm.errors import CxmError, NotFoundError
from cxm.one.version import OneVersion

TREE: Final = "/usr/share/cxm/remotes"

_COMMON: Final = ("cxm", "tm", "vmm")
_OURS: Final = ("cxm", "tm/cxm", "tm/cxm_local", "vmm/cxm", "im/cxm.d", "im/cxm-probes.d")
_STUB: Final = "cxm/action"


@dataclass(frozen=True, slots=True)
class Plan:
    """What has to be done to a remotes directory; paths relative to it."""

    add: dict[str, str]  # to be put in place -> the file or link of the package
    remove: tuple[str, ...]
    move: tuple[str, ...]  # of somebody else

    @property
    def is_empty(self) -> bool:
        """Whether everything is in place."""
        return not (self.add or self.remove or self.move)


def _leaves(top: str) -> Iterator[str]:
    """Files and links below ``top``, relative to it; links are never followed."""
    for directory, directories, files in os.walk(top):
        for name in [*files, *directories]:
            path = os.path.join(directory, name)
            if name in files or os.path.islink(path):
                yield os.path.relpath(path, top)


def _monitoring(tree: str, version: OneVersion) -> str:
    """The directory of the probes for a version: the newest that is not newer (design 0006)."""
    found: list[tuple[tuple[int, ...], str]] = []
    for name in os.listdir(tree):
        match = re.fullmatch(r"im-([0-9]+)\.([0-9]+)", name)
        if match and (int(match[1]), int(match[2])) <= version:
            found.append(((int(match[1]), int(match[2])), name))
    if not found:
        raise NotFoundError(f"cxm has no probes for OpenNebula {version}")
    return max(found)[1]


def wanted(tree: str, version: OneVersion) -> dict[str, str]:
    """What belongs into the remotes directory of a version, and where the package has it."""
    if not os.path.exists(os.path.join(tree, _STUB)):
        raise NotFoundError(
            f"the drivers are not in {tree}", hint="install the package cxm-frontend"
        )
    tops = {name: name for name in _COMMON} | {"im": _monitoring(tree, version)}
    return {
        os.path.join(target, leaf): os.path.join(tree, source, leaf)
        for target, source in tops.items()
        for leaf in _leaves(os.path.join(tree, source))
    }


def _same(present: str, source: str) -> bool:
    if os.path.islink(source):
        return os.path.islink(present) and os.readlink(present) == os.readlink(source)
    return (
        os.path.isfile(present)
        and not os.path.islink(present)
        and filecmp.cmp(present, source, shallow=False)
        and os.access(present, os.X_OK) == os.access(source, os.X_OK)
    )


def _is_ours(path: str) -> bool:
    """Whether a leaf was put there by a version of cxm."""
    if os.path.islink(path):
        return os.readlink(path).endswith(_STUB)
    try:
        with open(path, "rb") as file:
            return b"The cxm for OpenNebula authors" in file.read(4096)
    except OSError:
        return False


def plan(tree: str, remotes: str, version: OneVersion) -> Plan:
    """What has to be done so that ``remotes`` holds the drivers for a version."""
    want = wanted(tree, version)
    add = {leaf: source for leaf, source in want.items() if not _same(f"{remotes}/{leaf}", source)}
    remove, move = [], []
    for top in _OURS:
        if os.path.islink(os.path.join(remotes, top)):
            continue  # a link to another of ours, and a leaf of its parent
        for below in _leaves(os.path.join(remotes, top)):
            leaf = os.path.join(top, below)
            if leaf in want and leaf not in add:
                continue
            path = os.path.join(remotes, leaf)
            if _is_ours(path) or os.path.basename(leaf) == ".keep":
                remove.append(leaf)
            else:
                move.append(leaf)
    return Plan(add, tuple(remove), tuple(move))


def apply(todo: Plan, remotes: str, backup: str) -> None:
    """Do it; what somebody else had there is below ``backup`` afterwards.

    The files belong to whom this runs as: it is to be the owner of the directory.
    """
    try:
        for leaf in todo.move:
            target = os.path.join(backup, leaf)
            os.makedirs(os.path.dirname(target), exist_ok=True)
            shutil.move(os.path.join(remotes, leaf), target)
        for leaf in todo.remove:
            if leaf not in todo.add:
                os.unlink(os.path.join(remotes, leaf))
        for leaf, source in todo.add.items():
            _put(source, os.path.join(remotes, leaf))
        for top in _OURS:
            _drop_empty(os.path.join(remotes, top))
    except (OSError, shutil.Error) as error:
        raise CxmError(
            f"the drivers cannot be put into {remotes}: {error}",
            hint=f"all in there is to belong to one account: 'chown -R --reference={remotes}' it",
        ) from error


def _put(source: str, target: str) -> None:
    """Copy a file, or make a link, in one step."""
    os.makedirs(os.path.dirname(target), mode=0o755, exist_ok=True)
    new = f"{target}.cxm-new"
    if os.path.lexists(new):
        os.unlink(new)
    if os.path.islink(source):
        os.symlink(os.readlink(source), new)
    else:
        shutil.copyfile(source, new)
        os.chmod(new, 0o755 if os.access(source, os.X_OK) else 0o644)
    os.rename(new, target)


def _drop_empty(top: str) -> None:
    for directory, _directories, _files in os.walk(top, topdown=False):
        if not os.listdir(directory):
            os.rmdir(directory)
