# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the typed form of what a node's ``observe`` verb returns, and the asking for it."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from cxm.errors import DataError
from cxm.node.client import Conversation, Node
from cxm.node.sight import GuestState

# Within the 90 s that one_im_ssh gives a probe; a node that needs longer is not well.
_TIMEOUT_S: Final = 60.0
_HELPER_S: Final = 600.0


@dataclass(frozen=True, slots=True)
class Usage:
    """What a guest uses: percent of one CPU, KiB, bytes and requests since its domain began."""

    cpu: float = 0.0
    memory_kib: int = 0
    net_rx: int = 0
    net_tx: int = 0
    read_bytes: int = 0
    write_bytes: int = 0
    reads: int = 0
    writes: int = 0


@dataclass(frozen=True, slots=True)
class Guest:
    """One VM of our cloud on a node."""

    vm: int
    name: str
    state: GuestState
    usage: Usage = Usage()
    disks: dict[str, int] = field(default_factory=dict)  # disk number -> MiB; empty when not asked


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """The machine. CPU is in percent of one CPU; memory is what guests have or could have."""

    hostname: str
    arch: str
    model: str
    xen: str
    mhz: int
    total_cpu: int
    used_cpu: int
    free_cpu: int
    total_memory_kib: int
    used_memory_kib: int
    free_memory_kib: int
    net_rx: int
    net_tx: int


@dataclass(frozen=True, slots=True)
class Space:
    """The volume group that holds the disks of VMs."""

    name: str
    total_mib: int
    used_mib: int
    free_mib: int
    shared: bool


@dataclass(frozen=True, slots=True)
class Observation:
    """What a node saw at one moment, as far as it was asked."""

    guests: tuple[Guest, ...]
    foreign: tuple[str, ...]  # names of domains that this cloud did not make
    node: NodeFacts | None = None
    vg: Space | None = None
    held: tuple[int, ...] = ()  # VMs that have volumes here and no domain

    def facts(self) -> NodeFacts:
        """The machine; raises DataError when it was not asked for."""
        if self.node is None:
            raise DataError("the observation says nothing about the machine")
        return self.node

    def space(self) -> Space:
        """The volume group; raises DataError when it was not asked for."""
        if self.vg is None:
            raise DataError("the observation says nothing about the volume group")
        return self.vg


def _guest(row: dict[str, Any]) -> Guest:
    usage = {name: row[name] for name in Usage.__slots__ if name in row}
    return Guest(
        vm=int(row["vm"]),
        name=str(row["name"]),
        state=GuestState(row["state"]),
        usage=Usage(**usage),
        disks={str(disk): int(size) for disk, size in row.get("disks", {}).items()},
    )


def parse(result: dict[str, Any]) -> Observation:
    """The typed form of the verb's result; raises DataError when it is something else."""
    try:
        return Observation(
            guests=tuple(_guest(row) for row in result["guests"]),
            foreign=tuple(str(name) for name in result["foreign"]),
            node=NodeFacts(**result["node"]) if "node" in result else None,
            vg=Space(**result["vg"]) if "vg" in result else None,
            held=tuple(int(vm) for vm in result.get("held", ())),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"the node's observation cannot be read: {error!r}") from error


def take(node: Node, detail: str) -> Observation:
    """Let a node observe itself; ``detail`` is ``state``, ``usage``, ``host`` or ``all``."""
    return parse(node.call("observe", {"detail": detail}, timeout_s=_TIMEOUT_S))


class Watcher:
    """Observes the machine it runs on again and again, with one helper for many looks.

    sudo and Python cost more than the look itself. A helper is replaced now and then, so that
    changed settings of the node take effect.
    """

    def __init__(
        self, conversation: Conversation, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._conversation = conversation
        self._clock = clock
        self._since = clock()

    def look(self, detail: str) -> Observation:
        """One observation."""
        if self._clock() - self._since >= _HELPER_S:
            self.rest()
        return parse(self._conversation.ask({"detail": detail}, timeout_s=_TIMEOUT_S))

    def rest(self) -> None:
        """Let the helper go; the next look starts another."""
        self._conversation.close()
        self._since = self._clock()
