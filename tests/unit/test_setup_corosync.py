# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""corosync.conf is the same on all nodes, and whose one is there is known."""

import pytest

from cxm.setup import corosync
from cxm.setup.clusterargs import Cluster
from cxm.setup.corosync import Present

NODES = {"node1": "10.0.0.1", "node2": "10.0.0.2"}
IDS = {"node1": 1, "node2": 2}
PAIR = Cluster("lab", NODES, "/dev/mapper/san", "LVM_XEN", 5000, ["fence_ipmilan"], IDS, 1)


def test_nodes_are_numbered_and_named() -> None:
    """In their order; encrypted, on one link."""
    text = corosync.conf(PAIR)
    assert "nodeid: 2\n        name: node2\n        ring0_addr: 10.0.0.2\n" in text
    assert "crypto_cipher: aes256" in text
    assert "ring1_addr" not in text
    # Else each node above two adds 650 ms, which SBD's times know nothing of.
    assert "    token: 5000\n" in text
    assert "    token_coefficient: 0\n" in text
    assert "two_node: 1" in text
    assert text.count("{") == text.count("}")


@pytest.mark.parametrize(
    ("text", "present"),
    [
        (None, Present.NONE),
        ("", Present.PACKAGE),
        ("cluster_name: debian\nnode {\n\tring0_addr: 127.0.0.1\n}\n", Present.PACKAGE),
        (corosync.conf(PAIR), Present.OURS),
        (corosync.conf(PAIR).replace("token: 5000", "token: 9000"), Present.OURS),
        (corosync.conf(PAIR).replace("10.0.0.2", "10.0.0.3"), Present.OTHER),
        (corosync.conf(PAIR).replace("name: node2", "name: node3"), Present.CHANGED),
        (corosync.conf(PAIR).replace("cluster_name: lab", "cluster_name: x"), Present.OTHER),
        ("cluster_name: old\ntotem {\n}\n", Present.OTHER),
    ],
)
def test_whose_it_is(text: str | None, present: Present) -> None:
    """A file of another cluster is never overwritten."""
    assert corosync.present(text, PAIR) is present


def test_keys_differ_and_are_long_enough() -> None:
    """Corosync wants 128 bytes at least."""
    assert corosync.new_key() != corosync.new_key()
    assert len(corosync.new_key()) >= 128
