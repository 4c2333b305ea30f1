# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the removal of volumes that were in use when OpenNebula deleted their VM.

oned reports a clean-up as done whatever the drivers answer, so such volumes are marked on the node
and would stay for ever. They go when oned says DONE and the node finds that nothing of the VM lives
(:mod:`cxm.node.purge`).
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from cxm.errors import CxmError, NotFoundError
from cxm.names import VmId
from cxm.one import xml
from cxm.sync import views
from cxm.sync.act import Seen, Tools

_log = logging.getLogger(__name__)

EVERY_S: Final = 300.0
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


def candidates(seen: Seen) -> Iterator[str]:
    """One host of each cluster that answers for certain, and each standalone host."""
    for answer in seen.world.answers:
        if answer.counts:
            yield answer.asked


def run(tools: Tools, seen: Seen, *, dry_run: bool, only: VmId | None = None) -> list[Removal]:
    """Remove what may go; with ``only`` that VM's, which a human has said nobody needs."""
    found: list[Removal] = []
    for host in candidates(seen):
        try:
            rows = tools.node(host).call("requested", {}, timeout_s=_LVM_S)["vms"]
        except CxmError as error:
            _log.warning("%s does not say which volumes wait: %s", host, error.sentence())
            continue
        wanted = [row for row in rows if only is None or row["vm"] == only]
        if only is not None:
            wanted = [
                {"vm": only, "volumes": [str(each) for row in wanted for each in row["volumes"]]}
            ]
        forced = only is not None
        found += [_one(tools, host, row, dry_run=dry_run, forced=forced) for row in wanted]
    return found


def _one(tools: Tools, host: str, row: dict[str, Any], *, dry_run: bool, forced: bool) -> Removal:
    vm, volumes = VmId(int(row["vm"])), tuple(map(str, row["volumes"]))

    def made(why: str, *, removed: bool = False) -> Removal:
        return Removal(vm, host, volumes, removed, why)

    try:
        record = views.record(xml.parse(tools.oned.vm_info(vm), "VM"))
    except NotFoundError:
        return made("kept, for OpenNebula knows no such VM, so it does not say that it is DONE")
    if record.state != "DONE":
        return made(f"kept, for OpenNebula says {record.state}")
    if dry_run:
        return made("to be removed")
    try:
        arguments = {"vm": vm, "forced": forced}
        gone = tools.node(host).call("vm-purge", arguments, timeout_s=_LVM_S)["removed"]
    except CxmError as error:
        return made(f"kept: {error.sentence()}")
    if not gone:
        return made("nothing of it is there")
    _log.info("VM %d is DONE: %s removed from %s", vm, ", ".join(gone), host)
    return made(f"removed: {', '.join(gone)}", removed=True)
