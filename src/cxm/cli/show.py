# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the subcommands that only look: ``list``, ``infos``, ``search`` and ``top``."""

from typing import Any, Final

from cxm import names
from cxm.balance import schema
from cxm.cli import metrics, views
from cxm.cli.text import moment
from cxm.cli.world import World
from cxm.cluster import balancing
from cxm.cluster.cib import resource_id
from cxm.cluster.model import Cluster, find_vms
from cxm.errors import CxmError
from cxm.node import sight
from cxm.xen import xl

_HOME: Final = "\x1b[H"
_CLEAR_LINE: Final = "\x1b[K"
_CLEAR_BELOW: Final = "\x1b[J"
_HIDE, _SHOW = "\x1b[?25l\x1b[2J", "\x1b[?25h"
_NOT_FOUND: Final = 1


def list_(world: World) -> int:
    """All VMs."""
    cluster = world.cluster()
    if world.as_json:
        _tell_damaged(world, cluster)
        world.show_json(views.vms_json(cluster, cluster.vms))
    else:
        style = world.looks()
        world.show(views.banner(cluster, style) + views.vms(cluster.vms, style))
    return 0


def _tell_damaged(world: World, cluster: Cluster) -> None:
    """Name the VMs of which nothing is shown, on the way."""
    for each in cluster.damaged:
        world.say(f"not shown: {each.error.message}")


def infos(world: World, *, with_metrics: bool = False) -> int:
    """All of the cluster; if wanted with what its VMs use, of which all nodes are asked."""
    cluster, cib = world.look()
    used = metrics.used(world, cluster, cib) if with_metrics else None
    if world.as_json:
        limits = _limits(world) if with_metrics else None
        world.show_json(views.infos_json(cluster, used, limits))
    else:
        world.show(views.infos(cluster, world.looks(), world.now(), used))
    return 0


def _limits(world: World) -> dict[str, Any]:
    """What this node's settings say of plans."""
    return schema.settings_json(balancing.limits(world.machine().config))


def search(world: World, *, name: str) -> int:
    """VMs by a part of their name; as grep, fails when there is none."""
    cluster = world.cluster()
    found = find_vms(cluster, name)
    _tell_damaged(world, cluster)
    if world.as_json:
        world.show_json(views.vms_json(cluster, found))
    else:
        world.show(views.vms(found, world.looks()))
    return 0 if found else _NOT_FOUND


def top(world: World, *, every_s: float, rounds: int | None) -> int:
    """The cluster again and again, until somebody interrupts it; once where nobody watches.

    For a program it is looked at twice, so that what VMs use is known, and told once.
    """
    memory = sight.Memory()
    if world.as_json:
        _live(world, world.cluster(), memory)
        world.sleep(every_s)
        cluster = world.cluster()
        world.show_json(views.top_json(cluster, _live(world, cluster, memory)))
        return 0
    if not world.out.isatty():
        world.show(_screen(world, memory))
        return 0
    world.show(_HIDE)
    try:
        while rounds is None or rounds > 0:
            lines = _screen(world, memory).splitlines()
            world.show(_HOME + "".join(f"{line}{_CLEAR_LINE}\n" for line in lines) + _CLEAR_BELOW)
            rounds = None if rounds is None else rounds - 1
            world.sleep(every_s)
    except KeyboardInterrupt:
        pass
    finally:
        world.show(_SHOW)
    return 0


def _screen(world: World, memory: sight.Memory) -> str:
    style = world.looks()
    try:
        cluster = world.cluster()
    except CxmError as error:
        # A cluster in trouble is when somebody watches.
        return f"{moment(world.now())}\n" + style.box([error.message, error.hint or ""])
    live = _live(world, cluster, memory)
    return (
        f"{moment(world.now())}   NOW is what a VM of this node uses of one processor\n\n"
        + views.banner(cluster, style)
        + views.summary(cluster, style, world.now())
        + "\n"
        + views.nodes(cluster, style)
        + "\n"
        + views.vms(cluster.vms, style, live)
    )


def _live(world: World, cluster: Cluster, memory: sight.Memory) -> dict[str, float]:
    """What the VMs of this node use of its processors, in percent of one, by resource."""
    seconds = {}
    clouds = {vm.resource.cloud for vm in cluster.vms}
    for domain in xl.domains(world.runner):
        for cloud in clouds:
            number = names.vm_of_uuid(cloud, domain.uuid)
            if number is not None and domain.alive:
                seconds[resource_id(cloud, number)] = domain.time_s
    sample = sight.Sample(world.monotonic(), seconds)
    used = sight.percentages(memory, sample)
    sight.remember(memory, sample)
    return used
