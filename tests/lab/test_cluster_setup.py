# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Two machines become a cluster by cxm-setup, on real Corosync, Pacemaker, DLM, lvmlockd, a SAN."""

import pytest

from lab import cluster, town
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
