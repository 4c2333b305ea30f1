# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what is done on a node of a cluster that a VM has left, or was to come to and did not.

The VM's disks are on storage that the nodes share, so nothing depends on that node: it may be dead.
"""

import logging
from typing import Final

from cxm.errors import CxmError
from cxm.names import VmId
from cxm.one.action import Context

_log = logging.getLogger(__name__)

# For a node that answers; one that is dead costs ssh's limit for a connection, 10 s.
_DROP_S: Final = 30.0


def drop(ctx: Context, host: str, vm: VmId, directory: str) -> None:
    """Remove the VM's directory there; one that stays does no harm, and is only told."""
    try:
        ctx.node(host).call("dir-drop", {"vm": vm, "dir": directory}, timeout_s=_DROP_S)
    except CxmError as error:
        _log.warning("VM %s: its old directory stays: %s", vm, error.sentence())
