# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what a cluster shall be, as the command line says it: checked words, typed values."""

import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from cxm.cluster.basis import FenceDevice
from cxm.errors import UsageError
from cxm.setup import files

TOKEN_MS: Final = 5000
# DLM of Debian 12 supports no more nodes; Corosync's token gets slower with each.
MOST_NODES: Final = 16
_FEWEST_NODES: Final = 2
_LEAST_TOKEN_MS, _MOST_TOKEN_MS = 1000, 120000
_MOST_SBD_TOKEN_MS: Final = 10000
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")
_NODE: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,62}[A-Za-z0-9])?")
_VG: Final = re.compile(r"[A-Za-z0-9+_.][A-Za-z0-9+_.-]{0,126}")
_DEVICE: Final = re.compile(r"/dev/(disk/by-id|mapper)/[A-Za-z0-9][A-Za-z0-9+:=@_.-]*")
_AGENT: Final = re.compile(r"fence_[a-z0-9_]+")
_KEY: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


@dataclass(frozen=True, slots=True)
class Cluster:
    """What all nodes of a cluster have in common, but its secrets."""

    name: str
    nodes: Mapping[str, str]  # name -> address
    device: str
    vg: str
    token_ms: int
    agents: Sequence[str]  # fence agents that every node needs
    ids: Mapping[str, int]  # name -> Corosync's number of it, which never changes
    version: int  # of corosync.conf: a node that comes back with an older one is not let in
    sbd: str = ""  # the disk by which nodes order each other to die
    datastore: str = ""  # what the shared system datastore is made of: gfs2 or nfs
    directory: str = ""  # where it is mounted
    former: Sequence[str] = ()  # nodes that have left, and still have a slot on SBD's disk


def cluster(
    name: str,
    nodes: Sequence[str],
    *,
    device: str,
    vg: str,
    token_ms: int,
    fencing: Sequence[FenceDevice],
    sbd: str = "",
) -> Cluster:
    """The cluster that was asked for; raises UsageError with the first thing that is wrong."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"'{name}' is not the name of a cluster: at most 32 of A-Z a-z 0-9 _ -")
    if not _VG.fullmatch(vg) or vg in (".", ".."):
        raise UsageError(f"'{vg}' is not the name of a volume group")
    if not _DEVICE.fullmatch(device):
        raise UsageError(
            f"'{device}' may name another disk after a restart, or on another node",
            hint="--device takes a name below /dev/disk/by-id/ or /dev/mapper/",
        )
    if not _LEAST_TOKEN_MS <= token_ms <= _MOST_TOKEN_MS:
        raise UsageError(f"--token-ms {token_ms} is not between 1000 and 120000")
    if sbd:
        _check_sbd(sbd, device, token_ms)
    addresses = _addresses(nodes)
    for each in fencing:
        if each.node not in addresses:
            raise UsageError(f"--fence names {each.node}, which is no --node")
    for node in addresses:
        if not sbd and all(each.node != node for each in fencing):
            raise UsageError(
                f"nothing can cut {node} off: no guest of it could ever be started elsewhere",
                hint=f"--fence {node}=fence_ipmilan,ip=ADDRESS,username=NAME,password=@FILE, "
                "or --sbd DISK",
            )
    agents = sorted({each.agent for each in fencing} | ({"fence_sbd"} if sbd else set()))
    ids = {node: number for number, node in enumerate(addresses, 1)}
    return Cluster(name, addresses, device, vg, token_ms, agents, ids, 1, sbd)


def _check_sbd(sbd: str, device: str, token_ms: int) -> None:
    if not _DEVICE.fullmatch(sbd):
        raise UsageError(
            f"'{sbd}' may name another disk after a restart, or on another node",
            hint="--sbd takes a name below /dev/disk/by-id/ or /dev/mapper/",
        )
    if sbd == device:
        raise UsageError("--sbd and --device are the same disk", hint="SBD needs one of its own")
    if token_ms > _MOST_SBD_TOKEN_MS:
        raise UsageError(
            f"--token-ms {token_ms} is too long for SBD: at most {_MOST_SBD_TOKEN_MS}",
            hint="a node waits for six tokens before it starts, and systemd for 90 s",
        )


def _addresses(words: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for word in words:
        name, given, address = word.partition("=")
        if not given or not _NODE.fullmatch(name):
            raise UsageError(f"'--node {word}' is not of the form NAME=ADDRESS")
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            raise UsageError(
                f"'{address}' of node {name} is not an IP address",
                hint="a name would have to be known whenever a node starts",
            ) from None
        if name in found or str(parsed) in found.values():
            raise UsageError(f"'--node {word}': this name or address is given twice")
        found[name] = str(parsed)
    if not _FEWEST_NODES <= len(found) <= MOST_NODES:
        raise UsageError(
            f"{len(found)} nodes were given; a cluster has 2 to {MOST_NODES}",
            hint="give --node NAME=ADDRESS once for each, also for this one",
        )
    return found


def fence_device(word: str) -> FenceDevice:
    """The device of ``NODE=AGENT,KEY=VALUE,...``; a value ``@FILE`` is the file's first line."""
    node, given, rest = word.partition("=")
    agent, *pairs = rest.split(",")
    if not given or not _AGENT.fullmatch(agent):
        raise UsageError(f"'--fence {node}=...' is not of the form NODE=AGENT,KEY=VALUE,...")
    parameters: dict[str, str] = {}
    for pair in pairs:
        key, found, value = pair.partition("=")
        if not found or not _KEY.fullmatch(key):
            # Not the text itself: it may be a part of a password.
            raise UsageError(
                f"the parameters of --fence {node}={agent} are not of the form KEY=VALUE,...",
                hint="a value with a comma goes into a file: KEY=@FILE",
            )
        parameters[key] = _from_file(value[1:]) if value.startswith("@") else value
    return FenceDevice(node, agent, parameters)


def _from_file(path: str) -> str:
    lines = (files.read(path) or "").splitlines()
    if not lines:
        raise UsageError(f"the file {path} for --fence is empty or does not exist")
    return lines[0]
