# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the shared system datastore in the CIB: a file system that all nodes mount. Pure.

No VM depends on it, and whatever becomes of it stops no VM and fences no node: docs/cluster.md
says the reason of every value.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final
from xml.etree.ElementTree import Element, SubElement

from cxm.cluster.cib import pairs
from cxm.cluster.elements import (
    Operations,
    attributes,
    merge,
    primitive,
    start_order,
    with_locks,
)
from cxm.errors import RefusedError

CLONE: Final = "cxm-datastore-clone"
MOUNT: Final = "cxm-datastore-mount"
GROUP: Final = "cxm-datastore"
_VOLUME: Final = "cxm-datastore-volume"


class Kind(StrEnum):
    """What the datastore is made of."""

    GFS2 = "gfs2"
    NFS = "nfs"


@dataclass(frozen=True, slots=True)
class Datastore:
    """What is mounted, and where."""

    kind: Kind
    source: str  # SERVER:/PATH, or the name of a volume of the cluster's group
    directory: str


_OPTIONS: Final = {
    Kind.GFS2: "noatime,nosuid,nodev",
    # A server that is silent becomes an error, not a process that nothing can end.
    Kind.NFS: "soft,timeo=100,retrans=2,retry=0,nosuid,nodev",
}
_VOLUME_OPERATIONS: Final[Operations] = {
    "monitor": {"interval": "60s", "timeout": "60s"},
    "start": {"interval": "0s", "timeout": "90s"},
    "stop": {"interval": "0s", "timeout": "60s", "on-fail": "block"},
}
# A stop that fails would fence. Ignored, a GFS2 that is mounted counts as gone; so it is blocked
# until somebody has looked. An NFS has nothing of ours below it.
_STOP: Final = {Kind.GFS2: "block", Kind.NFS: "ignore"}


def _mount_operations(kind: Kind) -> Operations:
    return {
        # It looks at the list of mounts only: on a file system that hangs it does not.
        "monitor": {"interval": "30s", "timeout": "40s"},
        # A failover waits for a start or stop that goes on when its node is lost.
        "start": {"interval": "0s", "timeout": "60s"},
        "stop": {"interval": "0s", "timeout": "60s", "on-fail": _STOP[kind]},
    }


def edit(resources: Element, constraints: Element, given: Datastore, vg: str, locks: str) -> None:
    """Put the datastore into a CIB; raises RefusedError where there is another one."""
    is_gfs2 = given.kind is Kind.GFS2
    device = f"/dev/{vg}/{given.source}" if is_gfs2 else given.source
    wanted = {"device": device, "directory": given.directory, "fstype": given.kind.value}
    _refuse_other(resources, wanted)
    clone = Element("clone", {"id": CLONE})
    clone.append(attributes("meta", f"{CLONE}-meta", {"interleave": "true"}))
    group = SubElement(clone, "group", {"id": GROUP})
    if is_gfs2:
        volume = {"vgname": vg, "lvname": given.source, "vg_access_mode": "lvmlockd"}
        volume["activation_mode"] = "shared"
        set_id = f"{_VOLUME}-params"
        agent = "ocf:heartbeat:LVM-activate"
        group.append(
            primitive(_VOLUME, agent, _VOLUME_OPERATIONS, attributes("instance", set_id, volume))
        )
    # Whoever sits there is ended: a shell, never a guest, which has its disks elsewhere. Not with
    # fuser, which hangs where the file system does.
    how = {"options": _OPTIONS[given.kind], "force_unmount": "safe", "fast_stop": "yes"}
    mount = attributes("instance", f"{MOUNT}-params", wanted | how)
    operations = _mount_operations(given.kind)
    group.append(primitive(MOUNT, "ocf:heartbeat:Filesystem", operations, mount))
    merge(resources, clone)
    ours = [*with_locks(CLONE, locks), start_order(CLONE, locks)]
    for each in ours if is_gfs2 else []:
        merge(constraints, each)


def _refuse_other(resources: Element, wanted: dict[str, str]) -> None:
    """Another device would be mounted over the files of VMs that use this one."""
    there = resources.find(f".//primitive[@id='{MOUNT}']")
    have = {} if there is None else pairs(there, "instance_attributes")
    if have and any(have.get(name) != value for name, value in wanted.items()):
        raise RefusedError(
            f"the cluster's system datastore is {have.get('device')} on {have.get('directory')} "
            f"already, not {wanted['device']} on {wanted['directory']}",
            hint="docs/cluster.md, 'Changing a cluster', says how to take it away",
        )
