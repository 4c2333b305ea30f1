# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what nobody waits for any more: VMs that a failed move left blocked, rules of dead orders.

An order puts its own failure right, unless it was killed; and a move that Pacemaker made by itself
has no order. One node of the cluster looks now and then (``packaging/ocf/watch``), at what is and
not at what happened, and acts only where no order about the VM is at work on any node
(docs/design/0010).
"""

import logging
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final
from xml.etree.ElementTree import Element

from cxm import log, wholefile
from cxm.cluster import cib, history, pacemaker, peer
from cxm.cluster.cib import Resource, Rule, Wish
from cxm.cluster.pacemaker import Failure, Placed, Status
from cxm.errors import CxmError, LockTimeoutError, explained
from cxm.names import CloudId, VmId
from cxm.node.guests import Life
from cxm.node.machine import Machine, this_machine

_log = logging.getLogger(__name__)

# How long a VM stays blocked after so many moves in a row that failed: each try sends its memory.
_PAUSES_S: Final = (0.0, 60.0, 300.0, 900.0)
_IN_A_ROW_S: Final = 3600.0
_MOVES: Final = ("migrate_to", "migrate_from")
# Every node is asked for the VM within so long.
_PROBES_S: Final = 30.0
# How long another order may keep this one waiting; the next turn comes soon.
_LOCK_S: Final = 1.0


class Deed(Enum):
    """What is to be done about a VM that nobody waits for."""

    UNBLOCK = "unblock"  # have every node look for it, and Pacemaker look after it again
    SETTLE = "settle"  # it runs somewhere: wish it there, and end the rule
    RELEASE = "release"  # the rule has nothing to say any more
    CALL_OFF = "call off"  # its start was ordered, and has not come about


@dataclass(frozen=True, slots=True)
class Case:
    """A VM about which something may have to be done."""

    cloud: CloudId
    vm: VmId
    resource: Resource | None
    placed: Placed | None
    rule: Rule | None
    failure: Failure | None  # of a move

    @property
    def id(self) -> str:
        return cib.resource_id(self.cloud, self.vm)

    @property
    def where(self) -> tuple[str, ...]:
        return self.placed.nodes if self.placed is not None else ()


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do, and why; ``node`` is where the VM is wished to then."""

    deed: Deed
    why: str
    node: str = ""
    sure: bool = False  # it is right whether or not an order lives: nobody need be asked


# --- decisions ------------------------------------------------------------------------------------


def odd(status: Status, root: Element) -> list[tuple[CloudId, VmId]]:
    """The VMs that are blocked, and those that a rule is about."""
    ids = {rid for rid, placed in status.resources.items() if placed.blocked}
    ids |= {each.resource for each in cib.rules(root)}
    return [vm for rid in sorted(ids) if (vm := cib.parse_id(rid)) is not None]


def case_of(cloud: CloudId, vm: VmId, status: Status, root: Element) -> Case:
    """What there is to know of a VM; raises DataError for one that is damaged in the CIB."""
    rid = cib.resource_id(cloud, vm)
    failures = [each for each in status.failures if each.resource == rid]
    moves = [each for each in failures if each.operation in _MOVES]
    stops = [each for each in failures if each.operation == "stop"]
    return Case(
        cloud,
        vm,
        resource=cib.find(root, cloud, vm),
        placed=status.resources.get(rid),
        rule=next((each for each in cib.rules(root) if each.resource == rid), None),
        # A stop that failed may be what blocks it.
        failure=moves[-1] if moves and not stops else None,
    )


def decide(case: Case, status: Status, now: float) -> Decision | None:
    """What is to be done about a VM if no order about it is at work; None for nothing."""
    up = [node.name for node in status.nodes if node.online and not node.unclean]
    if not set(case.where) <= set(up):
        return None  # a node must be fenced first; then there is something to decide
    if case.resource is not None and case.placed is not None and case.placed.blocked:
        return _blocked(case)
    return None if case.rule is None else _ruled(case, case.rule, now)


def _blocked(case: Case) -> Decision | None:
    if case.failure is None:
        return None  # by something else than a move: a human must look
    failed = case.failure
    source = failed.node if failed.operation == "migrate_to" else ""
    why = f"its move failed on {failed.node} and left it blocked"
    return Decision(Deed.UNBLOCK, why, source)


def _ruled(case: Case, rule: Rule, now: float) -> Decision | None:
    end = history.seconds(rule.until)
    known, where = case.resource, case.where
    if end is None or end <= now:
        deed = Deed.CALL_OFF if rule.binding and known and not where else Deed.RELEASE
        return Decision(deed, "the time of its order is over", sure=True)
    if known is None or not known.started:
        return Decision(Deed.RELEASE, "it is not to run")
    if len(where) > 1 or (case.placed is not None and not case.placed.at_rest):
        return None
    why = f"nobody waits for its {'start on' if rule.binding else 'move to'} {rule.node}"
    if where:
        # Of a start that came off, its order would write just that.
        return Decision(Deed.SETTLE, why, where[0], sure=rule.binding and where == (rule.node,))
    return Decision(Deed.CALL_OFF if rule.binding else Deed.RELEASE, why)


def is_due(times: Sequence[float], now: float) -> bool:
    """Whether a VM whose moves failed, and that was helped at these times, is helped once more."""
    recent = [each for each in times if now - _IN_A_ROW_S < each <= now]
    pause_s = _PAUSES_S[min(len(recent), len(_PAUSES_S) - 1)]
    return not recent or now - recent[-1] >= pause_s


