# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what a standalone host does when guests do something by themselves (docs/design/0004).

Run whenever Xen says that a domain is gone, and once a minute. It looks at all domains and records
once; only a VM that looks odd is locked, looked at again and dealt with. A VM whose lock is held is
left to the action that holds it.
"""

import logging
import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Final

from cxm import names
from cxm.errors import CxmError, LockTimeoutError
from cxm.names import CloudId, VmId
from cxm.node import guests
from cxm.node.guests import Guest, Life
from cxm.node.life import Vm, boot_id, end, note, note_running
from cxm.node.machine import Machine
from cxm.node.starting import release, start_stored
from cxm.node.verbs import Call
from cxm.node.volumes import Owner
from cxm.xen import xl
from cxm.xen.xl import Domain, Reason

_log = logging.getLogger(__name__)

# A guest that has run for so long has recovered: its next fall is its first.
RECOVERED_S: Final = 600.0
# How long after each fall in a row it is started again, at the next turn after that; the last one
# for all that follow.
DELAYS_S: Final = (0.0, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0)
# A stop that was cut short is forgotten, and the guest looked after again, when it ran on so long.
STOP_FORGOTTEN_S: Final = 900.0


class Deed(Enum):
    """What is to be done about a VM."""

    NOTHING = "nothing"
    ADOPT = "adopt"  # it runs: record that
    FORGIVE = "forgive"  # it has run well for long: forget its falls
    SWITCH_OFF = "switch off"  # it switched itself off: record that and clean up
    CLEAN = "clean"  # it is off, but its remains are there
    FALLEN = "fallen"  # it crashed or vanished: record that, start it now or later
    HOST_RESTARTED = "host restarted"  # it ran before the host went down
    START = "start"  # its time to be started again has come


@dataclass(frozen=True, slots=True)
class View:
    """What else there is to know about a VM when it is decided what to do about it."""

    now: float
    boot: str  # of the host
    kept: bool = False  # a keeper of it lives
    saved: bool = False  # xendomains has saved its memory, and will restore it


def _about_running(record: Guest | None, view: View) -> Deed:
    if record is None or record.life in (Life.OFF, Life.CRASHED):
        return Deed.ADOPT
    if record.life is Life.RUNNING and record.boot_id != view.boot:
        return Deed.ADOPT
    if record.life is Life.STOPPED:
        return Deed.ADOPT if view.now - record.since > STOP_FORGOTTEN_S else Deed.NOTHING
    return Deed.FORGIVE if record.falls and view.now - record.since > RECOVERED_S else Deed.NOTHING


def _about_remains(domain: Domain, record: Guest | None, *, kept: bool) -> Deed:
    if domain.reason in (Reason.SUSPEND, Reason.SOFT_RESET) or (
        domain.reason == Reason.REBOOT and kept
    ):
        return Deed.NOTHING
    if record is not None and record.life is Life.STOPPED:
        return Deed.CLEAN
    return Deed.SWITCH_OFF if domain.powered_off else Deed.FALLEN


def _about_nothing(record: Guest | None, view: View) -> Deed:
    if record is None or view.kept:
        return Deed.NOTHING
    if not record.wanted:
        return Deed.NOTHING if record.released else Deed.CLEAN
    if record.boot_id != view.boot:
        return Deed.HOST_RESTARTED
    if view.saved:
        return Deed.NOTHING
    if record.life is Life.CRASHED:
        due = record.next_start is None or record.next_start <= view.now
        return Deed.START if due else Deed.NOTHING
    return Deed.FALLEN


def decide(present: Collection[Domain], record: Guest | None, view: View) -> Deed:
    """What to do about a VM with these domains."""
    if any(domain.dying or domain.moving for domain in present):
        return Deed.NOTHING
    for domain in present:
        if domain.shut_down:
            return _about_remains(domain, record, kept=view.kept)
        return Deed.NOTHING if domain.paused else _about_running(record, view)
    return _about_nothing(record, view)


def tend(call: Call) -> dict[str, Any]:
    """Deal with all that guests did by themselves; says in the log what it did."""
    machine = call.machine
    records, damaged = guests.read_all(machine)
    for error in damaged:
        _log.error("%s", error.sentence())
    known = {(record.cloud, record.vm): record for record in records}
    present = _by_vm(machine, xl.domains(machine.runner))
    # Whether a keeper lives is asked only when there is reason to.
    view = View(machine.now(), boot_id(machine))
    failed = 0
    for cloud, vm in sorted({*known, *present}):
        first = decide(present.get((cloud, vm), []), known.get((cloud, vm)), view)
        if first is not Deed.NOTHING:
            failed += not _look_again(Vm(machine, Owner(cloud, vm)))
    return {"failed": failed}


def _by_vm(machine: Machine, domains: Iterable[Domain]) -> dict[tuple[CloudId, VmId], list[Domain]]:
    found: dict[tuple[CloudId, VmId], list[Domain]] = {}
    for domain in domains:
        for cloud in machine.config.clouds:
            vm = names.vm_of_uuid(cloud, domain.uuid)
            if vm is not None:
                found.setdefault((cloud, vm), []).append(domain)
    return found


def _look_again(vm: Vm) -> bool:
    """Decide again under the VM's lock, and act; returns whether that went well."""
    machine = vm.machine
    try:
        with machine.vm_lock(vm.owner.cloud, vm.vm, timeout_s=0.0):
            # In this order: a keeper that ends after the first question has left its domain behind.
            kept = bool(vm.keepers())
            present = vm.present()
            record = vm.record()
            saved = any(os.path.exists(path) for path in vm.saved_by_xendomains())
            view = View(machine.now(), boot_id(machine), kept=kept, saved=saved)
            _act(vm, decide(present, record, view), present, record)
    except LockTimeoutError:
        return True
    except CxmError as error:
        _log.error("VM %d: %s", vm.vm, error.sentence())
        return False
    return True


