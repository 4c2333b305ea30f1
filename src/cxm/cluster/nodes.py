# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what the CIB says of the nodes: attributes, capacity, fencing devices. Pure, as ``cib``."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final
from xml.etree.ElementTree import Element, SubElement

from cxm.cluster.cib import pairs
from cxm.errors import NotFoundError, RefusedError

FENCING: Final = "cxm-fencing"  # seconds since 1970: when fencing of this node was last proven
CPU: Final = "cxm-cpu"  # its processor's abilities, as Xen shows them
ADDRESS: Final = "cxm-address"  # where other nodes reach it
HOST_KEY: Final = "cxm-hostkey"  # of its sshd
HOST: Final = "cxm-host"  # what OpenNebula calls it; absent: its own name
# What it has of what is optional, seen there by cxm-setup: its SBD runs with this disk, and nothing
# is in the way of the system datastore in this directory.
SBD: Final = "cxm-sbd"
DATASTORE: Final = "cxm-datastore"
STANDBY: Final = "standby"
MAINTENANCE: Final = "maintenance"
# A value of placement-strategy with which Pacemaker looks at memory.
COUNTING: Final = ("utilization", "minimal", "balanced")
_TRUE: Final = ("true", "on", "yes", "y", "1")
# Parameters of a fencing device that change with the cluster's members, not with what it does to a
# node: whom else it is for, and how long it lets others go first.
_OF_MEMBERS: Final = ("pcmk_host_list", "pcmk_delay_base")


# Parameters of fence agents that nobody shall read: password, snmp_priv_passwd, api_token, ... The
# key of a host, a node's attribute, is public.
_SECRET: Final = re.compile(r"pass|pwd|secret|token|(?<!host)key|community", re.IGNORECASE)
MASK: Final = "***"
# Of each node: its devices, each with id, agent and parameters.
Means = Mapping[str, Sequence[tuple[str, str, Mapping[str, str]]]]


@dataclass(frozen=True, slots=True)
class Facts:
    """What the CIB says of a node."""

    name: str
    attributes: dict[str, str] = field(default_factory=dict)
    utilization: dict[str, str] = field(default_factory=dict)
    fleeting: dict[str, str] = field(default_factory=dict)  # attributes until it leaves the cluster

    def number(self, kind: str) -> int:
        """A capacity; 0 where none is given: Pacemaker places nothing that needs some."""
        text = self.utilization.get(kind, "")
        return int(text) if text.isdecimal() else 0

    @property
    def proven(self) -> float | None:
        """When fencing of the node was last proven."""
        text = self.attributes.get(FENCING, "")
        return float(text) if text.isdecimal() else None


def give_back(known: Facts) -> str:
    """The orders by which a node in standby or maintenance takes VMs again, for people."""
    name = known.name
    held = (
        (known.attributes, STANDBY, f"cxm eject --back {name}"),
        (known.fleeting, STANDBY, f"crm_standby --node {name} --lifetime reboot --delete"),
        (known.attributes, MAINTENANCE, f"crm_attribute --node {name} --name maintenance --delete"),
        (
            known.fleeting,
            MAINTENANCE,
            f"crm_attribute --node {name} --name maintenance --lifetime reboot --delete",
        ),
    )
    orders = [order for given, key, order in held if given.get(key, "").lower() in _TRUE]
    # Without any it is in standby because an operation with on-fail=standby has failed.
    return " and ".join(f"'{each}'" for each in orders or [f"crm_resource --cleanup --node {name}"])


@dataclass(frozen=True, slots=True)
class Device:
    """A way to fence."""

    id: str
    targets: tuple[str, ...] | None  # the nodes that it is for; None: it says so itself

    def fences(self, node: str) -> bool:
        return self.targets is None or node in self.targets


def facts(cib: Element) -> dict[str, Facts]:
    """All nodes by name."""
    fleeting = {
        state.get("uname", ""): pairs(state, "transient_attributes/instance_attributes")
        for state in cib.iterfind("status/node_state")
    }
    found = {}
    for node in cib.iterfind("configuration/nodes/node"):
        name = node.get("uname", "")
        lasting = pairs(node, "instance_attributes")
        use = pairs(node, "utilization")
        found[name] = Facts(name, lasting, use, fleeting.get(name, {}))
    return found


def attributes(cib: Element, name: str) -> dict[str, str]:
    """The attributes of a node; raises RefusedError for an unknown one."""
    found = facts(cib).get(name)
    if found is None:
        raise RefusedError(f"the cluster has no node '{name}'", hint="'cxm infos' shows its nodes")
    return found.attributes


def corosync_number(cib: Element, name: str) -> int | None:
    """What Corosync calls a node; None where that is not known."""
    for node in cib.iterfind("configuration/nodes/node"):
        if node.get("uname") == name and node.get("id", "").isdecimal():
            return int(node.get("id", ""))
    return None


def host_of(cib: Element, name: str) -> str:
    """What OpenNebula calls a node; raises RefusedError for an unknown one."""
    return attributes(cib, name).get(HOST, name)


