# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""``save`` and ``restore``: a VM's memory goes into its checkpoint volume and comes back.

oned's checkpoint file only tells the VM's directory: the memory is in a volume (docs/design/0004).
oned runs ``save`` on the frontend, and ``restore`` on the host.
"""

import logging
from dataclasses import replace

from cxm import names
from cxm.errors import CxmError
from cxm.names import VmId
from cxm.one.action import Call, Context
from cxm.one.vmm.request import directory_of, guest_of, last_deployment, node_of, vm_of
from cxm.xen.guest import GuestSpec

_log = logging.getLogger(__name__)

# A terabyte of memory on a slow disk takes hours; the node has a limit by the memory's size.
_TIMEOUT_S = 86400.0
# checkpoint host deploy_id vmid host: since 4.4.
_WITH_NAME = 5


def run(ctx: Context, call: Call) -> str:
    """Save or restore the VM's memory."""
    vm = vm_of(call)
    if call.action == "save":
        node_of(ctx, call).call("domain-save", {"vm": vm}, timeout_s=_TIMEOUT_S)
        return ""
    directory = directory_of(call, vm)
    spec = _guest(ctx, call, vm, directory)
    guest = None if spec is None else spec.to_json()
    ctx.node(None).call(
        "domain-restore", {"vm": vm, "dir": directory, "guest": guest}, timeout_s=_TIMEOUT_S
    )
    return ""


def _guest(ctx: Context, call: Call, vm: VmId, directory: str) -> GuestSpec | None:
    """The guest as OpenNebula knows it, for a node that does not know it yet.

    A VM that cannot be described goes on where its node has its configuration.
    """
    # Before 5.0 the input is the ssh stream that carries the commands which follow.
    text = call.read_input() if ctx.version.gives_stdin else ""
    try:
        described = text if text.strip() else last_deployment(directory)
        if described is None:
            return None
        spec = guest_of(ctx, described, vm, directory)
        if len(call.argv) == _WITH_NAME and call.argv[2]:
            # Its name stays what oned knows, even if the VM has been renamed since.
            spec = replace(spec, name=names.domain_name(call.argv[2]))
    except CxmError as error:
        _log.warning("%s", error.sentence())
        return None
    return spec
