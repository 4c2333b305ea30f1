# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""A change of the CIB is told in a line for each part of it, and tells no secret."""

from dataclasses import replace
from xml.etree.ElementTree import SubElement, fromstring

import pytest

from cxm.cluster import basis, difference, nodes
from cxm.cluster.basis import FenceDevice
from tests.fakes.cib import BMC, EMPTY, of_nodes, section


def test_nothing_is_told_of_what_is_the_same() -> None:
    """Nor of how it is written."""
    before, after = fromstring(EMPTY), fromstring(EMPTY)
    after.set("epoch", "7")
    assert difference.told(before, after) == []


def test_part_that_is_new_gone_or_other_is_a_line() -> None:
    """Its words are told; of one that is gone its name is enough."""
    given = of_nodes("node1", "node2")
    before, after = fromstring(EMPTY), fromstring(EMPTY)
    for cib in (before, after):
        basis.edit(cib, given)
    SubElement(section(before, "constraints"), "rsc_location", {"id": "old", "rsc": "x"})
    second = FenceDevice("node2", "fence_apc", {"ip": "10.0.0.7", "snmp_priv_passwd": "secret"})
    first = FenceDevice("node1", "fence_ipmilan", {**BMC, "password": "secret", "lanplus": "0"})
    basis.edit(after, replace(given, fencing=[first, given.fencing[1], second]))
    new = "+ primitive fence-node2-2: agent stonith:fence_apc, pcmk_host_list node2"
    operations = "monitor interval 120s timeout 60s, start interval 0s timeout 60s"
    assert difference.told(before, after) == [
        "- rsc_location old",
        "~ primitive fence-node1: password *** -> another, lanplus 1 -> 0",
        f"{new}, ip 10.0.0.7, snmp_priv_passwd ***, {operations}",
        "+ rsc_location fence-node2-2-elsewhere: rsc fence-node2-2, node node2, score -INFINITY",
        "+ fencing-level cxm-node2-1: target node2, index 1, devices fence-node2",
        "+ fencing-level cxm-node2-2: target node2, index 2, devices fence-node2-2",
    ]


@pytest.mark.parametrize(
    ("parameter", "secret"),
    [
        ("password", True),
        ("passwd", True),
        ("snmp_priv_passwd", True),
        ("community", True),
        ("api_token", True),
        ("secret_key", True),
        ("ip", False),
        ("username", False),
        ("lanplus", False),
        (nodes.HOST_KEY, False),
    ],
)
def test_secrets_are_known_by_their_names(parameter: str, secret: bool) -> None:
    """Agents have many words for them; the key of a host is public."""
    assert nodes.is_secret(parameter) is secret
