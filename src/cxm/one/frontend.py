# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what the frontend knows about itself: oned's settings in force and the machine's names.

oned writes the settings that it runs with to the file ``config`` beside the remotes tree, in every
version; what it calls this machine follows from them by oned's own rule.
"""

import os
import re
from typing import Final

from cxm import config

# The list of the actions that a VM driver runs on the frontend, in the ARGUMENTS of its VM_MAD.
LOCAL: Final = re.compile(r"(?:^|\s)(?:-l\s*|--local(?:\s+|=))([^\s-]\S*)")


def _settings(remotes: str, key: str) -> list[str]:
    path = os.path.join(os.path.dirname(remotes), "config")
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return re.findall(rf"^{re.escape(key)}=(.*)$", file.read(), re.MULTILINE)
    except OSError:
        return []


def setting(remotes: str, key: str) -> str | None:
    """A simple setting of the oned that the remotes tree belongs to; None when it is not known."""
    found = _settings(remotes, key)
    return found[-1].strip().strip('"') if found else None


def runs_here(remotes: str, vm_mad: str, action: str) -> bool | None:
    """Whether this oned has a VM driver run an action on the frontend; None when it is not known.

    oned writes a vector as ``VM_MAD=ARGUMENTS=-t 15 -l migrate cxm,NAME=vmm_cxm,...`` (source).
    """
    for vector in reversed(_settings(remotes, "VM_MAD")):
        pairs = dict(re.findall(r"(?:^|,)([A-Z_]+)=(.*?)(?=,[A-Z_]+=|$)", vector))
        if pairs.get("NAME") == vm_mad:
            listed = LOCAL.search(pairs.get("ARGUMENTS", ""))
            words = listed[1].split(",") if listed else []
            return action in {word.partition("=")[0].lower() for word in words}
    return None


def is_frontend(remotes: str) -> bool:
    """Whether the remotes tree is oned's own: a host has a copy, without oned's settings beside.

    A file there that is neither ours nor the tree's owner's is somebody else's: ``/var/tmp``, where
    a host's copy lies, is everybody's.
    """
    try:
        beside = os.stat(os.path.join(os.path.dirname(remotes), "config"))
        return beside.st_uid in (os.geteuid(), os.stat(remotes).st_uid)
    except OSError:
        return False


def is_this_machine(remotes: str, host: str) -> bool:
    """Whether ``host`` is what oned calls the machine that it runs on.

    That is HOSTNAME of its settings (6.0 on), else the machine's host name, made canonical by the
    resolver in 6.x and 7.x.
    """
    wanted = host.lower()
    given = setting(remotes, "HOSTNAME")
    if given and wanted == given.lower():
        return True
    own = os.uname().nodename
    if wanted == own.lower():
        return True
    import socket  # noqa: PLC0415 - most actions never ask

    try:
        found = socket.getaddrinfo(own, None, flags=socket.AI_CANONNAME)
    except OSError:
        return False
    return wanted == found[0][3].lower()


def is_node(settings: str = config.NODE_FILE) -> bool:
    """Whether this machine is a Xen node as well, with disks of its own."""
    return os.path.exists(settings)
