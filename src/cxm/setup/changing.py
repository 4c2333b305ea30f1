# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns how a cluster gets or loses a node: what must be so before, and the steps on one node.

Every node writes its own corosync.conf (``cxm-setup cluster --join``). Only when all have the same
one does the node that began have it loaded; until then Corosync goes on with the members it had.
"""

import hashlib
from dataclasses import dataclass, field, replace
from typing import Final
from xml.etree.ElementTree import Element

from cxm.cluster import basis, nodes
from cxm.cluster import corosync as engine
from cxm.cluster.cib import parse_id
from cxm.cluster.pacemaker import Node, Status
from cxm.errors import CxmError, RefusedError
from cxm.setup import corosync, files, forming, services
from cxm.setup.clusterargs import Cluster
from cxm.setup.corosync import Present
from cxm.setup.forming import World, listed
from cxm.setup.nodecheck import Host

_TIMEOUT_S: Final = 60.0
RELOAD: Final = ("corosync-cfgtool", "-R")


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
    """Raise RefusedError unless the changes that this node's files would get are safe."""
    text = files.read(world.host.path(corosync.CONF))
    present = corosync.present(text, cluster)
    if text is not None and present is Present.CHANGED:
        _require_all(world, set(corosync.members(text)), cluster)
    elif present is Present.OURS:
        # Also where Pacemaker does not run: sbd would be started with the other disk, and the
        # others go on writing to the one that they know. They are asked before the CIB is changed.
        forming.require_disk(forming.last_cib(world, cluster), cluster)


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


def is_settled(world: World, me: str, cluster: Cluster) -> bool:
    """Whether all other nodes have this node's file, and no Corosync has other members in mind."""
    same = all(_strange(world, each) is None for each in cluster.nodes if each != me)
    return same and not _behind(world, me, cluster)


def is_due(world: World, me: str, cluster: Cluster) -> bool:
    """Whether members would have to be loaded, as far as can be seen from here."""
    if not services.is_active(world.host.runner, "corosync"):
        return False
    others = set(cluster.nodes) - {me}
    return bool(_behind(world, me, cluster)) or any(_strange(world, each) == "" for each in others)


def gather(world: World, me: str, cluster: Cluster) -> bool:
    """Wait until all nodes are there with the members of this node's file in mind.

    Returns whether they had to load them. Not before all that are there have the same file: two
    nodes with different members in mind would each count their own quorum.
    """
    gathering = _Gathering(world, me, cluster)
    forming.wait(world, gathering.lacking)
    return gathering.has_loaded


@dataclass(slots=True)
class _Gathering:
    """How far it is.

    That this node's own Corosync has the new members in mind says nothing of the others: it may
    have started again since the file was written.
    """

    world: World
    me: str
    cluster: Cluster
    same: set[str] = field(default_factory=set)  # who has this node's file
    differed: bool = False  # one had another, so that its Corosync may have too
    has_loaded: bool = False

    def lacking(self, status: Status) -> str:
        """What is waited for; has the members loaded as soon as nothing is in the way."""
        if not status.dc:
            return "waiting until the nodes agree"
        if strangers := self._strangers(status):
            return strangers
        behind = _behind(self.world, self.me, self.cluster)
        if self.differed or (behind and not self.has_loaded):
            self._load()
            behind = _behind(self.world, self.me, self.cluster)
        if behind:
            return f"waiting until Corosync on {listed(behind)} has loaded the new members"
        return forming.missing(self.cluster, status)

    def _strangers(self, status: Status) -> str:
        there = {node.name for node in status.nodes if node.online and not node.pending}
        why = {}
        for node in sorted((there & set(self.cluster.nodes)) - {self.me} - self.same):
            found = _strange(self.world, node)
            if found is None:
                self.same.add(node)
            else:
                why[node] = found
                self.differed |= not found
        if not why:
            return ""
        reasons = "".join(f"; {reason}" for reason in why.values() if reason)
        return f"waiting for {listed(list(why))}: run there 'cxm-setup cluster --join ...'{reasons}"

    def _load(self) -> None:
        runner = self.world.host.runner
        _require_all(self.world, self._before(), self.cluster)
        runner.run(RELOAD, timeout_s=_TIMEOUT_S)
        self.world.say(f"loaded on all nodes: the members are {listed(list(self.cluster.nodes))}")
        self.differed, self.has_loaded = False, True

    def _before(self) -> set[str]:
        """The members until now: one that is new has not said yet what it is."""
        runner = self.world.host.runner
        known = nodes.facts(self.world.cib(runner))
        told = {name for name, each in known.items() if nodes.ADDRESS in each.attributes}
        loaded = engine.running(runner).members
        return told | (loaded if loaded != set(self.cluster.nodes) else set())


def _behind(world: World, me: str, cluster: Cluster) -> list[str]:
    """On which nodes that are there Corosync has other members in mind than this node's file."""
    running = engine.running(world.host.runner)
    known = {name: running.versions.get(number) for name, number in cluster.ids.items()}
    found = {name for name, version in known.items() if version not in (None, cluster.version)}
    return sorted(found | ({me} if running.members != set(cluster.nodes) else set()))


def _strange(world: World, node: str) -> str | None:
    """None for a node with the same file; else why it cannot be asked, empty for another file."""
    with open(world.host.path(corosync.CONF), "rb") as file:
        mine = hashlib.sha256(file.read()).hexdigest()
    try:
        return None if world.settings(world.host, node) == mine else ""
    except CxmError as error:
        return error.sentence()


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
