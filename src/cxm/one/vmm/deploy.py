# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""``deploy``: stores the deployment file and starts the VM; its result is the domain's name."""

import os

from cxm import wholefile
from cxm.errors import UsageError
from cxm.one.action import Call, Context
from cxm.one.vmm.request import directory_of, guest_of, vm_of

# Xen builds one domain after the other: a start may wait for several others.
_TIMEOUT_S = 1800.0


def _store(path: str, text: str) -> None:
    """Keep the deployment file where oned wants it; it may hold a password."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    wholefile.write(path, text, mode=0o600, fresh=f"{path}.new")


def run(ctx: Context, call: Call) -> str:
    """Start the VM, or adopt its domain where it runs already."""
    vm = vm_of(call)
    directory = directory_of(call, vm)
    text = call.read_input()
    if not text.strip():
        raise UsageError(f"VM {vm}: oned gave no deployment file")
    spec = guest_of(ctx, text, vm, directory)
    _store(os.path.join(directory, os.path.basename(call.argv[0])), text)
    started = ctx.node(None).call(
        "domain-start",
        {"vm": vm, "dir": directory, "guest": spec.to_json()},
        timeout_s=_TIMEOUT_S,
    )
    return str(started["name"])
