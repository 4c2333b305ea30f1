# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns LVM: the only caller of its commands, and what their JSON reports mean.

Volumes are thick and linear: nothing else can be active on two nodes, as a live migration needs.
What a volume's tags mean is the business of :mod:`cxm.names`.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from cxm.errors import CommandError, DataError, NotFoundError, RefusedError
from cxm.names import LvName
from cxm.run import Runner

_log = logging.getLogger(__name__)

MIB: Final = 1 << 20
# On a shared volume group every command waits for lvmlockd, which waits for the other nodes.
_TIMEOUT_S: Final = 120.0

# One process tells all: fullreport wants a field of each kind of row, of interest or not.
_REPORT: Final = (
    "lvm", "fullreport", "--reportformat", "json", "--units", "b", "--nosuffix",
    "--configreport", "vg", "-o", "vg_name,vg_uuid,vg_size,vg_free,vg_extent_size,vg_shared",
    "--configreport", "lv", "-o", "lv_name,lv_size,lv_tags,lv_active,lv_device_open",
    "--configreport", "pv", "-o", "pv_name",
    "--configreport", "pvseg", "-o", "pvseg_start",
    "--configreport", "seg", "-o", "seg_start",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Volume:
    """A logical volume; sizes are bytes."""

    name: LvName
    size: int
    tags: tuple[str, ...]
    active: bool
    in_use: bool  # some program of this node, a domain's disk backend included, has it open

    @property
    def size_mib(self) -> int:
        return self.size // MIB


@dataclass(frozen=True, slots=True)
class Group:
    """A volume group and its volumes; sizes are bytes."""

    name: str
    uuid: str  # the same on every host that reaches the same storage
    size: int
    free: int
    extent: int
    shared: bool
    volumes: tuple[Volume, ...]

    def find(self, name: LvName) -> Volume | None:
        """The volume of exactly this name."""
        return next((volume for volume in self.volumes if volume.name == name), None)

    def rounded(self, size_mib: int) -> int:
        """The bytes that a volume of this size takes: whole extents."""
        return -(-size_mib * MIB // self.extent) * self.extent


def _volume(row: dict[str, str]) -> Volume:
    return Volume(
        name=LvName(row["lv_name"]),
        size=int(row["lv_size"]),
        tags=tuple(tag for tag in row["lv_tags"].split(",") if tag),
        active=row["lv_active"] not in ("", "unknown"),
        in_use=row["lv_device_open"] == "open",
    )


def parse_report(text: str) -> Group | None:
    """The group in the output of ``lvm fullreport VG``, None where it has none.

    Raises DataError for anything that is no such report.
    """
    try:
        found: dict[str, list[dict[str, Any]]] = {"vg": [], "lv": []}
        for part in json.loads(text)["report"]:
            for kind, rows in found.items():
                rows.extend(part.get(kind, []))
        if not found["vg"]:
            return None
        vg = found["vg"][0]
        return Group(
            name=vg["vg_name"],
            uuid=vg["vg_uuid"],
            size=int(vg["vg_size"]),
            free=int(vg["vg_free"]),
            extent=int(vg["vg_extent_size"]),
            shared=vg["vg_shared"] != "",
            volumes=tuple(_volume(row) for row in found["lv"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"LVM's report cannot be read: {text[:120]!r}") from error


def group(runner: Runner, vg: str) -> Group:
    """The volume group ``vg`` as it is now; raises NotFoundError where it does not exist."""
    found = None
    try:
        found = parse_report(runner.run([*_REPORT, vg], timeout_s=_TIMEOUT_S).stdout)
    except CommandError as error:
        if f'Volume group "{vg}" not found' not in error.stderr:
            raise
    if found is None:
        raise NotFoundError(
            f"the volume group {vg} does not exist",
            hint="VG_NAME in /etc/cxm/cxmrc names the group that holds the disks of VMs",
        )
    return found


def create(runner: Runner, vg: Group, name: LvName, size_mib: int, tags: Sequence[str]) -> None:
    """Make a volume, tagged from its first moment, and activate it here alone.

    Old signatures on its blocks are wiped without a question. Raises RefusedError when the group
    has too little space.
    """
    need = vg.rounded(size_mib)
    if need > vg.free:
        raise RefusedError(
            f"the volume group {vg.name} has {vg.free // MIB} MiB free, "
            f"but {name} needs {need // MIB} MiB",
            hint="delete VMs there, add a physical volume, or ask for a smaller LV_SIZE",
        )
    argv = ["lvcreate", "-y", "-W", "y", "-Z", "y", "--type", "linear", "-L", f"{size_mib}m"]
    if vg.shared:
        # Who may use it is decided at every start, never by a node that merely boots.
        argv += ["--setautoactivation", "n"]
    for tag in tags:
        argv += ["--addtag", tag]
    runner.run([*argv, "-n", name, vg.name], timeout_s=_TIMEOUT_S)
    _log.info("created volume %s (%d MiB) in %s", name, size_mib, vg.name)


def remove(runner: Runner, vg: Group, *names: LvName) -> None:
    """Remove volumes, active or not; raises CommandError when one of them is open."""
    volumes = [f"{vg.name}/{name}" for name in names]
    runner.run(["lvremove", "-f", "-y", *volumes], timeout_s=_TIMEOUT_S)
    for name in names:
        _log.info("removed volume %s from %s", name, vg.name)


def activate(runner: Runner, vg: Group, name: LvName) -> None:
    """Make a volume usable on this node, and on a shared group on this node alone."""
    _set_active(runner, vg, [name], "ey" if vg.shared else "y")


def share(runner: Runner, vg: Group, names: Sequence[LvName]) -> None:
    """Make volumes of a shared group usable here and, at the same time, on another node.

    Those that are usable here alone become so in place, while they are open. Fails at once where
    another node has one for itself.
    """
    _set_active(runner, vg, names, "sy")


def claim(runner: Runner, vg: Group, names: Sequence[LvName]) -> None:
    """Make volumes of a shared group usable here alone, also those that are open and shared.

    Fails at once while another node has one of them active.
    """
    _set_active(runner, vg, names, "ey")


def deactivate(runner: Runner, vg: Group, name: LvName) -> None:
    """Make a volume unusable on this node; raises CommandError while it is open."""
    _set_active(runner, vg, [name], "n")


def _set_active(runner: Runner, vg: Group, names: Sequence[LvName], how: str) -> None:
    volumes = [f"{vg.name}/{name}" for name in names]
    runner.run(["lvchange", "-a", how, *volumes], timeout_s=_TIMEOUT_S)


def retag(
    runner: Runner, vg: Group, name: LvName, *, old: Sequence[str], new: Sequence[str]
) -> None:
    """Replace the tags ``old`` of a volume by ``new`` in one step; does nothing if they agree."""
    argv = ["lvchange"]
    for tag in old:
        argv += ["--deltag", tag] if tag not in new else []
    for tag in new:
        argv += ["--addtag", tag] if tag not in old else []
    if len(argv) > 1:
        runner.run([*argv, f"{vg.name}/{name}"], timeout_s=_TIMEOUT_S)
