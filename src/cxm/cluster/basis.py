# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what every cxm cluster has in its CIB, before the first VM. Pure: changes a tree in memory.

What is there already is merged with: what cxm cannot work without is put right, what an
administrator added or tuned stays. docs/cluster.md says the reason of every value.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from xml.etree.ElementTree import Element, SubElement

from cxm.cluster import balancer, datastore, nodes
from cxm.cluster.cib import TEMPLATE, pairs
from cxm.cluster.datastore import Datastore
from cxm.cluster.elements import (
    Operations,
    attributes,
    child,
    merge,
    operations,
    primitive,
    put_pair,
    with_locks,
)
from cxm.errors import NotFoundError

LOCKS: Final = "cxm-locks-clone"
SBD: Final = "fence-sbd"
_NOTHING: Final = "cxm-nothing"
# Clusters had it until a VM's start waited for its own node's locks by itself: with it, it waits
# for those of every node that is starting them.
_FORMER_ORDER: Final = "cxm-locks-then-domain"
# More than any VM's: their starts are given out first, so that VMs which wait for them never have
# all the places of a node (node-action-limit).
_LOCKS_PRIORITY: Final = "1000"
STICKINESS: Final = 1000
# Without these no VM is safe: they are put right at every run.
_REQUIRED: Final = {
    "stonith-enabled": "true",
    "no-quorum-policy": "freeze",
    "startup-fencing": "true",
    "concurrent-fencing": "true",
    "start-failure-is-fatal": "false",
    "placement-strategy": "utilization",
}
# An administrator may know better.
_PROPOSED: Final = {
    "stonith-timeout": "120s",
    "node-action-limit": "6",
    "load-threshold": "400%",
    "migration-limit": "2",
    "cluster-ipc-limit": "4000",
    "pe-input-series-max": "200",
    "pe-warn-series-max": "200",
    "pe-error-series-max": "200",
}
_RSC_DEFAULTS: Final = {
    "resource-stickiness": str(STICKINESS),
    "migration-threshold": "3",
    "failure-timeout": "600s",
}
_PAIR: Final = 2
_PRIORITY_DELAY: Final = "15s"
_TIE_DELAY: Final = "5s"
_SBD_SPARE_S: Final = 10  # for what the agent does before and after it waits
_DLM: Final[Operations] = {
    "monitor": {"interval": "60s", "timeout": "60s", "on-fail": "fence"},
    "start": {"interval": "0s", "timeout": "120s"},
    "stop": {"interval": "0s", "timeout": "100s"},
}
_LVMLOCKD: Final[Operations] = {
    # Without it no volume can be made active, by no order and by no failover.
    "monitor": {"interval": "15s", "timeout": "60s"},
    "start": {"interval": "0s", "timeout": "90s"},
    "stop": {"interval": "0s", "timeout": "90s"},
}
_STORAGE: Final[Operations] = {
    # The guests of a node without its storage hang: they must be started elsewhere.
    "monitor": {"interval": "20s", "timeout": "60s", "on-fail": "fence"},
    "start": {"interval": "0s", "timeout": "60s"},
    "stop": {"interval": "0s", "timeout": "20s"},
}
_LOCKSPACE: Final[Operations] = {
    "monitor": {"interval": "30s", "timeout": "60s"},
    "start": {"interval": "0s", "timeout": "240s"},
    "stop": {"interval": "0s", "timeout": "90s"},
}
_WATCH: Final[Operations] = {
    "monitor": {"interval": "20s", "timeout": "180s"},
    "start": {"interval": "0s", "timeout": "60s"},
    # It holds nothing: no node is fenced because it could not be stopped.
    "stop": {"interval": "0s", "timeout": "60s", "on-fail": "ignore"},
}
_DOMAIN: Final[Operations] = {
    "monitor": {"interval": "10s", "timeout": "60s"},
    # Those that depend on a VM's memory, for all but the largest (cluster/limits.py).
    "start": {"interval": "0s", "timeout": "300s"},
    "stop": {"interval": "0s", "timeout": "120s"},
    "migrate_to": {"interval": "0s", "timeout": "900s", "on-fail": "block"},
    "migrate_from": {"interval": "0s", "timeout": "300s"},
}
_FENCING: Final[Operations] = {
    "monitor": {"interval": "120s", "timeout": "60s"},
    "start": {"interval": "0s", "timeout": "60s"},
}


