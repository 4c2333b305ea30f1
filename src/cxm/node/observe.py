# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the verb ``observe``: what this node, its guests and its disks are doing. Changes nothing.

How each version of OpenNebula is told is the business of :mod:`cxm.one.im`; the table of states is
in design note 0006.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from cxm import lvm
from cxm.errors import DataError
from cxm.names import CHECKPOINT, CloudId, VmId, decode_tags, vm_of_uuid
from cxm.node import guests as records
from cxm.node import room, sight
from cxm.node.machine import Machine
from cxm.node.verbs import Call
from cxm.xen import devices, xl

_KIB: Final = 1024


def observe(call: Call, *, detail: str) -> dict[str, Any]:
    """What is here now; ``detail`` (state, usage, host, all) says how much of it."""
    machine, cloud = call.machine, call.cloud
    domains = xl.all_domains(machine.runner)
    now = machine.monotonic()
    path = os.path.join(machine.run_dir, "observe", f"{cloud}.json")
    memory = sight.load(path)
    current = sight.Sample(now, {_key(domain): domain.time_s for domain in domains})
    percent = sight.percentages(memory, current)
    ours = _ours(cloud, domains)
    guests = _guests(machine, cloud, ours, memory, now)
    sight.remember(memory, current)
    sight.store(path, memory)
    result: dict[str, Any] = {
        "guests": guests,
        "foreign": sorted(_foreign(cloud, domains)),
    }
    if detail == "state":
        return result
    traffic = devices.of_guests(machine.sys_dir)
    for guest in guests:
        domain = ours.get(VmId(guest["vm"]))
        if domain is not None:
            guest.update(_usage(domain, percent[_key(domain)], traffic.get(domain.domid)))
    if detail != "usage":
        result["node"] = _node(machine, domains, percent)
    if detail == "all":
        result |= _storage(machine, cloud, guests)
    return result


def _key(domain: xl.Domain) -> str:
    return f"{domain.uuid}/{domain.domid}"


def _ours(cloud: CloudId, domains: Iterable[xl.Domain]) -> dict[VmId, xl.Domain]:
    """This cloud's domains by VM; half of a migration is none, a live one wins over its remains."""
    found: dict[VmId, xl.Domain] = {}
    for domain in domains:
        vm = vm_of_uuid(cloud, domain.uuid)
        if vm is None or domain.domid == 0 or domain.moving:
            continue
        if vm not in found or (domain.alive and not found[vm].alive):
            found[vm] = domain
    return found


def _foreign(cloud: CloudId, domains: Iterable[xl.Domain]) -> set[str]:
    """The names of domains that this cloud did not make."""
    return {
        domain.name
        for domain in domains
        if domain.domid != 0 and vm_of_uuid(cloud, domain.uuid) is None and domain.name != "(null)"
    }


def _guests(
    machine: Machine,
    cloud: CloudId,
    ours: Mapping[VmId, xl.Domain],
    memory: sight.Memory,
    now: float,
) -> list[dict[str, Any]]:
    """What each guest does: those with a domain, and those of which something is known."""
    known = _known(machine, cloud, memory)
    away = _elsewhere(machine, cloud, memory, ours)
    sight.forget_all_but(memory, {*ours, *known, *away})
    found = []
    for vm in sorted({*ours, *known, *away}):
        if vm in away and not machine.order_busy(cloud, vm):
            memory.guests.pop(vm, None)
            elsewhere = sight.GuestState.ELSEWHERE.value
            found.append({"vm": vm, "name": away[vm], "state": elsewhere})
            continue
        domain, (recorded, life) = ours.get(vm), known.get(vm, ("", None))
        # A domain without a name is being made or taken apart.
        nameless = domain is not None and domain.name == "(null)"
        seen = memory.guests.setdefault(vm, sight.Seen())
        seen.here = domain is not None or (seen.here and life is not records.Life.OFF)
        state = sight.judge(
            domain,
            life,
            seen,
            busy=nameless or machine.vm_busy(cloud, vm) or machine.order_busy(cloud, vm),
            now=now,
        )
        if state is not None:
            name = "" if domain is None or nameless else domain.name
            found.append({"vm": vm, "name": name or recorded, "state": state.value})
    return found


