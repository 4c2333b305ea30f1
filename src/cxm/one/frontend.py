# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what the frontend knows about itself: oned's settings in force and the machine's names.

oned writes the settings that it runs with to the file ``config`` beside the remotes tree, in every
version; what it calls this machine follows from them by oned's own rule.
"""

import os
import re

from cxm import config


def setting(remotes: str, key: str) -> str | None:
    """A simple setting of the oned that the remotes tree belongs to; None when it is not known."""
    path = os.path.join(os.path.dirname(remotes), "config")
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            found = re.findall(rf"^{re.escape(key)}=(.*)$", file.read(), re.MULTILINE)
    except OSError:
        return None
    return found[-1].strip().strip('"') if found else None


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
