# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns who may nudge: a line in authorized_keys of oned's account for each node of a cluster.

A node makes its own key, which it tells to whoever may ask its helper, and the frontend can. The
line forces one command, which starts a turn of the sync and does nothing else. Lines of hosts that
OpenNebula knows no more go; those that somebody else wrote stay.
"""

import logging
import os
import re
from collections.abc import Callable, Collection, Mapping
from typing import Final

from cxm import names, together, wholefile
from cxm.errors import CxmError, UsageError
from cxm.node.client import Node
from cxm.setup import keys
from cxm.sync.look import AT_ONCE, Seen

_log = logging.getLogger(__name__)

COMMAND: Final = "/usr/sbin/cxm-sync"
_MARK: Final = "cxm-sync:node="
_ASK_S: Final = 30.0


def let_in(node: Callable[[str], Node], seen: Seen, home: str, command: str) -> None:
    """Write the lines of all nodes of clusters; raises OSError where that cannot be."""
    asked = [
        host
        for answer in seen.world.answers
        if answer.clustered
        for host in answer.hosts
        if host in seen.hosts and host not in answer.away
    ]
    wanted = _keys(node, asked)
    path = os.path.join(home, ".ssh", "authorized_keys")
    try:
        # Whatever others' comments are written in, their lines stay byte for byte.
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
            old = file.read()
    except FileNotFoundError:
        old = ""
    new = merge(old, wanted, seen.hosts.keys(), command)
    if new != old:
        data = new.encode(errors="surrogateescape")
        fresh = f"{path}.cxm-new"
        wholefile.write(path, data, mode=0o600, directory_mode=0o700, fresh=fresh, sync=True)
        _log.info("nodes that may nudge: %s", ", ".join(sorted(wanted)))


def _keys(node: Callable[[str], Node], hosts: Collection[str]) -> dict[str, keys.PublicKey | None]:
    """The keys of nodes; None for one that has none, or does not answer."""

    def one(host: str) -> keys.PublicKey | None:
        said = node(host).call("nudge-key", {}, timeout_s=_ASK_S)["key"]
        return keys.public_key(str(said)) if said else None

    found: dict[str, keys.PublicKey | None] = {}
    for host, answer in together.ask(hosts, one, at_once=AT_ONCE).items():
        if isinstance(answer, CxmError):
            _log.debug("%s tells no key: %s", host, answer.sentence())
        found[host] = None if isinstance(answer, CxmError) else answer
    return found


def merge(
    old: str, wanted: Mapping[str, keys.PublicKey | None], known: Collection[str], command: str
) -> str:
    """authorized_keys with a line for each wanted host that told its key.

    A host that told none keeps its line; one that is not ``known`` to OpenNebula loses it.
    """
    kept = []
    for line in old.removesuffix("\n").split("\n") if old else ():
        match = re.search(rf" {_MARK}(\S+)$", line)
        if match is None or (match[1] in known and wanted.get(match[1]) is None):
            kept.append(line)
    for host, key in sorted(wanted.items()):
        if key is not None:
            kept.append(line_of(host, key, command))
    return "".join(f"{line}\n" for line in kept)


def line_of(host: str, key: keys.PublicKey, command: str) -> str:
    """The line that lets a node nudge."""
    names.host_name(host)
    if not re.fullmatch(r"[A-Za-z0-9_./ -]+", command):
        raise UsageError(f"the path '{command}' cannot be written into authorized_keys")
    return f'command="{command} --nudged",restrict {key} {_MARK}{host}'
