# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns how node1 and node2 become a cluster: by ``cxm-setup cluster``, as an administrator does it.

The first node's command waits for the others; the token it prints is given to them meanwhile.
"""

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final

from cxm.cluster.nodes import FENCING
from cxm.errors import CxmError
from cxm.run import System
from lab import installed
from lab.lab import Lab
from lab.machine import Machine
from lab.parallel import in_parallel
from lab.places import Places
from lab.spec import BMC_PASSWORD, BMC_USER, SAN_SERIAL, HostSpec

NAME = "lab"
DEVICE = f"/dev/disk/by-id/virtio-{SAN_SERIAL}"
# Emulated nodes that share two cores are silent for seconds.
TOKEN_MS = 6000
_FORM_S = 900.0
_JOIN_S = 400.0
_TOKEN = re.compile(r"cxm-setup cluster --join (\S+)")


@dataclass(frozen=True, slots=True)
class Plan:
    """What a cluster is made of, besides its nodes."""

    device: str = DEVICE
    bmcs: bool = True  # fenced through them
    more: tuple[str, ...] = ()  # further options of cxm-setup


USUAL: Final = Plan()


def _fence(host: HostSpec) -> str:
    """How the node is cut off: its BMC."""
    pairs = {
        "ip": host.bmc_address,
        "username": BMC_USER,
        "password": BMC_PASSWORD,
        "lanplus": "1",
        "power_wait": "0",  # the lab's BMC tells the truth at once
    }
    words = ",".join(f"{key}={value}" for key, value in pairs.items())
    return f"{host.name}=fence_ipmilan,{words}"


def _members(lab: Lab) -> list[HostSpec]:
    """The hosts that share the SAN disk."""
    return [host for host in lab.spec.hosts if host.san]


def command(lab: Lab, plan: Plan = USUAL) -> list[str]:
    """What is run on the first node; the same again changes nothing."""
    argv = ["cxm-setup", "cluster", "--name", NAME, "--device", plan.device]
    argv += ["--vg", lab.spec.vg_name, "--token-ms", str(TOKEN_MS), *plan.more]
    for host in _members(lab):
        argv += ["--node", f"{host.name}={host.cluster_address}"]
        argv += ["--fence", _fence(host)] if plan.bmcs else []
    return argv


def form(lab: Lab, plan: Plan = USUAL) -> None:
    """Make a cluster of the lab's machines that share a disk, which have the packages."""
    first, *others = (lab.machine(host.name) for host in _members(lab))
    path = lab.places.log("cluster")
    last = ""
    with (
        lab.progress.step("forming the cluster", path, look=lambda: last),
        open(path, "w", encoding="utf-8", buffering=1) as log,
        System().produce(first.ssh(command(lab, plan)), timeout_s=_FORM_S) as output,
    ):
        for line in _lines(output):
            if found := _TOKEN.match(line):
                log.writelines(_join(machine, found[1]) for machine in others)
                continue  # a secret
            log.write(f"{line}\n")
            last = line or last
    if "is formed" not in last:
        raise CxmError(f"the cluster was not formed: {last}", hint=f"log: {path}")


def _join(machine: Machine, token: str) -> str:
    argv = ["cxm-setup", "cluster", "--join", "-"]
    return machine.run(argv, stdin=token.encode(), timeout_s=_JOIN_S).stdout


def _lines(output: Iterator[bytes]) -> Iterator[str]:
    rest = b""
    for chunk in output:
        *whole, rest = (rest + chunk).split(b"\n")
        yield from (line.decode() for line in whole)
    yield rest.decode()


def label(places: Places, packages: dict[str, str]) -> str:
    """A label that changes with all that makes the cluster."""
    return f"cluster-{installed.label(places, packages).partition('-')[2]}"


def make(lab: Lab, packages: dict[str, str]) -> None:
    """Install cxm on freshly booted machines; those that share a disk become a cluster."""
    installed.on_nodes(lab, packages)
    if len(members := _members(lab)) > 1:
        form(lab)
        machines = [lab.machine(host.name) for host in members]
        in_parallel([partial(installed.enrol, lab, machine) for machine in machines])
        _vouch(lab)


def _vouch(lab: Lab) -> None:
    """Say that every node can be fenced, which 'cxm fence --test' would find out in minutes.

    The lab's own cases fence for real; where one of them fails, this is not true.
    """
    first, *others = (lab.machine(host.name) for host in _members(lab))
    for machine in (first, *others):
        words = ["--type", "nodes", "--node", machine.name, "--name", FENCING]
        first.run(["crm_attribute", *words, "--update", str(int(time.time()))], timeout_s=60)


def bring_up(lab: Lab) -> str:
    """Bring the lab's machines up with cxm, as one cluster, from a snapshot where there is one.

    Returns the snapshot's name. The frontend's place has cxm too, and its key is on the nodes.
    """
    packages = installed.ready(lab)
    known = label if len(_members(lab)) > 1 else installed.label
    return lab.prepared(known(lab.places, packages), lambda lab: make(lab, packages))
