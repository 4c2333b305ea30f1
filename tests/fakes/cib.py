# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns CIBs as a running cluster has them, and what Pacemaker's own scheduler makes of them.

``crm_simulate`` and ``crm_verify`` are the real programs: they read a file and touch no cluster.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element, SubElement, fromstring, tostring

from cxm.cluster import basis, elements
from cxm.cluster.basis import Basis, FenceDevice
from cxm.run import System

EMPTY = """<cib crm_feature_set="3.16.1" validate-with="pacemaker-3.9" epoch="1" num_updates="0"
 admin_epoch="0" have-quorum="1" dc-uuid="1"><configuration><crm_config/><nodes/><resources/>
 <constraints/></configuration><status/></cib>"""
BMC = {"ip": "10.0.0.1", "username": "u", "password": "p", "lanplus": "1"}


def of_nodes(*nodes: str) -> Basis:
    """The basis of a cluster of these nodes."""
    fencing = [FenceDevice(node, "fence_ipmilan", BMC) for node in nodes]
    return Basis(nodes, "LVM_XEN", "/dev/disk/by-id/virtio-SAN", fencing)


class Cluster:
    """A cluster at rest: its nodes up, its locks and VMs started, by the scheduler itself."""

    def __init__(
        self,
        directory: str,
        vms: Mapping[int, str],
        *nodes: str,
        start: bool = True,
        given: Basis | None = None,
    ) -> None:
        self._directory = directory
        self.nodes = (given.nodes if given else nodes) or ("node1", "node2")
        cib = fromstring(EMPTY)
        holder = section(cib, "nodes")
        status = cib.find("status")
        assert status is not None
        for number, name in enumerate(self.nodes, 1):
            SubElement(holder, "node", {"id": str(number), "uname": name})
            basis.edit_facts(cib, name, {"cxm-address": "10.0.0.1"}, {"memory": "600"})
            up = {"in_ccm": "true", "crmd": "online", "join": "member", "expected": "member"}
            SubElement(status, "node_state", {"id": str(number), "uname": name, **up})
        basis.edit(cib, given or of_nodes(*self.nodes))
        for vm, node in vms.items():
            section(cib, "resources").append(_vm(vm))
            where = {"id": f"{vm_id(vm)}-prefer", "rsc": vm_id(vm), "node": node, "score": "100"}
            SubElement(section(cib, "constraints"), "rsc_location", where)
        self.cib = cib
        if start:
            self.go_on()

    def ask(self, *events: str) -> list["Step"]:
        """What the scheduler does about events (options of crm_simulate), in no order."""
        return self._simulate(*events)

    def go_on(self, *events: str) -> list["Step"]:
        """The same, and the cluster is as it is afterwards."""
        steps = self._simulate(*events)
        with open(self._path("after.xml"), encoding="utf-8") as file:
            self.cib = fromstring(file.read())
        return steps

    def runs_on(self, vm: int) -> set[str]:
        """Where a VM runs, as crm_mon tells it."""
        return self.where(vm_id(vm))

    def where(self, resource: str) -> set[str]:
        """Where a resource runs."""
        said = fromstring(self.crm_mon())
        found = (each for each in said.iter("resource") if each.get("id") == resource)
        return {node.get("name", "") for each in found for node in each.iter("node")}

    def crm_mon(self) -> str:
        """What the real crm_mon tells of it."""
        argv = ["env", f"CIB_file={self._write()}", "crm_mon", "-1", "--output-as=xml"]
        return System().run(argv).stdout

    def verify(self) -> str:
        """What crm_verify complains of."""
        argv = ["crm_verify", "-V", "--xml-file", self._write()]
        return System().run(argv, ok=range(256)).stderr

    def _path(self, name: str) -> str:
        return os.path.join(self._directory, name)

    def _write(self) -> str:
        path = self._path("cib.xml")
        with open(path, "wb") as file:
            file.write(tostring(self.cib))
        return path

    def _simulate(self, *events: str) -> list["Step"]:
        graph, after = self._path("graph.xml"), self._path("after.xml")
        argv = ["crm_simulate", "-S", "-Q", "-x", self._write(), "-G", graph, "-O", after, *events]
        System().run(argv)
        with open(graph, encoding="utf-8") as file:
            found = fromstring(file.read())
        return [step for synapse in found.iter("synapse") for step in _steps(synapse)]


def section(cib: Element, name: str) -> Element:
    """A part of the configuration."""
    found = cib.find(f"configuration/{name}")
    assert found is not None
    return found


def vm_id(vm: int) -> str:
    """The resource of a VM."""
    return f"cxm-lab-{vm}"


def _vm(vm: int) -> Element:
    made = Element("primitive", {"id": vm_id(vm), "template": "cxm-domain"})
    made.append(elements.attributes("instance", f"{vm_id(vm)}-p", {"cloud": "lab", "vm": str(vm)}))
    made.append(elements.attributes("meta", f"{vm_id(vm)}-m", {"cxm-config": "AAAA"}))
    use = SubElement(made, "utilization", {"id": f"{vm_id(vm)}-u"})
    SubElement(use, "nvpair", {"id": f"{vm_id(vm)}-u-m", "name": "memory", "value": "112"})
    return made


@dataclass(frozen=True, slots=True)
class Step:
    """One action that the scheduler orders; ``after`` names those that must be done before."""

    number: int
    what: str  # "start cxm-lab-1", "fence"
    node: str
    after: frozenset[int]
    delay: int  # seconds that a fencing waits for the other node's


def _steps(synapse: Element) -> list[Step]:
    after = frozenset(int(each.get("id", "")) for each in synapse.findall("inputs/trigger/*"))
    steps = []
    for each in synapse.findall("action_set/*"):
        operation = each.get("operation", "")
        resource = each.find("primitive")
        name = each.get("on_node", "")
        if operation == "stonith":
            what = "fence"
        elif each.tag == "pseudo_event":
            what = f"pseudo {each.get('operation_key')}"
        else:
            what = f"{operation} {'' if resource is None else resource.get('id')}".strip()
        meta = each.find("attributes")
        delay = 0 if meta is None else int(meta.get("CRM_meta_priority_fencing_delay", "0"))
        steps.append(Step(int(each.get("id", "")), what, name, after, delay))
    return steps


def waits_for(steps: Sequence[Step], step: Step) -> set[int]:
    """All that must be done before a step, directly or not."""
    by_number = {each.number: each for each in steps}
    found: set[int] = set()
    todo = list(step.after)
    while todo:
        number = todo.pop()
        if number not in found and number in by_number:
            found.add(number)
            todo += by_number[number].after
    return found