def _act(vm: Vm, deed: Deed, present: list[Domain], record: Guest | None) -> None:
    machine = vm.machine
    if deed is Deed.ADOPT:
        note_running(vm, present[0].name, "it runs")
        _log.info("VM %d runs, as %s: it is looked after from now on", vm.vm, present[0].name)
    elif deed is Deed.FORGIVE and record is not None:
        guests.write(machine, replace(record, falls=()))
    elif deed in (Deed.SWITCH_OFF, Deed.CLEAN):
        if deed is Deed.SWITCH_OFF:
            note(vm, Life.OFF, "its guest switched itself off")
            _log.info("VM %d: its guest switched itself off", vm.vm)
        end(vm)
        release(vm)
    elif deed is Deed.FALLEN:
        _fallen(vm, present, record)
    elif deed is Deed.HOST_RESTARTED:
        _start(vm, "the host was restarted", ())
    elif deed is Deed.START and record is not None:
        _start(vm, record.reason, record.falls)


def _why(present: list[Domain]) -> str:
    for domain in present:
        if domain.reason == Reason.REBOOT:
            return "its guest rebooted, but nobody was there to start it again"
        if domain.reason == Reason.WATCHDOG:
            return "its watchdog found it dead"
        return "its guest crashed"
    return "its domain vanished"


def _fallen(vm: Vm, present: list[Domain], record: Guest | None) -> None:
    """Record a fall, clean up, and start the guest again when its time has come."""
    machine = vm.machine
    now = machine.now()
    recovered = record is not None and now - record.since > RECOVERED_S
    known = record.falls if record is not None and not recovered else ()
    # A fall whose handling was cut short has been counted.
    counted = bool(present) and record is not None and record.life is Life.CRASHED
    falls = known if counted and known else (*known, now)
    why = _why(present)
    delay = _delay(falls)
    _crashed(vm, why, falls, now + delay)
    if present:
        end(vm)
    if delay:
        release(vm)
        _log.info("VM %d: %s; it is started again in %.0f s", vm.vm, why, delay)
    else:
        _start(vm, why, falls)


def _delay(falls: tuple[float, ...]) -> float:
    return DELAYS_S[min(len(falls), len(DELAYS_S)) - 1]


def _crashed(vm: Vm, why: str, falls: tuple[float, ...], next_start: float) -> None:
    note(vm, Life.CRASHED, why)
    record = vm.record()
    if record is not None:
        guests.write(vm.machine, replace(record, falls=falls, next_start=next_start))


def _start(vm: Vm, why: str, falls: tuple[float, ...]) -> None:
    try:
        name = start_stored(vm, f"{why}; it was started again", falls=falls)
    except CxmError:
        now = vm.machine.now()
        again = (*falls, now)
        _crashed(vm, why, again, now + max(_delay(again), DELAYS_S[1]))
        raise
    _log.info("VM %d: %s; it was started again as %s", vm.vm, why, name)
