# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns Corosync's files: corosync.conf of a cluster, whose one is there already, its key. Pure."""

import base64
import re
import secrets
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

from cxm.setup.clusterargs import Cluster

CONF: Final = "/etc/corosync/corosync.conf"
AUTHKEY: Final = "/etc/corosync/authkey"
_PAIR: Final = 2
# Letters, so that the key is a text: those that AES takes are 192 random bits.
_KEY_BYTES: Final = 192


class Present(Enum):
    """Whose configuration a machine has."""

    NONE = "none"
    PACKAGE = "the package's example"
    OURS = "of this cluster"
    CHANGED = "of this cluster, with other members"
    OTHER = "of another cluster"


def conf(cluster: Cluster) -> str:
    """corosync.conf, the same on every node."""
    nodes = "".join(
        f"    node {{\n        nodeid: {number}\n        name: {name}\n"
        f"        ring0_addr: {cluster.nodes[name]}\n    }}\n"
        for name, number in sorted(cluster.ids.items(), key=lambda pair: pair[1])
    )
    # Two nodes cannot have a majority; so that a node that comes up alone does not fence the other
    # at once, it waits until it has seen it: two_node implies wait_for_all. Said in so many words,
    # wait_for_all would stay as it was when a cluster grows or shrinks while it runs.
    pair = "    two_node: 1\n" if len(cluster.nodes) == _PAIR else ""
    version = f"    config_version: {cluster.version}\n" if cluster.version else ""
    return f"""\
# Written by cxm-setup: the same on every node of the cluster. docs/cluster.md says why.
totem {{
    version: 2
    cluster_name: {cluster.name}
{version}    # One link: DLM supports no more. Let the network below be redundant.
    transport: knet
    crypto_cipher: aes256
    crypto_hash: sha256
    token: {cluster.token_ms}
    # As given, whatever the number of nodes: the times of SBD's disk are derived from it.
    token_coefficient: 0
}}

nodelist {{
{nodes}}}

quorum {{
    provider: corosync_votequorum
{pair}}}

logging {{
    to_syslog: yes
    timestamp: on
}}
"""


@dataclass(frozen=True, slots=True)
class Member:
    """A node as a corosync.conf has it."""

    number: int
    address: str


def members(text: str) -> dict[str, Member]:
    """The nodes of a corosync.conf by name; one without name or number is left out."""
    found = {}
    for block in re.findall(r"^\s*node\s*\{([^}]*)\}", text, re.MULTILINE):
        said = dict(re.findall(r"^\s*(\w+):\s*(\S+)", block, re.MULTILINE))
        if "name" in said and said.get("nodeid", "").isdecimal():
            found[said["name"]] = Member(int(said["nodeid"]), said.get("ring0_addr", ""))
    return found


def version(text: str) -> int:
    """The version of a corosync.conf; 0 where it says none."""
    found = re.search(r"^\s*config_version:\s*(\d+)", text, re.MULTILINE)
    return int(found[1]) if found else 0


def like(text: str, cluster: Cluster) -> bool:
    """Whether a corosync.conf differs from the cluster's in nothing but its members."""
    have = members(text)
    same = replace(
        cluster,
        nodes={name: each.address for name, each in have.items()},
        ids={name: each.number for name, each in have.items()},
        version=version(text),
    )
    return text == conf(same)


def name_of(text: str) -> str | None:
    """The name of the cluster that a corosync.conf is of."""
    found = re.search(r"^\s*cluster_name:\s*(\S+)", text, re.MULTILINE)
    return found[1] if found else None


def present(text: str | None, cluster: Cluster) -> Present:
    """Whose corosync.conf this is. Debian's package comes with one of a node on 127.0.0.1."""
    if text is None:
        return Present.NONE
    addresses = re.findall(r"^\s*ring\d+_addr:\s*(\S+)", text, re.MULTILINE)
    have = {name: each.address for name, each in members(text).items()}
    if name_of(text) == cluster.name and have:
        if have == dict(cluster.nodes):
            return Present.OURS
        common = have.keys() & cluster.nodes.keys()
        if common and all(have[name] == cluster.nodes[name] for name in common):
            return Present.CHANGED
    is_example = set(addresses) == {"127.0.0.1"} or name_of(text) is None
    return Present.PACKAGE if is_example else Present.OTHER


def new_key() -> str:
    """A key that nobody else has."""
    return base64.b64encode(secrets.token_bytes(_KEY_BYTES)).decode()
