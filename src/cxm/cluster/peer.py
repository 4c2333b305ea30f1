# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what a node of a cluster asks of another: one ssh, one forced command, a few words.

The other's address and host key are in its node attributes: the CIB is authenticated, the network
is not (docs/design/0010). The other end is :mod:`cxm.cluster.peerserver`.
"""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from cxm.cluster import nodes, pacemaker
from cxm.cluster.pacemaker import Status
from cxm.errors import CommandError, CxmError, DataError, RefusedError, UnreachableError
from cxm.names import CloudId, VmId
from cxm.node.machine import Machine

KEY: Final = "/etc/cxm/peer_key"
_ALIVE: Final = ("-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3")
_CONNECT_S: Final = 10
_TIMEOUT_S: Final = 60.0
_COPY_S: Final = 240.0  # of a kernel or ramdisk; an agent's start, which may fetch two, has 300 s
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


def others(machine: Machine, status: Status) -> list[str]:
    """The other nodes that can be asked."""
    return [
        node.name
        for node in status.nodes
        if node.online and not (node.pending or node.unclean) and node.name != machine.hostname
    ]


def ask(
    machine: Machine, node: str, word: str, cloud: CloudId, vm: VmId, *, timeout_s: float = 180.0
) -> Any:
    """Have another node do something about a VM; returns its answer, raises its failure."""
    return _answer(machine, node, [word, cloud, str(vm)], timeout_s=timeout_s)


def lacks(machine: Machine, node: str, digests: Iterable[str]) -> list[str]:
    """Which of these kernels and ramdisks another node does not have; it keeps the others."""
    answer = _answer(machine, node, ["lacks", *sorted(digests)], timeout_s=_TIMEOUT_S)
    return [str(digest) for digest in answer["lacks"]]


def give(machine: Machine, node: str, digest: str, content: Iterable[bytes]) -> None:
    """Have another node keep a kernel or ramdisk; raises its failure."""
    _answer(machine, node, ["keep", digest], timeout_s=_COPY_S, content=content)


@contextmanager
def taken(machine: Machine, node: str, digest: str) -> Iterator[Iterator[bytes]]:
    """The content of another node's kernel or ramdisk; raises when it does not have it."""
    argv = command(machine, node, ["fetch", digest])
    try:
        with machine.runner.produce(argv, timeout_s=_COPY_S) as content:
            yield content
    except CommandError as error:
        raise _unreachable(machine, node, error) from error


def settings_digest(machine: Machine, node: str) -> str:
    """The SHA-256 of another node's corosync.conf."""
    answer = _answer(machine, node, ["corosync"], timeout_s=_TIMEOUT_S)
    return str(answer["sha256"])


def _answer(
    machine: Machine,
    node: str,
    words: list[str],
    *,
    timeout_s: float,
    content: Iterable[bytes] = (),
) -> Any:
    argv = command(machine, node, words)
    try:
        result = machine.runner.feed(argv, content, timeout_s=timeout_s, ok=(0, CxmError.code))
    except CommandError as error:
        raise _unreachable(machine, node, error) from error
    try:
        answer = json.loads(result.stdout)
    except ValueError as error:
        raise DataError(f"{node} gave no answer to '{words[0]}': {result.stderr[-200:]}") from error
    if "error" in answer:
        raise RefusedError(f"{node}: {answer['error']}", hint=answer.get("hint"))
    return answer


def _unreachable(machine: Machine, node: str, error: CommandError) -> CxmError:
    """What a failed ssh means: the node was not reached, or what it ran there failed."""
    if error.exit_code != _SSH_FAILED:
        return error
    return UnreachableError(
        f"the node {node} cannot be reached from {machine.hostname}: "
        f"{' '.join(error.stderr.split()) or 'no reason given'}",
        hint="'cxm check' tries the connections between the nodes",
    )
