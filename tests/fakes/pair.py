# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the model of a cluster of two nodes: their Xen, a SAN, ssh between them, live migration.

After each command of either node it is asserted that a VM runs at most once, and that a disk is
one node's alone or shared. ``pair.cut`` says where a migration goes wrong, and what ends there.
"""

import io
import json
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final
from xml.etree.ElementTree import Element, fromstring

from cxm.cluster import agentmain, cib, pacemaker, peer, peerserver
from cxm.cluster.cib import Resource
from cxm.cluster.elements import put_pair
from cxm.config import NodeConfig
from cxm.errors import CxmError
from cxm.names import VmId, domain_uuid
from cxm.node.machine import Machine
from cxm.run import Result
from tests.fakes.call import Answer, ask
from tests.fakes.domains import NAME, guest
from tests.fakes.machine import CLOUD, Fault, How, KilledError, Outcome
from tests.fakes.san import San, SanNode
from tests.fakes.scheduler import BEGIN, NODES, FakePacemaker, NodeLostError, Order
from tests.fakes.xen import FakeDomain, FakeXen

RID: Final = f"cxm-{CLOUD}-7"
DISK: Final = "lv-one-7-0"
# The phases of a migration, each as it is when it has been reached.
PHASES: Final = ("connected", "precopy", "suspended", "ready", "go", "unpaused", "reported")
# What may end there; "agent" is the agent with the xl that it has started.
CUTS: Final = ("xl", "ssh", "receiver", "agent", "source", "target")
_MEMORY: Final = "/dev/shm" if os.path.isdir("/dev/shm") else None  # far faster
_HOME: Final = tempfile.TemporaryDirectory(prefix="cxm-pair-", dir=_MEMORY)
_GO: Final = PHASES.index("go")


_ASKS: Final = ("ps", "lvm", "crm_mon", "crm_diff", "crm_simulate", "blkid")


def kills(ran: Sequence[tuple[str, ...]], among: Iterable[int] | None = None) -> list[Fault]:
    """Deaths that differ: before each step that changes something, and after the last."""
    steps = range(len(ran)) if among is None else among
    asks = {("xl", "list"), ("cibadmin", "--query")}
    found = [step for step in steps if ran[step][0] not in _ASKS and ran[step][:2] not in asks]
    found = found or [0]
    return [Fault(step, How.KILL) for step in found] + [Fault(found[-1], How.KILL_AFTER)]


class BecameError(BaseException):
    """A process has become another program."""

    def __init__(self, argv: list[str]) -> None:
        super().__init__(argv)
        self.argv = argv


class PairNode(SanNode):
    """A node after whose every command the invariants are checked."""

    pair: "Pair"
    own: list[int]  # the steps that are not the agent's, when a test counts them

    def feed(self, argv: Sequence[str], *args: Any, **more: Any) -> Result:
        if self.name in self.pair.dead:
            raise KilledError
        if not self.pair.pacemaker.is_working:
            self.own.append(len(self.ran))
        try:
            return super().feed(argv, *args, **more)
        finally:
            self.pair.check()


class PairXen(FakeXen):
    """Xen on one of the nodes."""

    node: PairNode

    def _xl(self, argv: tuple[str, ...], data: bytes) -> Outcome:
        if argv[1] == "migrate":
            return self.node.pair.migrate(self, argv)
        return super()._xl(argv, data)

    def _ps(self, argv: tuple[str, ...], data: bytes) -> Outcome:
        rows = super()._ps(argv, data).stdout
        rows = re.sub(r"r1\.scope (\S+) create -q unit:(\S+)", r"\2.scope \1 migrate-receive", rows)
        return Outcome(rows)

    def _device(self, path: str) -> str:
        return self.node.path("dev", self.node.vg, os.path.basename(path))

    def put(self, domain: FakeDomain) -> None:
        """There is this domain."""
        self._put(domain)
        self._open(domain)

    def drop(self, vm: int = 7) -> None:
        """The VM's domain is gone."""
        domain = self.of_vm(vm)
        if domain is not None:
            self._drop(domain)

    def machine(self, **changes: Any) -> Machine:
        pair = self.node.pair
        more = {
            "hostname": self.node.name,
            "cluster_marker": self.node.path("state", "cluster"),
            "cib_file": pair.pacemaker.file,
            "sleep": pair.sleep,
            "now": lambda: BEGIN + self.clock,
        }
        return super().machine(**more | changes)


