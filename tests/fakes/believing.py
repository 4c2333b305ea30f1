# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the model of a frontend for the sync: an oned that believes, and calls the real drivers.

It believes VM 7 on a host of the modelled pair (:mod:`tests.fakes.pair`). What it is told it does
as its version does: states, history records and the order of the drivers' actions are those of the
protocol reference. A driver reaches a node as over ssh: one that is dead does not answer.
"""

import base64
import io
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from cxm import config
from cxm.errors import CxmError, NotFoundError, UnreachableError
from cxm.names import CloudId, VmId
from cxm.node.client import Node
from cxm.one.action import Call, Context, load
from cxm.one.version import OneVersion
from cxm.run import System
from cxm.sync.main import sync
from cxm.sync.turns import Here, Turn
from lab.oned import states
from tests.fakes.answering import NoTransfers
from tests.fakes.domains import guest
from tests.fakes.machine import CLOUD, FakeNode, Outcome
from tests.fakes.pair import Pair

_HOSTS: Final = ("node1", "node2")
# Moves of files that failed, and what the VM was before.
_FAILED_MOVES: Final = {
    "PROLOG_MIGRATE_POWEROFF_FAILURE": "POWEROFF",
    "PROLOG_MIGRATE_SUSPEND_FAILURE": "SUSPENDED",
}


class PairClient(NoTransfers):
    """A node of the pair as the frontend reaches it."""

    def __init__(self, world: "Believing", host: str) -> None:
        self._world = world
        self._host = host

    @property
    def name(self) -> str:
        return self._host

    def call(self, verb: str, args: dict[str, Any], *, timeout_s: float = 120.0) -> dict[str, Any]:
        world = self._world
        world.asked.append((self._host, verb))
        world.before(self._host, verb)
        if self._host in world.pair.dead | world.cut_off:
            raise UnreachableError(f"{self._host} cannot be reached by ssh")
        given = dict(args)
        if "dir" in given:
            given["dir"] = world.pair.directory(self._host)
        return world.pair.ask(self._host, verb, **given).result


@dataclass(frozen=True, slots=True)
class _Front(Context):
    world: "Believing" = field(kw_only=True)

    def node(self, host: str | None) -> Node:
        assert host is not None, "a local action runs on the frontend"
        return PairClient(self.world, host)

    def is_store(self, host: str) -> bool:
        return False


class Believing:
    """The frontend, and the oned on it; a :class:`cxm.one.api.Recorder`."""

    def __init__(self, root: Path, pair: Pair, version: OneVersion) -> None:
        self.pair = pair
        self.one = version
        self.now = time.time()  # drivers have no other clock for claims
        self.state = "RUNNING"
        self.host = "node1"
        self.source = "node1"  # of the last migration
        self.moving = False
        self.error = ""
        self.locked = False
        self.leader = True
        self.is_up = True
        self.is_known = True
        self.queue: list[str] = []  # states that another thread of oned's is about to set
        self.moves_files = True  # of what is off
        self.driver_dies = False  # in a live migration, after ours has confirmed it
        self.is_idle = False  # it takes calls, and does nothing about them
        self.refuses = ""  # what it answers to a call that changes something
        self.hosts: dict[str, int] = dict.fromkeys(_HOSTS, 2)  # their states
        self.cut_off: set[str] = set()
        self.network: list[tuple[str, str, bytes]] = []  # steps: host, command, decoded input
        self.is_network_cut = False
        self._runner = FakeNode(str(root / "frontend"))
        self._runner.model("ssh", self._ssh)
        self.cards = ""  # the VM's, as XML
        self.told: list[str] = []  # the calls that change something
        self.asked: list[tuple[str, str]] = []
        self.actions: list[str] = []
        self.before: Callable[[str, str], None] = lambda _host, _verb: None
        self.before_call: Callable[[str], None] = lambda _call: None
        self.remotes = root / "one" / "remotes"
        self.remotes.mkdir(parents=True)
        self.config("-t 15 -l migrate cxm")
        (self.remotes / "cxmrc").write_text(f'CLOUD_ID="{CLOUD}"\n', encoding="ascii")
        self.home = root / "home"

    # --- for tests -----------------------------------------------------------------------------

    def config(self, arguments: str) -> None:
        """The settings that oned runs with; these are the VM driver's arguments."""
        vector = f"ARGUMENTS={arguments},EXECUTABLE=one_vmm_exec,NAME=vmm_cxm,TYPE=xml"
        other = "VM_MAD=ARGUMENTS=-l save kvm,NAME=kvm"
        text = f"PORT=2633\nSCRIPTS_REMOTE_DIR=/var/tmp/one\n{other}\nVM_MAD={vector}\n"
        (self.remotes.parent / "config").write_text(text, encoding="ascii")

    def here(self) -> Here:
        """What ``cxm-sync`` may use."""

        def oned(_remotes: str, _environ: Mapping[str, str]) -> "Believing":
            return self

        def node(host: str, _cloud: CloudId) -> Node:
            return PairClient(self, host)

        return Here(
            str(self.remotes), self._runner, {}, lambda: self.now, self.sleep, oned, node,
            str(self.home),
        )  # fmt: skip

    def sync(self, *, nudged: bool = False) -> Turn:
        """A run of ``cxm-sync``."""
        done = sync(self.here(), nudged=nudged)
        assert done is not None
        return done

    def _ssh(self, argv: tuple[str, ...], data: bytes) -> Outcome:
        """What the frontend itself runs on hosts: network steps, and nothing else."""
        host, _dashes, command = argv[-3:]
        if self.is_network_cut:
            return Outcome(stderr=f"ssh: connect to host {host}: No route to host\n", code=255)
        self.network.append((host, command, base64.b64decode(data)))
        return Outcome()

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        while self.queue:
            self.state = self.queue.pop()
        self.pair.sleep(seconds)

    def belief(self) -> tuple[str, str]:
        """State and host."""
        return self.state, self.host

    def action(self, kind: str, action: str, *argv: str) -> bool:
        """Have the frontend run a driver's action; False when it fails."""
        settings = config.FrontendConfig(cloud_id=CloudId(CLOUD))
        ctx = _Front(settings, self.one, System(), str(self.remotes), {}, world=self)
        self.actions.append(f"{kind}/{action}")
        try:
            load(kind, action).run(ctx, Call(kind, action, argv, io.StringIO("")))
        except CxmError as error:
            self.error = error.sentence()
            return False
        return True

    # --- oned ----------------------------------------------------------------------------------

    def _up(self) -> None:
        if not self.is_up:
            raise UnreachableError("oned does not answer at http://127.0.0.1:2633/RPC2")

    def version(self) -> str:
        self._up()
        return str(self.one)

    def leads(self) -> bool:
        self._up()
        return self.leader

    def hosts_info(self) -> str:
        self._up()
        rows = [
            f"<HOST><ID>{number}</ID><NAME>{name}</NAME><STATE>{state}</STATE>"
            "<IM_MAD>cxm</IM_MAD><VM_MAD>vmm_cxm</VM_MAD></HOST>"
            for number, (name, state) in enumerate(self.hosts.items())
        ]
        return f"<HOST_POOL>{''.join(rows)}</HOST_POOL>"

    def _vm(self, *, full: bool) -> str:
        """The VM; the pool has its last history record only."""
        state, lcm = states.vm_state_numbers(self.state)
        lock = "<LOCK><LOCKED>1</LOCKED></LOCK>" if self.locked else ""
        records = f"<HISTORY><HOSTNAME>{self.host}</HOSTNAME><ETIME>0</ETIME></HISTORY>"
        if full and (self.moving or self.state == "MIGRATE"):
            before = f"<HISTORY><HOSTNAME>{self.source}</HOSTNAME><ETIME>0</ETIME></HISTORY>"
            records = f"{before}{records}"
        return (
            f"<VM><ID>7</ID><NAME>web</NAME><STATE>{state}</STATE><LCM_STATE>{lcm}</LCM_STATE>{lock}"
            f"<DEPLOY_ID>web</DEPLOY_ID><TEMPLATE>{self.cards}</TEMPLATE>"
            f"<USER_TEMPLATE><ERROR>{self.error}</ERROR></USER_TEMPLATE>"
            f"<HISTORY_RECORDS>{records}</HISTORY_RECORDS></VM>"
        )

    def vms_info(self) -> str:
        self._up()
        shown = self._vm(full=False) if self.is_known and self.state != "DONE" else ""
        return f"<VM_POOL>{shown}</VM_POOL>"

    def vm_info(self, vm: VmId) -> str:
        self._up()
        if vm != 7 or not self.is_known:
            raise NotFoundError(f"oned refused one.vm.info({vm}): Error getting it")
        return self._vm(full=True)

    def image_info(self, image: int) -> str:
        raise AssertionError(image)

    def datastore_info(self, datastore: int) -> str:
        raise AssertionError(datastore)

    def recover(self, vm: VmId, *, success: bool) -> None:
        self._up()
        assert vm == 7
        self.told.append(f"recover {'success' if success else 'failure'}")
        self.before_call("recover")
        if self.refuses:
            raise CxmError(f"oned refused one.vm.recover(7): {self.refuses}")
        if self.is_idle:
            return
        if self.state == "MIGRATE":
            self.host = self.host if success else self.source
            self.state = "RUNNING"
        elif self.state in _FAILED_MOVES:
            if not success and self.one >= (5, 2):
                self.host = self.source
                self.queue.append(_FAILED_MOVES[self.state])
        elif self.state.startswith("BOOT_"):
            self.queue.append("RUNNING")
        elif self.state == "UNKNOWN":
            self.state = "RUNNING"

    def migrate(self, vm: VmId, host: int, *, live: bool) -> None:
        self._up()
        assert vm == 7
        target = list(self.hosts)[host]
        self.told.append(f"migrate {target}{' live' if live else ''}")
        self.before_call("migrate")
        if self.refuses or target == self.host:
            raise CxmError(f"oned refused one.vm.migrate(7, {host}): {self.refuses}")
        source = self.source = self.host
        if self.state == "RUNNING" and live:
            self.host = target
            if self.driver_dies:
                self.state = "MIGRATE"
            if not self._live(source, target):
                self.host = source
        elif self.state in ("POWEROFF", "SUSPENDED"):
            self.host = target
            if not self.moves_files:
                failed = (state for state, was in _FAILED_MOVES.items() if was == self.state)
                self.state = next(failed)
        elif self.state == "UNKNOWN":
            self.host = target  # its files are moved, and it is deployed there
            self.state = "RUNNING" if self._deploy(target) else "BOOT_FAILURE"
        else:
            raise CxmError(f"oned refused one.vm.migrate(7): not in state {self.state}")

    def _live(self, source: str, target: str) -> bool:
        order = (target, source) if self.one < (4, 0) else (source, target)
        words = (*order, "/var/lib/one/datastores/0/7", "7", "0")
        if not self.action("tm", "premigrate", *words):
            return False
        if not self.action("vmm", "migrate", "name", target, source, "7", source):
            return False
        if self.driver_dies:
            return True
        return self.action("tm", "postmigrate", *words) or self.one >= (4, 0)

    def _deploy(self, target: str) -> bool:
        try:
            arguments = {"vm": 7, "dir": "/x/7", "guest": guest()}
            PairClient(self, target).call("domain-start", arguments)
        except CxmError as error:
            self.error = error.sentence()
            return False
        return True
