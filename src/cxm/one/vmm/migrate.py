# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""``migrate``: a running VM moves to another node of its cluster. 0 means that it is there.

oned runs it on the frontend (``-l migrate``), so the source need not be reachable: the target is
asked, and moves the VM from wherever it runs. While the sync brings OpenNebula's record in line
with where a VM runs (:mod:`cxm.sync.claims`), it only confirms. An oned.conf without ``-l`` has it
run on the source, which works as long as that lives.
"""

import time
from typing import Final

from cxm.errors import RefusedError, UsageError
from cxm.one.action import Call, Context
from cxm.one.vmm.request import on_frontend, vm_of
from cxm.sync import claims

# deploy_id target source vmid source; up to 4.0 an empty deploy_id leaves no trace.
_LEAST: Final = 4
# Pacemaker may be busy with others: the node has its own limits.
_TIMEOUT_S: Final = 3600.0
_CONFIRM_S: Final = 120.0


def run(ctx: Context, call: Call) -> str:
    """Move the VM, or confirm that it is there."""
    if len(call.argv) < _LEAST:
        raise UsageError(f"migrate takes a deployment id, two hosts, a VM and a host: {call.argv}")
    vm, target = vm_of(call), call.argv[-4]
    is_here = on_frontend(ctx, call)
    place = claims.directory(ctx.remotes)
    claim = claims.find(place, vm, time.time()) if is_here else None
    if claim is None:
        arguments = {"vm": vm, "node": target}
        node = ctx.node(target if is_here else None)
        node.call("domain-migrate", arguments, timeout_s=_TIMEOUT_S)
        return ""
    if claim.host != target:
        raise RefusedError(
            f"VM {vm} is not moved to {target}: cxm-sync is telling OpenNebula that it runs on "
            f"{claim.host}",
            hint="try it again in a minute",
        )
    ctx.node(target).call("domain-confirm", {"vm": vm}, timeout_s=_CONFIRM_S)
    claims.confirm(place, claim, time.time())
    return ""
