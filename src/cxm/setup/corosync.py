# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns Corosync's files: corosync.conf of a cluster, whose one is there already, its key. Pure."""

import base64
import re
import secrets
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
    OTHER = "of another cluster"


def conf(cluster: Cluster) -> str:
    """corosync.conf, the same on every node."""
    nodes = "".join(
        f"    node {{\n        nodeid: {number}\n        name: {name}\n"
        f"        ring0_addr: {address}\n    }}\n"
        for number, (name, address) in enumerate(cluster.nodes.items(), 1)
    )
    # Two nodes cannot have a majority; so that a node that comes up alone does not fence the other
    # at once, it waits until it has seen it.
    pair = "    two_node: 1\n    wait_for_all: 1\n" if len(cluster.nodes) == _PAIR else ""
    return f"""\
# Written by cxm-setup: the same on every node of the cluster. docs/cluster.md says why.
totem {{
    version: 2
    cluster_name: {cluster.name}
    # One link: DLM supports no more. Let the network below be redundant.
    transport: knet
    crypto_cipher: aes256
    crypto_hash: sha256
    token: {cluster.token_ms}
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


def name_of(text: str) -> str | None:
    """The name of the cluster that a corosync.conf is of."""
    found = re.search(r"^\s*cluster_name:\s*(\S+)", text, re.MULTILINE)
    return found[1] if found else None


def present(text: str | None, cluster: Cluster) -> Present:
    """Whose corosync.conf this is. Debian's package comes with one of a node on 127.0.0.1."""
    if text is None:
        return Present.NONE
    addresses = re.findall(r"^\s*ring\d+_addr:\s*(\S+)", text, re.MULTILINE)
    if name_of(text) == cluster.name and addresses == list(cluster.nodes.values()):
        return Present.OURS
    is_example = set(addresses) == {"127.0.0.1"} or name_of(text) is None
    return Present.PACKAGE if is_example else Present.OTHER


def new_key() -> str:
    """A key that nobody else has."""
    return base64.b64encode(secrets.token_bytes(_KEY_BYTES)).decode()
