# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what a node of a cluster asks of another: one ssh, one forced command, a few words.

The other's address and host key are in its node attributes: the CIB is authenticated, the network
is not (docs/design/0010). The other end is :mod:`cxm.cluster.peerserver`.
"""

import json
import os
from typing import Any, Final

from cxm.cluster import nodes, pacemaker
from cxm.errors import CommandError, CxmError, DataError, RefusedError, UnreachableError
from cxm.names import CloudId, VmId
from cxm.node.machine import Machine

KEY: Final = "/etc/cxm/peer_key"
_ALIVE: Final = ("-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3")
_CONNECT_S: Final = 10
_SSH_FAILED: Final = 255


def command(machine: Machine, node: str, words: list[str]) -> list[str]:
    """The ssh that has another node do something; it knows that node's host key."""
    known = nodes.attributes(pacemaker.cib(machine.runner), node)
    try:
        address, key = known[nodes.ADDRESS], known[nodes.HOST_KEY]
    except KeyError as error:
        raise RefusedError(
            f"the node {node} has not told its address and host key",
            hint="run 'cxm-setup cluster' on it once more",
        ) from error
    directory = os.path.join(machine.run_dir, "peers")
    os.makedirs(directory, mode=0o700, exist_ok=True)
    path = os.path.join(directory, node)
    fresh = f"{path}.{os.getpid()}"
    with open(fresh, "w", encoding="utf-8") as file:
        file.write(f"{node} {key}\n")
    os.replace(fresh, path)
    options = {
        "BatchMode": "yes",
        "ConnectTimeout": str(_CONNECT_S),
        "StrictHostKeyChecking": "yes",
        "UserKnownHostsFile": path,
        "GlobalKnownHostsFile": "none",
        "HostKeyAlias": node,
        "IdentitiesOnly": "yes",
        "Compression": "no",
    }
    shown = [f"-o{key}={value}" for key, value in options.items()]
    return ["ssh", "-F", "none", "-T", "-i", KEY, *_ALIVE, *shown, f"root@{address}", "--", *words]


def ask(
    machine: Machine, node: str, word: str, cloud: CloudId, vm: VmId, *, timeout_s: float = 180.0
) -> Any:
    """Have another node do something about a VM; returns its answer, raises its failure."""
    argv = command(machine, node, [word, cloud, str(vm)])
    try:
        result = machine.runner.run(argv, timeout_s=timeout_s, ok=(0, CxmError.code))
    except CommandError as error:
        if error.exit_code != _SSH_FAILED:
            raise
        raise UnreachableError(
            f"the node {node} cannot be reached from {machine.hostname}: "
            f"{' '.join(error.stderr.split()) or 'no reason given'}",
            hint="'cxm check' tries the connections between the nodes",
        ) from error
    try:
        answer = json.loads(result.stdout)
    except ValueError as error:
        raise DataError(f"{node} gave no answer to '{word}': {result.stderr[-200:]}") from error
    if "error" in answer:
        raise RefusedError(f"{node}: {answer['error']}", hint=answer.get("hint"))
    return answer
