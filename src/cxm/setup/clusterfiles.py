# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the files that make a machine a node of a cluster, each planned whole. Writes none."""

import os
import re
from typing import Final

from cxm.config import CLUSTER_MARKER
from cxm.setup import corosync, cxmrc, files, keys, peerkey, sbd
from cxm.setup.files import FileChange
from cxm.setup.jointoken import Membership
from cxm.setup.nodecheck import Host

LVMLOCAL: Final = "/etc/lvm/lvmlocal.conf"
PACEMAKER: Final = "/etc/default/pacemaker"
# What is never shown.
SECRETS: Final = (corosync.AUTHKEY, peerkey.PATH)
_ROOT_KEYS: Final = "/root/.ssh/authorized_keys"
_BEGIN: Final = "# Written by cxm-setup, down to its end:"
_END: Final = "# end of what cxm-setup wrote"
_LVM: Final = "global {\n\tuse_lvmlockd = 1\n\tlvmlockd_lock_retries = 20\n}\n"
# In a pair, DLM's own request to fence would come first, and without the delay that makes the node
# with more guests win: it is made to wait (packaging/dlm). Of more nodes it is harmless, and DLM
# reads this only when it starts: a cluster may become a pair while it runs.
DLM: Final = "/etc/dlm/dlm.conf"
_DLM_TEXT: Final = "fence_all /usr/lib/cxm/cxm-dlm-fence\n"
# The answer about a CIB with several hundred VMs has to fit in it, compressed.
_IPC_BUFFER: Final = 1 << 20


def planned(host: Host, me: str, membership: Membership) -> tuple[FileChange, ...]:
    """All files, in the order in which they are written: the last makes the machine a node."""
    cluster = membership.cluster
    marker = f'CLUSTER="{cluster.name}"\nNODE="{me}"\nVG_NAME="{cluster.vg}"\n'
    return (
        files.plan(host.path(corosync.AUTHKEY), membership.authkey, mode=0o400),
        files.plan(host.path(corosync.CONF), corosync.conf(cluster), mode=0o644),
        _with_block(host, LVMLOCAL, _LVM),
        _with_block(host, DLM, _DLM_TEXT),
        _pacemaker(host),
        *([_sbd(host, membership)] if cluster.sbd else []),
        files.plan(host.path(peerkey.PATH), membership.peer_key, mode=0o600),
        _root_keys(host, membership),
        files.plan(host.path(CLUSTER_MARKER), marker, mode=0o644),
    )


def shown(host: Host, change: FileChange) -> str:
    """What would change, without what is a secret."""
    if change.path in map(os.path.realpath, map(host.path, SECRETS)):
        return f"write the secret {change.path}\n"
    return change.diff()


def _with_block(host: Host, name: str, text: str) -> FileChange:
    """A file with a part that is ours; the rest of it stays."""
    path = host.path(name)
    old = files.read(path) or ""
    kept = re.sub(rf"^{_BEGIN}\n.*?^{_END}\n", "", old, flags=re.MULTILINE | re.DOTALL)
    is_open = bool(kept) and not kept.endswith("\n")
    return files.plan(path, f"{kept}{chr(10) * is_open}{_BEGIN}\n{text}{_END}\n", mode=0o644)


def _pacemaker(host: Host) -> FileChange:
    path = host.path(PACEMAKER)
    new = cxmrc.set_values(files.read(path) or "", {"PCMK_ipc_buffer": str(_IPC_BUFFER)})
    return files.plan(path, new, mode=0o644)


def _sbd(host: Host, membership: Membership) -> FileChange:
    path = host.path(sbd.CONF)
    new = sbd.settings(files.read(path) or "", membership.cluster)
    return files.plan(path, new, mode=0o644)


def _root_keys(host: Host, membership: Membership) -> FileChange:
    path = host.path(_ROOT_KEYS)
    key = peerkey.public(host.runner, membership.peer_key)
    new = keys.merge_peer(files.read(path) or "", key, membership.cluster.name)
    return files.plan(path, new, mode=0o600)
