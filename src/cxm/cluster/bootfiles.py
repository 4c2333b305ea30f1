# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns that every node of a cluster has the kernels and ramdisks that its VMs boot.

They are kept by their hash (:mod:`cxm.node.kernels`), under the same path on every node. An order
gives them to the nodes that are there before the VM is made; one that was away gathers them when it
is back (``cxm-gather.timer``), and a start fetches what is missing even then.
"""

import logging
from typing import Any
from xml.etree.ElementTree import Element

from cxm import lvm
from cxm.cluster import cib, pacemaker, peer
from cxm.cluster.pacemaker import Status
from cxm.errors import CxmError, DataError, NotFoundError, RefusedError
from cxm.node import adopted, kernels, usage
from cxm.node import directory as directories
from cxm.node.life import Vm
from cxm.node.machine import Machine
from cxm.node.verbs import Call

_log = logging.getLogger(__name__)


def spread(vm: Vm, config: str, status: Status, root: Element) -> None:
    """Give the files that a configuration names to all nodes that are there.

    Raises RefusedError when none of them takes them: what one node has alone dies with it. One of
    several that does not is warned of, and fetches them when it needs them.
    """
    machine, digests = vm.machine, kernels.mentioned(config)
    nodes = peer.others(machine, status) if digests else []
    failures = []
    for node in nodes:
        try:
            other = peer.find(machine, root, node)
            for digest in other.lacks(digests):
                with open(kernels.path_of(machine, digest), "rb") as file:
                    other.give(digest, kernels.read_all(file))
                _log.info("VM %d: %s got the kernel or ramdisk %s", vm.vm, node, digest)
        except CxmError as error:
            _log.warning("VM %d: %s does not take what it boots: %s", vm.vm, node, error.message)
            failures.append(error)
    if failures and len(failures) == len(nodes):
        raise RefusedError(
            f"VM {vm.vm} could be started on no other node, none takes what it boots: "
            f"{failures[0].message}",
            hint=failures[0].hint,
        ) from failures[0]


def fetch(machine: Machine, digest: str) -> None:
    """Have a kernel or ramdisk here, from any node that has it; raises NotFoundError."""
    if kernels.has(machine, digest):
        return
    nodes = peer.others(machine, pacemaker.status(machine.runner))
    root = pacemaker.cib(machine.runner)
    for node in nodes:
        try:
            with peer.find(machine, root, node).taken(digest) as content:
                kernels.keep(machine, digest, content)
        except (CxmError, OSError) as error:
            _log.info("%s does not give the kernel or ramdisk %s: %s", node, digest, error)
        else:
            _log.info("got the kernel or ramdisk %s from %s", digest, node)
            return
    asked = " and ".join(nodes) or "no other node is there"
    raise NotFoundError(
        f"the kernel or ramdisk {digest} is not on {machine.hostname}, nor to be had: {asked}",
        hint="have OpenNebula deploy the VM again: it brings the file",
    )


def fetch_all(machine: Machine, config: str) -> None:
    """Have all files here that a configuration names; raises NotFoundError."""
    for digest in sorted(kernels.mentioned(config)):
        fetch(machine, digest)


def try_to_fetch(machine: Machine, config: str) -> None:
    """The same where it can be done without."""
    try:
        fetch_all(machine, config)
    except CxmError as error:
        _log.warning("%s", error.sentence())


def gather(call: Call) -> dict[str, Any]:
    """Have the files of all VMs of the cluster here, and none that no VM boots any more.

    What cannot be had is told. A VM that is damaged in the CIB keeps no other from what it boots,
    but nothing is removed while there is one: raises DataError when all else has been done. As this
    comes round on every node, it keeps a sample of what guests use, too.
    """
    machine = call.machine
    usage.keep(machine)
    found, damaged = cib.readable(pacemaker.cib(machine.runner))
    needed: set[str] = set()
    for resource in found:
        needed |= kernels.mentioned(resource.config)
    got, missing = _had(machine, needed)
    for each in damaged:
        _log.error("%s", each.error.sentence())
    if damaged:
        first = damaged[0].error
        raise DataError(
            f"what {len(damaged)} of the cluster's VMs boot is not known: {first.message}",
            hint=first.hint,
        ) from first
    removed = kernels.drop_unused(machine, needed)
    if removed:
        _log.info("removed %d kernels and ramdisks that no VM boots any more", len(removed))
    _sweep(machine)
    return {"got": got, "missing": missing, "removed": removed}


def _had(machine: Machine, needed: set[str]) -> tuple[list[str], list[str]]:
    """Have these files here; returns those that came, and those that nobody has."""
    got, missing = [], []
    for digest in sorted(needed):
        is_here = kernels.has(machine, digest)
        try:
            fetch(machine, digest)
        except NotFoundError as error:
            missing.append(digest)
            _log.error("%s", error.sentence())
        else:
            got += [] if is_here else [digest]
    return got, missing


def _sweep(machine: Machine) -> None:
    """Remove directories of VMs that left while this node was dead, and have been deleted since."""
    try:
        if next(adopted.noted(machine), None) is not None:
            group = lvm.group(machine.runner, machine.config.vg_name)
            directories.sweep_unasked(machine, group)
    except (CxmError, OSError) as error:
        _log.debug("directories of VMs that are gone stay for now: %s", error)
