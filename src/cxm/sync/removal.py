# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the removal of volumes that were in use when OpenNebula deleted their VM.

oned reports a clean-up as done whatever the drivers answer, so such volumes are marked on the node
and would stay for ever. They go when oned says DONE and the node finds that nothing of the VM lives
(:mod:`cxm.node.purge`). Volumes of a DONE VM that are not marked (the node was dead then, or its
LVM stood still) are named: a human says whether they go.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from cxm import together
from cxm.errors import CxmError, NotFoundError
from cxm.names import VmId
from cxm.sync.look import AT_ONCE, Tools, record_of
from cxm.sync.views import Record

_log = logging.getLogger(__name__)

_LVM_S: Final = 120.0


@dataclass(frozen=True, slots=True)
class Removal:
    """Volumes that wait, and what became of that."""

    vm: VmId
    host: str
    volumes: tuple[str, ...]
    removed: bool
    why: str

    @property
    def sentence(self) -> str:
        """For people."""
        what = ", ".join(self.volumes) or "its volumes"
        return f"VM {self.vm}: {what} on {self.host}: {self.why}"


def run(
    tools: Tools,
    hosts: Iterable[str],
    records: Mapping[VmId, Record],
    *,
    dry_run: bool,
    only: VmId | None = None,
) -> list[Removal]:
    """Remove what may go; with ``only`` that VM's, which a human has said nobody needs.

    One host of each cluster is asked, and each standalone one. ``records`` are the VMs that are
    not DONE: of these nobody need be asked about volumes that nobody has asked to remove.
    """

    def requested(host: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = tools.node(host).call("requested", {}, timeout_s=_LVM_S)["vms"]
        return rows

    found: list[Removal] = []
    for host, rows in together.ask(hosts, requested, at_once=AT_ONCE).items():
        if isinstance(rows, CxmError):
            _log.warning("%s does not say which volumes wait: %s", host, rows.sentence())
            if only is not None:
                found.append(Removal(only, host, (), removed=False, why=rows.sentence()))
        elif only is not None:
            volumes = [str(each) for row in rows if row["vm"] == only for each in row["volumes"]]
            row = {"vm": only, "asked": True, "volumes": volumes}
            found.append(_one(tools, host, row, dry_run=dry_run, forced=True))
        else:
            wanted = [row for row in rows if row.get("asked", True) or row["vm"] not in records]
            made = [_one(tools, host, row, dry_run=dry_run, forced=False) for row in wanted]
            found += [each for each in made if each.why]
    return found


def _one(tools: Tools, host: str, row: dict[str, Any], *, dry_run: bool, forced: bool) -> Removal:
    """What becomes of a VM's volumes on a host; ``why`` is empty where nothing is to be said."""
    vm, volumes = VmId(int(row["vm"])), tuple(map(str, row["volumes"]))
    is_asked = row.get("asked", True)

    def made(why: str, *, removed: bool = False) -> Removal:
        return Removal(vm, host, volumes, removed, why)

    try:
        record = record_of(tools, vm)
    except NotFoundError:
        return made(
            "kept, for OpenNebula knows no such VM, so it does not say that it is DONE; "
            "'lvremove' on that host, if nobody needs them"
        )
    if record.state != "DONE":
        return made(f"kept, for OpenNebula says {record.state}" if is_asked else "")
    if not is_asked or dry_run:
        stay = f"OpenNebula says DONE, and they stay: 'cxm-sync --remove {vm}' removes them"
        return made("to be removed" if is_asked else stay)
    try:
        arguments = {"vm": vm, "forced": forced}
        gone = tools.node(host).call("vm-purge", arguments, timeout_s=_LVM_S)["removed"]
    except CxmError as error:
        return made(f"kept: {error.sentence()}")
    if not gone:
        return made("nothing of it is there")
    _log.info("VM %d is DONE: %s removed from %s", vm, ", ".join(gone), host)
    return made(f"removed: {', '.join(gone)}", removed=True)
