# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the VMM actions that cxm does not do: each fails and says so, and what to do instead.

oned believes an exit code of 0: an action that did nothing must never end with it. None of them
reads its input, which up to 4.14 is the ssh stream that carries the next commands.
"""

from collections.abc import Mapping
from typing import Final

from cxm.errors import RefusedError
from cxm.one.action import Call, Context
from cxm.one.vmm.request import vm_of

_POWER_OFF: Final = "power the VM off, change it, and resume it"

# Action -> what it is, and what to do instead.
_ACTIONS: Final[Mapping[str, tuple[str, str]]] = {
    "attach_disk": ("attach a disk to a running VM", _POWER_OFF),
    "attach_nic": ("attach a NIC to a running VM", _POWER_OFF),
    "detach_disk": ("detach a disk from a running VM", _POWER_OFF),
    "detach_nic": ("detach a NIC from a running VM", _POWER_OFF),
    "exec": ("run a command inside of a VM", "use ssh"),
    "exec_cancel": ("run a command inside of a VM", "use ssh"),
    "prereconfigure": ("change the context of a running VM", _POWER_OFF),
    "reconfigure": ("change the context of a running VM", _POWER_OFF),
    "resize": ("change the memory or CPUs of a running VM", _POWER_OFF),
    "resize_disk": ("enlarge a disk of a running VM", "give the disk its size in the template"),
    "snapshot_create": ("take a snapshot of a VM", "save its disks as images, or stop it"),
    "snapshot_delete": ("delete a snapshot of a VM", "cxm takes none"),
    "snapshot_revert": ("go back to a snapshot of a VM", "cxm takes none"),
}


def run(_ctx: Context, call: Call) -> str:
    """Refuse, with a sentence."""
    what, instead = _ACTIONS[call.action]
    raise RefusedError(
        f"cxm cannot {what} ({call.action} of VM {vm_of(call)}); nothing was done", hint=instead
    )
