# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the way of a cluster from started services to usable locks, as seen from one node.

Every step waits for what it needs and is left out where it is done: the way can be broken off
anywhere and begun again.
"""

import time
from collections.abc import Callable, Container, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Final
from xml.etree import ElementTree as ET
from xml.etree.ElementTree import Element

from cxm.cluster import basis, datastore, nodes, pacemaker, peer, sbd
from cxm.cluster.basis import Basis, FenceDevice
from cxm.cluster.pacemaker import Status
from cxm.config import NodeConfig
from cxm.errors import CommandError, CxmError, DataError, RefusedError
from cxm.node.machine import ROOT, Machine
from cxm.run import Runner
from cxm.setup import corosync, files, ownfacts, services, shareddisk, sharedfs
from cxm.setup.clusterargs import Cluster
from cxm.setup.clustercheck import CIB_DIR
from cxm.setup.corosync import Present
from cxm.setup.nodecheck import Host
from cxm.setup.sharedfs import Wanted

_PAUSE_S: Final = 2.0
_FENCE: Final = "fence-"
_LVMLOCKD, _LOCKSPACE = "cxm-lvmlockd", "cxm-lockspace"

_Change = Callable[[Runner, Callable[[Element], None], str], bool]


def _change(runner: Runner, edit: Callable[[Element], None], what: str) -> bool:
    return pacemaker.change(runner, edit, what=what)


def _settings(host: Host, node: str) -> str:
    machine = Machine(NodeConfig(), host.runner, ROOT, host.hostname)
    return peer.find(machine, pacemaker.cib(host.runner), node).settings_digest()


@dataclass(frozen=True, slots=True)
class World:
    """A node whose services have been started."""

    host: Host
    say: Callable[[str], None]
    status: Callable[[Runner], Status] = pacemaker.status
    change: _Change = _change
    clean_up: Callable[[Runner, str], None] = pacemaker.clean_up
    remove: Callable[[Runner, str], None] = pacemaker.remove_node
    settings: Callable[[Host, str], str] = _settings  # SHA-256 of a node's corosync.conf
    sleep: Callable[[float], None] = time.sleep
    cib: Callable[[Runner], Element] = pacemaker.cib


def wait(world: World, lacking: Callable[[Status], str]) -> Status:
    """Wait until nothing is lacking; says what is, whenever that changes."""
    told = ""
    while True:
        status = _status(world)
        lacks = "waiting for Pacemaker" if status is None else lacking(status)
        if status is not None and not lacks:
            return status
        if lacks != told:
            world.say(lacks)
            told = lacks
        world.sleep(_PAUSE_S)


def _status(world: World) -> Status | None:
    try:
        return world.status(world.host.runner)
    # Pacemaker that is still starting answers without saying anything.
    except (CommandError, RefusedError, DataError) as error:
        for service in ("corosync", "pacemaker"):
            if not services.is_active(world.host.runner, service):
                raise CxmError(
                    f"{service} does not run on this node: {error.message}",
                    hint=f"journalctl -u {service} says why; then run the same command again",
                ) from error
        return None


def is_node(world: World, cluster: Cluster) -> bool:
    """Whether this machine is a node of the cluster already, of the same members or others."""
    text = files.read(world.host.path(corosync.CONF))
    return corosync.present(text, cluster) in (Present.OURS, Present.CHANGED)


def last_cib(world: World, cluster: Cluster) -> Element:
    """The CIB of this cluster; where Pacemaker does not run here, as it was last; else empty."""
    if not is_node(world, cluster):
        return Element("cib")
    try:
        return world.cib(world.host.runner)
    except CxmError:
        text = files.read(world.host.path(f"{CIB_DIR}/cib.xml"))
        if text is None:
            return Element("cib")
        return ET.fromstring(text)  # noqa: S314 - our own Pacemaker wrote it


def known(world: World, me: str, cluster: Cluster, fencing: Sequence[FenceDevice]) -> set[str]:
    """The fence devices that the cluster has as they are given, and that have worked.

    Those of others answered here before they were written; this node's own has to be proven.
    """
    cib = last_cib(world, cluster)
    had, facts = basis.known(cib, fencing), nodes.facts(cib)
    is_proven = me in facts and facts[me].proven is not None
    own = {name for name, device in basis.named(fencing) if device.node == me}
    return had if is_proven else had - own


def to_be_proven(names: list[str]) -> str:
    """What follows from other fence devices."""
    return (
        f"the fence devices of {listed(names)} change, so no VM is started anywhere before their "
        f"fencing is proven again: {listed([f'cxm fence --test {name}' for name in names])}"
    )


def listed(names: list[str]) -> str:
    """Names in a sentence."""
    return ", ".join(names)


def join(world: World, me: str, cluster: Cluster) -> bool:
    """Wait until this node is a member of a cluster that can decide, and set what it is."""

    def lacking(status: Status) -> str:
        node = status.node(me)
        if node is None or not node.online or node.pending or not status.dc:
            return f"waiting until Pacemaker has taken {me} in"
        if not status.quorate:
            return "waiting for other nodes: these are too few to decide anything"
        return ""

    wait(world, lacking)
    if cluster.sbd:
        wait(world, lambda _status: _sbd(world, me, cluster.sbd))
    own, memory_mib = ownfacts.look(world.host, me, cluster), 0

    def edit(cib: Element) -> None:
        nonlocal memory_mib
        memory_mib = own.edit(cib)

    changed = world.change(world.host.runner, edit, f"what the node {me} is")
    if changed:
        world.say(f"the cluster knows {me}: {memory_mib} MiB for guests, {own.cpus} CPUs")
    return changed


def _sbd(world: World, me: str, disk: str) -> str:
    """A message on the disk kills nobody whose sbd does not read it: it would be no fencing."""
    runner = world.host.runner
    if sbd.reads(runner, disk, world.host.root):
        return ""
    is_active = services.is_active(runner, sbd.SERVICE)
    other = f" and does not read {disk} before it starts again" if is_active else ""
    return (
        f"waiting for sbd, which starts with Corosync{other}: 'cxm eject {me}', "
        f"'systemctl restart corosync pacemaker', 'cxm eject --back {me}' in another terminal"
    )


def require_disk(cib: Element, cluster: Cluster) -> None:
    """Raise RefusedError for another disk of SBD than the one by which the cluster fences."""
    disk, _directory = basis.optional(cib)
    if disk and cluster.sbd and disk != cluster.sbd:
        raise RefusedError(
            f"the nodes of {cluster.name} read {disk}, so a message on {cluster.sbd} would kill "
            "nobody and be taken for a death",
            hint=f"--sbd {disk}; docs/cluster.md, 'Changing a cluster', says how another takes "
            "its place",
        )


def is_whole(world: World, me: str, cluster: Cluster) -> bool:
    """Whether all nodes are there already, and all others have been told of everything."""
    status = _status(world)
    return status is not None and not (missing(cluster, status) or _untold(world, me, cluster))


def _untold(world: World, me: str, cluster: Cluster) -> str:
    """Which other nodes have not said yet that they have what is optional."""
    extras = ownfacts.optional(cluster)
    if not extras:
        return ""
    known = nodes.facts(world.cib(world.host.runner))
    untold = [
        name
        for name in cluster.nodes
        if name != me
        and (name not in known or not extras.items() <= known[name].attributes.items())
    ]
    return f"waiting for {listed(untold)}: run there 'cxm-setup cluster --join ...'" * bool(untold)


def form(
    world: World,
    me: str,
    cluster: Cluster,
    given: Basis,
    wanted: Wanted | None = None,
    *,
    silent: Container[str] = (),
) -> bool:
    """Make the cluster whole from its first node; whether anything was changed.

    Fence devices that are ``silent`` are not waited for: they are known not to answer.
    """
    runner = world.host.runner
    wait(world, lambda status: missing(cluster, status))
    changed = join(world, me, cluster)
    wait(world, lambda _status: _untold(world, me, cluster))
    require_disk(world.cib(runner), cluster)
    unproven: list[str] = []

    def edit(cib: Element) -> None:
        before = deepcopy(cib)
        basis.edit(cib, given)
        unproven[:] = nodes.unproven(before, cib)

    if world.change(runner, edit, f"the basis of {cluster.name}"):
        world.say("written: what every cluster has in Pacemaker's configuration")
        changed = True
        if unproven:
            world.say(to_be_proven(unproven))
        _forget(world, "")
    else:
        # The same command once more is a new try: of a BMC that was repaired, for example.
        _forget(world, _FENCE)
    wait(world, lambda status: _not_on_all(cluster, status, _LVMLOCKD))
    if not shareddisk.has_group(runner, cluster.vg):
        while not shareddisk.make_group(runner, cluster.vg, cluster.device):
            world.sleep(_PAUSE_S)
        world.say(f"made: the shared volume group {cluster.vg} on {cluster.device}")
        changed = True
    wait(world, lambda status: _not_on_all(cluster, status, _LOCKSPACE))
    wait(world, lambda status: _fencing(given, status, silent))
    if wanted is not None:
        changed |= _datastore(world, cluster, given, wanted)
    return changed


def _datastore(world: World, cluster: Cluster, given: Basis, wanted: Wanted) -> bool:
    """Have the system datastore mounted on all nodes."""
    runner, ours = world.host.runner, wanted.datastore
    changed = False
    if ours.kind is datastore.Kind.GFS2:
        changed = sharedfs.make(runner, cluster.name, cluster.vg, wanted.size_mib)
        if changed:
            world.say(f"made: the file system {cluster.vg}/{ours.source}")
    whole = replace(given, datastore=ours)
    if world.change(runner, lambda cib: basis.edit(cib, whole), "the system datastore"):
        world.say(f"written: {ours.directory} is mounted on every node")
        changed = True
    else:
        _forget(world, datastore.GROUP)
    wait(world, lambda status: _mounted(cluster, status))
    if sharedfs.own(world.host, ours.directory):
        world.say(f"{ours.directory} belongs to oneadmin now")
        changed = True
    return changed


def _forget(world: World, prefix: str) -> None:
    """Have Pacemaker try again what has failed of the resources that are called so."""
    runner = world.host.runner
    failed = {each.resource for each in world.status(runner).failures}
    for resource in sorted(each for each in failed if each.startswith(prefix)):
        world.clean_up(runner, resource)


def _mounted(cluster: Cluster, status: Status) -> str:
    """Raises CxmError where it fails, for it is not tried for ever."""
    lacks = _not_on_all(cluster, status, datastore.MOUNT)
    for failure in status.failures if lacks else ():
        if failure.resource.startswith(datastore.GROUP):
            raise CxmError(
                f"the system datastore cannot be mounted on {failure.node}: "
                f"{failure.resource}: {failure.reason}",
                hint="put that right and run this again; no VM needs it",
            )
    return lacks.replace("the locks", "the system datastore")


def missing(cluster: Cluster, status: Status) -> str:
    """Which nodes are waited for; empty when all are there and can decide."""
    online = {node.name for node in status.nodes if node.online and not node.pending}
    away = [name for name in cluster.nodes if name not in online]
    if away:
        return f"waiting for {listed(away)}: run there 'cxm-setup cluster --join ...'"
    return "" if status.dc and status.quorate else "waiting until the nodes agree"


def _not_on_all(cluster: Cluster, status: Status, resource: str) -> str:
    if lacks := missing(cluster, status):
        return lacks
    placed = status.resources.get(resource)
    nodes = () if placed is None else placed.nodes
    # A resource that is being started has its node already.
    if placed is not None and placed.role == "Started" and set(nodes) >= set(cluster.nodes):
        return ""
    why = [each for each in status.failures if each.resource.startswith("cxm-")]
    reason = f" ({why[-1].node}: {why[-1].resource} {why[-1].reason})" if why else ""
    return f"waiting for the locks on all nodes{reason}"


def _fencing(given: Basis, status: Status, silent: Container[str]) -> str:
    """Raises CxmError for a device that does not answer: no guest would ever be safe."""
    names = [name for name in status.resources if name.startswith(_FENCE)]
    off = [name for name in names if status.resources[name].role != "Started"]
    waiting = [name for name in off if name not in silent]
    for failure in status.failures:
        # One that has started since has forgotten nothing, but works.
        if failure.resource in waiting:
            raise CxmError(
                f"the fence device {failure.resource} does not work from {failure.node}: "
                f"{failure.reason}",
                hint="repair it, or correct --fence, and run this again; all else is in place",
            )
    if len(names) < len(given.fencing) + (given.sbd is not None) or waiting:
        return f"waiting for the fence devices {listed(waiting)}"
    return ""
