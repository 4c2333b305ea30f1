# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the models of a machine that becomes a cluster's node, and of the Pacemaker it finds then.

What goes on while a command waits is a list of steps: each pause takes the next.
"""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from xml.etree.ElementTree import Element, SubElement, fromstring, tostring

from cxm.cluster.pacemaker import Failure, Node, Placed, Status
from cxm.errors import RefusedError
from cxm.run import Runner, System
from cxm.setup import corosync
from cxm.setup.corosync import CONF
from cxm.setup.forming import World
from cxm.setup.nodecheck import Host
from tests.fakes.administration import FakeXenHost
from tests.fakes.cib import EMPTY
from tests.fakes.machine import FakeNode, Outcome
from tests.fakes.xl_list import HEAD

DEVICE = "/dev/disk/by-id/virtio-SAN"
EXAMPLE = (
    "totem {\n\tcluster_name: debian\n}\nnodelist {\n\tnode {\n\t\tring0_addr: 127.0.0.1\n\t}\n}\n"
)
_AGENTS = ("heartbeat/lvmlockd", "pacemaker/controld", "cxm/lockspace", "cxm/watch")


@dataclass(slots=True)
class San:
    """The disk, as every node sees it."""

    group: str = ""
    signature: str = ""
    lock_type: str = "dlm"
    machines: dict[str, "FakeClusterNode"] = field(default_factory=dict)


@dataclass(slots=True)
class FakePacemaker:
    """The cluster that all nodes of a test share."""

    cib: Element = field(default_factory=lambda: fromstring(EMPTY))
    online: set[str] = field(default_factory=set)
    started: set[str] = field(default_factory=set)
    failures: list[Failure] = field(default_factory=list)
    cleaned: list[str] = field(default_factory=list)
    answers: bool = True

    def come(self, name: str) -> None:
        """A node gets into the cluster."""
        self.online.add(name)
        nodes = self.cib.find("configuration/nodes")
        assert nodes is not None
        if all(each.get("uname") != name for each in nodes):
            SubElement(nodes, "node", {"id": str(len(nodes) + 1), "uname": name})

    def status(self, _runner: Runner) -> Status:
        if not self.answers:
            raise RefusedError("Pacemaker does not run here")
        known = {each.get("uname", "") for each in self.cib.iterfind("configuration/nodes/node")}
        nodes = tuple(
            Node(name, online=name in self.online, dc=name == min(self.online, default=""))
            for name in sorted(known)
        )
        where = tuple(sorted(self.online))
        found = [each.get("id", "") for each in self.cib.iter("primitive")]
        resources = {
            name: Placed(name, "Started" if name in self.started else "Stopped", where)
            for name in found
        }
        return Status(
            nodes,
            quorate=len(self.online) > 1,
            fencing_enabled=True,
            resources=resources,
            failures=tuple(self.failures),
        )

    def change(self, _runner: Runner, edit: Callable[[Element], None], _what: str) -> bool:
        before = tostring(self.cib)
        edit(self.cib)
        return tostring(self.cib) != before

    def remove(self, _runner: Runner, name: str) -> None:
        nodes = self.cib.find("configuration/nodes")
        assert nodes is not None
        assert name not in self.online
        for node in nodes.findall(f"node[@uname='{name}']"):
            nodes.remove(node)

    def clean_up(self, _runner: Runner, resource: str) -> None:
        self.cleaned.append(resource)
        self.failures = [each for each in self.failures if each.resource != resource]


class FakeClusterNode:
    """A Xen host with the cluster stack installed."""

    def __init__(self, root: str, name: str, address: str, san: San) -> None:
        self.node = FakeNode(root)
        self.xen = FakeXenHost(self.node)
        self.name, self.address, self.san = name, address, san
        self.dom0_mib = 1024
        self.uid = 0
        self.is_first_group = True
        self.enabled = {"xendomains.service", "cxm-tend.service", "dlm.service"}
        self.active = set(self.enabled)
        self.masked: set[str] = set()
        self.steps: list[Callable[[], None]] = []
        self.loaded = ""  # the corosync.conf that Corosync runs with
        san.machines[name] = self
        for path in (f"usr/lib/ocf/resource.d/{each}" for each in _AGENTS):
            self.write(path, "#!/bin/sh\n")
        self.write(DEVICE, "")
        self.write("etc/ssh/ssh_host_ed25519_key.pub", "ssh-ed25519 AAAAhost root@x\n")
        self.write("etc/corosync/corosync.conf", EXAMPLE)
        self.write("etc/lvm/lvmlocal.conf", "local {\n}\n")
        self.write("etc/default/pacemaker", "# PCMK_ipc_buffer=131072\n# more\n")
        os.makedirs(self.node.path("root"))
        models = {
            "ip": self._ip,
            "corosync-cmapctl": self._cmapctl,
            "corosync-cfgtool": self._cfgtool,
            "systemctl": self._systemctl,
            "pvs": self._pvs,
            "vgs": self._vgs,
            "vgcreate": self._vgcreate,
            "blkid": self._blkid,
            "ssh-keygen": self._ssh_keygen,
        }
        for command, handler in models.items():
            self.node.model(command, handler)
        self._xl_info = self.node._handlers["xl"]
        self.node.model("xl", self._xl)

    def write(self, path: str, text: str) -> None:
        """Make a file."""
        full = self.node.path(path.lstrip("/"))
        os.makedirs(os.path.dirname(full), exist_ok=True)
        with open(full, "w", encoding="utf-8") as file:
            file.write(text)

    def text(self, path: str) -> str:
        """A file; empty where there is none."""
        return self.xen.text(path.lstrip("/"))

    def host(self) -> Host:
        """What cxm-setup sees."""
        return replace(self.xen.host(), hostname=self.name, uid=self.uid)

    def world(self, pacemaker: FakePacemaker, say: Callable[[str], None]) -> World:
        """The same, with the cluster."""

        def sleep(_seconds: float) -> None:
            assert self.steps, "it waits for ever"
            self.steps.pop(0)()

        return World(
            self.host(),
            say,
            pacemaker.status,
            pacemaker.change,
            pacemaker.clean_up,
            pacemaker.remove,
            self._settings,
            sleep,
        )

    def _settings(self, _host: Host, node: str) -> str:
        return hashlib.sha256(self.san.machines[node].text(CONF).encode()).hexdigest()

    def _cmapctl(self, _argv: tuple[str, ...], _in: bytes) -> Outcome:
        lines = ["totem.version (u32) = 2"]
        for index, (name, each) in enumerate(corosync.members(self.loaded).items()):
            lines.append(f"nodelist.node.{index}.name (str) = {name}")
            lines.append(f"nodelist.node.{index}.ring0_addr (str) = {each.address}")
        return Outcome("\n".join(lines) + "\n")

    def _cfgtool(self, argv: tuple[str, ...], _in: bytes) -> Outcome:
        assert argv[1:] == ("-R",)
        mine = set(corosync.members(self.loaded))
        for name in mine:
            machine = self.san.machines[name]
            if "corosync.service" in machine.active:
                machine.loaded = machine.text(CONF)
        return Outcome()

    def _ip(self, _argv: tuple[str, ...], _in: bytes) -> Outcome:
        cards = [{"addr_info": [{"local": "127.0.0.1"}]}, {"addr_info": [{"local": self.address}]}]
        return Outcome(json.dumps(cards))

    def _xl(self, argv: tuple[str, ...], stdin: bytes) -> Outcome:
        if argv[1] == "list":
            zero = "00000000-0000-0000-0000-000000000000"
            return Outcome(f"{HEAD}Domain-0 0 {self.dom0_mib} 1\tr-----\t9.0 {zero} -\t-\n")
        return self._xl_info(argv, stdin)

    def _systemctl(self, argv: tuple[str, ...], _in: bytes) -> Outcome:
        verb, name = argv[1], argv[-1] if "." in argv[-1] else f"{argv[-1]}.service"
        if verb == "is-enabled":
            state = "masked" if name in self.masked else "disabled"
            return Outcome("enabled\n" if name in self.enabled else f"{state}\n", code=1)
        if verb == "is-active":
            return Outcome(code=0 if name in self.active else 3)
        if verb == "mask":
            self.masked.add(name)
            self.enabled.discard(name)
        elif verb == "stop":
            self.active.discard(name)
        else:
            assert argv[2] == "--now"
            if name == "corosync.service" and name not in self.active:
                self.loaded = self.text(CONF)
            for held in (self.enabled, self.active):
                held.add(name) if verb == "enable" else held.discard(name)
        return Outcome()

    def _pvs(self, argv: tuple[str, ...], _in: bytes) -> Outcome:
        assert "--shared" in argv, "a group whose locks cannot be had would not be seen"
        return Outcome(f"  {self.san.group}\n" if self.san.group else "", code=0)

    def _vgs(self, argv: tuple[str, ...], stdin: bytes) -> Outcome:
        if argv[-1] != self.san.group:
            return Outcome(stderr=f'  Volume group "{argv[-1]}" not found\n', code=5)
        return Outcome(f"  {self.san.lock_type}\n")

    def _vgcreate(self, argv: tuple[str, ...], _in: bytes) -> Outcome:
        assert "--shared" in argv
        assert "-y" not in argv, "LVM's question about an old signature must not be answered"
        if self.is_first_group:
            self.is_first_group = False
            return Outcome(stderr="  Global lock failed: lockspace is starting.\n", code=5)
        self.san.group = argv[-2]
        return Outcome()

    def _blkid(self, _argv: tuple[str, ...], _in: bytes) -> Outcome:
        return Outcome(f"TYPE={self.san.signature}\n") if self.san.signature else Outcome(code=2)

    def _ssh_keygen(self, argv: tuple[str, ...], _in: bytes) -> Outcome:
        done = System().run(argv)
        return Outcome(done.stdout, done.stderr)
