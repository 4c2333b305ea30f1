# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""What a turn of ``cxm-sync`` costs after a failover of many VMs: round trips, and who waits.

oned runs its drivers in threads: the real driver ``migrate`` is called so here.
"""

import io
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final

import pytest

from cxm import config
from cxm.errors import CxmError, RefusedError, UnreachableError
from cxm.names import CloudId, VmId
from cxm.node.client import Node
from cxm.one.action import Call, Context, load
from cxm.one.version import OneVersion
from cxm.run import System
from cxm.sync import claims, memory
from cxm.sync.decide import Kind
from cxm.sync.look import AT_ONCE
from cxm.sync.memory import Memory
from cxm.sync.turns import Here, Turn, turn
from tests.fakes.answering import Answering

HOSTS: Final = ("dead", "b", "c")
CLOUD: Final = CloudId("cloudone1")
_LONG_S: Final = 20.0


class Front(Context):
    """A driver on the frontend; it reaches the modelled hosts."""

    world: "World"

    def node(self, host: str | None) -> Node:
        assert host is not None
        return self.world.node(host, CLOUD)


class World:
    """VMs that ran on a host that is dead, oned, and the nodes where they have come to."""

    def __init__(self, root: Path, places: dict[int, str]) -> None:
        self.places = {VmId(vm): host for vm, host in places.items()}
        self.believed = dict.fromkeys(self.places, "dead")
        self.known = dict.fromkeys(self.places, "dead")
        self.asked: Counter[tuple[str, str]] = Counter()
        self.refused: dict[str, str] = {}
        self.silent = {"dead"}
        self.claims: threading.Barrier | None = None
        self.confirms: threading.Barrier | None = None
        self.most = 0
        self.now = time.time()  # drivers have no other clock for claims
        self._under_way: dict[VmId, threading.Thread] = {}
        self._lock = threading.Lock()
        self._root = root
        (root / "remotes").mkdir()
        # b has answered at the last turn, before the failover.
        known = Memory(answered=["b"], clustered=list(HOSTS), around_at=self.now)
        memory.store(claims.directory(str(root / "remotes")), known)
        vector = "ARGUMENTS=-t 15 -l migrate cxm,EXECUTABLE=one_vmm_exec,NAME=vmm_cxm"
        settings = f"PORT=2633\nVM_MAD={vector},TYPE=xml\n"
        (root / "config").write_text(settings, encoding="ascii")
        (root / "remotes" / "cxmrc").write_text(f'CLOUD_ID="{CLOUD}"\n', encoding="ascii")

    def turn(self) -> Turn:
        """One turn."""
        oned: Any = self
        here = Here(
            str(self._root / "remotes"), System(), {}, lambda: self.now, self._sleep,
            lambda _remotes, _environ: oned, self.node, str(self._root),
        )  # fmt: skip
        return turn(here, dry_run=False)

    def _sleep(self, seconds: float) -> None:
        self.now += seconds
        for thread in list(self._under_way.values()):
            thread.join(_LONG_S)

    # --- nodes

    def node(self, host: str, _cloud: CloudId) -> Node:
        """A node as drivers and the sync reach it."""

        def asked(verb: str, args: dict[str, Any]) -> dict[str, Any]:
            with self._lock:
                self.asked[host, verb] += 1
            if host in self.silent:
                raise UnreachableError(f"{host} cannot be reached by ssh")
            return self.answer(host, verb, args)

        return Answering(host, asked)

    def answer(self, host: str, verb: str, args: dict[str, Any]) -> dict[str, Any]:
        """What a node does."""
        if verb == "whereabouts":
            rows = [
                {"vm": vm, "host": place, "doubt": "", "wanted": True, "told": self.known[vm]}
                for vm, place in self.places.items()
            ]
            return {
                "clustered": True, "doubt": "", "hosts": list(HOSTS), "unclear": [],
                "away": ["dead"], "vms": rows,
            }  # fmt: skip
        if verb == "domain-claim":
            if self.claims is not None:
                self.claims.wait()
            assert all(self.places[vm] == host for vm in args["vms"])
            return {"refused": self.refused}
        if verb == "domain-confirm":
            if self.confirms is not None:
                self.confirms.wait()
            return {}
        assert verb == "domain-told", verb
        self.known |= {VmId(int(vm)): name for vm, name in args["hosts"].items()}
        return {}

    # --- oned

    def version(self) -> str:
        """As it says."""
        return "7.4.0"

    def leads(self) -> bool:
        """There is no other."""
        return True

    def hosts_info(self) -> str:
        """All are ours."""
        rows = [
            f"<HOST><ID>{number}</ID><NAME>{name}</NAME><STATE>2</STATE><IM_MAD>cxm</IM_MAD>"
            "<VM_MAD>vmm_cxm</VM_MAD></HOST>"
            for number, name in enumerate(HOSTS)
        ]
        return f"<HOST_POOL>{''.join(rows)}</HOST_POOL>"

    def vm_info(self, vm: VmId) -> str:
        """RUNNING, or MIGRATE while a driver is at work."""
        with self._lock:
            lcm = 4 if vm in self._under_way else 3
            host = self.believed[vm]
        return (
            f"<VM><ID>{vm}</ID><NAME>vm{vm}</NAME><STATE>3</STATE><LCM_STATE>{lcm}</LCM_STATE>"
            f"<HISTORY_RECORDS><HISTORY><HOSTNAME>{host}</HOSTNAME></HISTORY></HISTORY_RECORDS></VM>"
        )

    def vms_info(self) -> str:
        """All."""
        return f"<VM_POOL>{''.join(self.vm_info(vm) for vm in self.places)}</VM_POOL>"

    def migrate(self, vm: VmId, host: int, *, live: bool) -> None:
        """Return at once; a thread calls the driver."""
        assert live
        thread = threading.Thread(target=self._drive, args=(vm, HOSTS[host]), daemon=True)
        with self._lock:
            self._under_way[vm] = thread
            self.most = max(self.most, len(self._under_way))
        thread.start()

    def _drive(self, vm: VmId, target: str) -> None:
        settings = config.FrontendConfig(cloud_id=CLOUD)
        ctx = Front(settings, OneVersion(7, 4), System(), str(self._root / "remotes"), {})
        object.__setattr__(ctx, "world", self)
        words = ("name", target, "dead", str(vm), "dead")
        try:
            load("vmm", "migrate").run(ctx, Call("vmm", "migrate", words, io.StringIO("")))
        except (CxmError, threading.BrokenBarrierError):
            target = "dead"
        with self._lock:
            self.believed[vm] = target
            del self._under_way[vm]


@pytest.mark.parametrize("count", [1, 3, AT_ONCE])
def test_a_failover_to_one_host(tmp_path: Path, count: int) -> None:
    """One look, one claim for all; then all confirmations at the same time, and one note.

    A confirmation that has to wait for another one's end breaks the barrier.
    """
    world = World(tmp_path, dict.fromkeys(range(count), "b"))
    world.confirms = threading.Barrier(count, timeout=_LONG_S)
    done = world.turn()
    assert [each.kind for each in done.decisions] == [Kind.AGREED] * count
    assert set(world.believed.values()) == set(world.known.values()) == {"b"}
    assert world.asked == {
        ("b", "whereabouts"): 1, ("b", "domain-claim"): 1, ("b", "domain-confirm"): count,
        ("b", "domain-told"): 1,
    }  # fmt: skip
    world.asked.clear()
    world.turn()
    assert world.asked == {("b", "whereabouts"): 1}


def test_hosts_are_claimed_at_the_same_time(tmp_path: Path) -> None:
    """A host that is slow, or hangs, costs the others' VMs nothing more than its own."""
    world = World(tmp_path, {1: "b", 2: "c", 3: "b", 4: "c"})
    world.claims = threading.Barrier(2, timeout=_LONG_S)
    world.confirms = threading.Barrier(4, timeout=_LONG_S)
    assert [each.kind for each in world.turn().decisions] == [Kind.AGREED] * 4
    assert world.believed == world.places
    assert world.asked["b", "domain-claim"] == world.asked["c", "domain-claim"] == 1


