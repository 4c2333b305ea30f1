# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the configuration of the original cxm, ``/etc/xen/cxm.conf``: read once, never run. Pure."""

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cxm.errors import ConfigError

_TOKEN_MS_PER_TIMER: Final = 2000  # it took a master for lost after twice its timer, in seconds
_NOTHING: Final = "nothing replaces it"
_SYSLOG: Final = f"{_NOTHING}: 'journalctl -u pacemaker -u corosync', and cxm-setup --debug"
_PORTS: Final = f"{_NOTHING}: Corosync needs UDP port 5405 between the nodes"
_BALANCE: Final = "the setting of this name in the nodes' cxmrc"
_REPLACED: Final = {
    "API_DEBUG": _SYSLOG,
    "DAEMON_DEBUG": _SYSLOG,
    "QUIET": f"{_NOTHING}: programs read what is machine readable",
    "NOREFRESH": f"{_NOTHING}: lvmlockd refreshes what has changed",
    "PATH": f"{_NOTHING}: programs are looked for in the system's directories",
    "VMCONF_DIR": "configurations are in Pacemaker's CIB; CFG_DIR of cxmrc is for standalone hosts",
    "SHUTDOWN_TIMEOUT": "SHUTDOWN_TIMEOUT of the frontend's cxmrc",
    "POST_MIGRATION_HOOK": "OpenNebula is told of every move, and of every failover; a program of "
    "your own: POST_MIGRATION_HOOK of each node's cxmrc",
    "LB_MAX_VM_PER_NODE": _BALANCE,
    "LB_MAX_MIGRATION": _BALANCE,
    "LB_MAX_LAYER": "LB_MAX_MIGRATION of the nodes' cxmrc",
    "LB_MIN_GAIN": _BALANCE,
    "FENCE_CMD": "--fence, with an agent of the package fence-agents for each node",
    "DISABLE_FENCING": f"{_NOTHING}: without fencing no guest is started elsewhere",
    "UDP_PORT": _PORTS,
    "TCP_PORT": _PORTS,
    "UNIX_PORT": _PORTS,
    "HB_DISK": f"{_NOTHING}: a majority of nodes decides; the disk can be used for something else",
}
_OURS: Final = ("CLUSTER_NAME", "ALLOWED_NODES", "TIMER")


@dataclass(frozen=True, slots=True)
class Original:
    """What of it goes on to count, and a sentence for everything else."""

    name: str | None
    nodes: Sequence[str]
    token_ms: int | None
    told: Sequence[str]


def read(text: str, source: str) -> Original:
    """What a cxm.conf says; raises ConfigError. It was a Python program: only values are read."""
    found = _assignments(text, source)
    name, nodes, timer = (found.get(key) for key in _OURS)
    for key, value, kind in (
        ("CLUSTER_NAME", name, str),
        ("ALLOWED_NODES", nodes, list),
        ("TIMER", timer, int),
    ):
        if value is not None and not isinstance(value, kind):
            raise ConfigError(f"{source}: {key} is {value!r}, which it cannot be")
    told = [_sentence(source, key) for key in found if key not in _OURS]
    return Original(
        name,
        [str(each) for each in nodes or ()],
        None if timer is None else timer * _TOKEN_MS_PER_TIMER,
        told,
    )


def _sentence(source: str, key: str) -> str:
    return f"{source}: {key} does not count any more; instead: {_REPLACED.get(key, _NOTHING)}"


def _assignments(text: str, source: str) -> Mapping[str, Any]:
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError) as error:
        raise ConfigError(f"{source} cannot be read: {error}") from error
    found: dict[str, Any] = {}
    for each in tree.body:
        match each:
            case ast.Assign(targets=[ast.Name(id=key)], value=value):
                try:
                    found[key] = ast.literal_eval(value)
                except ValueError as error:
                    message = f"{source}:{each.lineno}: {key} is calculated: write its value"
                    raise ConfigError(message) from error
            case _:
                raise ConfigError(
                    f"{source}:{each.lineno}: this is a program's line, not a setting: remove it"
                )
    return found
