# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the action delete: a disk, or all that is left of a VM, on a host or on the frontend.

oned calls it for things that were never made, too: that is success. What is in use is refused and
marked by the node, because oned's own clean-up reports success whatever we answer.
"""

from cxm.one import args
from cxm.one.action import Call, Context
from cxm.one.args import DiskPlace
from cxm.one.tm import stopped


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
            ctx.node(target.host).call("disk-remove", arguments)
        return ""
    if not is_store:
        ctx.node(target.host).call("vm-remove", {"vm": vm, "dir": target.path})
    # A resume that failed half-way left a part of the VM here, and oned names only its host.
    stopped.remove_directory(target.path)
    return ""
