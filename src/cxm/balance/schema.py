# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns a cluster as a JSON document, for planning offline, and a plan as one. Pure.

The document is that of ``cxm infos --json --metrics``, with more that may be said by hand; what an
unknown key says is never ignored.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from typing import Any, Final

from cxm.balance.model import Balance, Move, Node, Plan, Role, Settings, Snapshot, Vm, gain
from cxm.errors import DataError

# What 'cxm infos' tells and a plan needs not.
_TOP: Final = ("quorate", "fencing", "n_plus_one", "alarms", "balancer")
_NODE: Final = (
    "decides",
    "vms",
    "memory_used_mib",
    "cpu_used",
    "fencing_device",
    "fencing_proven",
)
_VM: Final = ("cloud", "vm", "wanted", "reason", "preferred", "resource")
# As cxm.cluster.balancing has it: a node in standby is emptied by Pacemaker, not by a plan.
_ROLES: Final = {
    "online": Role.BOTH,
    "leaving": Role.SOURCE,
    "standby": Role.NEITHER,
    "maintenance": Role.NEITHER,
    "offline": Role.GONE,
    "unclean": Role.GONE,
    "joining": Role.GONE,
}
# States in which a VM takes its room, and those in which it is nowhere and is not to be anywhere.
_RUNS: Final = (
    *("running", "starting", "stopping", "migrating"),
    *("down", "failed", "unknown", "blocked"),
)
_STANDS: Final = ("stopped", "off")
# States in which a VM is left alone.
_STEADY: Final = ("running",)
_TWO: Final = 2
_SETTINGS: Final = {
    "max_vms_per_node": "max_vms",
    "max_migrations": "max_moves",
    "min_gain_percent": "min_gain",
    "worth_points": "worth",
    "parallel": "parallel",
    "restart": "restart",
}


class _Row:
    """A JSON object whose keys are taken one by one; what is left over is a mistake."""

    def __init__(self, value: object, what: str) -> None:
        if not isinstance(value, dict):
            raise DataError(f"{what} is no JSON object")
        self.what = what
        self._left = dict(value)

    def take(self, key: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
        """The value of a key, or the default where it is missing or null."""
        value = self._left.pop(key, None)
        if value is None:
            return default
        kinds = kind if isinstance(kind, tuple) else (kind,)
        is_wrong = not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds)
        if is_wrong:
            wanted = " or ".join(each.__name__ for each in kinds)
            raise DataError(f"{self.what}: {key} is {json.dumps(value)}, which is no {wanted}")
        return value

    def amount(self, key: str, *, needed: bool = False) -> int:
        """A number that is not negative."""
        value = self.take(key, (int, float))
        if value is None:
            if needed:
                raise DataError(f"{self.what} has no {key}")
            return 0
        if value < 0:
            raise DataError(f"{self.what}: {key} is negative")
        return int(value)

    def name(self) -> str:
        value = self.take("name", str)
        if not value:
            raise DataError(f"{self.what} has no name")
        return str(value)

    def words(self, key: str) -> tuple[str, ...] | None:
        """A list of names, or one name; None where nothing is said."""
        value = self.take(key, (str, list))
        if value is None:
            return None
        words = [value] if isinstance(value, str) else value
        if not all(isinstance(word, str) for word in words):
            raise DataError(f"{self.what}: {key} is no list of names")
        return tuple(words)

    def end(self, ignored: Iterable[str] = ()) -> None:
        """Raise DataError where something was said that nobody has asked for."""
        unknown = sorted(self._left.keys() - set(ignored))
        if unknown:
            raise DataError(f"{self.what}: nobody knows what '{unknown[0]}' says")


def parse(text: str, source: str) -> Snapshot:
    """The cluster of a document; ``source`` names it in errors. Raises DataError."""
    try:
        document = json.loads(text)
    except ValueError as error:
        raise DataError(f"{source} is no JSON document: {error}") from error
    top = _Row(document, source)
    nodes = [_node(each, number) for number, each in enumerate(top.take("nodes", list, []))]
    vms = [_vm(each, number) for number, each in enumerate(_told_apart(top.take("vms", list, [])))]
    given = _settings(_Row(top.take("settings", dict, {}), "settings"))
    top.end(_TOP)
    if not nodes:
        raise DataError(f"{source} has no nodes")
    return Snapshot(tuple(nodes), tuple(vm for vm in vms if vm is not None), given)


