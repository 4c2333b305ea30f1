# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the texts of the messages that 5.12 to 7.4 hear of a host and its VMs. Pure formatting.

How VM states are told, which needs a memory, is in :mod:`cxm.one.im.status`.
"""

import base64
from collections.abc import Iterable

from cxm.node.sight import GuestState
from cxm.one.im import host
from cxm.one.im.datastores import Datastore
from cxm.one.im.observation import Guest, Observation
from cxm.one.im.words import Value, lines, vector

_WITH_USAGE = (GuestState.RUNNING, GuestState.PAUSED)


def system_host(seen: Observation, datastores: Iterable[Datastore], remotes_version: str) -> str:
    """What stays: capacity, space, versions, domains that are not OpenNebula's."""
    return (
        lines(host.fixed(seen) | host.extras(seen, remotes_version))
        + host.space(seen, datastores)
        + host.wild(seen)
    )


def monitor_host(seen: Observation) -> str:
    """What moves: load, memory, network."""
    return lines({"HYPERVISOR": "xen"} | host.moving(seen))


def _metrics(guest: Guest) -> str:
    usage = guest.usage
    values: dict[str, Value] = {
        "CPU": usage.cpu,
        "MEMORY": usage.memory_kib,
        "NETRX": usage.net_rx,
        "NETTX": usage.net_tx,
        "DISKRDBYTES": usage.read_bytes,
        "DISKWRBYTES": usage.write_bytes,
        "DISKRDIOPS": usage.reads,
        "DISKWRIOPS": usage.writes,
    }
    return lines(values) + "".join(
        vector("DISK_SIZE", {"ID": int(disk), "SIZE": size}) for disk, size in guest.disks.items()
    )


def monitor_vm(guests: Iterable[Guest]) -> str:
    """What each guest that runs uses; nothing when none does."""
    return "".join(
        vector(
            "VM",
            {
                "ID": str(guest.vm),
                "DEPLOY_ID": guest.name,
                "MONITOR": base64.b64encode(_metrics(guest).encode()).decode(),
            },
        )
        for guest in guests
        if guest.state in _WITH_USAGE
    )
