# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the faults a lab can make: cut networks, a lost SAN, a cut, slow or powerless BMC.

What is broken on a host is written in one small file, which its BMC reads too.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from cxm.errors import UsageError
from lab import net
from lab.machine import Machine, Power
from lab.places import Places
from lab.qemu import SAN_BROKEN, SAN_FILE, SAN_NODE
from lab.qmp import Qmp
from lab.spec import CLUSTER, LAN

if TYPE_CHECKING:
    from lab.lab import Lab

SLOW_S = 10.0
_DEAD_DISK: Mapping[str, object] = {
    "driver": "blkdebug",
    "node-name": SAN_BROKEN,
    "image": SAN_FILE,
    # Flushes pass: without them QEMU could not leave this node again.
    "inject-error": [{"event": "none", "iotype": kind, "errno": 5}
                     for kind in ("read", "write", "write-zeroes", "discard")],
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Faults:
    """What is broken on one host."""

    net: bool = False
    cluster: bool = False
    san: bool = False
    bmc: bool = False
    bmc_slow_s: float = 0.0
    bmc_linked: bool = False  # the BMC loses its power with its host's

    def words(self) -> list[str]:
        """For people: what is broken."""
        named = {"net cut": self.net, "cluster cut": self.cluster, "SAN cut": self.san,
                 "BMC cut": self.bmc}  # fmt: skip
        words = [word for word, broken in named.items() if broken]
        if self.bmc_slow_s:
            words.append(f"BMC slow ({self.bmc_slow_s:g} s)")
        if self.bmc_linked:
            words.append("BMC powered by host")
        return words


def path(places: Places, host: str) -> str:
    """The file with the faults of a host."""
    return places.of(host, "faults.json")


def read(places: Places, host: str) -> Faults:
    """What is broken on a host now."""
    return read_file(path(places, host))


def read_file(file_path: str) -> Faults:
    """The faults written in a file; none when there is no file."""
    try:
        with open(file_path, encoding="utf-8") as file:
            return Faults(**json.load(file))
    except FileNotFoundError:
        return Faults()


def write(places: Places, host: str, faults: Faults) -> None:
    """Remember what is broken on a host."""
    target = path(places, host)
    with open(target + ".new", "w", encoding="utf-8") as file:
        json.dump(asdict(faults), file)
    os.rename(target + ".new", target)


def cut(lab: "Lab", name: str, what: str) -> None:
    """Cut a host off its networks (``net``), one of them, the SAN, or cut its BMC off."""
    machine = lab.machine(name)
    faults = read(lab.places, name)
    if what in ("net", "lan"):
        net.cut_card(lab.core, machine.host, LAN)
        faults = replace(faults, net=True)
    if what in ("net", "cluster"):
        net.cut_card(lab.core, machine.host, CLUSTER)
        faults = replace(faults, cluster=True)
    if what == "san":
        _cut_san(machine)
        faults = replace(faults, san=True)
    if what == "bmc":
        net.cut_bmc(lab.core, machine.host)
        faults = replace(faults, bmc=True)
    write(lab.places, name, faults)


def slow_bmc(lab: "Lab", name: str, seconds: float = SLOW_S) -> None:
    """Let a host's BMC answer late, and switch the power only ``seconds`` after it was told to."""
    lab.machine(name)
    write(lab.places, name, replace(read(lab.places, name), bmc_slow_s=seconds))


def link_bmc(lab: "Lab", name: str, *, linked: bool) -> None:
    """Choose whether a host's BMC dies with the power of its host."""
    lab.machine(name)
    write(lab.places, name, replace(read(lab.places, name), bmc_linked=linked))


def heal(lab: "Lab", name: str) -> None:
    """Undo every fault of a host (not its power)."""
    machine = lab.machine(name)
    for network in (LAN, CLUSTER):
        net.join_card(lab.core, machine.host, network)
    net.join_bmc(lab.core, machine.host)
    if read(lab.places, name).san and machine.alive():
        _use_san_file(machine, SAN_FILE)
        with machine.qmp() as qmp:
            qmp.execute("blockdev-del", {"node-name": SAN_BROKEN})
    write(lab.places, name, Faults())


@contextmanager
def frontend_away(lab: "Lab") -> Iterator[None]:
    """The frontend reaches no node, guest or BMC, and none of them it, while the block runs."""
    net.cut_frontend(lab.core)
    try:
        yield
    finally:
        net.join_frontend(lab.core)


def _cut_san(machine: Machine) -> None:
    if not machine.host.san:
        raise UsageError(f"{machine.name} has no SAN disk")
    if machine.power() is Power.GONE:
        return
    with machine.qmp() as qmp:
        if SAN_BROKEN not in _nodes(qmp):
            qmp.execute("blockdev-add", _DEAD_DISK)
    _use_san_file(machine, SAN_BROKEN)


def _nodes(qmp: Qmp) -> set[str]:
    return {str(node["node-name"]) for node in qmp.execute("query-named-block-nodes")}


def _use_san_file(machine: Machine, node: str) -> None:
    """Let the SAN disk of a running machine stand on another node of QEMU's block graph."""
    with machine.qmp() as qmp:
        options = {
            "driver": "raw",
            "node-name": SAN_NODE,
            "file": node,
            "discard": "unmap",
            "detect-zeroes": "unmap",
            "cache": {"direct": False, "no-flush": True},
        }
        qmp.execute("blockdev-reopen", {"options": [options]})