@dataclass(frozen=True, slots=True)
class FenceDevice:
    """What can cut one node off: an installed fence agent and its parameters."""

    node: str
    agent: str
    parameters: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Sbd:
    """A disk on which every node finds its orders to die, and a watchdog if it cannot read them."""

    device: str
    msgwait_s: int  # after so long, whoever was ordered to die is dead


@dataclass(frozen=True, slots=True)
class Basis:
    """What of a cluster's CIB depends on the cluster; devices of a node are tried in this order."""

    nodes: Sequence[str]
    vg: str
    device: str  # that the VG is on, by the name that all nodes know it by
    fencing: Sequence[FenceDevice]
    sbd: Sbd | None = None
    datastore: Datastore | None = None


def edit(cib: Element, basis: Basis) -> None:
    """Put the basis into a CIB; the proof of a node whose fence devices change is taken away."""
    configuration, before = child(cib, "configuration"), nodes.means(cib)
    delay = {"priority-fencing-delay": _PRIORITY_DELAY} if len(basis.nodes) == _PAIR else {}
    _properties(child(configuration, "crm_config"), _PROPOSED | delay)
    resources, constraints = (child(configuration, tag) for tag in ("resources", "constraints"))
    defaults = child(configuration, "rsc_defaults")
    _propose(defaults, _holder(defaults, "meta_attributes", "cxm-defaults"), _RSC_DEFAULTS)
    _calm(configuration, basis)
    _fencing(configuration, basis)
    watch = primitive("cxm-watch", "ocf:cxm:watch", _WATCH)
    for each in (_locks(basis), _template(), _nothing(), watch):
        merge(resources, each)
    balancer.edit(resources)
    for each in _constraints():
        merge(constraints, each)
    for each in constraints.findall(f"rsc_order[@id='{_FORMER_ORDER}']"):
        constraints.remove(each)
    if basis.datastore is not None:
        datastore.edit(resources, constraints, basis.datastore, basis.vg, LOCKS)
    nodes.unprove(cib, before)


def _calm(configuration: Element, basis: Basis) -> None:
    """Take the delays away that are for other nodes, or another number of them; only our own."""
    is_pair = len(basis.nodes) == _PAIR
    ours = {"priority-fencing-delay": _PRIORITY_DELAY}
    tie = f"{basis.nodes[0]}:{_TIE_DELAY}"
    for holder in configuration.iter():
        for pair in holder.findall("nvpair"):
            name, value = pair.get("name", ""), pair.get("value", "")
            is_tie = name == "pcmk_delay_base" and value.endswith(f":{_TIE_DELAY}")
            if (not is_pair and ours.get(name) == value) or (
                is_tie and not (is_pair and value == tie)
            ):
                holder.remove(pair)


def edit_gone(cib: Element, node: str) -> None:
    """Take out what is said of a node that is none any more: its fence devices, preferences."""
    configuration, before = child(cib, "configuration"), nodes.means(cib)
    resources, constraints = (child(configuration, tag) for tag in ("resources", "constraints"))
    # A device of a node is the one that is kept off it.
    named = [each for each in constraints.findall("rsc_location") if each.get("node") == node]
    devices = {
        each.get("rsc") for each in named if each.get("id") == f"{each.get('rsc')}-elsewhere"
    }
    for device in resources.findall("primitive"):
        if device.get("class") == "stonith" and device.get("id") in devices:
            resources.remove(device)
    for pair in resources.iterfind(f"primitive[@id='{SBD}']//nvpair[@name='pcmk_host_list']"):
        # Whoever fences it by its slot takes a machine for dead that may not read it any more.
        pair.set("value", " ".join(each for each in pair.get("value", "").split() if each != node))
    for location in named:
        constraints.remove(location)
    topology = configuration.find("fencing-topology")
    if topology is not None:
        for level in topology.findall("fencing-level"):
            if level.get("target") == node:
                topology.remove(level)
        if not len(topology):
            configuration.remove(topology)
    nodes.unprove(cib, before)


def optional(cib: Element) -> tuple[str, str]:
    """The disk of SBD and the directory of the system datastore; empty where there is none."""
    found = {each.get("id"): pairs(each, "instance_attributes") for each in cib.iter("primitive")}
    return (
        found.get(SBD, {}).get("devices", ""),
        found.get(datastore.MOUNT, {}).get("directory", ""),
    )


