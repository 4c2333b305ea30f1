# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns looking at the cluster and at this node, for what ``cxm`` shows and checks.

A node's own part of ``cxm check`` is judged by that node: another one is told what it found.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any, Final
from xml.etree.ElementTree import Element

from cxm import __version__, lvm
from cxm.cluster import basis, destination, model, nodefindings, pacemaker, sbd
from cxm.cluster.guestdisks import needs
from cxm.cluster.model import Cluster
from cxm.cluster.nodefindings import Here, Told
from cxm.errors import CommandError, CxmError, DataError, UsageError
from cxm.lvm import Group
from cxm.node import room
from cxm.node.machine import Machine
from cxm.run import Runner
from cxm.setup.report import Check, Level

_TIMEOUT_S: Final = 60.0
_CLOCK: Final = ("timedatectl", "show", "-p", "NTPSynchronized", "--value")


def cluster(runner: Runner) -> tuple[Cluster, Element]:
    """The cluster as it is now, and its CIB."""
    status = pacemaker.status(runner)
    # crm_mon may leave out what succeeded, and with it that a failed fencing was made good.
    with suppress(CxmError):
        status = replace(status, fencing=pacemaker.fencing_history(runner))
    cib = pacemaker.cib(runner, local=not status.quorate)
    return model.build(status, cib), cib


# --- this node ------------------------------------------------------------------------------------


def node(machine: Machine, seen: Cluster, cib: Element, *, root: str = "/") -> Here:
    """This node as it is now; raises what keeps it from being seen."""
    runner, vg = machine.runner, machine.config.vg_name
    xen = room.look(runner)
    return Here(
        node=pacemaker.local_node(runner),
        xen=xen,
        domains=[domain for domain in xen.domains if domain.domid != 0],
        vg=vg,
        group=_group(runner, vg),
        bridges=destination.interfaces(machine),
        lacking=_lacking(seen, vg, root),
        clouds=machine.config.clouds,
        versions={
            "cxm": __version__,
            "xen": xen.info.version,
            **pacemaker.versions(runner),
        },
        clock=_said(runner, _CLOCK),
        xendomains=_said(runner, ("systemctl", "is-enabled", "xendomains.service")),
        tend=_said(runner, ("systemctl", "is-enabled", "cxm-tend.service")),
        sbd=_said(runner, ("systemctl", "is-active", sbd.SERVICE)),
        unread=_unread(runner, cib, root),
        now=machine.now(),
    )


def _said(runner: Runner, argv: Sequence[str]) -> str:
    """What a command says, whatever it thinks of it."""
    try:
        return runner.run(argv, timeout_s=_TIMEOUT_S, ok=range(126)).stdout.strip()
    except CommandError:
        return ""


def _unread(runner: Runner, cib: Element, root: str) -> str:
    """The disk by which the cluster fences, where this node's sbd does not read it."""
    disk, _directory = basis.optional(cib)
    return disk if disk and not sbd.reads(runner, disk, root) else ""


def _lacking(seen: Cluster, vg: str, root: str) -> frozenset[str]:
    """The kernels and ramdisks of VMs that are not on this node."""
    files: set[str] = set()
    for vm in seen.vms:
        with suppress(UsageError):  # judged elsewhere
            files |= needs(vm.resource, vg).files
    there = (os.path.join(root, path.lstrip("/")) for path in files)
    return frozenset(
        path for path, place in zip(files, there, strict=True) if not os.path.isfile(place)
    )


def _group(runner: Runner, vg: str) -> Group | str:
    """The volume group; or why it cannot be seen, which is a finding among others."""
    try:
        return lvm.group(runner, vg)
    except CxmError as error:
        return error.sentence()


# --- between nodes --------------------------------------------------------------------------------


def told(machine: Machine) -> dict[str, Any]:
    """What this node tells another one: its versions, its clock, what is wrong with it."""
    began = machine.now()
    seen, cib = cluster(machine.runner)
    here = node(machine, seen, cib)
    wrong = [each for each in nodefindings.own(seen, here) if each.level is not Level.OK]
    return {
        "versions": dict(here.versions),
        "findings": [asdict(each) for each in wrong],
        "began": began,
        "ended": machine.now(),
    }


def heard(answer: Any, name: str, asked: float, answered: float) -> Told:
    """What another node has told, asked and answered at these times of ours; raises DataError."""
    try:
        findings = tuple(
            Check(Level(row["level"]), str(row["name"]), str(row["found"]), str(row["advice"]))
            for row in answer["findings"]
        )
        versions = {str(key): str(value) for key, value in answer["versions"].items()}
        ahead_s = nodefindings.ahead(
            asked, float(answer["began"]), float(answer["ended"]), answered
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{name} does not tell what it found as this node does: {error!r}",
            hint="the nodes need the same version of cxm",
        ) from error
    return Told(versions, ahead_s, findings)
