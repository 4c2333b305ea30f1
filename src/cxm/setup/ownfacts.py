# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what a node says of itself in Pacemaker's configuration, and what it has room for."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from xml.etree.ElementTree import Element

from cxm.cluster import basis, capacity, nodes
from cxm.node import room
from cxm.node.room import Seen
from cxm.setup import files
from cxm.setup.clusterargs import Cluster
from cxm.setup.clustercheck import HOST_KEY
from cxm.setup.nodecheck import Host

_PERCENT: Final = 100


@dataclass(frozen=True, slots=True)
class OwnFacts:
    """A node as it is now."""

    name: str
    attributes: Mapping[str, str]
    seen: Seen

    @property
    def cpus(self) -> int:
        return self.seen.info.cpus

    def edit(self, cib: Element) -> int:
        """Write it; returns the memory that guests can have as it is written, in MiB.

        Raises NotFoundError where Pacemaker does not know the node. What is written of its memory
        stays while it is near enough: else no second run would find that there is nothing to do.
        """
        known = nodes.facts(cib).get(self.name)
        said_mib = 0 if known is None else known.number("memory")
        is_near = said_mib > 0 and not capacity.excess(said_mib, self.seen)
        memory_mib = said_mib if is_near else self.seen.room.total_mib
        size = {"memory": str(memory_mib), "cpu": str(self.cpus * _PERCENT)}
        basis.edit_facts(cib, self.name, self.attributes, size)
        return memory_mib


def look(host: Host, me: str, cluster: Cluster) -> OwnFacts:
    """This node; raises CxmError."""
    attributes = {nodes.ADDRESS: cluster.nodes[me], nodes.HOST_KEY: _host_key(host)}
    attributes |= optional(cluster)
    seen = room.look(host.runner)
    if seen.info.hw_caps:
        attributes[nodes.CPU] = seen.info.hw_caps
    return OwnFacts(me, attributes, seen)


def optional(cluster: Cluster) -> dict[str, str]:
    """The attributes of a node that has what is optional."""
    found = {nodes.SBD: cluster.sbd, nodes.DATASTORE: cluster.directory}
    return {name: value for name, value in found.items() if value}


def _host_key(host: Host) -> str:
    words = (files.read(host.path(HOST_KEY)) or "").split()
    return " ".join(words[:2])
