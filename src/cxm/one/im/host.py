# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what is said of a host: its capacity, its load, its space. Pure formatting.

3.6 to 5.10 hear all of it at once, 5.12 to 7.4 what stays (SYSTEM_HOST) and what moves
(MONITOR_HOST) apart.
"""

from collections.abc import Iterable

from cxm import __version__
from cxm.one.im.datastores import Datastore
from cxm.one.im.observation import Observation
from cxm.one.im.words import Value, lines, vector


def fixed(seen: Observation) -> dict[str, Value]:
    """What stays the same."""
    node = seen.facts()
    return {
        "HYPERVISOR": "xen",
        "HOSTNAME": node.hostname,
        "ARCH": node.arch,
        "MODELNAME": node.model,
        "CPUSPEED": node.mhz,
        "TOTALCPU": node.total_cpu,
        "TOTALMEMORY": node.total_memory_kib,
    }


def moving(seen: Observation) -> dict[str, Value]:
    """What changes from minute to minute; memory in KiB."""
    node = seen.facts()
    return {
        "USEDMEMORY": node.used_memory_kib,
        "FREEMEMORY": node.free_memory_kib,
        "USEDCPU": node.used_cpu,
        "FREECPU": node.free_cpu,
        "NETRX": node.net_rx,
        "NETTX": node.net_tx,
    }


def space(seen: Observation, datastores: Iterable[Datastore]) -> str:
    """The room for disks. From 4.4 on schedulers read it for datastores that hosts do not share."""
    group = seen.space()
    location: dict[str, Value] = {
        "DS_LOCATION_TOTAL_MB": group.total_mib,
        "DS_LOCATION_USED_MB": group.used_mib,
        "DS_LOCATION_FREE_MB": group.free_mib,
    }
    return lines(location) + "".join(
        vector(
            "DS",
            {
                "ID": each.id,
                "USED_MB": each.used_mib,
                "TOTAL_MB": each.total_mib,
                "FREE_MB": each.free_mib,
            },
        )
        for each in datastores
    )


def extras(seen: Observation, remotes_version: str) -> dict[str, Value]:
    """Versions: of OpenNebula's scripts here (``onehost sync`` compares it), of Xen, of cxm."""
    return {
        "VERSION": remotes_version,
        "XEN_VERSION": seen.facts().xen,
        "CXM_VERSION": __version__,
    }


def wild(seen: Observation) -> str:
    """Domains that OpenNebula did not make; without a template, for cxm could not manage them."""
    return "".join(
        vector("VM", {"ID": -1, "DEPLOY_ID": name, "VM_NAME": name}) for name in seen.foreign
    )


def pulled_old(seen: Observation) -> str:
    """All that 3.6 to 4.2 hear of a host."""
    return lines(fixed(seen) | moving(seen), old=True)
