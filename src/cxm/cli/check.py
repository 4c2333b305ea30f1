# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the subcommands ``check`` and ``check-cpu``: looking at all nodes for what they judge."""

from dataclasses import replace
from typing import Final
from xml.etree.ElementTree import Element

from cxm.cli.text import Cell, Tint
from cxm.cli.world import World
from cxm.cluster import cpus, nodes, pacemaker, survey
from cxm.cluster.findings import errors, judge
from cxm.cluster.model import UP, Cluster, Vm
from cxm.cluster.nodefindings import Told
from cxm.cluster.peer import Peer
from cxm.errors import RefusedError
from cxm.setup import report
from cxm.xen import xl

_WRONG: Final = 1


def _others(world: World, cluster: Cluster, cib: Element, here: str) -> dict[str, Told | str]:
    """What the other nodes say of themselves, or why they cannot be asked."""

    def told(other: Peer) -> Told:
        asked = world.now()
        return survey.heard(other.report(), other.node, asked, world.now())

    names = [each.name for each in cluster.nodes if each.name != here and each.state in UP]
    answers = world.ask(cib, names, told)
    return {
        name: said if isinstance(said, Told) else said.message for name, said in answers.items()
    }


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


def check(world: World) -> int:
    """What is wrong, and what to do about it; fails when something is."""
    cluster, cib = world.look()
    own = survey.node(world.machine(), cluster, cib, root=world.root)
    others = _others(world, cluster, cib, own.node)
    here = replace(own, others=others, mixed=len(nodes.abilities(cib)) > 1)
    found = judge(cluster, here, _lost(world, cluster, cib))
    if world.as_json:
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
        told = [name for name, said in here.others.items() if not isinstance(said, str)]
        world.say(f"\nSeen from {' and '.join([here.node, *told])}.")
    return _WRONG if errors(found) else 0


def check_cpu(world: World) -> int:
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
    if world.as_json:
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
