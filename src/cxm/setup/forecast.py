# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what a dry run says of the cluster beyond this machine's files and services.

It takes the steps of :mod:`cxm.setup.changing` and :mod:`cxm.setup.forming` on a copy of the CIB.
"""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from xml.etree.ElementTree import Element, SubElement

from cxm.cluster import basis, datastore, difference, nodes
from cxm.cluster.basis import Basis
from cxm.cluster.elements import child
from cxm.errors import CxmError
from cxm.run import Runner
from cxm.setup import changing, forming, ownfacts, shareddisk, sharedfs
from cxm.setup.clusterargs import Cluster
from cxm.setup.forming import World
from cxm.setup.sharedfs import Wanted


def lines(
    world: World, me: str, cluster: Cluster, given: Basis | None, wanted: Wanted | None
) -> list[str]:
    """What would be done, in the order in which it is; empty when all is done.

    ``given`` is what only the first node knows, None elsewhere: there it is what the node says of
    itself.
    """
    is_there = forming.is_node(world, cluster)
    before = forming.last_cib(world, cluster)
    after = deepcopy(before)
    said = _members(world, me, cluster, after) if given is not None and is_there else []
    _edit_facts(world, me, cluster, after)
    if given is not None:
        ours = wanted.datastore if wanted is not None else None
        basis.edit(after, replace(given, datastore=ours))
    if differences := difference.told(before, after):
        said += ["in Pacemaker's configuration:", *(f"  {each}" for each in differences)]
    if unproven := nodes.unproven(before, after):
        said.append(forming.to_be_proven(unproven))
    if given is not None:
        said += _storage(world, cluster, wanted, basis.optional(before)[1])
    return said


def _members(world: World, me: str, cluster: Cluster, cib: Element) -> list[str]:
    """A node that comes or goes; what is said of one that goes is taken out of the CIB."""
    said = []
    if changing.is_due(world, me, cluster):
        said.append(f"when all nodes have this corosync.conf: {' '.join(changing.RELOAD)}")
    try:
        gone = changing.gone(world, cluster)
    except CxmError:
        return said  # Pacemaker does not run here
    for node in gone:
        basis.edit_gone(cib, node.name)
        said.append(f"crm_node --remove {node.name} --force")
    return said


def _edit_facts(world: World, me: str, cluster: Cluster, cib: Element) -> None:
    if not basis.has_facts(cib, me):
        SubElement(child(child(cib, "configuration"), "nodes"), "node", {"uname": me})
    ownfacts.look(world.host, me, cluster).edit(cib)


def _storage(world: World, cluster: Cluster, wanted: Wanted | None, mounted: str) -> Iterator[str]:
    runner, vg = world.host.runner, cluster.vg
    has_group = shareddisk.group_on(runner, cluster.device) == vg
    if not has_group:
        yield " ".join(shareddisk.create(vg, cluster.device))
    if wanted is None:
        return
    ours = wanted.datastore
    if ours.kind is datastore.Kind.GFS2 and not (has_group and _is_made(runner, vg)):
        yield f"make the volume {vg}/{ours.source} of {wanted.size_mib} MiB"
        yield " ".join(sharedfs.mkfs(cluster.name, vg))
    if mounted != ours.directory or sharedfs.is_strange(world.host, ours.directory):
        yield f"give {ours.directory} to oneadmin, once it is mounted"


def _is_made(runner: Runner, vg: str) -> bool:
    try:
        return sharedfs.is_made(runner, vg)
    except CxmError:
        return False  # without its locks the group cannot be looked at; what is made stays
