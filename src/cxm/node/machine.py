# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what a verb may use of the node it runs on: settings, commands, paths, clock and caller.

A verb reaches the world only through its :class:`Machine`; tests pass one that lives in a temporary
directory and whose runner is a model.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final

from cxm import config as configuration
from cxm import lock, pace, rights, wire
from cxm.config import CLUSTER_MARKER, NODE_FILE, NodeConfig
from cxm.names import CloudId, LvName, VmId
from cxm.run import Runner, System

# A verb of another action on the same VM may be saving a large memory: wait for it, not for ever.
_LOCK_TIMEOUT_S = 60.0
_POLL_S = 0.5
# A start waits behind others for less than Pacemaker gives it, together with its locks and itself.
_LAUNCH_S = 40.0
_LAUNCH_LONGEST_S = 120.0


@dataclass(frozen=True, slots=True)
class Caller:
    """Who called the helper: the account that owns the VMs' directories, oneadmin."""

    uid: int
    gid: int


ROOT: Final = Caller(0, 0)


@dataclass(frozen=True, slots=True)
class Machine:
    """The node that the helper runs on."""

    config: NodeConfig
    runner: Runner
    caller: Caller
    hostname: str
    dev_dir: str = "/dev"
    run_dir: str = "/run/cxm"
    state_dir: str = "/var/lib/cxm"
    xendomains_dir: str = "/var/lib/xen/save"
    sys_dir: str = "/sys"
    proc_dir: str = "/proc"
    boot_id_file: str = "/proc/sys/kernel/random/boot_id"
    cluster_marker: str = CLUSTER_MARKER
    corosync_conf: str = "/etc/corosync/corosync.conf"
    nudge_key: str = "/etc/cxm/nudge_key"
    cib_file: str = "/var/lib/pacemaker/cib/cib.xml"  # this node's copy, as it is on the disk
    now: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    silence_s: float = wire.SILENCE_S  # of an upload, after which its sender counts as dead
    cpus: int = os.cpu_count() or 1

    def device(self, lv: LvName) -> str:
        """The device of an active volume: ``/dev/VG/LV``, never a link in a VM's directory."""
        return os.path.join(self.dev_dir, self.config.vg_name, lv)

    def vm_lock(
        self, cloud: CloudId, vm: VmId, *, timeout_s: float = _LOCK_TIMEOUT_S
    ) -> AbstractContextManager[None]:
        """The lock of one VM; :mod:`cxm.node.helper` takes it for every verb that names a VM."""
        directory = os.path.join(self.run_dir, "lock")
        return lock.hold(directory, f"vm-{cloud}-{vm}", timeout_s=timeout_s)

    def order_lock(
        self, cloud: CloudId, vm: VmId, *, timeout_s: float = _LOCK_TIMEOUT_S
    ) -> AbstractContextManager[None]:
        """Held on a cluster's node by an order about a VM, which waits for the cluster to act.

        The VM's lock is taken by what then happens on this node, at the cluster's behest.
        """
        directory = os.path.join(self.run_dir, "lock")
        return lock.hold(directory, f"order-{cloud}-{vm}", timeout_s=timeout_s)

    def order_busy(self, cloud: CloudId, vm: VmId) -> bool:
        """Whether an order about a VM is at work on this node, waiting for the cluster perhaps."""
        return lock.is_held(os.path.join(self.run_dir, "lock"), f"order-{cloud}-{vm}")

    def launching(self) -> AbstractContextManager[None]:
        """A turn to make a domain: as many at a time as dom0 has processors.

        Xen ends a block script after 40 s. A node that takes over the guests of another starts so
        many at the same time that a small dom0 needs longer for each of them, and for all.
        """
        directory = os.path.join(self.run_dir, "launch")
        return lock.turn(directory, self.cpus, patience_s=_LAUNCH_S, longest_s=_LAUNCH_LONGEST_S)

    @property
    def in_cluster(self) -> bool:
        """Whether this machine is a node of a cxm cluster: cxm-setup leaves a mark."""
        return os.path.exists(self.cluster_marker)

    def vm_busy(self, cloud: CloudId, vm: VmId) -> bool:
        """Whether an action is at work on a VM at this moment."""
        return lock.is_held(os.path.join(self.run_dir, "lock"), f"vm-{cloud}-{vm}")

    def waits(self, patience_s: float) -> Iterator[None]:
        """Give the loop a turn until its patience ends, and a moment between two turns."""
        deadline = self.monotonic() + patience_s
        begun = self.monotonic()
        yield
        while self.monotonic() < deadline:
            self.sleep(pace.pause(self.monotonic() - begun, least_s=_POLL_S))
            begun = self.monotonic()
            yield

    def as_caller(self) -> AbstractContextManager[None]:
        """Work with the caller's rights, in a directory that it can write."""
        return rights.working_as(self.caller.uid, self.caller.gid)


def settings(path: str = NODE_FILE) -> tuple[NodeConfig, list[str]]:
    """The node's own settings, and warnings of what is ignored; raises ConfigError."""
    return configuration.node(configuration.read_trusted(path), NODE_FILE)


def this_machine(caller: Caller = ROOT, runner: Runner | None = None) -> Machine:
    """The machine that we run on, by default for root, with no settings but the defaults.

    Whoever needs its own gives it :func:`settings`, and decides what broken ones mean.
    """
    return Machine(NodeConfig(), runner or System(), caller, os.uname().nodename)
