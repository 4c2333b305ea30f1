# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the actions mkimage and mkswap: empty disks, with or without a file system."""

import logging

from cxm.one import args, sizes, subject
from cxm.one.action import Call, Context

_log = logging.getLogger(__name__)

# Where the storage cannot zero by itself every byte is written: hours, for a very large disk.
_TIMEOUT_S = 3600.0
_SLOWEST_MIB_S = 10


def run(ctx: Context, call: Call) -> str:
    """Make the disk; nothing is printed."""
    parse = args.mkswap if call.action == "mkswap" else args.mkimage
    request = parse(call.argv)
    asked = subject.ask(ctx, request.vm)
    disk = asked.record.disk(request.target.disk)
    made_as = sizes.filesystem_of_volatile(request.form, disk)
    _log.info(
        "VM %s disk %s: an empty disk (%s) of %s MiB on %s",
        request.vm,
        disk.disk_id,
        made_as,
        request.size_mib,
        request.target.host,
    )
    ctx.node(request.target.host).call(
        "disk-blank",
        {
            "vm": request.vm,
            "disk": request.target.disk,
            "dir": request.target.directory,
            "name": asked.domain,
            "size_mib": request.size_mib,
            "format": made_as,
        },
        timeout_s=_TIMEOUT_S + request.size_mib / _SLOWEST_MIB_S,
    )
    return ""
