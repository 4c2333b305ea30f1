# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns how much memory the guests of this node have and could have (design note 0006).

OpenNebula is told it, and Pacemaker: what is not in it no guest can have, so neither plans with it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cxm.run import Runner
from cxm.xen import xl
from cxm.xen.xl import Domain, Info

# What dom0 keeps of its memory where Xen may take it: enough for its services and disk caches.
_DOM0_KEEPS_MIB: Final = 1024
_LOOKS: Final = 3


@dataclass(frozen=True, slots=True)
class Room:
    """Memory without dom0's, Xen's own, and what Xen keeps for the guests that run."""

    free_mib: int
    guests_mib: int

    @property
    def total_mib(self) -> int:
        return self.free_mib + self.guests_mib


@dataclass(frozen=True, slots=True)
class Seen:
    """A machine and its domains, as they were at one moment."""

    info: Info
    domains: Sequence[Domain]  # Domain-0 among them
    is_steady: bool = True  # no guest came, went or grew while they were looked at

    @property
    def room(self) -> Room:
        return of(self.info, self.domains)


def of(info: Info, domains: Sequence[Domain]) -> Room:
    """The room of a machine with these domains, Domain-0 among them."""
    guests_mib = sum(domain.memory_mib for domain in domains if domain.domid != 0)
    dom0_mib = sum(domain.memory_mib for domain in domains if domain.domid == 0)
    free_mib = info.free_mib
    if not info.dom0_fixed:
        free_mib += max(0, dom0_mib - _DOM0_KEEPS_MIB)
    return Room(free_mib, guests_mib)


def look(runner: Runner) -> Seen:
    """This machine now.

    A guest that comes or goes between two commands would be counted twice, or not at all: they are
    given again, a few times.
    """
    domains = xl.all_domains(runner)
    for _turn in range(_LOOKS):
        info, before = xl.info(runner), domains
        domains = xl.all_domains(runner)
        if _sizes(domains) == _sizes(before):
            return Seen(info, domains)
    return Seen(info, domains, is_steady=False)


def _sizes(domains: Sequence[Domain]) -> list[tuple[int, int]]:
    return [(domain.domid, domain.memory_mib) for domain in domains]
