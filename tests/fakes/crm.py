# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the model of a cluster as one of its nodes sees it: Pacemaker's programs on a FakeNode.

The CIB is a real document, changed by real patches (as whole documents: what ``crm_diff`` is given
as new is its patch, and it is stale when another one was faster). Where each VM runs is a field.
Whenever the code under test sleeps, the model takes a step: VMs leave a node that is in standby,
and a node that was reset comes back.
"""

import io
import json
import os
import threading
from dataclasses import dataclass, field, replace
from typing import Any, Final
from xml.etree import ElementTree as ET
from xml.etree.ElementTree import Element, SubElement

from cxm import __version__
from cxm.cli.text import Style
from cxm.cli.world import World
from cxm.cluster import balancer, nodes, pacemaker
from cxm.cluster import cib as documents
from cxm.cluster.cib import Resource
from cxm.names import DomainName, VmId, domain_uuid
from tests.fakes.machine import CLOUD, FakeNode, Outcome
from tests.fakes.xl_list import Xen

NOW: Final = 1_795_700_000.0
VERSIONS: Final = {
    "cxm": __version__,
    "xen": "4.17.5-pre",
    "pacemaker": "2.1.5",
    "corosync": "3.1.7",
}
CONFIG: Final = """name = '{name}'
type = 'pvh'
memory = {memory}
disk = ['/dev/LVM_XEN/lv-one-{vm}-0,raw,xvda,rw']
vif = ['mac=02:00:00:00:00:07,bridge=xenbr0']
"""
_EMPTY: Final = """<cib epoch="1" num_updates="0" admin_epoch="0"><configuration>
<crm_config><cluster_property_set id="o">
<nvpair id="o1" name="placement-strategy" value="utilization"/></cluster_property_set></crm_config>
<nodes/><resources/><constraints/></configuration><status/></cib>"""


@dataclass(slots=True)
class Member:
    """A node of the model."""

    online: bool = True
    unclean: bool = False
    pending: bool = False
    heard: bool = False  # by Corosync, whatever Pacemaker there does
    away: int = 0  # for how many steps more it is booting, or kept out
    boots: int = 0


@dataclass(slots=True)
class Place:
    """Where a VM is, and what is the matter with it."""

    nodes: tuple[str, ...] = ()
    role: str = "Started"
    blocked: bool = False
    failed: bool = False
    managed: bool = True


@dataclass(slots=True)
class FakeCluster:
    """Nodes and VMs; pass :meth:`world` to a subcommand."""

    node: FakeNode
    members: dict[str, Member] = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)
    quorate: bool = True
    fencing: bool = True
    fence_events: list[dict[str, str]] = field(default_factory=list)
    journal: str = ""
    lies: bool = False  # the fencing device reports success and resets nothing
    hits: str = ""  # the fencing device resets this node instead
    fast: bool = False  # a node that was reset has booted before its device says that it is done
    unreachable: bool = False  # for ssh
    answers: dict[str, Any] = field(  # of every other node, by the word that it is asked
        default_factory=lambda: {
            "bridges": {"missing": []},
            "journal": {"events": []},
            "ordered": {"ordered": False},
            "check": {"versions": dict(VERSIONS), "findings": []},
        }
    )
    asked: list[tuple[str, int]] = field(default_factory=list)  # what guests were asked
    deaf: set[int] = field(default_factory=set)  # VMs whose guests do not listen
    broken: set[str] = field(default_factory=set)  # devices, and nodes without locks
    stuck: set[str] = field(default_factory=set)  # VMs that do not move
    said: io.StringIO = field(default_factory=io.StringIO)
    answer: str = ""  # what the reader types
    attached: list[list[str]] = field(default_factory=list)
    cib: Element = field(default_factory=lambda: ET.fromstring(_EMPTY))
    clock: str = "yes"
    units: dict[str, str] = field(
        default_factory=lambda: {"xendomains.service": "masked", "cxm-tend.service": "disabled"}
    )
    sbd_pid: int = 0
    dead: bool = False  # Pacemaker does not run here
    balances: str = "node1"  # where the cluster's balancer is, if it is on
    xen: Xen = field(init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock)  # orders at the same time

    def __post_init__(self) -> None:
        self.xen = Xen(self.node)
        self.node.later = self.step
        self.node.shared = True
        for name in ("etc/cxm", "sys/class/net/xenbr0", "sys/class/net/lo"):
            os.makedirs(self.node.path(name), exist_ok=True)
        with open(self.node.path("etc/cxm/cluster"), "w", encoding="ascii"):
            pass
        handlers = {
            "crm_mon": self._crm_mon,
            "cibadmin": self._cibadmin,
            "crm_diff": self._crm_diff,
            "crm_simulate": self._crm_simulate,
            "ssh": self._ssh,
            "xl": self._xl,
            "crm_resource": lambda _argv, _in: Outcome(),  # there is nothing to forget
            "crm_node": lambda _argv, _in: Outcome("node1\n"),
            "stonith_admin": self._stonith_admin,
            "corosync-cmapctl": self._corosync_cmapctl,
            "journalctl": lambda _argv, _in: Outcome(self.journal),
            "timedatectl": lambda _argv, _in: Outcome(f"{self.clock}\n"),
            "systemctl": self._systemctl,
            "pacemakerd": lambda _argv, _in: Outcome("Pacemaker 2.1.5\nWritten by ...\n"),
            "corosync": lambda _argv, _in: Outcome("Corosync Cluster Engine, version '3.1.7'\n"),
        }
        for name, handler in handlers.items():
            self.node.model(name, handler)

    # --- for tests -----------------------------------------------------------------------------

    def add_node(self, name: str, *, memory: int = 4096, cpu: int = 400, **facts: str) -> None:
        """A node with a fencing device; ``facts`` are attributes (``_`` for ``-``)."""
        self.members[name] = Member()
        if name == "node1":  # it really has what the CIB says
            self.xen.room_mib = memory
        parent = self.cib.find("configuration/nodes")
        assert parent is not None
        made = SubElement(parent, "node", {"id": str(len(self.members)), "uname": name})
        size = SubElement(made, "utilization", {"id": f"{name}-u"})
        for key, value in (("memory", memory), ("cpu", cpu)):
            if value:
                pair = {"id": f"{name}-u-{key}", "name": key, "value": str(value)}
                SubElement(size, "nvpair", pair)
        known = {"cxm_address": f"10.0.0.{len(self.members)}", "cxm_hostkey": "ssh-ed25519 AAAA"}
        for key, text in (known | facts).items():
            nodes.set_attribute(self.cib, name, key.replace("_", "-"), text)
        resources = self.cib.find("configuration/resources")
        assert resources is not None
        device = SubElement(resources, "primitive", {"id": f"fence-{name}", "class": "stonith"})
        group = SubElement(device, "instance_attributes", {"id": f"fence-{name}-p"})
        SubElement(group, "nvpair", {"id": f"f-{name}", "name": "pcmk_host_list", "value": name})

    def add_vm(self, vm: int, node: str | None, *, memory: int = 512, **changes: Any) -> str:
        """A VM that runs on a node, or is off; with its domain where the node is this one."""
        name = changes.pop("name", f"one-{vm}")
        given: dict[str, Any] = {
            "cloud": CLOUD,
            "vm": VmId(vm),
            "name": DomainName(name),
            "config": CONFIG.format(name=name, memory=memory, vm=vm),
            "memory_mib": memory,
            "cpu": 100,
            "migratable": True,
            "started": node is not None,
            "preferred": node or "",
        }
        resource = Resource(**given | changes)
        documents.put(self.cib, resource)
        self.places[resource.id] = Place((node,) if node else (), "Started" if node else "Stopped")
        tags = [f"cxm.cloud={CLOUD}", f"cxm.vm={vm}", "cxm.disk=0", "cxm.state=ready"]
        self.node.add_lv(f"lv-one-{vm}-0", 4, tags=tags, content=b"")
        if node == "node1":
            self.xen.vm(vm, vm + 10, name=name)
        else:
            self.deactivate(f"lv-one-{vm}-0")
        return resource.id

    def damage(self, vm: int, name: str = "cxm-config") -> None:
        """Somebody takes a meta attribute of a VM away."""
        path = f"configuration/resources/primitive[@id='cxm-{CLOUD}-{vm}']/meta_attributes"
        group = self.cib.find(path)
        assert group is not None
        group.remove(next(each for each in group if each.get("name") == name))

    def constrain(self, text: str) -> None:
        """An administrator writes a constraint."""
        parent = self.cib.find("configuration/constraints")
        assert parent is not None
        parent.append(ET.fromstring(text))

    def can_balance(self) -> None:
        """The cluster has a balancer of its own, off."""
        resources = self.cib.find("configuration/resources")
        assert resources is not None
        balancer.edit(resources)

    def deactivate(self, lv: str) -> None:
        """Make a volume inactive on this node."""
        self.node.run(["lvchange", "-a", "n", f"{self.node.vg}/{lv}"])
        self.node.ran.clear()

    def attribute(self, node: str, key: str) -> str | None:
        """A node's attribute as it is in the CIB."""
        return nodes.facts(self.cib)[node].attributes.get(key)

    def until_reboot(self, node: str, key: str) -> None:
        """Set an attribute as ``--lifetime reboot`` does: it ends with the node's membership."""
        parent = self.cib.find("status")
        assert parent is not None
        state = SubElement(parent, "node_state", {"uname": node})
        group = SubElement(SubElement(state, "transient_attributes"), "instance_attributes")
        SubElement(group, "nvpair", {"name": key, "value": "on"})

    def _is(self, node: str, key: str) -> bool:
        known = nodes.facts(self.cib)[node]
        return "on" in (known.attributes.get(key), known.fleeting.get(key))

    def world(self, **changes: Any) -> World:
        """What a subcommand sees."""
        given: dict[str, Any] = {
            "runner": self.node,
            "root": self.node.root,
            "out": self.said,
            "typed": self._typed,
            "uid": 0,
            "style": Style(),
            "settings": self.node.machine().config,
            "now": lambda: NOW + self.node.clock,
            "monotonic": lambda: self.node.clock,
            "sleep": self.node.sleep,
            "foreground": self._foreground,
        }
        return World(**given | changes)

    @property
    def text(self) -> str:
        """What the reader has been shown."""
        return self.said.getvalue()

    def _typed(self, prompt: str) -> str:
        self.said.write(f"{prompt}{self.answer}\n")
        if not self.answer:
            raise EOFError
        return self.answer

    def _foreground(self, argv: list[str]) -> int:
        self.attached.append(argv)
        return 0

    # --- what happens by itself ----------------------------------------------------------------

    def step(self) -> None:
        """One thing more has happened."""
        with self._lock:
            self._happens()

    def _happens(self) -> None:
        for member in self.members.values():
            if member.away:
                member.away -= 1
                member.online = member.away == 0
        for rid, place in self.places.items():
            self._step_vm(rid, place)

    def _step_vm(self, rid: str, place: Place) -> None:
        known = next((each for each in documents.readable(self.cib)[0] if each.id == rid), None)
        if rid in self.stuck or known is None:
            return
        confined = self._confined(self.cib, rid)
        if not known.started:
            self._off(known)
            return
        if not place.nodes:
            target = confined or known.preferred
            if self._takes(target):
                place.nodes, place.role = (target,), "Started"
            return
        if confined and place.role == "Started" and place.nodes != (confined,):
            place.nodes, place.role = (place.nodes[0], confined), "Migrating"
            return
        if place.role == "Migrating":
            place.nodes, place.role = place.nodes[1:], "Started"
            return
        takes = [name for name in self.members if self._takes(name)]
        if not self._takes(place.nodes[0]) and takes:
            place.nodes, place.role = (place.nodes[0], takes[0]), "Migrating"

    def _off(self, known: Resource) -> None:
        """A VM has ended; its domain here is gone."""
        self.places[known.id] = Place((), "Stopped")
        self.xen.rows = [row for row in self.xen.rows if uuid(known.vm) not in row]

    def _confined(self, cib: Element, rid: str) -> str:
        """The only node on which a VM may be at the moment; empty: any."""
        for each in cib.iterfind("configuration/constraints/rsc_location"):
            if each.get("id") == f"{rid}-place":
                return next(e.get("value", "") for e in each.iter("expression"))
        return ""

    def _takes(self, name: str) -> bool:
        return self.members[name].online and not self._is(name, "standby")

    # --- the programs --------------------------------------------------------------------------

    def _crm_mon(self, argv: tuple[str, ...], _in: bytes) -> Outcome:
        assert argv[1:] == ("-1", "--output-as=xml")
        if self.dead:
            return Outcome(stderr="crm_mon: Error: cluster is not connected", code=102)
        root = Element("pacemaker-result")
        self._summary(root)
        rows = SubElement(root, "resources")
        for rid, place in self.places.items():
            row = {
                "id": rid,
                "role": place.role,
                "blocked": str(place.blocked).lower(),
                "failed": str(place.failed).lower(),
                "managed": str(place.managed).lower(),
            }
            made = SubElement(rows, "resource", row)
            for name in place.nodes:
                SubElement(made, "node", {"name": name})
        self._services(root, rows)
        history = SubElement(root, "fence_history")
        for event in self.fence_events:
            SubElement(history, "fence_event", event)
        return Outcome(ET.tostring(root, encoding="unicode"))

    def _services(self, root: Element, rows: Element) -> None:
        """Fencing devices and locks, and what went wrong with them."""
        for device in nodes.devices(self.cib):
            role = "Stopped" if device.id in self.broken else "Started"
            SubElement(rows, "resource", {"id": device.id, "role": role})
        locks = SubElement(rows, "resource", {"id": "cxm-lockspace", "role": "Started"})
        for name, member in self.members.items():
            if member.online and name not in self.broken:
                SubElement(locks, "node", {"name": name})
        watch = SubElement(rows, "resource", {"id": "cxm-watch", "role": "Started"})
        if "cxm-watch" not in self.broken:
            SubElement(watch, "node", {"name": next(iter(self.members))})
        own = balancer.of(self.cib, pacemaker.Status((), quorate=True, fencing_enabled=True))
        if own is not None:
            role = "Started" if own.on and self.balances else "Stopped"
            mine = SubElement(rows, "resource", {"id": balancer.RESOURCE, "role": role})
            if role == "Started":
                SubElement(mine, "node", {"name": self.balances})
        failures = SubElement(root, "failures")
        for rid in self.broken:
            row = {"op_key": f"{rid}_monitor_60000", "task": "monitor", "interval": "60000"}
            more = {"node": "node1", "exitreason": "no answer", "last-rc-change": "today"}
            SubElement(failures, "failure", row | more)

    def _summary(self, root: Element) -> None:
        summary = SubElement(root, "summary")
        quorum = {"present": "true", "with_quorum": str(self.quorate).lower()}
        SubElement(summary, "current_dc", quorum)
        SubElement(summary, "cluster_options", {"stonith-enabled": str(self.fencing).lower()})
        rows = SubElement(root, "nodes")
        decider = next((name for name, each in self.members.items() if each.online), "")
        for name, member in self.members.items():
            row = {
                "name": name,
                "online": str(member.online).lower(),
                "standby": str(self._is(name, "standby")).lower(),
                "maintenance": str(self._is(name, "maintenance")).lower(),
                "unclean": str(member.unclean).lower(),
                "pending": str(member.pending).lower(),
                "is_dc": str(name == decider).lower(),
            }
            SubElement(rows, "node", row)

    def _cibadmin(self, argv: tuple[str, ...], given: bytes) -> Outcome:
        if argv[1] == "--query":
            assert argv[2:] in ((), ("--local",))
            return Outcome(ET.tostring(self.cib, encoding="unicode"))
        assert argv[1:] == ("--patch", "--xml-pipe")
        with self._lock:
            changed = ET.fromstring(given)
            if int(changed.get("epoch", "")) != int(self.cib.get("epoch", "")) + 1:
                return Outcome(stderr="Update was older than existing configuration", code=103)
            self.cib = changed
        return Outcome()

    def _crm_diff(self, argv: tuple[str, ...], _in: bytes) -> Outcome:
        assert argv[1:3] == ("--cib", "--original")
        with open(argv[argv.index("--new") + 1], encoding="utf-8") as file:
            return Outcome(file.read(), code=1)

    def _crm_simulate(self, argv: tuple[str, ...], _in: bytes) -> Outcome:
        """What would be done with a VM that is confined to a node that takes VMs."""
        assert argv[1:3] == ("--simulate", "--xml-file")
        cib = ET.parse(argv[3]).getroot()
        root = Element("pacemaker-result")
        given = argv[4].partition("=")[2] if argv[4].startswith("--node-fail=") else ""
        rows = SubElement(SubElement(root, "revised_cluster_status"), "resources")
        actions = SubElement(root, "actions")
        for rid, target in self._placed(cib, given).items():
            if target:
                known = next(each for each in documents.readable(cib)[0] if each.id == rid)
                row = {"action": "migrate" if known.migratable else "move", "resource": rid}
                SubElement(actions, "rsc_action", row | {"dest": target})
            else:
                SubElement(rows, "resource", {"id": rid, "role": "Stopped"})
        for known in documents.readable(cib)[0]:
            target = self._confined(cib, known.id)
            if known.started and target and self._takes(target):
                moves = bool(self.places[known.id].nodes) if known.id in self.places else False
                row = {"action": "migrate" if moves else "start", "resource": known.id}
                row["dest" if moves else "node"] = target
                SubElement(actions, "rsc_action", row)
        return Outcome(ET.tostring(root, encoding="unicode"))

    def _placed(self, cib: Element, dead: str) -> dict[str, str]:
        """Where what must go would go, empty for nowhere.

        As Pacemaker does it: in the order of their ids, each where most is free.
        """
        known = {each.id: each for each in documents.readable(cib)[0]}
        known_nodes = nodes.facts(cib)
        out = {name for name, facts in known_nodes.items() if facts.attributes.get("standby")}
        free = {
            name: facts.number("memory")
            for name, facts in known_nodes.items()
            if name not in (dead, *out) and self.members[name].online
        }
        for rid, place in self.places.items():
            if place.nodes and place.nodes[0] in free and rid in known:
                free[place.nodes[0]] -= known[rid].memory_mib
        placed = {}
        for rid in sorted(
            rid
            for rid, place in self.places.items()
            if {dead, *out} & set(place.nodes) and rid in known
        ):
            best = max(free, key=lambda name: free[name], default="")
            fits = best and free[best] >= known[rid].memory_mib
            placed[rid] = best if fits else ""
            if fits:
                free[best] -= known[rid].memory_mib
        return placed

    def _xl(self, argv: tuple[str, ...], given: bytes) -> Outcome:
        if argv[1] not in ("shutdown", "reboot"):
            return self.xen._xl(argv, given)
        assert argv[2] == "-F"
        self._asked(argv[1], int(argv[3]) - 10)
        return Outcome()

    def _ssh(self, argv: tuple[str, ...], _in: bytes) -> Outcome:
        """What another node is asked by its forced command."""
        name, word, *rest = argv[argv.index("--") - 1], *argv[argv.index("--") + 1 :]
        if self.unreachable:
            return Outcome(stderr="Connection timed out", code=255)
        if word == "boot":
            return self._boot(name.removeprefix("root@"))
        if word in self.answers:
            now = NOW + self.node.clock
            clock = {"began": now, "ended": now} if word == "check" else {}
            return Outcome(json.dumps(clock | self.answers[word]))
        cloud, vm = rest
        place = self.places.get(f"cxm-{cloud}-{vm}")
        running = place is not None and bool(place.nodes)
        if word != "state":
            assert name == "root@10.0.0.2"
            assert cloud == CLOUD
            self._asked(word, int(vm))
        return Outcome(f'{{"running": {str(running).lower()}, "domains": {int(running)}}}')

    def _boot(self, address: str) -> Outcome:
        name = next(each for each in self.members if self.attribute(each, "cxm-address") == address)
        member = self.members[name]
        if not (member.online or self.fast):
            return Outcome(stderr="Connection timed out", code=255)
        return Outcome(f'{{"id": "{name}, boot {member.boots}"}}')

    def _asked(self, word: str, vm: int) -> None:
        """A guest listens, unless it is deaf."""
        self.asked.append((word, vm))
        known = documents.find(self.cib, CLOUD, VmId(vm))
        assert known is not None
        if word == "shutdown" and vm not in self.deaf:
            documents.put(self.cib, replace(known, started=False))
            self._off(known)

    def _stonith_admin(self, argv: tuple[str, ...], _in: bytes) -> Outcome:
        if argv[1] == "--history":
            assert argv[2:] == ("*", "--verbose", "--output-as=xml")
            root = Element("pacemaker-result")
            for event in self.fence_events:
                SubElement(root, "fence_event", event)
            return Outcome(ET.tostring(root, encoding="unicode"))
        if argv[1] == "--confirm":
            self.members[argv[2]].unclean = False
            return Outcome()
        assert argv[1] in ("--reboot", "--fence")
        assert argv[3] == "--timeout"
        if not self.lies:
            hit = self.members[self.hits or argv[2]]
            hit.online, hit.away, hit.boots = False, 8, hit.boots + 1
        return Outcome()

    def _corosync_cmapctl(self, argv: tuple[str, ...], _in: bytes) -> Outcome:
        if len(argv) == 1:
            rows = [
                f"runtime.members.{number}.status (str) = {state}\n"
                for number, each in enumerate(self.members.values(), 1)
                for state in ["joined" if each.online or each.heard else "left"]
            ]
            return Outcome("".join(rows))
        assert argv[1:] == ("-s", "quorum.cancel_wait_for_all", "u8", "1")
        self.quorate = True
        return Outcome()

    def _systemctl(self, argv: tuple[str, ...], _in: bytes) -> Outcome:
        if argv[1] == "is-active":
            return Outcome(f"{self.units.get(argv[2], 'inactive')}\n", code=3)
        if argv[1] == "show":
            return Outcome(f"{self.sbd_pid}\n")
        assert argv[1] == "is-enabled"
        return Outcome(f"{self.units[argv[2]]}\n", code=1)


def uuid(vm: int) -> str:
    """The UUID of a VM's domain."""
    return domain_uuid(CLOUD, VmId(vm))


def two_nodes(path: str) -> FakeCluster:
    """node1, which is this one, and node2; one VM on each, one that is off."""
    made = FakeCluster(FakeNode(path))
    made.add_node("node1", cxm_fencing=f"{NOW - 86400 * 3:.0f}")
    made.add_node("node2", cxm_fencing=f"{NOW - 3600 * 5:.0f}")
    made.add_vm(7, "node1", name="web.home.net", memory=1024)
    made.add_vm(42, "node2", name="db.home.net", memory=2048)
    made.add_vm(4, None, name="old.home.net", reason="its guest switched itself off")
    return made
