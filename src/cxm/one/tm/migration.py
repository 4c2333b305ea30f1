# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""``premigrate``, ``postmigrate`` and ``failmigrate``: what surrounds a live migration.

Who may use the disks meanwhile is the business of the cluster (docs/design/0010). Here the VM's
directory gets its place on the target, and goes from the source if that answers.
"""

import time

from cxm.errors import RefusedError
from cxm.one import args, frontend
from cxm.one.action import Call, Context
from cxm.one.args import Migration
from cxm.one.tm import leaving
from cxm.sync import claims


def run(ctx: Context, call: Call) -> str:
    """Prepare the target, or clean up the side that the VM is not on."""
    request = args.migration(call.argv, ctx.version)
    if call.action == "premigrate":
        _prepare(ctx, request)
    elif call.action == "postmigrate":
        if not _is_lost(ctx, request):
            leaving.drop(ctx, request.source, request.vm, request.directory)
    else:
        leaving.drop(ctx, request.target, request.vm, request.directory)
    return ""


def _is_lost(ctx: Context, request: Migration) -> bool:
    """Whether the VM was rescued from a node that is dead: what is there goes when it is back."""
    if not frontend.is_frontend(ctx.remotes):
        return False
    claim = claims.find(claims.directory(ctx.remotes), request.vm, time.time())
    return claim is not None and claim.lost


def _prepare(ctx: Context, request: Migration) -> None:
    arguments = {"vm": request.vm, "dir": request.directory}
    if not ctx.node(request.target).call("dir-adopt", arguments)["disks"]:
        raise RefusedError(
            f"VM {request.vm} cannot move to {request.target} while it runs: its disks are not on "
            "storage that this host shares",
            hint="migrate it without --live: it is saved, moved and restored",
        )
