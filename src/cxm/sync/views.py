# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the two views that the sync compares: what oned believes, and what the clusters say. Pure.

Hosts are named as OpenNebula names them; a node's answer maps its cluster's nodes to these.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final
from xml.etree.ElementTree import Element

from cxm.errors import DataError
from cxm.names import VmId, vm_id
from cxm.one import xml

_ACTIVE: Final = 3
# STATE of a VM that is not active, and LCM_STATE of one that is, as OpenNebula's users see them.
_STATES: Final = {
    1: "PENDING", 2: "HOLD", 4: "STOPPED", 5: "SUSPENDED", 6: "DONE", 7: "FAILED", 8: "POWEROFF",
    9: "UNDEPLOYED",
}  # fmt: skip
_LCM_STATES: Final = {
    1: "PROLOG", 2: "BOOT", 3: "RUNNING", 4: "MIGRATE", 5: "SAVE_STOP", 6: "SAVE_SUSPEND",
    7: "SAVE_MIGRATE", 12: "SHUTDOWN", 13: "CANCEL", 15: "CLEANUP", 16: "UNKNOWN",
    18: "SHUTDOWN_POWEROFF", 19: "BOOT_UNKNOWN", 20: "BOOT_POWEROFF", 21: "BOOT_SUSPENDED",
    22: "BOOT_STOPPED", 23: "CLEANUP_DELETE", 29: "SHUTDOWN_UNDEPLOY", 32: "BOOT_UNDEPLOY",
    35: "BOOT_MIGRATE", 36: "BOOT_FAILURE", 37: "BOOT_MIGRATE_FAILURE",
    38: "PROLOG_MIGRATE_FAILURE", 39: "PROLOG_FAILURE",
    44: "PROLOG_MIGRATE_POWEROFF_FAILURE", 46: "PROLOG_MIGRATE_SUSPEND_FAILURE",
    47: "BOOT_UNDEPLOY_FAILURE", 48: "BOOT_STOPPED_FAILURE", 61: "PROLOG_MIGRATE_UNKNOWN_FAILURE",
}  # fmt: skip
_OFFLINE: Final = 8
OURS: Final = "cxm"  # IM_MAD of the hosts that have our drivers


@dataclass(frozen=True, slots=True)
class Host:
    """A host as oned knows it."""

    id: int
    name: str
    offline: bool  # an administrator has taken it out of use: oned sends no VM there
    ours: bool
    monitored: bool
    vm_mad: str = ""
    confirms: bool = True  # its driver's migrate runs on the frontend, where it sees the claim


@dataclass(frozen=True, slots=True)
class Record:
    """What oned believes of a VM."""

    vm: VmId
    name: str
    state: str
    host: str  # of its last history record; empty before the first placement
    locked: bool = False
    moving: bool = False  # the history record before the last is open: a migration has not ended

    @property
    def label(self) -> str:
        """How sentences name it."""
        return f"VM {self.vm} ({self.name})"


@dataclass(frozen=True, slots=True)
class Sighting:
    """What a cluster says of a VM; ``host`` is empty where it is nowhere."""

    vm: VmId
    host: str
    doubt: str = ""
    wanted: bool = True
    told: str = ""  # the host that the cluster takes for OpenNebula's, and that speaks of it


@dataclass(frozen=True, slots=True)
class Answer:
    """What one node has said of its cluster, or of itself where it is in none."""

    asked: str  # the host
    clustered: bool
    doubt: str = ""
    hosts: tuple[str, ...] = ()
    unclear: tuple[str, ...] = ()
    away: tuple[str, ...] = ()  # hosts whose nodes are dead, or no members for another reason
    vms: tuple[Sighting, ...] = ()

    @property
    def counts(self) -> bool:
        """Whether nobody else of its cluster need be asked."""
        return not self.clustered or not self.doubt


@dataclass(frozen=True, slots=True)
class World:
    """All clusters together."""

    answers: tuple[Answer, ...] = ()
    silent: Mapping[str, str] = field(default_factory=dict)  # host -> why it gave no answer

    @property
    def sightings(self) -> dict[VmId, Sighting]:
        """Where each VM is; one that two clusters know is in doubt."""
        found: dict[VmId, Sighting] = {}
        for answer in self.answers:
            for each in answer.vms if answer.clustered else ():
                known = found.get(each.vm)
                if known is not None:
                    each = replace(each, doubt="two clusters know it")  # noqa: PLW2901
                found[each.vm] = each
        return found

    @property
    def away(self) -> set[str]:
        """The hosts that nobody need try to reach."""
        return {host for answer in self.answers for host in answer.away}

    def covers(self, host: str) -> bool:
        """Whether a host is a node of a cluster that has answered."""
        return any(answer.clustered and host in answer.hosts for answer in self.answers)


def state_name(state: int | None, lcm_state: int | None) -> str:
    """The name of a VM's state; of one that does not matter here its number."""
    if state == _ACTIVE:
        return _LCM_STATES.get(lcm_state or 0, f"LCM {lcm_state}")
    return _STATES.get(state or 0, f"state {state}")


def record(element: Element) -> Record:
    """A VM of one.vmpool.info, or one.vm.info."""
    histories = element.findall("HISTORY_RECORDS/HISTORY")
    last, before = histories[-1:], histories[-2:-1]
    return Record(
        vm=vm_id(xml.text_of(element, "ID")),
        name=xml.text_of(element, "NAME"),
        state=state_name(xml.number_of(element, "STATE"), xml.number_of(element, "LCM_STATE")),
        host=xml.text_of(last[0], "HOSTNAME") if last else "",
        locked=element.find("LOCK/LOCKED") is not None,
        moving=any(xml.number_of(each, "ETIME") == 0 for each in before),
    )


def record_in(text: str) -> Record:
    """The VM of one.vm.info."""
    return record(xml.parse(text, "VM"))


def records(pool: str) -> list[Record]:
    """The VMs of one.vmpool.info."""
    return [record(each) for each in xml.parse(pool, "VM_POOL").iterfind("VM")]


def hosts(pool: str) -> list[Host]:
    """The hosts of one.hostpool.info."""
    return [
        Host(
            id=xml.number_of(each, "ID") or 0,
            name=xml.text_of(each, "NAME"),
            offline=xml.number_of(each, "STATE") == _OFFLINE,
            ours=xml.text_of(each, "IM_MAD") == OURS,
            monitored=xml.number_of(each, "STATE") in (1, xml.HostState.MONITORED),
            vm_mad=xml.text_of(each, "VM_MAD"),
        )
        for each in xml.parse(pool, "HOST_POOL").iterfind("HOST")
    ]


def answer(asked: str, said: Mapping[str, Any]) -> Answer:
    """What the verb ``whereabouts`` returned on a host; raises DataError for anything else."""
    try:
        if not said["clustered"]:
            return Answer(asked, clustered=False)
        return Answer(
            asked,
            clustered=True,
            doubt=str(said["doubt"]),
            hosts=tuple(map(str, said["hosts"])),
            unclear=tuple(map(str, said["unclear"])),
            away=tuple(map(str, said["away"])),
            vms=tuple(_sightings(said["vms"])),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{asked} does not say where VMs are as it should: {error!r}") from error


def _sightings(rows: Iterable[Mapping[str, Any]]) -> Iterable[Sighting]:
    for row in rows:
        yield Sighting(
            VmId(int(row["vm"])),
            str(row["host"]),
            str(row["doubt"]),
            row["wanted"] is True,
            str(row.get("told", row["host"])),  # a node that says nothing of it is not asked to
        )
