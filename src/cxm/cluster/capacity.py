# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns whether a node has the memory that the CIB says it has. Pure.

The node says it when it is set up, and Pacemaker reckons with it from then on.
"""

from collections.abc import Sequence
from typing import Final

from cxm.cluster.cib import needed_mib
from cxm.node.room import Seen
from cxm.xen.xl import Domain

# Xen's own needs come and go by a few MiB, and xl rounds each domain down.
_DRIFT_MIB: Final = 16
# What may be left unused: the number was written while guests ran, of whom Xen keeps page tables
# (a part in 128, and some MiB each).
_UNSAID: Final = 32


def excess(said_mib: int, seen: Seen) -> int:
    """How much more the CIB says than there is, below zero how much less; 0: it is as it says.

    What a guest has and what is free are :mod:`cxm.node.room`'s; what Xen keeps for guests is in
    neither, and so missing while they run. But Pacemaker counts it for each of them: it believes
    more to be free than there is only where the CIB says more than all of that together. While
    guests come and go nothing can be said, and it is taken to be as the CIB says.
    """
    if not seen.is_steady:
        return 0
    has = seen.room.total_mib
    guests = [domain for domain in seen.domains if domain.domid != 0]
    over = said_mib - has
    if over > _DRIFT_MIB + _kept(guests):
        return over
    return over if -over > _DRIFT_MIB + said_mib // _UNSAID else 0


def _kept(guests: Sequence[Domain]) -> int:
    """What Xen keeps for guests, at most."""
    return sum(needed_mib(each.memory_mib, each.vcpus) - each.memory_mib for each in guests)
