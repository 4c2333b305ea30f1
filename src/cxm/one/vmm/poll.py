# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""``poll`` (3.6 to 5.10): what one VM does, or with ``-t`` what all of a host do.

It never reads its input: up to 4.14 that is the ssh stream which carries the next commands.
"""

from cxm import names
from cxm.errors import UsageError
from cxm.one.action import Call, Context
from cxm.one.im import pull
from cxm.one.im.observation import take

# deploy_id host vmid host; up to 4.0 an empty deploy_id leaves no trace.
_LEAST = 2


def run(ctx: Context, call: Call) -> str:
    """The VM's state and usage on one line; the last arguments are its id and the host."""
    if call.argv[:1] == ("-t",):
        return pull.vms(take(ctx.node(None), "all"), ctx.version).rstrip()
    if len(call.argv) < _LEAST:
        raise UsageError(f"poll takes a deployment id, a host, a VM's id and a host: {call.argv}")
    vm = names.vm_id(call.argv[-2])
    seen = take(ctx.node(None), "usage")
    return pull.poll_values(
        next((guest for guest in seen.guests if guest.vm == vm), None), ctx.version
    )
