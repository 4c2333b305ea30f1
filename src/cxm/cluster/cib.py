# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns how VMs are written into Pacemaker's CIB. Pure: documents in, documents changed.

Every function takes the ``<cib>`` element. Those that change it do so in place; the difference is
sent to the cluster in one piece by :func:`cxm.cluster.pacemaker.change` (docs/design/0010).
"""

import base64
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final
from xml.etree.ElementTree import Element, SubElement

from cxm import names
from cxm.cluster import limits
from cxm.errors import DataError, NotFoundError, UsageError
from cxm.names import CloudId, LvName, VmId
from cxm.node.guests import Life
from cxm.xen import domcfg

TEMPLATE: Final = "cxm-domain"
# A finite wish: less than the template's stickiness, so that a VM which has moved stays.
PREFERENCE: Final = 100
_ALWAYS: Final = "INFINITY"
_NEVER: Final = "-INFINITY"
_ID: Final = re.compile(r"cxm-(?P<cloud>.+)-(?P<vm>[0-9]+)")
_MIB_PER_VCPU: Final = 1
_MEMORY_PER_SHADOW: Final = 128
_DOMAIN_MIB: Final = 4


class Wish(StrEnum):
    """What is to happen to a VM's memory at its next stop or start."""

    NONE = ""
    SAVE = "save"
    RESTORE = "restore"


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """A VM as the cluster knows it."""

    cloud: CloudId
    vm: VmId
    name: str  # its domain's
    config: str  # for xl
    memory_mib: int  # what a node needs to have free for it
    cpu: int  # in percent of one CPU
    migratable: bool  # whether it can move while it runs
    started: bool  # whether it should run
    life: Life = Life.RUNNING
    reason: str = ""  # one sentence
    wish: Wish = Wish.NONE
    host: str = ""  # what OpenNebula calls the host it was last ordered to
    preferred: str = ""  # the node that it was last ordered to

    @property
    def id(self) -> str:
        return resource_id(self.cloud, self.vm)

    @property
    def volumes(self) -> list[LvName]:
        """The volumes that its configuration names; raises DataError for a damaged one."""
        stored = domcfg.read(self.config, f"the configuration of VM {self.vm}")
        return [LvName(name) for name in stored.volumes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Damaged:
    """A VM that cannot be read whole: what can, and why not.

    No order can be given about it, and its agent starts it nowhere.
    """

    cloud: CloudId
    vm: VmId
    error: DataError
    name: str = ""
    memory_mib: int = 0
    cpu: int = 0
    nodes: tuple[str, ...] = ()  # where Pacemaker has it

    @property
    def id(self) -> str:
        return resource_id(self.cloud, self.vm)

    @property
    def label(self) -> str:
        """What a person calls it."""
        number = f"VM {self.vm} of {self.cloud}"
        return f"{self.name} ({number})" if self.name else number


def resource_id(cloud: CloudId, vm: VmId) -> str:
    """The id of a VM's resource."""
    return f"cxm-{cloud}-{vm}"


def parse_id(text: str) -> tuple[CloudId, VmId] | None:
    """The VM whose resource has this id, None for a resource that is no VM's."""
    match = _ID.fullmatch(text)
    if match is None:
        return None
    try:
        return names.cloud_id(match["cloud"]), names.vm_id(match["vm"])
    except UsageError:
        return None


def needed_mib(memory_mib: int, vcpus: int) -> int:
    """What a guest takes of a node's memory: Xen keeps page tables and buffers for it besides."""
    tables = vcpus * _MIB_PER_VCPU + -(-memory_mib // _MEMORY_PER_SHADOW)
    return memory_mib + tables + _DOMAIN_MIB


def pack(config: str) -> str:
    """A configuration as one word, for an attribute."""
    return base64.b64encode(zlib.compress(config.encode(), 9)).decode()


def unpack(text: str) -> str:
    """What :func:`pack` has packed; raises DataError for anything else."""
    try:
        return zlib.decompress(base64.b64decode(text, validate=True)).decode()
    except (ValueError, zlib.error) as error:
        raise DataError(f"its configuration cannot be read: {error}") from error


# --- reading ------------------------------------------------------------------------------------


def pairs(element: Element, kind: str) -> dict[str, str]:
    """The name-value pairs of an element of one kind."""
    return {
        pair.get("name", ""): pair.get("value", "") for pair in element.iterfind(f"{kind}/nvpair")
    }


def _primitives(cib: Element) -> Iterator[Element]:
    for primitive in cib.iterfind("configuration/resources/primitive"):
        # The basis has one that is no VM's: a template without any is an error.
        if primitive.get("template") == TEMPLATE and parse_id(primitive.get("id", "")):
            yield primitive


def _read(primitive: Element, preferences: dict[str, str]) -> Resource:
    rid = primitive.get("id", "")
    parameters = pairs(primitive, "instance_attributes")
    meta = pairs(primitive, "meta_attributes")
    size = pairs(primitive, "utilization")
    try:
        return Resource(
            cloud=names.cloud_id(parameters["cloud"]),
            vm=names.vm_id(parameters["vm"]),
            name=meta["cxm-name"],
            config=unpack(meta["cxm-config"]),
            memory_mib=int(size["memory"]),
            cpu=int(size["cpu"]),
            migratable=meta.get("allow-migrate", "true") == "true",
            started=meta.get("target-role", "Started") == "Started",
            life=Life(meta["cxm-life"]),
            reason=meta.get("cxm-reason", ""),
            wish=Wish(meta.get("cxm-wish", "")),
            host=meta.get("cxm-host", ""),
            preferred=preferences.get(rid, ""),
        )
    except (KeyError, ValueError, UsageError, DataError) as error:
        why = f"it has no {error.args[0]}" if isinstance(error, KeyError) else error
        raise DataError(
            f"the resource {rid} in the CIB is damaged: {why}",
            hint=f"'cibadmin --query --xpath \"//primitive[@id='{rid}']\"' shows it",
        ) from error


def _preferences(cib: Element) -> dict[str, str]:
    found = {}
    for location in cib.iterfind("configuration/constraints/rsc_location"):
        rid = location.get("rsc", "")
        if location.get("id") == f"{rid}-prefer":
            found[rid] = location.get("node", "")
    return found


def readable(cib: Element) -> tuple[list[Resource], list[Damaged]]:
    """All VMs of the cluster, by number, and those that are damaged: they hide no other."""
    preferences = _preferences(cib)
    found: list[Resource] = []
    damaged: list[Damaged] = []
    for primitive in _primitives(cib):
        try:
            found.append(_read(primitive, preferences))
        except DataError as error:
            damaged.append(_damaged(primitive, error))
    return sorted(found, key=lambda resource: (resource.cloud, resource.vm)), damaged


def _damaged(primitive: Element, error: DataError) -> Damaged:
    meant = parse_id(primitive.get("id", ""))
    if meant is None:
        raise error  # only those that are VMs by their ids are read
    size = pairs(primitive, "utilization")
    memory, cpu = size.get("memory", ""), size.get("cpu", "")
    return Damaged(
        cloud=meant[0],
        vm=meant[1],
        error=error,
        name=pairs(primitive, "meta_attributes").get("cxm-name", ""),
        memory_mib=int(memory) if memory.isdecimal() else 0,
        cpu=int(cpu) if cpu.isdecimal() else 0,
    )


def find(cib: Element, cloud: CloudId, vm: VmId) -> Resource | None:
    """A VM of the cluster, None where there is none."""
    rid = resource_id(cloud, vm)
    for primitive in _primitives(cib):
        if primitive.get("id") == rid:
            return _read(primitive, _preferences(cib))
    return None


def known(cib: Element, cloud: CloudId, vm: VmId) -> Resource:
    """A VM of the cluster; raises NotFoundError where there is none."""
    found = find(cib, cloud, vm)
    if found is None:
        raise NotFoundError(f"the cluster knows no VM {vm} of the cloud '{cloud}'")
    return found


def is_busy(cib: Element, rid: str) -> bool:
    """Whether an operation of a resource is under way, on any node."""
    found = cib.iterfind(f"status/node_state/lrm/lrm_resources/lrm_resource[@id='{rid}']")
    return any(each.get("op-status") == "-1" for resource in found for each in resource)


# --- changing -----------------------------------------------------------------------------------


def _child(parent: Element, tag: str, rid: str) -> Element:
    """The child with this id, made when it is not there: what stays keeps its place."""
    for element in parent.iterfind(tag):
        if element.get("id") == rid:
            return element
    return SubElement(parent, tag, {"id": rid})


def _set(parent: Element, kind: str, rid: str, values: Mapping[str, str | None]) -> None:
    """Set name-value pairs; one without a value is removed."""
    group = _child(parent, kind, f"{rid}-{kind}")
    for name, value in values.items():
        pair = _child(group, "nvpair", f"{rid}-{kind}-{name}")
        if value is None:
            group.remove(pair)
        else:
            pair.set("name", name)
            pair.set("value", value)


def _section(cib: Element, name: str) -> Element:
    section = cib.find(f"configuration/{name}")
    if section is None:
        raise DataError(f"the CIB has no section {name}")
    return section


def put(cib: Element, resource: Resource) -> None:
    """Write a VM: make its resource, or change what differs."""
    rid = resource.id
    primitive = _child(_section(cib, "resources"), "primitive", rid)
    primitive.set("template", TEMPLATE)
    _set(
        primitive,
        "instance_attributes",
        rid,
        {"cloud": resource.cloud, "vm": str(resource.vm)},
    )
    _set(
        primitive,
        "meta_attributes",
        rid,
        {
            "target-role": "Started" if resource.started else "Stopped",
            "allow-migrate": "true" if resource.migratable else "false",
            "cxm-name": resource.name,
            "cxm-config": pack(resource.config),
            "cxm-life": resource.life.value,
            "cxm-reason": resource.reason or None,
            "cxm-wish": resource.wish.value or None,
            "cxm-host": resource.host or None,
        },
    )
    size = {"memory": str(resource.memory_mib), "cpu": str(resource.cpu)}
    _set(primitive, "utilization", rid, size)
    _give_time(cib, primitive, resource)
    if resource.preferred:
        prefer(cib, rid, resource.preferred)


def _give_time(cib: Element, primitive: Element, resource: Resource) -> None:
    """Write the operations for which the template's time is too short, with what memory needs.

    Such an operation takes the place of the template's, whole: so all that the template says of it
    is said again. One that somebody else has written stays.
    """
    group = primitive.find("operations")
    ours = {} if group is None else {each.get("id", ""): each for each in group}
    for known in cib.iterfind(f"configuration/resources/template[@id='{TEMPLATE}']/operations/op"):
        name = known.get("name", "")
        op_id = f"{resource.id}-{name}"
        needed, given = limits.operation_s(name, resource.memory_mib), known.get("timeout", "")
        allowed = limits.seconds(given)
        if allowed is None or needed <= allowed:
            if group is not None and op_id in ours:
                group.remove(ours[op_id])
            continue
        if group is None:
            group = SubElement(primitive, "operations")
        if any(each.get("name") == name and each.get("id") != op_id for each in group):
            continue
        _child(group, "op", op_id).attrib.update(
            {**known.attrib, "id": op_id, "timeout": f"{needed:.0f}s"}
        )
    if group is not None and not len(group) and not group.attrib:
        primitive.remove(group)


def prefer(cib: Element, rid: str, node: str) -> None:
    """Wish a VM onto a node: it goes there, unless it runs elsewhere and nobody else moves it."""
    location = _child(_section(cib, "constraints"), "rsc_location", f"{rid}-prefer")
    location.attrib.update({"rsc": rid, "node": node, "score": str(PREFERENCE)})


@dataclass(frozen=True, slots=True)
class Rule:
    """What an order says of where its VM is to be, while it waits."""

    resource: str  # its id
    node: str
    until: str  # ISO 8601
    binding: bool  # there or not at all, else: there if that is possible


def rules(cib: Element) -> list[Rule]:
    """The rules of orders that are not done, or whose end was never written."""
    found = []
    for location in cib.iterfind("configuration/constraints/rsc_location"):
        rid, rule = location.get("rsc", ""), location.find("rule")
        if location.get("id") != f"{rid}-place" or rule is None:
            continue
        where, when = rule.find("expression"), rule.find("date_expression")
        if where is not None and when is not None:
            binding = rule.get("score") == _NEVER
            found.append(Rule(rid, where.get("value", ""), when.get("end", ""), binding))
    return found


def confine(cib: Element, rid: str, node: str, *, until: str) -> None:
    """Keep a VM off every node but one, until a moment (ISO 8601): there or not at all."""
    _place(cib, Rule(rid, node, until, binding=True))


def attract(cib: Element, rid: str, node: str, *, until: str) -> None:
    """Have a VM go to a node, until a moment (ISO 8601); where that cannot be, it is as before."""
    _place(cib, Rule(rid, node, until, binding=False))


def _place(cib: Element, wanted: Rule) -> None:
    constraints, rid = _section(cib, "constraints"), wanted.resource
    release(cib, rid)
    location = SubElement(constraints, "rsc_location", {"id": f"{rid}-place", "rsc": rid})
    score, operation = (_NEVER, "ne") if wanted.binding else (_ALWAYS, "eq")
    rule = SubElement(
        location, "rule", {"id": f"{rid}-place-rule", "score": score, "boolean-op": "and"}
    )
    where = {"attribute": "#uname", "operation": operation, "value": wanted.node}
    SubElement(rule, "expression", {"id": f"{rid}-place-node", **where})
    when = {"operation": "lt", "end": wanted.until}
    SubElement(rule, "date_expression", {"id": f"{rid}-place-until", **when})


def release(cib: Element, rid: str) -> None:
    """Let a VM go where Pacemaker wants it again."""
    constraints = _section(cib, "constraints")
    for location in constraints.findall("rsc_location"):
        if location.get("id") == f"{rid}-place":
            constraints.remove(location)


def _forget(parent: Element, group: Element, tag: str, rid: str) -> bool:
    """Take a name out of a group, and the group if nothing is left; whether it went."""
    gone = [each for each in group.findall(tag) if each.get("id") == rid]
    for each in gone:
        group.remove(each)
    if gone and group.find(tag) is None:
        parent.remove(group)
        return True
    return False


def remove(cib: Element, rid: str) -> None:
    """Take a VM out, and every constraint that names it; sets and tags go on without it.

    A name that means nothing any more makes the whole document invalid, and Pacemaker refuses it.
    """
    named = ("rsc", "with-rsc", "first", "then")
    for constraint in list(_section(cib, "constraints")):
        sets = constraint.findall("resource_set")
        for each in sets:
            _forget(constraint, each, "resource_ref", rid)
        is_empty = bool(sets) and constraint.find("resource_set") is None
        if is_empty or rid in [constraint.get(name) for name in named]:
            _section(cib, "constraints").remove(constraint)
    for parent in cib.iterfind("configuration/tags"):
        for tag in parent.findall("tag"):
            if _forget(parent, tag, "obj_ref", rid):
                remove(cib, tag.get("id", ""))  # whatever names the tag
    for primitive in list(_section(cib, "resources")):
        if primitive.get("id") == rid:
            _section(cib, "resources").remove(primitive)
