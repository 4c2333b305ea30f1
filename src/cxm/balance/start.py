# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns where a VM that runs nowhere starts best. Pure."""

from dataclasses import replace

from cxm.balance.model import Role, Snapshot, Vm
from cxm.balance.problem import compile_
from cxm.balance.rooms import Rooms


def choose(snapshot: Snapshot, vm: Vm, first: str | None = None) -> str | None:
    """The node on which the VM makes the cluster least uneven; None where none has room for it.

    One that it prefers is taken if N+1 is kept there, else ``first`` if that has room; but where it
    shall be together with others, where they are. Nodes on which N+1 would be lost come last.
    """
    others = tuple(each for each in snapshot.vms if each.name != vm.name)
    near = {each.node for each in others if each.node and set(each.together) & set(vm.together)}
    nodes = [
        node.name
        for node in snapshot.nodes
        if node.role is Role.BOTH and (vm.nodes is None or node.name in vm.nodes)
    ]
    if not nodes:
        return None
    # What is calculated with is the same wherever it is.
    problem = compile_(replace(snapshot, vms=(*others, replace(vm, node=nodes[0]))))
    number = next(at for at, each in enumerate(problem.vms) if each.name == vm.name)
    rooms = Rooms(problem.spaces, problem.items, problem.limit, problem.homeless)
    where = list(problem.begin)
    for each, place in enumerate(where):
        if each != number:
            rooms.put(each, place)
    rooms.remember()
    found: list[tuple[bool, bool, bool, bool, float, str]] = []
    for at, node in enumerate(problem.nodes):
        if node.name not in nodes or not rooms.fits(number, at):
            continue
        rooms.put(number, at)
        where[number] = at
        safe, uneven = rooms.safe(), problem.balance(where).imbalance
        rooms.take(number, at)
        far = bool(near) and node.name not in near
        unloved = bool(vm.prefers) and not (safe and node.name in vm.prefers)
        found.append((far, unloved, node.name != first, not safe, uneven, node.name))
    return min(found)[-1] if found else None