def _told_apart(vms: list[Any]) -> list[Any]:
    """VMs of two clouds may have one name: these are called by their resources."""
    rows = [each for each in vms if isinstance(each, dict)]
    often = Counter(str(each.get("name")) for each in rows)
    return [
        {**each, "name": each["resource"]}
        if isinstance(each, dict) and often[str(each.get("name"))] > 1 and "resource" in each
        else each
        for each in vms
    ]


def _node(value: object, number: int) -> Node:
    row = _Row(value, f"node {number + 1}")
    name = row.name()
    row.what = f"node {name}"
    state = row.take("state", str, "online").lower()
    if state not in _ROLES:
        raise DataError(f"node {name}: '{state}' is none of {', '.join(_ROLES)}")
    memory, cpu = row.amount("memory_mib", needed=True), row.amount("cpu", needed=True)
    row.end(_NODE)
    return Node(name, memory, cpu, _ROLES[state])


def _vm(value: object, number: int) -> Vm | None:
    """A VM; None for one that is off."""
    row = _Row(value, f"VM {number + 1}")
    name = row.name()
    row.what = f"VM {name}"
    state = row.take("state", str, "running").lower()
    if state not in (*_RUNS, *_STANDS):
        raise DataError(f"VM {name}: '{state}' is none of {', '.join((*_RUNS, *_STANDS))}")
    used = row.take("cpu_used", (int, float))
    places = row.words("nodes") or ()  # two while it moves
    made = Vm(
        name,
        row.amount("memory_mib", needed=True),
        row.amount("cpu"),
        row.take("node", str),
        used=None if used is None else float(used),
        movable=row.take("movable", bool, default=True) and state in _STEADY and len(places) < _TWO,
        live=row.take("live_migration", bool, default=True),
        apart=row.words("apart") or (),
        together=row.words("together") or (),
        nodes=row.words("only_on"),
        prefers=row.words("prefers") or (),
        stays=row.take("stays", str, ""),
    )
    row.end(_VM)
    return None if state in _STANDS else made


def _settings(row: _Row) -> Settings:
    made = Settings()
    kinds = {each.name: type(getattr(made, each.name)) for each in fields(Settings)}
    for key, name in _SETTINGS.items():
        kind = kinds[name]
        value = row.take(key, (int, float) if kind is float else kind)
        if value is not None:
            if value < 0:
                raise DataError(f"settings: {key} is negative")
            made = replace(made, **{name: kind(value)})
    row.end()
    return made


def settings_json(settings: Settings) -> dict[str, Any]:
    """What bounds plans, as :func:`parse` reads it."""
    return {key: getattr(settings, name) for key, name in _SETTINGS.items()}


# --- a plan -------------------------------------------------------------------------------------


def to_json(plan: Plan) -> dict[str, Any]:
    """A plan for programs: its steps in order, each a list of moves made at the same time."""
    return {
        "reason": plan.reason,
        "stuck": list(plan.stuck),
        "stays": list(plan.stays),
        "gain_percent": round(gain(plan.before, plan.after), 2),
        "before": _balance(plan.before),
        "after": _balance(plan.after),
        "copied_mib": plan.copied,
        "steps": [[_move(move) for move in step] for step in plan.steps],
    }


def _balance(balance: Balance) -> Mapping[str, float]:
    return {
        "imbalance": round(balance.imbalance, 3),
        "cpu": round(balance.cpu, 3),
        "memory": round(balance.memory, 3),
    }


def _move(move: Move) -> Mapping[str, Any]:
    return {
        "name": move.vm.name,
        "source": move.source,
        "target": move.target,
        "memory_mib": move.vm.memory,
        "cpu_used": move.vm.used,
        "live": not move.cold,
        "detour": move.detour,
    }
