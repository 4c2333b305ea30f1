# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what ``xl list`` and ``xl info`` print on a model of a node, row by row as tests want it."""

from typing import Any

from cxm import names
from cxm.names import VmId
from tests.fakes.machine import CLOUD, FakeNode, Outcome

INFO = """host                   : node1
release                : 6.1.0-28-amd64
nr_cpus                : 4
cpu_mhz                : 2799.998
hw_caps                : 078bf3fd:80982201:20100800:00000005
total_memory           : 8191
free_memory            : {free}
xen_version            : 4.17.5-pre
xen_commandline        : placeholder console=com1{dom0_mem}
"""
HEAD = "Name ID Mem VCPUs\tState\tTime(s)   UUID                            Reason-Code\tLabel\n"


class Xen:
    """Domains as rows of ``xl list``, and a machine."""

    def __init__(self, node: FakeNode) -> None:
        self.node = node
        self.rows: list[str] = []
        self.dom0_mem = " dom0_mem=1024M"
        self.free_mib = 5000
        self.room_mib = 0  # what guests have and is free: the latter follows from it, where it is
        self.add(
            "Domain-0",
            0,
            "r-----",
            memory=1024,
            seconds=100.0,
            uuid="0" * 8 + "-0000" * 3 + "-" + "0" * 12,
        )
        node.model("xl", self._xl)

    def add(
        self,
        name: str,
        domid: int,
        state: str,
        *,
        uuid: str,
        memory: int = 256,
        seconds: float = 1.0,
        reason: str = "-",
    ) -> None:
        self.rows.append(
            f"{name:<40} {domid:5} {memory:5}     1     {state}  {seconds:8.1f} "
            f"{uuid} {reason:>8}   -\n"
        )

    def vm(self, vm: int, domid: int, state: str = "-b----", **changes: Any) -> None:
        """A domain of our cloud."""
        self.add(
            changes.pop("name", f"one-{vm}"),
            domid,
            state,
            uuid=names.domain_uuid(CLOUD, VmId(vm)),
            **changes,
        )

    def _xl(self, argv: tuple[str, ...], _input: bytes) -> Outcome:
        if argv[1:] == ("list", "-v"):
            return Outcome(HEAD + "".join(self.rows))
        assert argv[1:] == ("info",)
        guests = sum(int(row.split()[2]) for row in self.rows[1:])
        free = self.room_mib - guests if self.room_mib else self.free_mib
        return Outcome(INFO.format(dom0_mem=self.dom0_mem, free=free))
