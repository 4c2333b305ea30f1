# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""``shutdown``, ``cancel``, ``reboot`` and ``reset``: a running VM is stopped or started anew.

oned runs them on the frontend (``-l``): so they fail with a sentence where the host is dead.
"""

from typing import Any

from cxm.one.action import Call, Context
from cxm.one.vmm.request import node_of, vm_of

# Beyond the time that a guest gets: to destroy it, and to wait for others that Xen works on.
_PATIENCE_S = 600.0


def run(ctx: Context, call: Call) -> str:
    """Do the action on the VM's domain, whatever its name."""
    vm = vm_of(call)
    args: dict[str, Any] = {"vm": vm}
    timeout_s = _PATIENCE_S
    if call.action in ("shutdown", "cancel"):
        how = "shutdown" if call.action == "shutdown" else "destroy"
        args |= {"how": how, "timeout_s": ctx.config.shutdown_timeout}
        timeout_s += ctx.config.shutdown_timeout
        verb = "domain-stop"
    else:
        verb = f"domain-{call.action}"
    node_of(ctx, call).call(verb, args, timeout_s=timeout_s)
    return ""
