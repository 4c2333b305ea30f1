# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns SBD on this machine: what is on its disk, its times, its settings, its watchdog.

Nodes are ordered to die by a message on a disk of the SAN. Who cannot read it any more is reset by
its watchdog. So whoever sent a message and waited for ``msgwait`` knows that the other is dead,
also where the other's BMC has no power: on the condition that sbd ran there.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cxm.errors import CxmError, DataError
from cxm.run import Runner
from cxm.setup import corosync, cxmrc, files, shareddisk
from cxm.setup.clusterargs import Cluster
from cxm.setup.corosync import Present
from cxm.setup.nodecheck import Host
from cxm.setup.report import Check, failed, ok, warning

CONF: Final = "/etc/default/sbd"
WATCHDOG: Final = "/dev/watchdog"
_IDENTITY: Final = "/sys/class/watchdog/watchdog0/identity"
_SOFTDOG: Final = "Software Watchdog"
_MODULE: Final = "modprobe xen_wdt; echo xen_wdt >/etc/modules-load.d/cxm-watchdog.conf"
_DISK: Final = "SBD disk"
_TIMEOUT_S: Final = 60.0
# Shorter, and a SAN that changes its path resets nodes.
_LEAST_WATCHDOG_S: Final = 15
_TOKENS: Final = 3
# A node waits for msgwait before its sbd has started, and systemd for 90 s.
_MOST_MSGWAIT_S: Final = 85
_MS: Final = 1000


@dataclass(frozen=True, slots=True)
class Times:
    """What is written on the disk, in seconds."""

    watchdog: int  # a node that has not read its messages for so long is reset
    msgwait: int  # after so long, a node that was sent a message is dead