def test_only_so_many_are_under_way(tmp_path: Path) -> None:
    """A VM's claim must not end while oned's drivers have not come to it."""
    world = World(tmp_path, dict.fromkeys(range(AT_ONCE + 5), "b"))
    world.turn()
    assert set(world.believed.values()) == {"b"}
    assert world.most <= AT_ONCE
    assert world.asked["b", "domain-claim"] == 2


def test_one_that_is_refused_does_not_stop_the_others(tmp_path: Path) -> None:
    """Nothing is called for it, and it has a sentence."""
    world = World(tmp_path, {1: "b", 2: "b", 3: "b"})
    world.refused = {"2": "it is not certain that VM 2 runs on b: it is being moved"}
    found = {each.record.vm: each for each in world.turn().decisions}
    assert [each.kind for each in found.values()] == [Kind.AGREED, Kind.WAIT, Kind.AGREED]
    assert "it is being moved" in found[VmId(2)].sentence
    assert world.believed == {1: "b", 2: "dead", 3: "b"}


def test_a_host_that_is_silent_does_not_stop_the_others(tmp_path: Path) -> None:
    """Its VMs wait, with its failure as the reason."""
    world = World(tmp_path, {1: "b", 2: "c"})
    world.silent.add("c")
    first, second = world.turn().decisions
    assert (first.kind, second.kind) == (Kind.AGREED, Kind.WAIT)
    assert second.sentence == "VM 2 (vm2): c cannot be reached by ssh"
    assert world.believed == {1: "b", 2: "dead"}


def test_what_is_refused_at_last_is_kept(tmp_path: Path) -> None:
    """The node does not confirm one of them: OpenNebula keeps that one where it was."""
    world = World(tmp_path, {1: "b", 2: "b"})
    real = world.answer

    def answer(host: str, verb: str, args: dict[str, Any]) -> dict[str, Any]:
        if verb == "domain-confirm" and args["vm"] == 1:
            raise RefusedError("it is on its way")
        return real(host, verb, args)

    world.answer = answer  # type: ignore[method-assign]
    # oned needs some seconds to begin, as far as the sync knows: so much it waits.
    assert [each.kind for each in world.turn().decisions] == [Kind.STUCK, Kind.AGREED]
    assert world.believed == {1: "dead", 2: "b"}
    assert world.known == {1: "dead", 2: "b"}