def of_host(cib: Element, host: str) -> str:
    """The node that OpenNebula, or an operator, calls ``host``.

    Raises NotFoundError, and RefusedError where two nodes may be meant: the wrong one would be
    taken for the one that has the VM.
    """
    known = facts(cib)
    meant = [name for name, each in known.items() if host in (each.attributes.get(HOST), name)]
    if not meant:
        raise NotFoundError(
            f"no node of this cluster is called '{host}'",
            hint=f"its nodes are {', '.join(sorted(known))}; a host of OpenNebula that has another "
            "name: 'cxm-setup node --host NAME' on that node",
        )
    if len(meant) > 1:
        raise RefusedError(
            f"'{host}' is the name of a host or node of both {' and '.join(sorted(meant))}",
            hint="'cxm-setup node --host NAME' on the one that OpenNebula calls otherwise",
        )
    return meant[0]


def ambiguous(cib_facts: Mapping[str, Facts]) -> dict[str, list[str]]:
    """The names that may mean several nodes, and which."""
    found: dict[str, list[str]] = {}
    for name, each in sorted(cib_facts.items()):
        for called in {name, each.attributes.get(HOST, name)}:
            found.setdefault(called, []).append(name)
    return {called: names for called, names in found.items() if len(names) > 1}


def set_attribute(cib: Element, name: str, key: str, value: str | None) -> None:
    """Set a node's attribute, or take it away; raises NotFoundError for an unknown node.

    One that another tool has set is changed where it is, so that it is not there twice.
    """
    node = next(
        (each for each in cib.iterfind("configuration/nodes/node") if each.get("uname") == name),
        None,
    )
    if node is None:
        raise NotFoundError(f"the cluster has no node '{name}'")
    for group in node.iterfind("instance_attributes"):
        for pair in group.findall("nvpair"):
            if pair.get("name") == key:
                if value is None:
                    group.remove(pair)
                else:
                    pair.set("value", value)
                return
    if value is None:
        return
    first = node.find("instance_attributes")
    if first is None:
        first = SubElement(node, "instance_attributes", {"id": f"nodes-{node.get('id')}"})
    pair_id = f"{first.get('id')}-{key}"
    SubElement(first, "nvpair", {"id": pair_id, "name": key, "value": value})


def devices(cib: Element) -> list[Device]:
    """What can fence, but for what is switched off."""
    return [device for device, _primitive in _devices(cib)]


def _devices(cib: Element) -> Iterator[tuple[Device, Element]]:
    for primitive in cib.iterfind("configuration/resources//primitive"):
        meta = pairs(primitive, "meta_attributes")
        if primitive.get("class") == "stonith" and meta.get("target-role") != "Stopped":
            given = pairs(primitive, "instance_attributes")
            yield Device(primitive.get("id", ""), _targets(given)), primitive


def first_level(cib: Element, name: str) -> frozenset[str]:
    """The devices by which a node is fenced while they work; empty where none come first.

    A test of its fencing uses these, and no others.
    """
    levels = {
        int(level.get("index", "")): level.get("devices", "")
        for level in cib.iterfind("configuration/fencing-topology/fencing-level")
        if level.get("target") == name and level.get("index", "").isdecimal()
    }
    first = levels[min(levels)] if levels else ""
    return frozenset(first.replace(",", " ").split())


def is_secret(parameter: str) -> bool:
    """Whether the value of a parameter is never shown."""
    return _SECRET.search(parameter) is not None


def means(cib: Element) -> Means:
    """By what each node is fenced.

    It is what a proof is a proof of: with another device or parameter nothing is proven any more.
    """
    found: dict[str, list[tuple[str, str, dict[str, str]]]] = {name: [] for name in facts(cib)}
    for device, primitive in _devices(cib):
        given = pairs(primitive, "instance_attributes")
        parameters = {name: value for name, value in given.items() if name not in _OF_MEMBERS}
        for name in filter(device.fences, found):
            found[name].append((device.id, primitive.get("type", ""), parameters))
    return found


def unprove(cib: Element, before: Means) -> None:
    """Take away the proof of each node that is fenced by something else than ``before``."""
    for name, now in means(cib).items():
        if before.get(name) != now:
            set_attribute(cib, name, FENCING, None)


def unproven(before: Element, after: Element) -> list[str]:
    """The nodes whose proof a change of the CIB takes away."""
    now = facts(after)
    return [
        name
        for name, each in facts(before).items()
        if FENCING in each.attributes and name in now and FENCING not in now[name].attributes
    ]


def _targets(given: dict[str, str]) -> tuple[str, ...] | None:
    # "node1 node2", "node1,node2", "node1;node2"; pcmk_host_map is "node1:port1;node2:port2".
    words = given.get("pcmk_host_list", "").replace(",", " ").replace(";", " ").split()
    pairs = given.get("pcmk_host_map", "").replace(",", " ").replace(";", " ").split()
    named = [*words, *(pair.partition(":")[0] for pair in pairs)]
    return tuple(dict.fromkeys(named)) or None


def abilities(cib: Element) -> set[str]:
    """The versions of Pacemaker's protocol that the nodes speak: more than one while upgrading."""
    pairs = cib.iterfind("status/node_state/transient_attributes/instance_attributes/nvpair")
    return {pair.get("value", "") for pair in pairs if pair.get("name") == "#feature-set"}


def option(cib: Element, name: str) -> str:
    """An option of the cluster; empty where it has its default."""
    for pair in cib.iterfind("configuration/crm_config/cluster_property_set/nvpair"):
        if pair.get("name") == name:
            return pair.get("value", "")
    return ""