def times(token_ms: int) -> Times:
    """The times for a cluster: nobody dies whom the others could still wait for.

    They give up on a node after the token and the consensus, 2.2 tokens together.
    """
    watchdog = max(_LEAST_WATCHDOG_S, -(-_TOKENS * token_ms // _MS))
    return Times(watchdog, 2 * watchdog)


@dataclass(frozen=True, slots=True)
class Disk:
    """What one look at the disk has found: all that is planned with it follows from this."""

    check: Check
    times: Times | None = None  # None where it is no SBD device
    others: Sequence[str] = ()  # who has a slot and is no node of the cluster
    is_empty: bool = False  # it can be made an SBD device


def _times(runner: Runner, device: str) -> Times:
    """The times on an SBD device."""
    said = runner.run(["sbd", "-d", device, "dump"], timeout_s=_TIMEOUT_S).stdout
    found = dict(re.findall(r"^Timeout \((\w+)\)\s*:\s*(\d+)", said, re.MULTILINE))
    try:
        return Times(int(found["watchdog"]), int(found["msgwait"]))
    except KeyError as error:
        raise DataError(f"'sbd -d {device} dump' says no Timeout ({error.args[0]})") from error


def _nodes(runner: Runner, device: str) -> list[str]:
    """Who has used the device."""
    said = runner.run(["sbd", "-d", device, "list"], timeout_s=_TIMEOUT_S).stdout
    return [line.split()[1] for line in said.splitlines()]


def create(cluster: Cluster) -> list[str]:
    """The command that makes the device."""
    wanted = times(cluster.token_ms)
    argv = ["sbd", "-d", cluster.sbd, "-1", str(wanted.watchdog), "-4", str(wanted.msgwait)]
    return [*argv, "create"]


def settings(text: str, cluster: Cluster) -> str:
    """The file of settings; what is not ours stays.

    A slot on the disk has the name that ``hostname`` shows, which is Pacemaker's: a machine of
    another name is no node (:func:`cxm.setup.clustercheck.own_name`).
    """
    values = {
        "SBD_DEVICE": cluster.sbd,
        "SBD_PACEMAKER": "yes",
        # A node that was fenced comes back by itself.
        "SBD_STARTMODE": "always",
        # But not before whoever fenced it is done with that.
        "SBD_DELAY_START": "yes",
        "SBD_WATCHDOG_DEV": WATCHDOG,
        "SBD_WATCHDOG_TIMEOUT": str(times(cluster.token_ms).watchdog),
    }
    return cxmrc.set_values(text, values)


def checks(host: Host, disk: Disk) -> list[Check]:
    """Whether disk and watchdog can be used."""
    return [disk.check, _watchdog(host)]


def look(host: Host, cluster: Cluster, *, is_first: bool) -> Disk:
    """Look at the disk, once; the first node takes an empty one too."""
    device, path = cluster.sbd, host.path(cluster.sbd)
    if not os.path.exists(path):
        advice = "ls -l /dev/disk/by-id /dev/mapper"
        return Disk(failed(_DISK, f"{device} is not there", advice))
    if os.path.realpath(path) == os.path.realpath(host.path(cluster.device)):
        advice = "a small one of its own"
        return Disk(failed(_DISK, f"{device} is the disk of --device", advice))
    if host.which("sbd") is None:
        return Disk(failed(_DISK, "cannot be looked at without sbd", "apt install sbd"))
    try:
        if not shareddisk.is_sbd(host, device):
            return _new(device, shareddisk.content(host, device), is_first=is_first)
        found = _times(host.runner, device)
        # Sbd takes no slot away.
        others = sorted(set(_nodes(host.runner, device)) - set(cluster.nodes))
    except (CxmError, OSError) as error:
        return Disk(failed(_DISK, shareddisk.why(error), f"can {device} be read?"))
    strangers = set() if _is_ours(host, cluster) else set(others) - set(cluster.former)
    return Disk(_used(cluster, found, strangers), found, others)


def _is_ours(host: Host, cluster: Cluster) -> bool:
    """Whether this node uses the disk already: who else has a slot there has left the cluster."""
    conf = corosync.present(files.read(host.path(corosync.CONF)), cluster)
    words = (files.read(host.path(CONF)) or "").splitlines()
    return conf in (Present.OURS, Present.CHANGED) and f'SBD_DEVICE="{cluster.sbd}"' in words


def _new(device: str, content: str, *, is_first: bool) -> Disk:
    """Whether a disk that is no SBD device may become one."""
    if content:
        advice = "another --sbd; or, if nobody needs what is on it: wipefs -a " + device
        return Disk(failed(_DISK, f"{device} is in use: {content}", advice))
    if not is_first:
        advice = "is it the disk that the first node has?"
        return Disk(failed(_DISK, f"{device} is empty here", advice))
    return Disk(ok(_DISK, f"{device}, empty"), is_empty=True)


def _used(cluster: Cluster, found: Times, strangers: set[str]) -> Check:
    """Whether an SBD device is this cluster's, with times that are safe."""
    if strangers:
        advice = "another --sbd: on a disk of two clusters it is not clear who is meant"
        return failed(_DISK, f"{cluster.sbd} is used by {', '.join(sorted(strangers))}", advice)
    text = f"watchdog {found.watchdog} s, msgwait {found.msgwait} s"
    least = times(cluster.token_ms).watchdog
    is_short = found.watchdog < least or found.msgwait < 2 * found.watchdog
    if is_short or found.msgwait >= _MOST_MSGWAIT_S:
        wrong = (
            f"the watchdog must be {least} s at least, msgwait twice the watchdog"
            if is_short
            else "sbd waits for msgwait when it starts, and systemd ends it after 90 s"
        )
        advice = f"while Pacemaker is stopped on all nodes: {' '.join(create(cluster))}"
        return failed(_DISK, f"{cluster.sbd} has {text}: {wrong}", advice)
    return ok(_DISK, f"{cluster.sbd}, {text}")


def _watchdog(host: Host) -> Check:
    if not os.path.exists(host.path(WATCHDOG)):
        return failed("watchdog", f"{WATCHDOG} is not there", _MODULE)
    identity = (files.read(host.path(_IDENTITY)) or "unknown").strip()
    if identity == _SOFTDOG:
        advice = f"it dies with dom0's kernel, and guests go on; Xen's does not: {_MODULE}"
        return warning("watchdog", identity, advice)
    return ok("watchdog", identity)
