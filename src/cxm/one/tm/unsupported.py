# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the Transfer Manager actions that cxm does not do: each fails and says so.

oned believes an exit code of 0: an action that did nothing must never end with it.
"""

from collections.abc import Mapping
from typing import Final

from cxm.errors import RefusedError
from cxm.one.action import Call, Context

_WHAT: Final[Mapping[str, str]] = {
    "cpds": "saving a disk of a VM as a new image",
    "resize": "enlarging a disk",
    "restore": "restoring a disk from a backup",
} | {
    name: what
    for what, names in (
        ("a backup", ("prebackup", "prebackup_live", "postbackup", "postbackup_live")),
        (
            "a snapshot of a disk",
            ("snap_create", "snap_create_live", "snap_delete", "snap_revert"),
        ),
    )
    for name in names
}

_HINTS: Final[Mapping[str, str]] = {
    "cpds": "make the image persistent: its disk is saved back when the VM ends",
}


def run(_ctx: Context, call: Call) -> str:
    """Refuse, with a sentence."""
    what = _WHAT.get(call.action, call.action)
    raise RefusedError(
        f"cxm does not support {what} ({call.action}) here; nothing was done",
        hint=_HINTS.get(call.action),
    )
