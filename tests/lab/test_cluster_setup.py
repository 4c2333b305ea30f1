# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Two machines become a cluster by cxm-setup, on real Corosync, Pacemaker, DLM, lvmlockd, a SAN."""

import pytest

from lab import cluster, installed, town
from lab.cluster import DEVICE, Plan
from lab.lab import Lab
from lab.machine import Machine

BACK_S = 600.0


def _vg(machine: Machine, vg: str) -> str:
    return machine.run(["vgs", "--noheadings", "-o", "vg_lock_type", vg]).stdout.strip()


def _locks_on(machine: Machine) -> set[str]:
    """Where the locks can be used, as a node sees it."""
    return town.with_locks(town.status(machine))


@pytest.mark.extensive
def test_cluster_is_formed_and_fences(cluster_lab: Lab) -> None:
    """Formed as the guide says; again changes nothing; a node that is cut off comes back."""
    first, second = (cluster_lab.machine(name) for name in ("node1", "node2"))
    nodes = {first.name, second.name}

    said = first.run(cluster.command(cluster_lab), timeout_s=300).stdout
    assert "Nothing to change: node1 is a node of lab." in said
    checked = first.run(["crm_verify", "--live-check", "-V"])
    assert checked.stderr == ""
    vg = cluster_lab.spec.vg_name
    assert [_vg(machine, vg) for machine in (first, second)] == ["dlm", "dlm"]
    assert _locks_on(first) == _locks_on(second) == nodes

    boot = second.run(["cat", "/proc/sys/kernel/random/boot_id"]).stdout
    first.run(["stonith_admin", "--reboot", second.name, "--timeout", "120"], timeout_s=150)
    first.wait_until(lambda: _locks_on(first) == {first.name}, timeout_s=BACK_S)
    first.wait_until(lambda: _locks_on(first) == nodes, timeout_s=BACK_S)
    second.forget_connection()
    second.wait_for_ssh()
    assert second.run(["cat", "/proc/sys/kernel/random/boot_id"]).stdout != boot
    assert _vg(second, vg) == "dlm"


# The nodes have no program that makes partitions; a table of the old kind (MBR) is a few bytes.
_PARTITIONS = """
import os, struct, sys
disk = os.open(sys.argv[1], os.O_RDWR)
end = os.lseek(disk, 0, os.SEEK_END) // 512
parts = ((2048, 32768), (34816, end - 34816))
rows = [struct.pack("<4xB3xII", 0x83, start, size) for start, size in parts]
os.pwrite(disk, b"".join(rows).ljust(64, bytes(1)) + bytes((0x55, 0xAA)), 446)
os.fsync(disk)
"""


def _two_parts(lab: Lab) -> None:
    """Cut a little for SBD off the SAN's disk, and give each node its watchdog."""
    first, *_others = machines = list(lab.machines.values())
    first.run(["python3", "-c", _PARTITIONS, DEVICE])
    for machine in machines:
        # udev may be looking at the disk just now.
        machine.wait_until(["blockdev", "--rereadpt", DEVICE], timeout_s=60.0)
        machine.run(["udevadm", "settle"])
        machine.run(["modprobe", "xen_wdt"])
        machine.run(["sh", "-c", "echo xen_wdt >/etc/modules-load.d/cxm-watchdog.conf"])


@pytest.mark.extensive
def test_nodes_without_a_bmc(pair_lab: Lab) -> None:
    """A disk of the SAN fences in a BMC's place, and carries the shared system datastore."""
    first, second = (pair_lab.machine(name) for name in ("node1", "node2"))
    nodes, datastore = {first.name, second.name}, "/var/lib/one/datastores/100"
    installed.on_nodes(pair_lab, installed.ready(pair_lab))
    _two_parts(pair_lab)
    more = ("--sbd", f"{DEVICE}-part1", "--system-datastore", "gfs2,size=1024,id=100")
    plan = Plan(f"{DEVICE}-part2", bmcs=False, more=more)
    cluster.form(pair_lab, plan)

    again = first.run(cluster.command(pair_lab, plan), timeout_s=300).stdout
    assert "Nothing to change: node1 is a node of lab." in again
    assert first.run(["crm_verify", "--live-check", "-V"]).stderr == ""
    as_oneadmin = ["runuser", "-u", "oneadmin", "--"]
    first.run([*as_oneadmin, "sh", "-c", f"echo kept >{datastore}/word"])
    assert second.run(["cat", f"{datastore}/word"]).stdout == "kept\n"

    boot = second.run(["cat", "/proc/sys/kernel/random/boot_id"]).stdout
    proven = first.run(["cxm", "fence", "--test", "--yes", second.name], timeout_s=2 * BACK_S)
    assert f"fencing is proven: {second.name}" in proven.stdout
    first.wait_until(lambda: _locks_on(first) == nodes, timeout_s=BACK_S)
    second.forget_connection()
    second.wait_for_ssh()
    assert second.run(["cat", "/proc/sys/kernel/random/boot_id"]).stdout != boot
    mounted = ["findmnt", "--noheadings", "--output", "FSTYPE", datastore]
    first.wait_until(
        lambda: second.run(mounted, ok=(0, 1)).stdout.split() == ["gfs2"], timeout_s=BACK_S
    )
    assert second.run(["cat", f"{datastore}/word"]).stdout == "kept\n"
