# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the models of a machine that becomes a cluster's node, and of the Pacemaker it finds then.

What goes on while a command waits is a list of steps: each pause takes the next.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from xml.etree.ElementTree import Element, SubElement, fromstring, tostring

from cxm.cluster.pacemaker import Failure, Node, Placed, Status
from cxm.errors import RefusedError, UnreachableError
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
SBD = "/dev/disk/by-id/virtio-SBD"
SBD_HEADER = "SBD_SBD_\x02" + "\0" * 503
EXAMPLE = (
    "totem {\n\tcluster_name: debian\n}\nnodelist {\n\tnode {\n\t\tring0_addr: 127.0.0.1\n\t}\n}\n"
)
_AGENTS = (
    "heartbeat/lvmlockd",
    "heartbeat/Filesystem",
    "heartbeat/LVM-activate",
    "pacemaker/controld",
    "cxm/lockspace",
    "cxm/watch",
    "cxm/balance",
)


def running_sbd(node: FakeNode, disk: str) -> None:
    """The processes of an sbd that reads a disk, under the number 700."""
    for name in ("700/task/700", "701/fd", "702/fd"):
        os.makedirs(node.path(f"proc/{name}"), exist_ok=True)
    with open(node.path("proc/700/task/700/children"), "w", encoding="ascii") as file:
        file.write("701 702 703 ")
    link = node.path("proc/702/fd/4")
    if os.path.lexists(link):
        os.unlink(link)
    os.symlink(node.path(disk.lstrip("/")), link)


