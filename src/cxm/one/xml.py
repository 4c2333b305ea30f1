# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns how OpenNebula's XML is read: VMs, images, datastores and hosts of every version, typed.

An element that a version does not write is empty here, never guessed. XML with a DOCTYPE is
refused: oned writes none, and one could make the parser read or grow what it should not.
"""

import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NoReturn

from cxm.errors import DataError, NotFoundError
from cxm.names import VmId, vm_id


class HostState(IntEnum):
    """The states of a host that matter to us."""

    MONITORED = 2


_IMAGE_CDROM = 1


class _NoDoctype(ET.TreeBuilder):
    """Builds the tree of a document that declares no document type."""

    def doctype(self, name: str, _public: str | None, _system: str | None) -> NoReturn:
        raise DataError(f"the XML declares the document type '{name}'; oned never does")


def parse(text: str, root: str) -> ET.Element:
    """The element ``root`` of a document: its root, or the first of that name below it."""
    try:
        tree = ET.fromstring(text, ET.XMLParser(target=_NoDoctype()))  # noqa: S314 - no DOCTYPE
    except ET.ParseError as error:
        raise DataError(f"the XML of a {root} cannot be read: {error}") from error
    element = tree if tree.tag == root else tree.find(f".//{root}")
    if element is None:
        raise DataError(f"the XML holds no {root} but a {tree.tag}")
    return element


def text_of(element: ET.Element, path: str) -> str:
    """The text at ``path``, without the blanks around it; empty where there is none."""
    return (element.findtext(path) or "").strip()


def number_of(element: ET.Element, path: str) -> int | None:
    """The whole number at ``path``; None where there is none."""
    text = text_of(element, path)
    try:
        return int(text) if text else None
    except ValueError:
        raise DataError(f"{element.tag}/{path} is '{text}', no number") from None


def attributes_of(element: ET.Element) -> dict[str, str]:
    """The simple attributes of a template or a part of one; of doubles the last."""
    return {child.tag: (child.text or "").strip() for child in element if not len(child)}


def _id(element: ET.Element) -> int:
    number = number_of(element, "ID")
    if number is None:
        raise DataError(f"the XML of a {element.tag} holds no ID")
    return number


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk of a VM as its template has it."""

    disk_id: int
    attributes: Mapping[str, str]

    def __getitem__(self, name: str) -> str:
        """An attribute's text; empty where the disk has none."""
        return self.attributes.get(name, "")

    def number(self, name: str) -> int | None:
        """An attribute as a whole number; None where it is absent or is none."""
        text = self[name]
        return int(text) if text.isdecimal() and text.isascii() else None

    @property
    def image_id(self) -> int | None:
        """The image that the disk is made of; None for a volatile disk."""
        return self.number("IMAGE_ID")

    @property
    def is_cdrom(self) -> bool:
        return self["TYPE"].upper() == "CDROM"


@dataclass(frozen=True, slots=True)
class Vm:
    """A VM as one.vm.info and the drivers' input give it."""

    vm: VmId
    name: str
    owner: str
    state: int | None
    lcm_state: int | None
    disks: tuple[Disk, ...]
    hosts: tuple[str, ...]  # of its history records, the oldest first
    element: ET.Element = field(compare=False, repr=False)

    def disk(self, disk_id: int) -> Disk:
        """The disk of exactly this number; raises NotFoundError."""
        found = [disk for disk in self.disks if disk.disk_id == disk_id]
        if len(found) != 1:
            raise NotFoundError(
                f"VM {self.vm} has {'no' if not found else 'more than one'} disk {disk_id} in oned"
            )
        return found[0]


def _disks(vm: ET.Element) -> Iterator[Disk]:
    for element in vm.iterfind("TEMPLATE/DISK"):
        number = number_of(element, "DISK_ID")
        if number is not None:
            yield Disk(number, attributes_of(element))


def vm_of(text: str) -> Vm:
    """A VM from its XML, alone or inside of a driver's input."""
    element = parse(text, "VM")
    hosts = element.iterfind("HISTORY_RECORDS/HISTORY/HOSTNAME")
    return Vm(
        vm=vm_id(text_of(element, "ID")),
        name=text_of(element, "NAME"),
        owner=text_of(element, "UNAME"),
        state=number_of(element, "STATE"),
        lcm_state=number_of(element, "LCM_STATE"),
        disks=tuple(_disks(element)),
        hosts=tuple((host.text or "").strip() for host in hosts),
        element=element,
    )


@dataclass(frozen=True, slots=True)
class Image:
    """An image as one.image.info gives it."""

    image_id: int
    name: str
    is_cdrom: bool
    fstype: str  # where 3.x to 5.10 kept FSTYPE; holds more than file systems
    filesystem: str  # FS, from 5.12 on
    template: Mapping[str, str]
    size_mib: int | None = None  # what OpenNebula counts


def image_of(text: str) -> Image:
    """An image from its XML."""
    element = parse(text, "IMAGE")
    template = element.find("TEMPLATE")
    return Image(
        image_id=_id(element),
        name=text_of(element, "NAME"),
        is_cdrom=number_of(element, "TYPE") == _IMAGE_CDROM,
        fstype=text_of(element, "FSTYPE"),
        filesystem=text_of(element, "FS"),
        template={} if template is None else attributes_of(template),
        size_mib=number_of(element, "SIZE"),
    )


@dataclass(frozen=True, slots=True)
class Datastore:
    """A datastore as a driver's input and one.datastore.info give it."""

    datastore_id: int
    name: str
    clusters: frozenset[int]
    bridges: tuple[str, ...]  # BRIDGE_LIST: the hosts to ask about it


def _clusters(element: ET.Element) -> frozenset[int]:
    """The clusters of a datastore: several from 5.0 on, one before; -1 is none."""
    several = element.find("CLUSTERS")
    if several is not None:
        return frozenset(int(child.text or "-1") for child in several.iterfind("ID"))
    one = number_of(element, "CLUSTER_ID")
    return frozenset(() if one is None or one < 0 else (one,))


def datastore_of(text: str) -> Datastore:
    """A datastore from its XML."""
    element = parse(text, "DATASTORE")
    return Datastore(
        datastore_id=_id(element),
        name=text_of(element, "NAME"),
        clusters=_clusters(element),
        bridges=tuple(text_of(element, "TEMPLATE/BRIDGE_LIST").split()),
    )


@dataclass(frozen=True, slots=True)
class Host:
    """A host as one.hostpool.info gives it."""

    host_id: int
    name: str
    cluster: int | None
    state: int | None
    vm_mad: str


def hosts_of(text: str) -> list[Host]:
    """The hosts of a pool."""
    return [
        Host(
            host_id=_id(element),
            name=text_of(element, "NAME"),
            cluster=number_of(element, "CLUSTER_ID"),
            state=number_of(element, "STATE"),
            vm_mad=text_of(element, "VM_MAD"),
        )
        for element in parse(text, "HOST_POOL").iterfind("HOST")
    ]
