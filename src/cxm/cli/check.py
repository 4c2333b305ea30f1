# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the subcommands ``check`` and ``check-cpu``: looking at this node for what they judge."""

import os
from contextlib import suppress
from dataclasses import replace
from typing import Final
from xml.etree.ElementTree import Element

from cxm import __version__, lvm
from cxm.cli.text import Cell, Tint
from cxm.cli.world import World
from cxm.cluster import cpus, nodes, pacemaker, peer, sbd
from cxm.cluster.basis import optional
from cxm.cluster.findings import errors, judge
from cxm.cluster.guestdisks import needs
from cxm.cluster.model import UP, Cluster, Vm
from cxm.cluster.nodefindings import Here
from cxm.errors import CommandError, CxmError, RefusedError, UsageError
from cxm.lvm import Group
from cxm.names import CloudId, VmId
from cxm.setup import report
from cxm.xen import xl

_TIMEOUT_S: Final = 60.0
_CLOCK: Final = ("timedatectl", "show", "-p", "NTPSynchronized", "--value")
_WRONG: Final = 1
_NO_CLOUD: Final = CloudId("connection")


def _said(world: World, argv: list[str]) -> str:
    """What a command says, whatever it thinks of it."""
    try:
        return world.runner.run(argv, timeout_s=_TIMEOUT_S, ok=range(126)).stdout.strip()
    except CommandError:
        return ""


def _bridges(world: World) -> frozenset[str]:
    net = world.path("/sys/class/net")
    names = os.listdir(net) if os.path.isdir(net) else []
    # An Open vSwitch bridge looks like any interface: what has the name is taken for the bridge.
    return frozenset(names) - {"lo"}


def _lacking(world: World, cluster: Cluster, vg: str) -> frozenset[str]:
    """The kernels and ramdisks of VMs that are not on this node."""
    files: set[str] = set()
    for vm in cluster.vms:
        with suppress(UsageError):  # judged elsewhere
            files |= needs(vm.resource, vg).files
    return frozenset(path for path in files if not os.path.isfile(world.path(path)))


def _group(world: World, vg: str) -> Group | str:
    """The volume group; or why it cannot be seen, which is a finding among others."""
    try:
        return lvm.group(world.runner, vg)
    except CxmError as error:
        return error.sentence()


def _unread(world: World, cib: Element) -> str:
    """The disk by which the cluster fences, where this node's sbd does not read it."""
    disk, _directory = optional(cib)
    return disk if disk and not sbd.reads(world.runner, disk, world.root) else ""


def _peers(world: World, cluster: Cluster, cib: Element, here: str) -> dict[str, str]:
    """Whether the other nodes do what this one asks; they are asked for a VM that nobody has."""
    machine = replace(world.machine(), hostname=here)
    found = {}
    for member in cluster.nodes:
        if member.name == here or member.state not in UP:
            continue
        try:
            peer.find(machine, cib, member.name).ask("state", _NO_CLOUD, VmId(0))
            found[member.name] = ""
        except CxmError as error:
            found[member.name] = error.message
    return found


def _lost(world: World, cluster: Cluster, cib: Element) -> dict[str, list[Vm]]:
    """Which VMs Pacemaker would find no place for, by the node that died."""
    found = {}
    for member in cluster.nodes:
        if member.state not in UP:
            continue
        stopped = pacemaker.stopped_after(world.runner, cib, f"--node-fail={member.name}")
        left = [vm for vm in cluster.on(member.name) if vm.resource.id in stopped]
        if left:
            found[member.name] = left
    return found


def observe(world: World, cluster: Cluster, cib: Element) -> Here:
    """This node as it is now; raises what keeps it from being seen."""
    machine, here = world.machine(), world.here()
    info = xl.info(world.runner)
    return Here(
        node=here,
        domains=xl.domains(world.runner),
        vg=machine.config.vg_name,
        group=_group(world, machine.config.vg_name),
        bridges=_bridges(world),
        lacking=_lacking(world, cluster, machine.config.vg_name),
        clouds=machine.config.clouds,
        peers=_peers(world, cluster, cib, here),
        versions={"cxm": __version__, "xen": info.version, **pacemaker.versions(world.runner)},
        mixed=len(nodes.abilities(cib)) > 1,
        clock=_said(world, list(_CLOCK)),
        xendomains=_said(world, ["systemctl", "is-enabled", "xendomains.service"]),
        tend=_said(world, ["systemctl", "is-enabled", "cxm-tend.service"]),
        sbd=_said(world, ["systemctl", "is-active", sbd.SERVICE]),
        unread=_unread(world, cib),
        now=world.now(),
    )


def check(world: World, *, json: bool) -> int:
    """What is wrong, and what to do about it; fails when something is."""
    cluster, cib = world.look()
    here = observe(world, cluster, cib)
    found = judge(cluster, here, _lost(world, cluster, cib))
    if json:
        world.show_json(
            [
                {
                    "level": each.level.lower(),
                    "name": each.name,
                    "found": each.found,
                    "advice": each.advice,
                }
                for each in found
            ]
        )
    else:
        world.show(report.table(found))
        world.say(f"\nSeen from {here.node}; what a node has of its own, only it can check.")
    return _WRONG if errors(found) else 0


def check_cpu(world: World, *, json: bool) -> int:
    """Whether a guest finds the same processor on every node; notes this node's own."""
    mine = xl.info(world.runner).hw_caps
    if not mine:
        raise RefusedError("'xl info' does not say what this node's processor can do (hw_caps)")
    here = world.here()
    world.set_attribute(here, nodes.CPU, mine, what=f"noted what the processor of {here} can do")
    cluster, _cib = world.look()
    found = cpus.compare(
        {each.name: each.facts.attributes.get(nodes.CPU) for each in cluster.nodes}
    )
    if json:
        rows = [
            {"node": row.node, "same": row.same, "known": row.known, "text": row.text}
            for row in found
        ]
        world.show_json(rows)
    else:
        table = [
            (
                Cell(row.node),
                Cell("ok" if row.same else "DIFFERS", Tint.GOOD if row.same else Tint.BAD),
                Cell(row.text),
            )
            for row in found
        ]
        world.show(world.looks().table(("NODE", "CPU", "WHAT"), table))
    return 0 if all(row.same for row in found) else _WRONG