@dataclass(slots=True)
class San:
    """The disks, as every node sees them."""

    group: str = ""
    signature: str = ""
    lock_type: str = "dlm"
    machines: dict[str, "FakeClusterNode"] = field(default_factory=dict)
    sbd: tuple[int, int] | None = None  # the times on SBD's: watchdog, msgwait; see make_sbd
    sbd_signature: str = ""
    slots: list[str] = field(default_factory=list)  # who has used it
    made: list[tuple[str, ...]] = field(default_factory=list)  # file systems
    # What a BMC at an address says that does not answer, and which actions were asked for.
    broken: dict[str, str] = field(default_factory=dict)
    actions: str = "monitor status off on reboot metadata"  # of the fence agents
    asked: list[dict[str, str]] = field(default_factory=list)

    def make_sbd(self, watchdog: int, msgwait: int) -> None:
        """Make SBD's disk."""
        self.sbd, self.slots = (watchdog, msgwait), []
        for machine in self.machines.values():
            machine.write(SBD, SBD_HEADER)


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

    def query(self, _runner: Runner) -> Element:
        if not self.answers:
            raise RefusedError("Pacemaker does not run here")
        return self.cib

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
        self.node = FakeNode(root, size_mib=8192)
        self.node.shared = True
        self._create = self.node._handlers["lvcreate"]
        self.xen = FakeXenHost(self.node)
        self.name, self.address, self.san = name, address, san
        self.dom0_mib = 1024
        self.free_mib = 6000
        self.uid = 0
        self.is_first_group = True
        self.enabled = {"xendomains.service", "cxm-tend.service", "dlm.service"}
        self.active = set(self.enabled)
        self.masked: set[str] = set()
        self.steps: list[Callable[[], None]] = []
        self.loaded = ""  # the corosync.conf that Corosync runs with
        self.sbd_fails = False  # the program
        self.unreachable = ""  # why ssh to another node fails
        san.machines[name] = self
        for path in (f"usr/lib/ocf/resource.d/{each}" for each in _AGENTS):
            self.write(path, "#!/bin/sh\n")
        self.write(DEVICE, "")
        self.write(SBD, "")
        self.write("dev/watchdog", "")
        self.write("sys/class/watchdog/watchdog0/identity", "xen_wdt\n")
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
            "sbd": self._sbd,
            "mkfs.gfs2": self._mkfs_gfs2,
            "lvcreate": self._lvcreate,
            "fence_ipmilan": self._fence,
            "fence_x": self._fence,
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
            pacemaker.query,
        )

    def restart(self) -> None:
        """Corosync starts again, with the file that is there."""
        self.loaded = self.text(CONF)

    def _settings(self, _host: Host, node: str) -> str:
        if self.unreachable:
            raise UnreachableError(f"the node {node} cannot be reached: {self.unreachable}")
        return hashlib.sha256(self.san.machines[node].text(CONF).encode()).hexdigest()

    def _cmapctl(self, _argv: tuple[str, ...], _in: bytes) -> Outcome:
        lines = ["totem.version (u32) = 2"]
        for index, (name, each) in enumerate(corosync.members(self.loaded).items()):
            lines.append(f"nodelist.node.{index}.name (str) = {name}")
            lines.append(f"nodelist.node.{index}.ring0_addr (str) = {each.address}")
            machine = self.san.machines[name]
            key = f"runtime.members.{each.number}"
            if machine.loaded:
                version = corosync.version(machine.loaded)
                is_up = "corosync.service" in machine.active
                lines.append(f"{key}.config_version (u64) = {version}")
                lines.append(f"{key}.status (str) = {'joined' if is_up else 'left'}")
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
        info = self._xl_info(argv, stdin).stdout
        return Outcome(re.sub(r"(?m)^(free_memory *: ).*", rf"\g<1>{self.free_mib}", info))

    def _systemctl(self, argv: tuple[str, ...], _in: bytes) -> Outcome:
        verb, name = argv[1], argv[-1] if "." in argv[-1] else f"{argv[-1]}.service"
        if verb == "is-enabled":
            state = "masked" if name in self.masked else "disabled"
            return Outcome("enabled\n" if name in self.enabled else f"{state}\n", code=1)
        if verb == "show":
            assert argv[2:] == ("--property=MainPID", "--value", "sbd.service")
            return Outcome("700\n" if name in self.active else "0\n")
        if verb == "is-active":
            return Outcome(code=0 if name in self.active else 3)
        if verb == "mask":
            self.masked.add(name)
            self.enabled.discard(name)
        elif verb == "stop":
            self.active.discard(name)
        elif argv[2] != "--now":
            assert (verb, name) == ("enable", "sbd.service"), "it refuses to be started by hand"
            self.enabled.add(name)
        else:
            assert argv[2] == "--now"
            if name == "corosync.service" and name not in self.active:
                self.loaded = self.text(CONF)
            for held in (self.enabled, self.active):
                held.add(name) if verb == "enable" else held.discard(name)
            if name == "corosync.service":
                self.start_sbd()
        return Outcome()

    def start_sbd(self) -> None:
        """What becomes of sbd when Corosync starts."""
        if "sbd.service" in self.enabled:
            assert self.san.sbd is not None, "it fails on a disk that is not made"
            assert f'SBD_DEVICE="{SBD}"' in self.text("etc/default/sbd")
            self.active.add("sbd.service")
            running_sbd(self.node, SBD)
            if self.name not in self.san.slots:
                self.san.slots.append(self.name)

    def _sbd(self, argv: tuple[str, ...], _in: bytes) -> Outcome:
        assert argv[1:3] == ("-d", SBD)
        if argv[-1] == "create":
            assert (argv[3], argv[5]) == ("-1", "-4")
            self.san.make_sbd(int(argv[4]), int(argv[6]))
            return Outcome()
        if self.san.sbd is None or self.sbd_fails:
            return Outcome(f"==Header on disk {SBD} NOT dumped\n", code=1)
        if argv[-1] == "list":
            rows = [f"{n}\t{name}\tclear\t\n" for n, name in enumerate(self.san.slots)]
            return Outcome("".join(rows))
        assert argv[-1] == "dump"
        watchdog, msgwait = self.san.sbd
        times = {"watchdog": watchdog, "allocate": 2, "loop": 1, "msgwait": msgwait}
        rows = [f"Timeout {f'({name})':<10} : {value}\n" for name, value in times.items()]
        return Outcome(f"==Dumping header on disk {SBD}\nSector size        : 512\n{''.join(rows)}")

    def _fence(self, argv: tuple[str, ...], stdin: bytes) -> Outcome:
        assert len(argv) == 1, "everybody reads command lines"
        given = dict(line.partition("=")[::2] for line in stdin.decode().splitlines())
        if given["action"] == "metadata":
            rows = "".join(f'<action name="{each}" />' for each in self.san.actions.split())
            return Outcome(f"<resource-agent><actions>{rows}</actions></resource-agent>")
        assert given["action"] in ("monitor", "status"), "nobody is to be fenced"
        assert given["action"] in self.san.actions
        self.san.asked.append(given)
        words = self.san.broken.get(given.get("ip", ""))
        if words is not None:
            return Outcome(stderr=words.format(**given), code=1)
        return Outcome(code=2 if given["action"] == "status" else 0)

    def _lvcreate(self, argv: tuple[str, ...], stdin: bytes) -> Outcome:
        # The model fills every new volume with a former tenant's bytes.
        return self._create(tuple("4m" if word == "4096m" else word for word in argv), stdin)

    def _mkfs_gfs2(self, argv: tuple[str, ...], _in: bytes) -> Outcome:
        name = os.path.basename(argv[-1])
        assert argv[-1] == f"/dev/LVM_XEN/{name}"
        assert self.node.state.lvs[name].active
        self.san.made.append(argv)
        return Outcome()

    def _pvs(self, argv: tuple[str, ...], _in: bytes) -> Outcome:
        assert "--shared" in argv, "a group whose locks cannot be had would not be seen"
        is_group = self.san.group and argv[-1] == DEVICE
        return Outcome(f"  {self.san.group}\n" if is_group else "", code=0)

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

    def _blkid(self, argv: tuple[str, ...], _in: bytes) -> Outcome:
        found = self.san.sbd_signature if argv[-1] == SBD else self.san.signature
        # Of a partition blkid tells its place also when it is empty.
        place = "PART_ENTRY_SCHEME=dos\nPART_ENTRY_NUMBER=1\n" if argv[-1] == SBD else ""
        if not found:
            return Outcome(place) if place else Outcome(code=2)
        return Outcome(f"{place}TYPE={found}\n")

    def _ssh_keygen(self, argv: tuple[str, ...], _in: bytes) -> Outcome:
        done = System().run(argv)
        return Outcome(done.stdout, done.stderr)