def has_facts(cib: Element, node: str) -> bool:
    """Whether Pacemaker knows the node yet, so that it can have facts."""
    return _node(cib, node) is not None


def edit_facts(
    cib: Element, node: str, attributes: Mapping[str, str], utilization: Mapping[str, str]
) -> None:
    """Set what a node says of itself; raises NotFoundError where Pacemaker does not know it."""
    found = _node(cib, node)
    if found is None:
        raise NotFoundError(f"Pacemaker does not know the node {node} yet")
    number = found.get("id", node)
    for kind, values in (("instance", attributes), ("utilization", utilization)):
        tag = "utilization" if kind == "utilization" else "instance_attributes"
        there = found.find(tag)
        set_id = f"nodes-{number}" + ("-utilization" if kind == "utilization" else "")
        holder = SubElement(found, tag, {"id": set_id}) if there is None else there
        for name, value in values.items():
            put_pair(holder, name, value)


def _node(cib: Element, name: str) -> Element | None:
    return next((each for each in cib.iter("node") if each.get("uname") == name), None)


# --- building -------------------------------------------------------------------------------------


def _locks(basis: Basis) -> Element:
    clone = Element("clone", {"id": LOCKS})
    # A dead lvmlockd is started again for as long as it takes: a ban would move every VM away.
    stays = {"interleave": "true", "migration-threshold": "INFINITY"}
    first = {"priority": _LOCKS_PRIORITY}
    clone.append(attributes("meta", f"{LOCKS}-meta", stays | first))
    group = SubElement(clone, "group", {"id": "cxm-locks"})
    space = attributes("instance", "cxm-lockspace-params", {"vg": basis.vg})
    disk = attributes("instance", "cxm-storage-params", {"devices": basis.device})
    group.append(primitive("cxm-storage", "ocf:cxm:storage", _STORAGE, disk))
    group.append(primitive("cxm-dlm", "ocf:pacemaker:controld", _DLM))
    group.append(primitive("cxm-lvmlockd", "ocf:heartbeat:lvmlockd", _LVMLOCKD))
    group.append(primitive("cxm-lockspace", "ocf:cxm:lockspace", _LOCKSPACE, space))
    return clone


def _template() -> Element:
    made = Element(
        "template", {"id": TEMPLATE, "class": "ocf", "provider": "cxm", "type": "domain"}
    )
    # The priority makes a node with more VMs win when two nodes want to fence each other.
    made.append(attributes("meta", f"{TEMPLATE}-meta", {"allow-migrate": "true", "priority": "1"}))
    made.append(operations(TEMPLATE, _DOMAIN))
    return made


def _nothing() -> Element:
    """A VM that never is: a constraint on a template without any resource is an error."""
    made = Element("primitive", {"id": _NOTHING, "template": TEMPLATE})
    made.append(attributes("meta", f"{_NOTHING}-meta", {"target-role": "Stopped"}))
    return made


def _constraints() -> list[Element]:
    nowhere = Element(
        "rsc_location",
        {"id": f"{_NOTHING}-nowhere", "rsc": _NOTHING, "resource-discovery": "never"},
    )
    rule = SubElement(nowhere, "rule", {"id": f"{_NOTHING}-rule", "score": "-INFINITY"})
    everywhere = {"id": f"{_NOTHING}-node", "attribute": "#uname", "operation": "defined"}
    SubElement(rule, "expression", everywhere)
    return [nowhere, *with_locks(TEMPLATE, LOCKS)]


def named(fencing: Sequence[FenceDevice]) -> list[tuple[str, FenceDevice]]:
    """Fence devices and the ids of their resources: those of a node are counted."""
    found: list[tuple[str, FenceDevice]] = []
    for device in fencing:
        number = 1 + sum(other.node == device.node for _name, other in found)
        found.append((f"fence-{device.node}" + (f"-{number}" if number > 1 else ""), device))
    return found


def known(cib: Element, fencing: Sequence[FenceDevice]) -> set[str]:
    """The resources of those devices that are in a CIB just as they are given."""
    there = {each.get("id"): each for each in cib.iterfind("configuration/resources/primitive")}
    return {name for name, device in named(fencing) if _is_like(there.get(name), device)}