def _known(
    machine: Machine, cloud: CloudId, memory: sight.Memory
) -> dict[VmId, tuple[str, records.Life]]:
    """What is known of guests besides their domains: each one's name, and what became of it.

    A standalone host has its records. In a cluster that is what the cluster says: a record would
    not be true any more once another node has started the guest. One that should run, and was here
    when it last ran, is between two lives, or on its way to another node.
    """
    if machine.in_cluster:
        from cxm.cluster import poweredoff  # noqa: PLC0415 - most nodes are in no cluster

        off = poweredoff.look(machine, cloud, memory.off)
        here = {vm for vm, seen in memory.guests.items() if seen.here}
        wanted = [(vm, name) for vm, name in memory.off.ours.items() if vm in here]
        known = {VmId(vm): (name, records.Life.RUNNING) for vm, name in wanted}
        return known | {VmId(vm): (name, records.Life.OFF) for vm, name in off.items()}
    found = records.read_all(machine)[0]
    return {guest.vm: (guest.name, guest.life) for guest in found if guest.cloud == cloud}


def _elsewhere(
    machine: Machine, cloud: CloudId, memory: sight.Memory, ours: Mapping[VmId, xl.Domain]
) -> dict[VmId, str]:
    """The VMs that run on another node of the cluster while OpenNebula looks for them here."""
    if not memory.off.ours or not machine.in_cluster:
        return {}
    from cxm.cluster import poweredoff  # noqa: PLC0415 - most nodes are in no cluster

    away = poweredoff.elsewhere(machine, cloud, memory.off, ours.keys())
    return {VmId(vm): name for vm, name in away.items()}


def _usage(
    domain: xl.Domain, percent: float, traffic: devices.Traffic | None
) -> dict[str, int | float]:
    counted = traffic or devices.Traffic()
    return {
        "cpu": percent if domain.alive else 0.0,
        "memory_kib": domain.memory_mib * _KIB if domain.alive else 0,
        "net_rx": counted.net_rx,
        "net_tx": counted.net_tx,
        "read_bytes": counted.read_bytes,
        "write_bytes": counted.write_bytes,
        "reads": counted.reads,
        "writes": counted.writes,
    }


def _node(
    machine: Machine, domains: Sequence[xl.Domain], percent: Mapping[str, float]
) -> dict[str, Any]:
    """The machine itself; ``memory_*`` is what guests have and could have, without dom0's."""
    info = xl.info(machine.runner)
    has = room.of(info, domains)
    net_rx, net_tx = devices.of_host(machine.sys_dir)
    total_cpu = info.cpus * 100
    used_cpu = min(total_cpu, round(sum(percent.values())))
    return {
        "hostname": machine.hostname,
        "arch": os.uname().machine,
        "model": _model(machine.proc_dir),
        "xen": info.version,
        "mhz": info.mhz,
        "total_cpu": total_cpu,
        "used_cpu": used_cpu,
        "free_cpu": total_cpu - used_cpu,
        "total_memory_kib": has.total_mib * _KIB,
        "used_memory_kib": has.guests_mib * _KIB,
        "free_memory_kib": has.free_mib * _KIB,
        "net_rx": net_rx,
        "net_tx": net_tx,
    }


def _model(proc_dir: str) -> str:
    """The processor's name; empty on architectures whose kernel does not tell."""
    with open(os.path.join(proc_dir, "cpuinfo"), encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return ""


def _storage(machine: Machine, cloud: CloudId, guests: list[dict[str, Any]]) -> dict[str, Any]:
    """The volume group, the guests' disks (written into ``guests``), and who only has disks."""
    group = lvm.group(machine.runner, machine.config.vg_name)
    disks: dict[int, dict[str, int]] = {}
    for volume in group.volumes:
        try:
            tags = decode_tags(list(volume.tags))
        except DataError:
            continue  # a damaged volume is the business of those who would change it
        if tags is not None and tags.cloud == cloud and tags.kind != CHECKPOINT:
            disks.setdefault(tags.vm, {})[tags.kind] = volume.size_mib
    for guest in guests:
        guest["disks"] = disks.get(guest["vm"], {})
    here = {guest["vm"] for guest in guests}
    free = group.free // lvm.MIB
    total = group.size // lvm.MIB
    return {
        "vg": {
            "name": group.name,
            "total_mib": total,
            "used_mib": total - free,
            "free_mib": free,
            "shared": group.shared,
        },
        "held": sorted(set(disks) - here),
    }