class Pair:
    """Two nodes, node1 and node2, and VM 7 with its disk."""

    def __init__(self) -> None:
        # Always at the same place: the CIB holds paths, and the same CIB has the same answer.
        root = Path(_HOME.name)
        shutil.rmtree(root)
        root.mkdir()
        self.san = San(str(root / "san"))
        self.xens: dict[str, PairXen] = {}
        self.dead: set[str] = set()
        self.is_broken = False  # cxmrc cannot be read
        self.cut: tuple[str, str] | None = None
        self.reached: list[str] = []
        self.said: list[str] = []
        self._quiet = 0
        self.pacemaker = FakePacemaker(self._act, self._fence)
        self.pacemaker.file = str(root / "cib.xml")
        for name in NODES:
            node = PairNode(str(root / name), name, self.san)
            node.pair, node.own = self, []
            self.xens[name] = PairXen(node)
            Path(node.path("state", "cluster")).touch()
            for command, handler in self.pacemaker.handlers().items():
                node.model(command, handler)
            node.model("ssh", self._ssh)
        self.xens["node1"].add_disk(7, name=NAME)

    # --- for tests -----------------------------------------------------------------------------

    def ask(self, at: str, verb: str, **args: Any) -> Answer:
        """Call a verb on a node; afterwards Pacemaker has done all it wants to."""
        xen = self.xens[at]
        if "dir" in args:
            os.makedirs(args["dir"], exist_ok=True)
        try:
            return ask(xen.machine(), verb, **args)
        finally:
            if xen.node._killed is None:
                self.pacemaker.go_on()

    def directory(self, node: str) -> str:
        """OpenNebula's directory of the VM."""
        return self.xens[node].node.path("datastores", "0", "7")

    def start(self, node: str = "node1", **changes: Any) -> Answer:
        """domain-start."""
        spec = guest(**changes)
        return self.ask(node, "domain-start", vm=7, dir=self.directory(node), guest=spec)

    def stop(self, node: str = "node1", how: str = "shutdown", timeout_s: int = 30) -> Answer:
        """domain-stop."""
        return self.ask(node, "domain-stop", vm=7, how=how, timeout_s=timeout_s)

    def move(self, source: str, target: str) -> Answer:
        """domain-migrate."""
        return self.ask(source, "domain-migrate", vm=7, node=target)

    def restore(self, node: str = "node1") -> Answer:
        """domain-restore."""
        return self.ask(node, "domain-restore", vm=7, dir=self.directory(node), guest=None)

    def observe(self, node: str) -> dict[str, str]:
        """The state of each guest of a node, by its name."""
        guests = self.ask(node, "observe", detail="state").result["guests"]
        return {guest["name"]: guest["state"] for guest in guests}

    def agent(self, node: str, action: str, **meta: str) -> int:
        """Call the agent as Pacemaker does; 1 when it is killed."""
        env = {"OCF_RESKEY_cloud": CLOUD, "OCF_RESKEY_vm": "7"}
        env |= {f"OCF_RESKEY_CRM_meta_{key}": value for key, value in meta.items()}
        return self._agent(node, action, env)

    def monitor(self) -> None:
        """Pacemaker looks after the VM wherever it believes it to be; it does what follows."""
        where = pacemaker.parse_status(self.mon()).resources[RID].nodes
        for node in where:
            code = self.agent(node, "monitor", interval="10000", timeout="60000")
            if code:
                self.pacemaker.go_on(f"--op-inject={RID}_monitor_10000@{node}={code}")
        self.pacemaker.go_on()

    def mon(self) -> str:
        """What crm_mon says."""
        return self.pacemaker.handlers()["crm_mon"]((), b"").stdout

    def where(self) -> tuple[str, ...]:
        """Where Pacemaker believes the VM to be."""
        found = pacemaker.parse_status(self.mon()).resources.get(RID)
        return found.nodes if found is not None else ()

    def runs_on(self) -> list[str]:
        """Where the guest runs."""
        found = {name: xen.of_vm(7) for name, xen in self.xens.items()}
        return [name for name, domain in found.items() if domain is not None and _runs(domain)]

    def locks(self, lv: str = DISK) -> dict[str, str]:
        """Who holds a volume's lock."""
        return dict(self.san.locks.get(lv, {}))

    def resource(self) -> Resource | None:
        """What the cluster knows of the VM."""
        return cib.find(fromstring(self.pacemaker.text), CLOUD, VmId(7))

    def damage(self, *vms: int) -> None:
        """There are these VMs besides, like VM 7, whose configuration nobody can read."""

        def edit(root: Element) -> None:
            known = cib.known(root, CLOUD, VmId(7))
            for vm in vms:
                cib.put(root, replace(known, vm=VmId(vm), started=False))
                (held,) = root.iterfind(f".//primitive[@id='cxm-{CLOUD}-{vm}']/meta_attributes")
                put_pair(held, "cxm-config", "nonsense")

        self.pacemaker.edit(edit)

    def constraints(self) -> dict[str, str]:
        """The constraints about the VM."""
        found = fromstring(self.pacemaker.text).iterfind("configuration/constraints/rsc_location")
        return {
            each.get("id", "").removeprefix(f"{RID}-"): each.get("node", "rule")
            for each in found
            if each.get("rsc") == RID
        }

    def sleep(self, seconds: float) -> None:
        """Time passes for everybody; Pacemaker does what it was asked for meanwhile."""
        self._quiet += 1
        if self.pacemaker.is_dirty:
            self._quiet = 0
        for xen in self.xens.values():
            # A wait in which nothing happens for long need not be lived through.
            xen.sleep(seconds if self._quiet < 100 else 30.0)
        if self.pacemaker.is_dirty:
            self.pacemaker.go_on()

    def fail(self, node: str) -> None:
        """A node dies, and is fenced."""
        self.dead.add(node)
        self.pacemaker.go_on("--node-fail", node)

    def come_back(self, node: str) -> None:
        """A fenced node boots and joins."""
        self.dead.discard(node)
        self.pacemaker.go_on("--node-up", node)

    def check(self) -> None:
        """What must be true at any moment."""
        assert len(self.runs_on()) <= 1, f"VM 7 runs on {self.runs_on()}"
        self.san.check()

    # --- Pacemaker's orders --------------------------------------------------------------------

    def _act(self, order: Order) -> tuple[int, str]:
        self.said.clear()
        code = self._agent(order.node, order.action, order.env)
        if order.node in self.dead:
            raise NodeLostError(order)
        return code, " ".join(self.said)

    def _agent(self, node: str, action: str, env: Mapping[str, str]) -> int:
        xen = self.xens[node]
        try:
            return self.run_agent(xen.machine(), action, env)
        except KilledError:
            xen.node.revive()
            self.said.append("killed")
            return 1

    def run_agent(self, machine: Machine, action: str, env: Mapping[str, str]) -> int:
        """What ``cxm-agent`` does."""

        def settings() -> NodeConfig:
            if self.is_broken:
                raise CxmError("cxmrc is broken")
            return machine.config

        plain = replace(machine, config=NodeConfig())
        return agentmain.perform(plain, action, env, settings, say=self.said.append)

    def _fence(self, node: str) -> None:
        xen = self.xens[node]
        xen.boot_host()
        xen.node.lose()
        for name in ("moving", "uuid"):
            shutil.rmtree(xen.node.path("run", name), ignore_errors=True)
        self.dead.add(node)

    # --- between the nodes ---------------------------------------------------------------------

    def _peer(self, argv: Sequence[str]) -> tuple[PairXen, str]:
        host = next(word for word in argv if word.startswith("root@")).removeprefix("root@")
        name = next(name for name, address in NODES.items() if address == host)
        words = argv[argv.index("--") + 1 :]
        return self.xens[name], " ".join(words)

    def _serve(self, xen: PairXen, text: str, data: bytes = b"") -> dict[str, Any]:
        def become(argv: list[str]) -> None:
            raise BecameError(argv)

        return peerserver.answered(xen.machine, text, become, io.BytesIO(data))

    def _ssh(self, argv: tuple[str, ...], data: bytes) -> Outcome:
        xen, text = self._peer(argv)
        if xen.node.name in self.dead:
            return Outcome(stderr="ssh: connect to host: No route to host\n", code=255)
        try:
            answer = self._serve(xen, text, data)
        except KilledError:
            xen.node.revive()
            return Outcome(stderr="Connection closed\n", code=255)
        except BecameError as became:
            return Outcome(_printed(became.argv))
        return Outcome(json.dumps(answer), code=1 if "error" in answer else 0)

    # --- live migration ------------------------------------------------------------------------

    def migrate(self, source: PairXen, argv: tuple[str, ...]) -> Outcome:
        """``xl migrate``, as its phases were seen; cut in one of them it ends as xl does."""
        assert argv[2:6] == ("-C", argv[3], "-s", "")
        target, text = self._peer(shlex.split(argv[7]))
        domain = source._named(argv[6])
        assert domain is not None
        if target.node.name in self.dead:
            return _broken("ssh: connect to host: No route to host")
        try:
            answer = self._serve(target, text)
            said = "migration receiver stream contained unexpected data instead of ready message"
            return Outcome(stderr=f"{peer.refused(answer)}{said}\n", code=1)
        except KilledError:
            target.node.revive()
            return _broken("Connection closed")
        except BecameError as became:
            unit = next(word for word in became.argv if word.startswith("--unit="))
        coming = replace(
            domain,
            name=f"{domain.name}--incoming",
            domid=target.state.next_domid,
            life="half",
            ran=False,
            config=f"unit:{unit.removeprefix('--unit=')}",
            keeper=4000,
        )
        away = replace(domain, life="suspended", name=f"{domain.name}--migratedaway")
        arrived = replace(coming, name=domain.name)
        steps: dict[str, Callable[[], None]] = {
            "connected": lambda: None,
            "precopy": lambda: target.put(coming),
            "suspended": lambda: source.put(replace(domain, life="suspended")),
            "ready": lambda: source.put(away),
            "go": lambda: target.put(arrived),
            "unpaused": lambda: target.put(replace(arrived, life="running", ran=True)),
            "reported": source.drop,
        }
        for phase in PHASES:
            steps[phase]()
            self.reached.append(phase)
            self.check()
            if self.cut is not None and self.cut[0] == phase:
                return self._ends(source, target, domain, steps)
        return Outcome()

    def _ends(
        self,
        source: PairXen,
        target: PairXen,
        domain: FakeDomain,
        steps: dict[str, Callable[[], None]],
    ) -> Outcome:
        phase, what = self.cut or ("", "")
        self.cut = None
        at = PHASES.index(phase)
        if what == "target":
            self.dead.add(target.node.name)
            target.drop()
        elif what == "receiver":
            there = target.of_vm(7)
            if there is not None:
                target.put(replace(there, keeper=None))
        elif at < _GO:
            target.drop()
        else:
            steps["unpaused"]()
        if what in ("xl", "agent", "source"):
            if what == "source":
                self.dead.add(source.node.name)
                source.drop()
            if what != "xl":
                source.node._kill()
            return Outcome(stderr="Killed\n", code=137)
        # As soon as it has tried to say "go", xl never lets the guest run here again.
        if phase in ("connected", "precopy", "suspended"):
            source.put(domain)
            return _broken("migration target stream ended unexpectedly, resumed at our end")
        if phase == "reported":
            return Outcome()
        return _broken("** Migration failed during final handshake **")


def running() -> Pair:
    """VM 7 runs on node1, whose steps count from now on."""
    pair = Pair()
    pair.start("node1")
    node = pair.xens["node1"].node
    node.ran.clear()
    node.own.clear()
    return pair


def _printed(argv: list[str]) -> str:
    """What ``cat`` prints; nothing else is become here."""
    assert argv[:2] == ["cat", "--"]
    return Path(argv[2]).read_bytes().decode("latin-1")


def _broken(text: str) -> Outcome:
    return Outcome(stderr=f"libxl: error: xl_migrate.c:1:x: {text}\n", code=1)


def _runs(domain: FakeDomain) -> bool:
    return domain.life in ("running", "asked") and domain.uuid == domain_uuid(CLOUD, VmId(7))
