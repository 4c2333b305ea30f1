# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""``migrate``: a running VM moves to another node of its cluster. 0 means that it is there."""

from cxm.errors import UsageError
from cxm.one.action import Call, Context
from cxm.one.vmm.request import vm_of

# deploy_id target source vmid source; up to 4.0 an empty deploy_id leaves no trace.
_LEAST = 4
# Pacemaker may be busy with others: the node has its own limits.
_TIMEOUT_S = 3600.0


def run(ctx: Context, call: Call) -> str:
    """Move the VM."""
    if len(call.argv) < _LEAST:
        raise UsageError(f"migrate takes a deployment id, two hosts, a VM and a host: {call.argv}")
    arguments = {"vm": vm_of(call), "node": call.argv[-4]}
    ctx.node(None).call("domain-migrate", arguments, timeout_s=_TIMEOUT_S)
    return ""
