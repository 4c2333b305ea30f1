# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns how a plan is shown: the nodes before and after it as bars, its moves in order. Pure."""

from collections.abc import Mapping
from typing import Final

from cxm.balance.model import Plan, Role, Snapshot, gain
from cxm.balance.problem import compile_
from cxm.cli.text import Cell, Style, Tint
from cxm.cluster.amounts import count, mib

_WIDTH: Final = 12
_TINTS: Final = {Role.BOTH: Tint.GOOD, Role.GONE: Tint.BAD}


def plan(snapshot: Snapshot, made: Plan, style: Style) -> str:
    """All of it."""
    parts = [nodes(snapshot, made, style), f"\n{made.reason}\n"]
    if made.moves:
        parts.append("\n" + moves(made, style))
    parts += [f"{style.paint(sentence, Tint.BAD)}\n" for sentence in made.stuck]
    parts += [f"{style.paint(sentence, Tint.NOTICE)}\n" for sentence in made.stays]
    return "".join(parts)


def nodes(snapshot: Snapshot, made: Plan, style: Style) -> str:
    """How full each node is, and what comes of it."""
    before = _filled(snapshot, {vm.name: vm.node for vm in snapshot.vms})
    after = _filled(snapshot, made.end(snapshot))
    rows = []
    for node in sorted(snapshot.nodes, key=lambda each: each.name):
        row = [Cell(node.name), Cell(node.role.value, _TINTS.get(node.role, Tint.NOTICE))]
        for kind, whole in ((1, node.cpu), (2, node.memory)):
            for filled in (before, after):
                used = filled[node.name][kind]
                row += [style.bar(used, whole, _WIDTH), _percent(used, whole)]
        row += [Cell(str(each[node.name][0]), right=True) for each in (before, after)]
        rows.append(row)
    arrow = "→" if style.unicode else "->"
    head = ("NODE", "STATE", "CPU", "NOW", arrow, "THEN", "MEMORY", "NOW", arrow, "THEN", "VMS")
    return style.table((*head, arrow), rows)


def _percent(used: float, whole: float) -> Cell:
    return Cell(f"{100 * used / whole:.0f}%" if whole else "?", right=True)


def _filled(
    snapshot: Snapshot, where: Mapping[str, str | None]
) -> dict[str, tuple[int, float, float]]:
    """What each node has: VMs, CPU that they use, memory."""
    found = {node.name: (0, 0.0, 0.0) for node in snapshot.nodes}
    problem = compile_(snapshot)
    used = {vm.name: load for vm, load in zip(problem.vms, problem.loads, strict=True)}
    for vm in snapshot.vms:
        node = where[vm.name]
        if node is not None:
            number, cpu, memory = found[node]
            found[node] = (number + 1, cpu + used.get(vm.name, 0.0), memory + vm.memory)
    return found


def moves(made: Plan, style: Style) -> str:
    """The moves in order; those of one step are made at the same time."""
    rows = []
    for number, step in enumerate(made.steps, start=1):
        for move in step:
            why = "stopped and started again" if move.cold else ""
            rows.append(
                (
                    Cell(str(number), right=True),
                    Cell(move.vm.name),
                    Cell(move.source),
                    Cell(move.target),
                    Cell(mib(move.vm.memory), right=True),
                    Cell("?" if move.vm.used is None else f"{move.vm.used:.0f}%", right=True),
                    Cell("makes room for others" if move.detour else why, Tint.NOTICE),
                )
            )
    return style.table(("STEP", "VM", "FROM", "TO", "MEMORY", "CPU", ""), rows)


def summary(made: Plan) -> str:
    """A line."""
    return (
        f"{count(len(made.moves), 'move')} in {count(len(made.steps), 'step')}, "
        f"{mib(made.copied)} to copy, {gain(made.before, made.after):.0f} % of the imbalance gone"
    )
