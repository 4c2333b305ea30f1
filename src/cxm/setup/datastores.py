# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the datastores and OpenNebula clusters that cxm needs: made or brought up to date.

A place is where disks of VMs live: all standalone hosts (the space is each host's own), or the
volume group of one SAN. Each is an OpenNebula cluster with one system datastore, both of its name:
the scheduler takes any system datastore of a host's cluster, those of other drivers too.
"""

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from cxm.errors import CxmError, UsageError
from cxm.one import xml
from cxm.one.api import Value
from cxm.one.version import OneVersion
from cxm.setup import oneconf
from cxm.setup.parts import TM_LOCAL, TM_SHARED

IMAGES: Final = "cxm"
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}")
_NO_CLUSTER: Final = -1
_MERGE: Final = 1
_FILES: Final = 2  # the type of a datastore for kernels and ramdisks
# oned takes these at creation only.
_FIXED: Final = frozenset({"DS_MAD", "TM_MAD", "TYPE", "SYSTEM"})

# From these versions on OpenNebula has what the name says.
_TYPES: Final = (4, 0)  # TYPE of a datastore; before, SYSTEM, and the cluster names its own
_MERGING: Final = (4, 4)  # an update that leaves the other attributes alone
_SEVERAL_CLUSTERS: Final = (5, 0)  # a datastore in more than one cluster; each host is in one


class Calls(Protocol):
    """oned's API."""

    def call(self, method: str, *arguments: Value) -> Value:
        """Call a method and return the value of its success."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the disks of VMs live."""

    name: str
    is_shared: bool  # whether all hosts see the same disks


LOCAL: Final = Place("cxm_local", is_shared=False)


def san(name: str) -> Place:
    """The place of ``--san NAME``; raises UsageError."""
    if not _NAME.fullmatch(name) or name in (IMAGES, LOCAL.name):
        raise UsageError(
            f"'{name}' cannot name the datastore and cluster of a SAN",
            hint=f"letters, digits, '.', '_' and '-'; neither {IMAGES} nor {LOCAL.name}",
        )
    return Place(name, is_shared=True)


class _Oned:
    """The calls of one version that are needed here, and what they changed."""

    def __init__(self, calls: Calls, version: OneVersion) -> None:
        self._calls = calls
        self._version = version
        self.changes: list[str] = []

    def pool(self, kind: str) -> Iterator[tuple[int, ET.Element]]:
        """All objects of a kind, ``datastore`` or ``cluster``, with their ids."""
        text = str(self._calls.call(f"one.{kind}pool.info"))
        for element in xml.parse(text, f"{kind.upper()}_POOL").iterfind(kind.upper()):
            number = xml.number_of(element, "ID")
            if number is not None:
                yield number, element

    def _find(self, kind: str, name: str) -> int | None:
        found = [n for n, each in self.pool(kind) if xml.text_of(each, "NAME") == name]
        return found[0] if found else None

    def _info(self, kind: str, number: int) -> tuple[ET.Element, dict[str, str]]:
        element = xml.parse(str(self._calls.call(f"one.{kind}.info", number)), kind.upper())
        template = element.find("TEMPLATE")
        return element, {} if template is None else xml.attributes_of(template)

    def datastore(self, name: str, wanted: Mapping[str, str], cluster: int) -> int:
        """The id of a datastore with these attributes; made in ``cluster``, or brought up to date.

        Raises CxmError when one of this name is driven by somebody else.
        """
        found = self._find("datastore", name)
        if found is None:
            text = _template({"NAME": name, **wanted})
            made = int(self._calls.call("one.datastore.allocate", text, cluster))
            self.changes.append(f"datastore '{name}' made, id {made}")
            return made
        element, have = self._info("datastore", found)
        driver = xml.text_of(element, "TM_MAD")
        if driver != wanted["TM_MAD"]:
            raise CxmError(
                f"the datastore '{name}' (id {found}) exists with TM_MAD '{driver}', "
                f"not '{wanted['TM_MAD']}'",
                hint=f"rename it: onedatastore rename {found} NEWNAME",
            )
        self._update("datastore", found, name, wanted, have)
        return found

    def _update(
        self, kind: str, number: int, name: str, wanted: Mapping[str, str], have: Mapping[str, str]
    ) -> None:
        lacking = {
            key: value
            for key, value in wanted.items()
            if have.get(key, "").upper() != value.upper() and key not in _FIXED
        }
        if not lacking:
            return
        if self._version >= _MERGING:
            self._calls.call(f"one.{kind}.update", number, _template(lacking), _MERGE)
        else:
            self._calls.call(f"one.{kind}.update", number, _template({**have, **lacking}))
        self.changes.append(f"{kind} '{name}': {', '.join(sorted(lacking))} set")

    def cluster(self, name: str) -> int:
        """The id of a cluster, made when it is missing."""
        found = self._find("cluster", name)
        if found is None:
            found = int(self._calls.call("one.cluster.allocate", name))
            self.changes.append(f"cluster '{name}' made, id {found}")
        return found

    def join(self, datastore: int, cluster: int, name: str) -> None:
        """Make a datastore a member of a cluster."""
        element, _have = self._info("cluster", cluster)
        members = {(each.text or "").strip() for each in element.iterfind("DATASTORES/ID")}
        if str(datastore) not in members:
            self._calls.call("one.cluster.adddatastore", cluster, datastore)
            self.changes.append(f"datastore {datastore} put into the cluster '{name}'")

    def use_system_datastore(self, cluster: int, name: str, datastore: int) -> None:
        """Before 4.0 a cluster's template says which system datastore its hosts use."""
        _element, have = self._info("cluster", cluster)
        self._update("cluster", cluster, name, {"SYSTEM_DS": str(datastore)}, have)


def _template(pairs: Mapping[str, str]) -> str:
    return "".join(f"{key} = {oneconf.quote(value)}\n" for key, value in pairs.items())


def _image_attributes(version: OneVersion) -> dict[str, str]:
    # Without NO_DECOMPRESS oned unpacks a tar.gz when it is registered, and then refuses it; with
    # DRIVER=raw it converts a qcow2 image then.
    wanted = {"DS_MAD": "fs", "TM_MAD": TM_SHARED, "NO_DECOMPRESS": "yes"}
    return wanted | ({"DRIVER": "raw"} if version >= _SEVERAL_CLUSTERS else {})


def _system_attributes(version: OneVersion, place: Place) -> dict[str, str]:
    kind = {"TYPE": "SYSTEM_DS"} if version >= _TYPES else {"SYSTEM": "YES"}
    return kind | {"TM_MAD": TM_SHARED if place.is_shared else TM_LOCAL}


def ensure(calls: Calls, version: OneVersion, places: Sequence[Place]) -> list[str]:
    """Make what is missing and bring the rest up to date; returns what was changed."""
    oned = _Oned(calls, version)
    clusters = {place: oned.cluster(place.name) for place in places}
    # One datastore's images serve all places: as a member of all, or, before 5.0, of none.
    in_several = version >= _SEVERAL_CLUSTERS
    first = clusters[places[0]] if in_several else _NO_CLUSTER
    images = oned.datastore(IMAGES, _image_attributes(version), first)
    files = [n for n, each in oned.pool("datastore") if xml.number_of(each, "TYPE") == _FILES]
    for place, cluster in clusters.items():
        system = oned.datastore(place.name, _system_attributes(version, place), cluster)
        for datastore in [system, *([images, *files] if in_several else [])]:
            oned.join(datastore, cluster, place.name)
        if version < _TYPES:
            oned.use_system_datastore(cluster, place.name, system)
    return oned.changes