def _is_like(there: Element | None, device: FenceDevice) -> bool:
    if there is None or (there.get("class"), there.get("type")) != ("stonith", device.agent):
        return False
    has = pairs(there, "instance_attributes")
    # What is Pacemaker's, an administrator or this module may have added.
    others = {key for key in has if not key.startswith("pcmk_")} - set(device.parameters)
    return not others and dict(device.parameters).items() <= has.items()


def _fencing(configuration: Element, basis: Basis) -> None:
    """The devices, where each may run, and which is tried first."""
    resources, constraints = (child(configuration, tag) for tag in ("resources", "constraints"))
    if basis.sbd is not None:
        merge(resources, _sbd(basis, basis.sbd))
    for node in basis.nodes:
        devices = [each for each in named(basis.fencing) if each[1].node == node]
        names = [name for name, _device in devices]
        for name, device in devices:
            known = {"pcmk_host_list": node} if "pcmk_host_map" not in device.parameters else {}
            tie = len(basis.nodes) == _PAIR and node == basis.nodes[0]
            # As a mapping: 2.1.5 complains of a value that is none at every fencing.
            delay = {"pcmk_delay_base": f"{node}:{_TIE_DELAY}"} if tie else {}
            parameters = known | delay | dict(device.parameters)
            given = attributes("instance", f"{name}-params", parameters)
            merge(resources, primitive(name, f"stonith:{device.agent}", _FENCING, given))
            _forget_others(resources, name, parameters)
            banned = {"id": f"{name}-elsewhere", "rsc": name, "node": node, "score": "-INFINITY"}
            merge(constraints, Element("rsc_location", banned))
        if basis.sbd is not None:
            names.append(SBD)
        if len(names) > 1:
            topology = configuration.find("fencing-topology")
            if topology is None:
                topology = SubElement(configuration, "fencing-topology")
            for index, name in enumerate(names, 1):
                level = {"id": f"cxm-{node}-{index}", "target": node, "index": str(index)}
                merge(topology, Element("fencing-level", level | {"devices": name}))


def _forget_others(resources: Element, name: str, parameters: Mapping[str, str]) -> None:
    """Take the parameters of another device away, that this one had; what Pacemaker's are stay.

    Of two spellings of one (port, plug) the agent might take the old one: another node's outlet.
    """
    for holder in resources.iterfind(f"primitive[@id='{name}']/instance_attributes"):
        for pair in list(holder):
            key = pair.get("name", "")
            if key not in parameters and not key.startswith("pcmk_"):
                holder.remove(pair)


def _sbd(basis: Basis, sbd: Sbd) -> Element:
    """One device for all nodes: it is the disk that they share."""
    # Its own, so that a lower stonith-timeout of an administrator does not end it too early.
    timeout = f"{sbd.msgwait_s * 6 // 5 + _SBD_SPARE_S}s"
    parameters = {
        "devices": sbd.device,
        "pcmk_host_list": " ".join(basis.nodes),
        "pcmk_reboot_timeout": timeout,
        "pcmk_off_timeout": timeout,
        "power_timeout": timeout.removesuffix("s"),
    }
    if len(basis.nodes) == _PAIR:
        parameters["pcmk_delay_base"] = f"{basis.nodes[0]}:{_TIE_DELAY}"
    given = attributes("instance", f"{SBD}-params", parameters)
    return primitive(SBD, "stonith:fence_sbd", _FENCING, given)


def _properties(config: Element, proposed: dict[str, str]) -> None:
    holder = _holder(config, "cluster_property_set", "cib-bootstrap-options")
    for pair in config.iter("nvpair"):
        if pair.get("name") in _REQUIRED:
            pair.set("value", _REQUIRED[pair.get("name", "")])
    _propose(config, holder, _REQUIRED | proposed)


def _holder(parent: Element, tag: str, set_id: str) -> Element:
    """The set of names and values that is there, else one of ours."""
    found = parent.find(tag)
    return SubElement(parent, tag, {"id": set_id}) if found is None else found


def _propose(parent: Element, holder: Element, values: Mapping[str, str]) -> None:
    there = {pair.get("name") for pair in parent.iter("nvpair")}
    for name, value in values.items():
        if name not in there:
            put_pair(holder, name, value)
