# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the clusters that planners are compared on: made of a seed, so they are always the same."""

import random
from dataclasses import replace
from typing import Final

from cxm.balance.model import Node, Role, Settings, Snapshot, Vm

_GIB: Final = 1024
# What VMs have, the frequent ones more often: memory in GiB, processors.
_MEMORY: Final = (1, 2, 2, 4, 4, 4, 8, 8, 16)
_CPUS: Final = (1, 1, 1, 2, 2, 4)
_PERCENT: Final = 100
_PER_NODE: Final = 50


def cluster(nodes: int, vms: int, seed: int, *, mixed: bool = False) -> Snapshot:
    """A cluster that has grown: some nodes got many VMs, some few, and some VMs became busy.

    Its nodes carry what they have when each has as many VMs as another: about 60 % of the memory
    and 25 % of the CPU. ``mixed`` has nodes of three sizes.
    """
    chance = random.Random(f"{seed} {nodes} {vms} {mixed}")  # noqa: S311 - a benchmark's
    per_node = -(-vms // nodes)
    memory = 9 * per_node * _GIB  # 5.4 GiB is the mean of a VM
    sizes = (0.7, 1.0, 1.3) if mixed else (1.0,)
    made = []
    for number in range(nodes):
        size = chance.choice(sizes)
        # So many percent of processors: a VM uses a quarter of its own in the mean.
        made.append(
            Node(f"node{number:03}", int(memory * size), int(2 * per_node * size) * _PERCENT)
        )
    free = {node.name: node.memory for node in made}
    weights = [node.memory * chance.uniform(0.6, 1.4) for node in made]
    found = []
    for number in range(vms):
        need = chance.choice(_MEMORY) * _GIB
        cpus = chance.choice(_CPUS)
        while free[(node := chance.choices(made, weights)[0]).name] < need:
            pass
        free[node.name] -= need
        used = cpus * _PERCENT * chance.betavariate(1.2, 3)
        share = cpus * _PERCENT // 4
        found.append(Vm(f"vm{number:04}", need, share, node.name, used=round(used, 1)))
    return Snapshot(tuple(made), tuple(found))


def small(seed: int) -> Snapshot:
    """A cluster so small that the best placement can be proven, with every kind of rule.

    But VMs that must be together are so already, and none is nowhere.
    """
    chance = random.Random(f"small {seed}")  # noqa: S311 - a benchmark's
    # So few that every state can be looked at: at most some ten thousand placements.
    count, most = chance.choice(((2, 13), (3, 9), (3, 9), (4, 8), (5, 6)))
    vms = chance.randint(5, most)
    tight = chance.choice((1.4, 1.7, 2.0, 3.0))
    memory = [chance.choice((1, 2, 2, 4, 6)) * _GIB for _vm in range(vms)]
    shares = [chance.choice((25, 50, 100, 200)) for _vm in range(vms)]
    room = max(max(memory) * 2, int(sum(memory) * tight / count))
    cpus = max(max(shares) * 2, int(sum(shares) * tight / count))
    nodes = []
    for number in range(count):
        size = chance.choice((0.8, 1.0, 1.0, 1.5))
        # Multiples of 256 MiB: the proof calculates in them.
        nodes.append(Node(f"node{number}", int(room * size / 256) * 256, int(cpus * size)))
    if count > 3 and tight >= 2 and chance.random() < 0.3:  # noqa: PLR2004
        nodes[-1] = Node(nodes[-1].name, nodes[-1].memory, nodes[-1].cpu, Role.SOURCE)
    free = {node.name: [node.memory, node.cpu] for node in nodes}
    favoured = [chance.uniform(0.1, 1) for _node in nodes]
    found = []
    for number in range(vms):
        fits = [
            at
            for at, node in enumerate(nodes)
            if free[node.name][0] >= memory[number] and free[node.name][1] >= shares[number]
        ]
        if not fits:
            continue
        name = nodes[chance.choices(fits, [favoured[at] for at in fits])[0]].name
        free[name][0] -= memory[number]
        free[name][1] -= shares[number]
        found.append(
            _small_vm(chance, Vm(f"vm{number:02}", memory[number], shares[number], name), nodes)
        )
    limit = chance.choice((0, 0, 0, 0, -(-len(found) // count) + 1))
    moves = chance.choice((0, 0, 0, 2, 3))
    made = Snapshot(tuple(nodes), tuple(found), Settings(max_vms=limit, max_moves=moves))
    return _with_rules(random.Random(f"rules {seed}"), made)  # noqa: S311 - the same


def _with_rules(chance: random.Random, snapshot: Snapshot) -> Snapshot:
    """Two VMs that must be together, a node that rests, a VM that stays."""
    nodes, vms = list(snapshot.nodes), list(snapshot.vms)
    pairs = [
        (one, other)
        for one in range(len(vms))
        for other in range(one)
        if vms[one].node == vms[other].node and not (vms[one].apart and vms[other].apart)
    ]
    if pairs and chance.random() < 0.3:  # noqa: PLR2004
        for at in chance.choice(pairs):
            vms[at] = replace(vms[at], together=("t",))
    if len(nodes) > 2 and chance.random() < 0.15:  # noqa: PLR2004
        at = chance.randrange(len(nodes))
        if nodes[at].role is Role.BOTH:
            nodes[at] = replace(nodes[at], role=Role.NEITHER)
    if chance.random() < 0.2:  # noqa: PLR2004
        at = chance.randrange(len(vms))
        vms[at] = replace(vms[at], stays="it is told to")
    return replace(snapshot, nodes=tuple(nodes), vms=tuple(vms))


def crowded(seed: int) -> Snapshot:
    """Five to seven nodes with little left, so that a plan is long, and N+1 a matter of order."""
    chance = random.Random(seed)  # noqa: S311 - a benchmark's
    names = [f"node{number}" for number in range(chance.choice((5, 6, 7)))]
    count = chance.randint(10, 16)
    favoured = [chance.random() + 0.05 for _name in names]
    found = []
    for number in range(count):
        memory = chance.choice((1, 2, 2, 4)) * _GIB
        name = chance.choices(names, favoured)[0]
        found.append(Vm(f"vm{number:02}", memory, 25, name, used=float(chance.randint(0, 100))))
    whole = sum(vm.memory for vm in found)
    room = int(whole / len(names) * chance.choice((1.3, 1.5, 1.8))) // _GIB * _GIB
    nodes = tuple(
        Node(name, max(room, sum(vm.memory for vm in found if vm.node == name)), 2000)
        for name in names
    )
    settings = Settings(
        parallel=chance.choice((2, 3)), worth=chance.choice((0.0, 1.0)), min_gain=0.0
    )
    return Snapshot(nodes, tuple(found), settings)


def _small_vm(chance: random.Random, vm: Vm, nodes: list[Node]) -> Vm:
    def seldom(part: float) -> bool:
        return chance.random() < part

    others = tuple(node.name for node in nodes if node.name == vm.node or seldom(0.6))
    return replace(
        vm,
        used=float(chance.randint(0, vm.cpu)),
        movable=not seldom(0.1),
        live=not seldom(0.1),
        apart=("a",) if seldom(0.15) else (),
        nodes=others if seldom(0.15) else None,
        prefers=(chance.choice(nodes).name,) if seldom(0.1) else (),
    )
