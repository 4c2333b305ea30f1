# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the action delete: a disk, or all that is left of a VM, on a host or on the frontend.

oned calls it for things that were never made, too: that is success. What is in use is refused and
marked by the node, because oned's own clean-up reports success whatever we answer.
"""

from typing import Any, Final

from cxm.errors import RefusedError
from cxm.one import args
from cxm.one.action import Call, Context
from cxm.one.args import DiskPlace
from cxm.one.tm import stopped

# How long a domain that is being destroyed may keep its disks in use.
_PATIENCE_S: Final = 60.0
_POLL_S: Final = 1.0


def run(ctx: Context, call: Call) -> str:
    """Remove it; nothing is printed."""
    request = args.delete(call.argv)
    target, vm = request.target, request.vm
    is_store = ctx.is_store(target.host)
    if isinstance(target, DiskPlace):
        if is_store:
            stopped.remove_disk(target.path)
        else:
            arguments = {"vm": vm, "disk": target.disk, "dir": target.directory}
            _remove(ctx, target.host, "disk-remove", arguments)
        return ""
    if not is_store:
        _remove(ctx, target.host, "vm-remove", {"vm": vm, "dir": target.path})
    # From 5.0 on a stopped VM is deleted by the name of the host that it was on (recorded), and so
    # is one whose resume failed half-way; what is left of them is here.
    stopped.remove_directory(target.path)
    return ""


def _remove(ctx: Context, host: str, verb: str, arguments: dict[str, Any]) -> None:
    """Have a node remove something; where oned is too early, wait until it is not in use."""
    deadline = ctx.monotonic() + (_PATIENCE_S if ctx.version.deletes_while_it_cancels else 0.0)
    while True:
        try:
            ctx.node(host).call(verb, arguments)
        except RefusedError:
            if ctx.monotonic() >= deadline:
                raise
            ctx.sleep(_POLL_S)
        else:
            return
