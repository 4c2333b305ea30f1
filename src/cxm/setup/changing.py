# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns how a cluster gets or loses a node: what must be so before, and the steps on one node.

Every node writes its own corosync.conf (``cxm-setup cluster --join``). Only when all have the same
one does the node that began have it loaded; until then Corosync goes on with the members it had.
"""

import hashlib
import re
from dataclasses import replace
from typing import Final
from xml.etree.ElementTree import Element

from cxm.cluster import basis
from cxm.cluster.cib import parse_id
from cxm.cluster.pacemaker import Node, Status
from cxm.errors import CxmError, RefusedError
from cxm.run import Runner
from cxm.setup import corosync, files, services
from cxm.setup.clusterargs import Cluster
from cxm.setup.corosync import Present
from cxm.setup.forming import World, listed
from cxm.setup.nodecheck import Host

_TIMEOUT_S: Final = 60.0
_PAUSE_S: Final = 2.0
RELOAD: Final = ("corosync-cfgtool", "-R")
_LOADED: Final = re.compile(r"^nodelist\.node\.\d+\.name \(str\) = (\S+)$", re.MULTILINE)


def numbered(text: str | None, cluster: Cluster) -> Cluster:
    """The cluster with the numbers that its nodes have already; a change gets a new version.

    A number is a node's identity to Corosync, DLM and Pacemaker: none may change, or be another's.
    """
    kind = corosync.present(text, cluster)
    if text is None or kind not in (Present.OURS, Present.CHANGED):
        return cluster
    known = corosync.members(text)
    ids = {name: known[name].number for name in cluster.nodes if name in known}
    highest = max(each.number for each in known.values())
    for name in cluster.nodes:
        if name not in ids:
            highest += 1
            ids[name] = highest
    version = corosync.version(text) + (kind is Present.CHANGED)
    return replace(cluster, ids=ids, version=version)


def require(world: World, cluster: Cluster) -> None:
    """Raise RefusedError unless the change that this node's corosync.conf would get is safe."""
    text = files.read(world.host.path(corosync.CONF))
    if text is not None and corosync.present(text, cluster) is Present.CHANGED:
        _require_all(world, set(corosync.members(text)), cluster)


def _require_all(world: World, before: set[str], cluster: Cluster) -> None:
    _require(world.status(world.host.runner), before, cluster)
    _require_optional(world.cib(world.host.runner), cluster)


def _require_optional(cib: Element, cluster: Cluster) -> None:
    """A node that comes gets what the others have; only then may it be said of it."""
    disk, directory = basis.optional(cib)
    for option, has, asked in (
        ("--sbd", disk, cluster.sbd),
        ("--system-datastore", directory, cluster.directory),
    ):
        if has and has != asked:
            raise RefusedError(
                f"the cluster has {has}, so {option} must say it when its members change",
                hint="give all options by which it was made",
            )
        if asked != has:
            raise RefusedError(
                f"{option} and the members of a cluster are not changed at once",
                hint="first the same command with the nodes that are there",
            )


def _require(status: Status, before: set[str], cluster: Cluster) -> None:
    staying, leaving = before & set(cluster.nodes), before - set(cluster.nodes)
    for name in sorted(staying):
        found = status.node(name)
        if found is None or not found.online or found.pending or found.unclean:
            raise RefusedError(
                f"{name} is not there: it would come back with other members in mind",
                hint="change the members when all that stay are online",
            )
    for node in status.nodes:
        if node.name in leaving and node.unclean:
            raise RefusedError(
                f"nobody knows what {node.name} does: it must be fenced before it is taken out",
                hint=f"'cxm fence --off {node.name}'",
            )
        if node.name in leaving and node.online:
            raise RefusedError(
                f"{node.name} is online: a node that runs is not taken out",
                hint=f"'cxm eject {node.name}', then on it: systemctl disable --now pacemaker "
                "corosync; rm /etc/cxm/cluster",
            )
    for rid, placed in status.resources.items():
        if parse_id(rid) is not None and leaving & set(placed.nodes):
            raise RefusedError(f"the VM {rid} is on {listed(sorted(leaving & set(placed.nodes)))}")
    if not status.quorate:
        raise RefusedError("the cluster has no quorum, so its members are not changed")


def loaded(runner: Runner) -> set[str]:
    """The nodes that the running Corosync believes in."""
    return set(_LOADED.findall(runner.run(["corosync-cmapctl"], timeout_s=_TIMEOUT_S).stdout))


def is_due(world: World, cluster: Cluster) -> bool:
    """Whether Corosync runs here with other members than its file has."""
    runner = world.host.runner
    return services.is_active(runner, "corosync") and loaded(runner) != set(cluster.nodes)


def load(world: World, me: str, cluster: Cluster) -> bool:
    """Have all nodes take the new members, once all have the same file; whether there was any."""
    if not is_due(world, cluster):
        return False
    runner = world.host.runner
    before = loaded(runner)
    others = sorted((before & set(cluster.nodes)) - {me})
    told: list[str] = []
    while missing := [node for node in others if not _has_same(world, node)]:
        if missing != told:
            world.say(f"waiting for {listed(missing)}: run there 'cxm-setup cluster --join ...'")
            told = missing
        world.sleep(_PAUSE_S)
    _require_all(world, before, cluster)
    runner.run(RELOAD, timeout_s=_TIMEOUT_S)
    world.say(f"loaded on all nodes: the members are {listed(list(cluster.nodes))}")
    return True


def _has_same(world: World, node: str) -> bool:
    with open(world.host.path(corosync.CONF), "rb") as file:
        mine = hashlib.sha256(file.read()).hexdigest()
    try:
        return world.settings(world.host, node) == mine
    except CxmError:
        return False


def gone(world: World, cluster: Cluster) -> list[Node]:
    """Those that Pacemaker still knows, and that are no nodes of the cluster any more."""
    known = [each for each in world.status(world.host.runner).nodes if each.member]
    return [each for each in known if each.name not in cluster.nodes]


def forget(world: World, cluster: Cluster) -> bool:
    """Take out of Pacemaker what has been taken out of Corosync; whether there was any."""
    runner = world.host.runner
    left = gone(world, cluster)
    for node in left:
        if node.online or node.unclean:
            raise RefusedError(
                f"{node.name} is no node of {cluster.name} any more, and not known to be off",
                hint="'cxm infos' shows what it does",
            )

        def edit(cib: Element, name: str = node.name) -> None:
            basis.edit_gone(cib, name)

        world.change(runner, edit, f"{node.name} is no node any more")
        world.remove(runner, node.name)
        world.say(f"taken out: {node.name}")
    return bool(left)


def check_join(host: Host, cluster: Cluster, authkey: str) -> None:
    """Raise RefusedError for a token of another cluster that has the same name and nodes."""
    text = files.read(host.path(corosync.CONF))
    if corosync.present(text, cluster) not in (Present.OURS, Present.CHANGED):
        return
    mine = files.read(host.path(corosync.AUTHKEY))
    if mine is not None and mine != authkey:
        raise RefusedError(
            f"this token is of another cluster '{cluster.name}' than this machine's",
            hint="take the line that 'cxm-setup cluster' printed last",
        )
