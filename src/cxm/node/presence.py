# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what a node tells the frontend's sync: whether it is in a cluster, what waits for deletion.

On a node of a cluster :mod:`cxm.cluster.whereabouts` and :mod:`cxm.cluster.claims` answer for it.
A standalone host has nothing to bring in line: no VM of it runs elsewhere.
"""

from contextlib import suppress
from typing import Any

from cxm import lvm
from cxm.errors import DataError, RefusedError
from cxm.names import State, VmId, decode_tags
from cxm.node.verbs import Call


def whereabouts(call: Call) -> dict[str, Any]:
    """Only that this host is in no cluster."""
    return {"node": call.machine.hostname, "clustered": False}


def _alone(call: Call, what: str) -> RefusedError:
    """Nothing has come to a standalone host by itself."""
    return RefusedError(f"{call.machine.hostname} is in no cluster, so {what} has not moved there")


def no_claim(call: Call, *, vms: list[VmId], timeout_s: int) -> dict[str, Any]:  # noqa: ARG001 - a verb
    """Of a standalone host nothing is claimed."""
    raise _alone(call, f"VM {', '.join(map(str, vms))}")


def no_confirm(call: Call, *, vm: VmId) -> dict[str, Any]:
    """Nor confirmed."""
    raise _alone(call, f"VM {vm}")


def no_note(call: Call, *, hosts: dict[VmId, str]) -> dict[str, Any]:
    """Nor noted: there is nobody but this host that could speak of its VMs."""
    raise _alone(call, f"VM {', '.join(map(str, hosts))}")


def no_key(call: Call) -> dict[str, Any]:  # noqa: ARG001 - a verb
    """A standalone host has nothing to nudge about."""
    return {"key": ""}


def requested(call: Call) -> dict[str, Any]:
    """The VMs of the cloud that have volumes here; ``asked``: those whose deletion was asked for.

    Of a VM that is DONE the others are what no deletion reached: this node, or its LVM, was away.
    """
    group = lvm.group(call.machine.runner, call.machine.config.vg_name)
    found: dict[tuple[int, bool], list[str]] = {}
    for volume in group.volumes:
        with suppress(DataError):  # a damaged volume is the business of those who would change it
            tags = decode_tags(list(volume.tags))
            if tags and tags.cloud == call.cloud:
                asked = tags.state is State.DELETE_REQUESTED
                found.setdefault((tags.vm, asked), []).append(volume.name)
    rows = [
        {"vm": vm, "asked": asked, "volumes": sorted(names)}
        for (vm, asked), names in sorted(found.items())
    ]
    return {"vms": rows, "uuid": group.uuid}