# --- effects --------------------------------------------------------------------------------------


def look_after(machine: Machine) -> int:
    """Do what is to be done now; returns for how many VMs. Raises CxmError without Pacemaker."""
    status, root = pacemaker.status(machine.runner), pacemaker.cib(machine.runner)
    done = 0
    if not status.quorate:
        return done
    for cloud, vm in odd(status, root):
        try:
            case = case_of(cloud, vm, status, root)
            decision = decide(case, status, machine.now())
            if decision is not None:
                done += _attend(machine, case, decision, status, root)
        except LockTimeoutError:
            continue  # an order has begun
        except CxmError as error:
            _log.warning("VM %d could not be looked after: %s", vm, error.sentence())
    return done


def _attend(
    machine: Machine, case: Case, decision: Decision, status: Status, root: Element
) -> bool:
    if not decision.sure and _is_ordered(machine, case, status, root):
        return False
    with machine.order_lock(case.cloud, case.vm, timeout_s=_LOCK_S):
        # What was seen was seen before the nodes were asked; an order may have come and gone.
        status, root = pacemaker.status(machine.runner), pacemaker.cib(machine.runner)
        now = case_of(case.cloud, case.vm, status, root)
        if decide(now, status, machine.now()) != decision or now.rule != case.rule:
            return False
        if decision.deed is Deed.UNBLOCK:
            return _unblock(machine, case, decision)
        _write(machine, case, decision)
        return True


def _is_ordered(machine: Machine, case: Case, status: Status, root: Element) -> bool:
    """Whether an order about the VM is at work, or may be: on a node that does not answer."""
    first = [case.rule.node] if case.rule is not None else []
    online = {node.name for node in status.nodes if node.online}
    asked = dict.fromkeys(
        [machine.hostname, *(name for name in (*first, *case.where) if name in online)]
    )
    for node in [*asked, *sorted(online - asked.keys())]:
        if node == machine.hostname:
            busy = machine.order_busy(case.cloud, case.vm)
        else:
            other = peer.find(machine, root, node)
            answer = other.ask("ordered", case.cloud, case.vm, timeout_s=_PROBES_S)
            busy = bool(answer["ordered"])
        if busy:
            return True
    return False


def _write(machine: Machine, case: Case, decision: Decision) -> None:
    """Change what the CIB says of the VM, if it says of its order what it said when it was read."""

    def edit(root: Element) -> None:
        if {each.resource: each for each in cib.rules(root)}.get(case.id) != case.rule:
            return
        cib.release(root, case.id)
        known = cib.find(root, case.cloud, case.vm)
        if known is None:
            return
        if decision.deed is Deed.CALL_OFF:
            off = replace(known, started=False, wish=Wish.NONE, life=Life.OFF, reason=decision.why)
            cib.put(root, off)
        elif decision.node:
            cib.prefer(root, case.id, decision.node)

    ends = {
        Deed.CALL_OFF: "it is called off, and stays off",
        Deed.RELEASE: "Pacemaker places it as any other",
    }
    stays = f"it is on {decision.node}" if decision.node else "it is where it is"
    what = f"VM {case.vm}: {decision.why}: {ends.get(decision.deed, stays)}"
    pacemaker.change(machine.runner, edit, what=what)


def _unblock(machine: Machine, case: Case, decision: Decision) -> bool:
    """What an order does whose move has failed: wish, rule and failure are gone, then it is found.

    The wish is for the node that it left from; where it is found elsewhere, for that.
    """
    times = _times(machine, case)
    now = machine.now()
    if not is_due(times, now):
        return False
    _remember(machine, case, [*times, now])
    _log.warning("VM %d: %s, and nobody puts that right: every node looks", case.vm, decision.why)
    _write(machine, case, decision)
    pacemaker.refresh(machine.runner, case.id)
    for _turn in machine.waits(_PROBES_S):
        found = pacemaker.status(machine.runner).resources.get(case.id)
        if found is not None and found.at_rest and len(found.nodes) == 1 and not found.blocked:
            here = Decision(Deed.SETTLE, "Pacemaker looks after it again", found.nodes[0])
            _write(machine, replace(case, rule=None), here)
            _log.info("VM %d is on %s, and looked after again", case.vm, found.nodes[0])
            break
    return True


def _path(machine: Machine, case: Case) -> str:
    return os.path.join(machine.run_dir, "watch", f"{case.cloud}-{case.vm}")


def _times(machine: Machine, case: Case) -> list[float]:
    """When the VM was helped before, by this node since it was started."""
    with suppress(FileNotFoundError, ValueError), open(_path(machine, case)) as file:
        return [float(line) for line in file]
    return []


def _remember(machine: Machine, case: Case, times: Iterable[float]) -> None:
    recent = [each for each in times if machine.now() - each < _IN_A_ROW_S]
    text = "".join(f"{each:.0f}\n" for each in recent)
    wholefile.write(_path(machine, case), text, directory_mode=0o755)


# --- the agent ------------------------------------------------------------------------------------


def main() -> int:
    """The entry point of ``cxm-watch``: one look; an agent's exit code."""
    os.umask(0o022)
    log.to_syslog(ident="cxm", debug=False)
    try:
        look_after(this_machine())
    except Exception as error:  # noqa: BLE001 - the boundary
        _log.error("watch: %s", explained(error, "looking after VMs", _log).sentence())
        return CxmError.code
    return 0
