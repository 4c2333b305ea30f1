# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what OpenNebula calls a node of a cluster: read, checked and written in Pacemaker's CIB."""

from dataclasses import dataclass

from cxm import names
from cxm.cluster import nodes, pacemaker
from cxm.errors import RefusedError
from cxm.run import Runner


@dataclass(frozen=True, slots=True)
class HostName:
    """A node's name in OpenNebula, as it is in the CIB and as it shall be."""

    node: str
    old: str | None
    new: str

    @property
    def changes(self) -> bool:
        """Whether anything is to be written."""
        return self.old != self.new


def planned(runner: Runner, wanted: str | None) -> HostName:
    """What this node shall be called: as asked for, as before, or as Pacemaker calls it.

    Raises RefusedError where Pacemaker does not answer, and for what may mean another node.
    """
    me, known = pacemaker.local_node(runner), nodes.facts(pacemaker.cib(runner))
    old = known[me].attributes.get(nodes.HOST) if me in known else None
    new = names.host_name(wanted or old or me)
    for name, other in known.items():
        if name != me and new in (name, other.attributes.get(nodes.HOST, name)):
            raise RefusedError(
                f"OpenNebula cannot call this node '{new}': that is the node {name}",
                hint="--host NAME: as 'onehost list' shows this machine",
            )
    return HostName(me, old, new)


def write(runner: Runner, name: HostName) -> None:
    """Put it into the CIB."""
    pacemaker.change(
        runner,
        lambda cib: nodes.set_attribute(cib, name.node, nodes.HOST, name.new),
        what=f"OpenNebula calls the node {name.node} '{name.new}'",
    )
