# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns ``cxm-setup cluster``: machines become the nodes of one cluster.

On the first node it is told everything and prints a join token; on each other it is given that.
Everything is checked before anything is changed, and a second run changes nothing.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from cxm import config
from cxm.cluster.basis import Basis, Sbd
from cxm.cluster.sbd import SERVICE as SBD_SERVICE
from cxm.errors import NotFoundError, UsageError
from cxm.setup import (
    changing,
    clusterargs,
    clustercheck,
    clusterfiles,
    corosync,
    fenceagents,
    files,
    forecast,
    forming,
    jointoken,
    original,
    peerkey,
    report,
    sbd,
    services,
    sharedfs,
)
from cxm.setup.corosync import Present
from cxm.setup.files import FileChange
from cxm.setup.forming import World
from cxm.setup.jointoken import Membership
from cxm.setup.node import SERVICE
from cxm.setup.nodecheck import Host
from cxm.setup.services import Change, Wish
from cxm.setup.sharedfs import Wanted

_COMMAND_S: Final = 300.0
_SERVICES: Final = (
    # It saves and restores guests behind the cluster's back.
    Change("xendomains.service", Wish.MASKED),
    # It is for standalone hosts.
    Change(SERVICE, Wish.OFF),
    # Pacemaker starts these itself.
    *(Change(f"{name}.service", Wish.OFF) for name in ("lvmlocks", "lvmlockd", "dlm")),
    Change("corosync.service", Wish.ON),
    Change("pacemaker.service", Wish.ON),
    # It gets what VMs boot while the node was away.
    Change("cxm-gather.timer", Wish.ON),
    Change("cxm-nudge.path", Wish.ON),
)
_OURS: Final = (Present.OURS, Present.CHANGED)
# It refuses to be started by hand: Corosync or Pacemaker has it started.
_SBD: Final = Change(SBD_SERVICE, Wish.ENABLED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line asks for."""

    name: str | None = None
    nodes: Sequence[str] = ()
    device: str | None = None
    vg: str | None = None
    fencing: Sequence[str] = field(default=(), repr=False)
    token_ms: int | None = None
    sbd: str | None = None
    datastore: str | None = None
    join: str | None = field(default=None, repr=False)
    original: str | None = None
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class _Plan:
    """Everything that is to be done on this machine."""

    stopped: tuple[str, ...]  # services of the example that the packages come with
    removed: tuple[str, ...]  # what they left
    files: tuple[FileChange, ...]
    commands: tuple[list[str], ...]
    services: tuple[Change, ...]

    @property
    def is_empty(self) -> bool:
        changes = any(each.changes for each in self.files)
        others = (self.services, self.stopped, self.removed, self.commands)
        return not (changes or any(others))

    def shown(self, host: Host) -> str:
        """What would be done, as text."""
        lines = [f"systemctl stop {name}\n" for name in self.stopped]
        lines += [f"remove {path}\n" for path in self.removed]
        lines += [clusterfiles.shown(host, each) for each in self.files if each.changes]
        lines += [" ".join(argv) + "\n" for argv in self.commands]
        lines += [" ".join(each.argv) + "\n" for each in self.services]
        return "".join(lines)


def _imported(options: Options, say: Callable[[str], None]) -> Options:
    """The options, with what the configuration of an original cxm says where they say nothing."""
    if options.original is None:
        return options
    text = files.read(options.original)
    if text is None:
        raise NotFoundError(f"{options.original} does not exist")
    found = original.read(text, options.original)
    for sentence in found.told:
        say(sentence)
    given = {word.partition("=")[0] for word in options.nodes}
    if missing := [name for name in found.nodes if name not in given]:
        raise UsageError(
            f"{options.original} allows {', '.join(missing)}, which no --node names",
            hint="--node NAME=ADDRESS for each; without --import for another choice of nodes",
        )
    return replace(
        options,
        name=options.name or found.name,
        token_ms=found.token_ms if options.token_ms is None else options.token_ms,
    )


@dataclass(frozen=True, slots=True)
class _Told:
    """What only the first node is told of the cluster."""

    basis: Basis
    datastore: Wanted | None = None


def _first(host: Host, options: Options) -> tuple[Membership, _Told]:
    """The cluster that the first node is told of."""
    if options.name is None or options.device is None:
        raise UsageError(
            "--name and --device are needed on a cluster's first node",
            hint="on each other: cxm-setup cluster --join TOKEN",
        )
    fencing = [clusterargs.fence_device(word) for word in options.fencing]
    vg = options.vg
    if vg is None:
        text = files.read(host.path(config.NODE_FILE)) if host.uid == 0 else None
        vg = config.node(text or "", config.NODE_FILE)[0].vg_name
    token_ms = clusterargs.TOKEN_MS if options.token_ms is None else options.token_ms
    asked = clusterargs.cluster(
        options.name,
        options.nodes,
        device=options.device,
        vg=vg,
        token_ms=token_ms,
        fencing=fencing,
        sbd=options.sbd or "",
    )
    cluster = changing.numbered(files.read(host.path(corosync.CONF)), asked)
    wanted = sharedfs.parse(options.datastore or sharedfs.NONE)
    if wanted is not None:
        ours = wanted.datastore
        cluster = replace(cluster, datastore=ours.kind.value, directory=ours.directory)
    basis = Basis(list(cluster.nodes), vg, cluster.device, fencing)
    return Membership(cluster, "", ""), _Told(basis, wanted)


def _with_sbd(given: Membership, told: _Told, disk: sbd.Disk) -> tuple[Membership, _Told]:
    """The same, with what is on SBD's disk or will be: the times, nodes that have left."""
    cluster = given.cluster
    times = disk.times or sbd.times(cluster.token_ms)
    membership = replace(given, cluster=replace(cluster, former=disk.others))
    return membership, replace(told, basis=replace(told.basis, sbd=Sbd(cluster.sbd, times.msgwait)))


def _with_secrets(host: Host, given: Membership) -> Membership:
    """The first node's own secrets, made where there are none."""
    text = files.read(host.path(corosync.CONF))
    is_ours = corosync.present(text, given.cluster) in _OURS
    authkey = files.read(host.path(corosync.AUTHKEY)) if is_ours else None
    key = files.read(host.path(peerkey.PATH))
    return Membership(
        given.cluster, authkey or corosync.new_key(), key or peerkey.make(host.runner)
    )


def _planned(host: Host, me: str, membership: Membership, disk: sbd.Disk | None) -> _Plan:
    cluster = membership.cluster
    text = files.read(host.path(corosync.CONF))
    is_new = corosync.present(text, cluster) not in _OURS
    names = ("pacemaker.service", "corosync.service")
    stopped = [name for name in names if is_new and services.is_active(host.runner, name)]
    left = host.path(clustercheck.CIB_DIR)
    removed = sorted(os.listdir(left)) if is_new and os.path.isdir(left) else []
    # Before what has it started.
    wishes = (_SBD, *_SERVICES) if cluster.sbd else _SERVICES
    unmet = services.unmet(host.runner, wishes)
    again = [each for each in _SERVICES if each.name in stopped and each not in unmet]
    return _Plan(
        tuple(stopped),
        tuple(os.path.join(left, name) for name in removed),
        clusterfiles.planned(host, me, membership),
        (sbd.create(cluster),) if disk and disk.is_empty else (),
        (*unmet, *again),
    )


def _do(host: Host, plan: _Plan, say: Callable[[str], None]) -> None:
    for name in plan.stopped:
        services.stop(host.runner, name)
        say(f"stopped: {name}")
    for path in plan.removed:
        os.unlink(path)
        say(f"removed: {path}")
    *others, marker = plan.files
    for change in others:
        _write(change, say)
    for argv in plan.commands:
        host.runner.run(argv, timeout_s=_COMMAND_S)
        say(f"done: {' '.join(argv)}")
    for service in plan.services:
        services.apply(host.runner, service)
        say(f"{service.wish}: {service.name}")
    _write(marker, say)


def _write(change: FileChange, say: Callable[[str], None]) -> None:
    if not change.changes:
        return
    directory = os.path.dirname(change.path)
    if not os.path.isdir(directory):
        os.makedirs(directory, mode=0o700 if directory.endswith("/.ssh") else 0o755)
    files.write(change)
    say(f"written: {change.path}")


def run(host: Host, options: Options, say: Callable[[str], None]) -> None:
    """Check, set up, wait; raises RefusedError, and changes nothing, when a check fails."""
    work(World(host, say), options)


def work(world: World, options: Options) -> None:
    """The same in a world that may be a model."""
    host, say = world.host, world.say
    told = None
    if options.join is None:
        membership, told = _first(host, _imported(options, say))
    else:
        _refuse_others(options)
        membership = jointoken.unpack(options.join)
        changing.check_join(host, membership.cluster, membership.authkey)
    cluster = membership.cluster
    me = clustercheck.own_name(host, cluster)
    is_first = told is not None
    disk = sbd.look(host, cluster, is_first=is_first) if cluster.sbd else None
    # Only the first node knows the fence devices: their passwords stay with it.
    fencing = told.basis.fencing if told is not None and host.uid == 0 else []
    asked = fenceagents.ask(host, fencing)
    has_silent = any(each.complaint for each in asked)
    known = forming.known(world, me, cluster, fencing) if has_silent else ()
    silent = fenceagents.silent(asked, known)
    rows = fenceagents.checks(me, asked, silent)
    found = clustercheck.checks(host, me, cluster, rows, disk)
    say(report.table(found))
    report.require(found, "cxm-setup cluster")
    changing.require(world, cluster)
    if told is not None:
        membership = _with_secrets(host, membership)
        if disk is not None:
            membership, told = _with_sbd(membership, told, disk)
    plan = _planned(host, me, membership, disk)
    if options.dry_run:
        basis, wanted = (told.basis, told.datastore) if told else (None, None)
        later = forecast.lines(world, me, cluster, basis, wanted)
        text = plan.shown(host) + "".join(f"{line}\n" for line in later)
        is_done = plan.is_empty and not later
        say("Nothing to change." if is_done else f"This would be done:\n{text}")
        return
    _do(host, plan, say)
    changed = not plan.is_empty
    if told is None:
        changed |= forming.join(world, me, cluster)
    else:
        whole = forming.is_whole(world, me, cluster)
        if not (whole and changing.is_settled(world, me, cluster)):
            say(
                "On each other node, also on those that are members already (whoever has this "
                f"line can be a node: keep it secret):\n"
                f"cxm-setup cluster --join {jointoken.pack(membership)}"
            )
            changed |= changing.gather(world, me, cluster)
        changed |= changing.forget(world, cluster)
        changed |= forming.form(world, me, cluster, told.basis, told.datastore, silent=silent)
    say(_end(me, membership, changed=changed, first=told is not None))


def _refuse_others(options: Options) -> None:
    given = (options.name, options.nodes, options.device, options.vg, options.fencing)
    others = (options.original, options.sbd, options.datastore)
    if any((*given, *others)) or options.token_ms is not None:
        raise UsageError("--join TOKEN says everything: no other option belongs to it")


def _end(me: str, membership: Membership, *, changed: bool, first: bool) -> str:
    name = membership.cluster.name
    if not changed:
        return f"Nothing to change: {me} is a node of {name}."
    if first:
        return f"The cluster {name} is formed. On each node: cxm-setup node --frontend ..."
    return f"{me} is a node of {name}. The first node goes on by itself."
