# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""``poll`` (3.6 to 5.10): what one VM does, or with ``-t`` what all of a host do.

Up to 4.2, which polls each VM, oned runs it on the frontend (``-l``).
"""

from cxm.one.action import Call, Context
from cxm.one.im import pull
from cxm.one.im.observation import take
from cxm.one.vmm.request import node_of, vm_of


def run(ctx: Context, call: Call) -> str:
    """The VM's state and usage on one line; the last arguments are its id and the host."""
    if call.argv[:1] == ("-t",):
        return pull.vms(take(ctx.node(None), "all"), ctx.version).rstrip()
    vm = vm_of(call)
    seen = take(node_of(ctx, call), "usage")
    return pull.poll_values(
        next((guest for guest in seen.guests if guest.vm == vm), None), ctx.version
    )
