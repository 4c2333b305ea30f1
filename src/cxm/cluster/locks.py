# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns whether this node can have locks on the volume group: its lockspaces are usable.

What needs a VM's disks waits for that itself, and for this node's only: an order of Pacemaker's
between the locks' clone and a VM waits for every node that is starting its own (docs/design/0010).
"""

import logging
from typing import Final

from cxm.errors import CommandError, LockTimeoutError
from cxm.node.machine import Machine

_log = logging.getLogger(__name__)

# A node that joins takes up to a minute. A move has not much more time than its guest's memory
# needs (cluster/limits.py), and one that fails leaves the guest where it runs.
_START_S: Final = 180.0
RECEIVE_S: Final = 60.0
_PART: Final = 0.6  # of the time that a start has: it has 300 s, unless an administrator gave less
_ASK_S: Final = 10.0
# The lockspace of all groups, of which a group's locks are made.
_GLOBAL: Final = "lvm_global"


def start_s(limit_s: float) -> float:
    """How long a start waits that Pacemaker gives so much time (0: no limit)."""
    return min(_START_S, _PART * limit_s) if limit_s else _START_S


def await_(machine: Machine, patience_s: float) -> None:
    """Wait until this node can have locks; raises LockTimeoutError when patience ends first."""
    lacks = _lacking(machine)
    if not lacks:
        return
    vg = machine.config.vg_name
    _log.info("waits until %s can have locks on %s: %s", machine.hostname, vg, lacks)
    for _turn in machine.waits(patience_s):
        lacks = _lacking(machine)
        if not lacks:
            return
    raise LockTimeoutError(
        f"{machine.hostname} cannot have locks on the volume group {vg}: {lacks}",
        hint="'crm_mon -1' shows what of cxm-locks is not started there, and why",
    )


def _lacking(machine: Machine) -> str:
    """What is missing; empty when nothing is."""
    try:
        known = machine.runner.run(["lvmlockctl", "-i"], timeout_s=_ASK_S).stdout
    except CommandError:
        return "lvmlockd does not answer"
    # A lockspace that LVM calls started may not be usable for a minute; the agent of the lockspace
    # (packaging/ocf/lockspace) goes by the same.
    is_known = any(line.startswith(f"VG {machine.config.vg_name} ") for line in known.splitlines())
    return "" if is_known and _GLOBAL in known else "its lockspace is not started"
