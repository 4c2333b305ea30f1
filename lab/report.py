# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns how the lab is shown: the table of ``status``, its facts as JSON, lists of other things."""

import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lab import faults
from lab.machine import Power
from lab.places import Places

if TYPE_CHECKING:
    from lab.lab import Lab
    from lab.snapshot import Snapshot

_MARKS = {Power.RUNNING: "●", Power.HUNG: "◐", Power.OFF: "○", Power.GONE: "✗"}


def grid(rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they must be; the first row is the heading."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
             for row in rows]  # fmt: skip
    lines.insert(1, "  ".join("─" * width for width in widths))
    return "\n".join(lines)


def facts(lab: "Lab") -> dict[str, object]:
    """Everything ``status`` knows."""
    powers = lab.powers()
    return {
        "name": lab.places.name,
        "accelerator": lab.accelerator,
        "state": lab.places.state,
        "logs": lab.places.logs,
        "hosts": [
            {
                "name": host.name,
                "power": powers[host.name].value,
                "address": host.address,
                "cluster_address": host.cluster_address,
                "bmc_address": host.bmc_address,
                "bmc_up": lab.bmc_alive(host.name),
                "memory_mib": host.memory_mib,
                "san": host.san,
                "volume_group": lab.spec.vg_name if host.data_gib else None,
                "faults": faults.read(lab.places, host.name).words(),
                "pid": lab.machine(host.name).pid,
            }
            for host in lab.spec.hosts
        ],
    }


def table(lab: "Lab") -> str:
    """The hosts of a running lab, for people."""
    powers = lab.powers()
    rows = [("HOST", "POWER", "ADDRESS", "CLUSTER", "BMC", "MEMORY", "DISK", "FAULTS")]
    for host in lab.spec.hosts:
        disk = [f"VG {lab.spec.vg_name}"] if host.data_gib else []
        disk += ["SAN"] if host.san else []
        power = powers[host.name]
        bmc = host.bmc_address if lab.bmc_alive(host.name) else f"{host.bmc_address} (dead)"
        rows.append(
            (
                host.name,
                f"{_MARKS[power]} {power.value}",
                host.address,
                host.cluster_address,
                bmc,
                f"{host.memory_mib} MiB",
                ", ".join(disk),
                ", ".join(faults.read(lab.places, host.name).words()) or "-",
            )
        )
    title = f"Lab '{lab.places.name}' ({lab.accelerator.upper()})"
    return f"{title}\n\n{grid(rows)}\n"


def snapshots(found: Sequence["Snapshot"]) -> str:
    """The snapshots in the cache."""
    if not found:
        return "no snapshots"
    rows = [("SNAPSHOT", "HOSTS", "SIZE", "MADE")]
    for one in found:
        made = time.strftime("%Y-%m-%d %H:%M", time.localtime(one.made))
        hosts = " ".join(host.name for host in one.spec.hosts)
        rows.append((one.name, hosts, f"{one.size() >> 20} MiB", made))
    return grid(rows)


def logs(places: Places) -> str:
    """The log files of the last run."""
    try:
        names = sorted(os.listdir(places.logs))
    except OSError:
        names = []
    if not names:
        return "no logs"
    rows = [("LOG", "SIZE", "FILE")]
    for name in names:
        path = os.path.join(places.logs, name)
        rows.append((name.removesuffix(".log"), f"{os.stat(path).st_size} B", path))
    return grid(rows)
