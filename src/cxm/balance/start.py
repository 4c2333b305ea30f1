# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns where a VM that runs nowhere starts best. Pure."""

from dataclasses import replace

from cxm.balance.model import Role, Snapshot, Vm
from cxm.balance.problem import compile_
from cxm.balance.rooms import Rooms


def choose(snapshot: Snapshot, vm: Vm, first: str | None = None) -> str | None:
    """The node on which the VM makes the cluster least uneven; None where none has room for it.

    ``first`` is taken if it has, unless it shall be together with others elsewhere. Nodes on which
    N+1 would be lost come last.
    """
    others = tuple(each for each in snapshot.vms if each.name != vm.name)
    near = {each.node for each in others if each.node and set(each.together) & set(vm.together)}
    found: list[tuple[bool, bool, bool, float, str]] = []
    for node in snapshot.nodes:
        if node.role is not Role.BOTH or (vm.nodes is not None and node.name not in vm.nodes):
            continue
        there = replace(snapshot, vms=(*others, replace(vm, node=node.name)))
        problem = compile_(there)
        number = next(at for at, each in enumerate(problem.vms) if each.name == vm.name)
        rooms = Rooms(problem.spaces, problem.items, problem.limit, problem.homeless)
        for at, place in enumerate(problem.begin):
            if at != number:
                rooms.put(at, place)
        rooms.remember()
        at = problem.begin[number]
        if not rooms.fits(number, at):
            continue
        rooms.put(number, at)
        uneven = problem.balance(problem.begin).imbalance
        is_far = bool(near) and node.name not in near
        found.append((is_far, node.name != first, not rooms.safe(), uneven, node.name))
    return min(found)[-1] if found else None
