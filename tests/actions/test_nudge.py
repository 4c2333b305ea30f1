# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""The nudge: spooled by the agent, sent by a service, by a key that can do nothing else."""

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from cxm.cluster import nudge
from cxm.errors import CxmError, UsageError
from cxm.names import CloudId
from cxm.node.machine import Machine
from cxm.node.verbs import Call
from cxm.setup import keys as setup_keys
from cxm.sync import keys
from cxm.sync.look import Seen
from cxm.sync.views import Answer, Host, World
from tests.fakes.answering import Answering
from tests.fakes.domains import NAME
from tests.fakes.machine import Outcome
from tests.fakes.pair import Pair

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIG1lZ2VycyBhcmUgbm90IGZvciBzYWxlIGF0IGFsbCEh"


@dataclass(slots=True)
class Frontends:
    """What the node's ssh reaches."""

    up: set[str]
    reached: list[str] = field(default_factory=list)
    argv: list[tuple[str, ...]] = field(default_factory=list)
    hooks: list[tuple[str, ...]] = field(default_factory=list)

    def ssh(self, argv: tuple[str, ...], _data: bytes) -> Outcome:
        host = argv[-3]
        self.argv.append(argv)
        if host not in self.up:
            return Outcome(stderr="ssh: connect to host: No route to host\n", code=255)
        self.reached.append(host)
        return Outcome()


@pytest.fixture
def pair() -> Pair:
    """VM 7 runs on node1."""
    made = Pair()
    made.start("node1")
    return made


def waiting(pair: Pair, node: str) -> list[nudge.Note]:
    """What waits to be sent from a node."""
    return [note for _path, note in nudge._notes(pair.xens[node].machine())]


def sender(pair: Pair, node: str, frontends: Frontends, **settings: Any) -> Machine:
    """A node whose service is about to send."""
    xen = pair.xens[node]
    machine = xen.machine()
    xen.node.model("ssh", frontends.ssh)
    config = replace(machine.config, **({"one_host": ("front",)} | settings))
    key = xen.node.path("run", "nudge_key")  # a frontend has asked for it
    Path(key).touch()
    return replace(machine, config=config, nudge_key=key)


class TestSpool:
    """Every way in which a VM comes to run on a node."""

    def test_started(self, pair: Pair) -> None:
        """By OpenNebula, too: it is a hint."""
        (note,) = waiting(pair, "node1")
        assert (note.name, note.source, note.target) == (NAME, "", "node1")
        assert not note.hook

    def test_failed_over(self, pair: Pair) -> None:
        """The original's hook never fired then."""
        pair.fail("node1")
        assert [note.name for note in waiting(pair, "node2")] == [NAME]

    def test_moved(self, pair: Pair) -> None:
        """Told by the node that it has come to."""
        pair.move("node1", "node2")
        (note,) = waiting(pair, "node2")
        assert (note.source, note.target, note.hook) == ("node1", "node2", True)

    def test_restored(self, pair: Pair) -> None:
        """As a start."""
        pair.ask("node1", "domain-save", vm=7)
        pair.restore("node1")
        assert len(waiting(pair, "node1")) == 2

    def test_never_a_reason_to_fail(self, pair: Pair, tmp_path: Path) -> None:
        """A guest that runs is not stopped because a note cannot be written."""
        (tmp_path / "run").touch()
        nudge.spool(replace(pair.xens["node1"].machine(), run_dir=str(tmp_path / "run")), NAME)

    def test_one_migrate(self, pair: Pair) -> None:
        """What scripts of the original call; it only leaves a note."""
        machine = pair.xens["node2"].machine()
        nudge.told(machine, ["web", "node1", "node2"])
        (note,) = waiting(pair, "node2")
        assert (note.name, note.source, note.hook) == ("web", "node1", False)
        with pytest.raises(UsageError, match="usage: one-migrate VM SOURCE TARGET"):
            nudge.told(machine, ["web"])

    def test_one_migrate_that_leaves_no_note(self, pair: Pair, tmp_path: Path) -> None:
        """By somebody who is not root, or with a full disk: a script must not take it for done."""
        (tmp_path / "run").touch()
        machine = replace(pair.xens["node2"].machine(), run_dir=str(tmp_path / "run"))
        with pytest.raises(CxmError, match="node2 keeps no note that web has moved: ") as failure:
            nudge.told(machine, ["web", "node1", "node2"])
        assert "only root" in (failure.value.hint or "")


class TestSend:
    """The service."""

    def test_once_for_all_notes(self, pair: Pair) -> None:
        """It carries no order: one tells as much as ten."""
        frontends = Frontends({"oneadmin@front"})
        machine = sender(pair, "node1", frontends)
        nudge.spool(machine, "other")
        assert nudge.send(machine)
        assert frontends.reached == ["oneadmin@front"]
        assert waiting(pair, "node1") == []
        assert frontends.argv[0][-2:] == ("--", "nudge")

    def test_frontend_away(self, pair: Pair) -> None:
        """The note waits, and goes when it is stale: the frontend's timer has looked."""
        frontends = Frontends(set())
        machine = sender(pair, "node1", frontends)
        assert not nudge.send(machine)
        assert len(waiting(pair, "node1")) == 1
        pair.xens["node1"].clock += 601
        assert nudge.send(machine)
        assert waiting(pair, "node1") == []

    def test_several_frontends(self, pair: Pair) -> None:
        """All are told: one of them leads."""
        frontends = Frontends({"oneadmin@b", "one@c"})
        machine = sender(pair, "node1", frontends, one_host=("a", "b", "one@c"))
        assert nudge.send(machine)
        assert frontends.reached == ["oneadmin@b", "one@c"]

    def test_none(self, pair: Pair) -> None:
        """The frontend's timer does it."""
        frontends = Frontends(set())
        assert nudge.send(sender(pair, "node1", frontends, one_host=()))
        assert waiting(pair, "node1") == []
        assert frontends.argv == []

    def test_no_frontend_has_asked_for_the_key(self, pair: Pair) -> None:
        """None would listen, so the node does not try for ten minutes."""
        frontends = Frontends({"oneadmin@front"})
        machine = sender(pair, "node1", frontends)
        Path(machine.nudge_key).unlink()
        assert nudge.send(machine)
        assert waiting(pair, "node1") == []
        assert frontends.argv == []

    def test_damaged_note(self, pair: Pair) -> None:
        """Is removed."""
        machine = sender(pair, "node1", Frontends({"oneadmin@front"}))
        Path(machine.run_dir, "nudge", "1").write_text("{", encoding="ascii")
        assert nudge.send(machine)
        assert os.listdir(os.path.join(machine.run_dir, "nudge")) == []


class TestHook:
    """POST_MIGRATION_HOOK, a program of the administrator's."""

    def _hook(self, tmp_path: Path, mode: int = 0o755) -> str:
        path = tmp_path / "hook"
        path.touch()
        path.chmod(mode)
        return str(path)

    def _sent(self, pair: Pair, hook: str) -> list[tuple[str, ...]]:
        ran: list[tuple[str, ...]] = []

        def run(argv: tuple[str, ...], _data: bytes) -> Outcome:
            ran.append(argv)
            return Outcome(code=1)

        pair.move("node1", "node2")
        machine = sender(pair, "node2", Frontends(set()), post_migration_hook=hook)
        pair.xens["node2"].node.model(hook, run)
        nudge.send(machine)
        nudge.send(machine)
        return ran

    def test_run_once_after_a_move(self, pair: Pair, tmp_path: Path) -> None:
        """Though the frontend is away, and though it fails."""
        hook = self._hook(tmp_path)
        assert self._sent(pair, hook) == [(hook, NAME, "node1", "node2")]

    def test_not_one_that_others_can_change(self, pair: Pair, tmp_path: Path) -> None:
        """Root would run what they write."""
        assert self._sent(pair, self._hook(tmp_path, 0o777)) == []

    def test_not_one_that_others_can_replace(self, pair: Pair, tmp_path: Path) -> None:
        """It is root's, but its directory is theirs, or a directory above that."""
        (tmp_path / "open").mkdir()
        (tmp_path / "open" / "dir").mkdir()
        hook = self._hook(tmp_path / "open" / "dir")
        (tmp_path / "open").chmod(0o777)
        (tmp_path / "link").symlink_to(hook)
        assert self._sent(pair, str(tmp_path / "link")) == []

    def test_the_frontend_does_not_wait_for_it(self, pair: Pair, tmp_path: Path) -> None:
        """It may take minutes; OpenNebula is to know within seconds."""
        frontends, reached = Frontends({"oneadmin@front"}), []
        pair.move("node1", "node2")
        hook = self._hook(tmp_path)
        machine = sender(pair, "node2", frontends, post_migration_hook=hook)

        def run(_argv: tuple[str, ...], _data: bytes) -> Outcome:
            reached.extend(frontends.reached)
            return Outcome()

        pair.xens["node2"].node.model(hook, run)
        assert nudge.send(machine)
        assert reached == ["oneadmin@front"]
        assert waiting(pair, "node2") == []

    def test_the_originals_is_ours(self, pair: Pair) -> None:
        """A setting that points at one-migrate keeps working: the cluster nudges anyway."""
        assert self._sent(pair, "/usr/local/sbin/one-migrate") == []


class TestKeys:
    """Who may nudge: the nodes that OpenNebula knows, and nothing else."""

    def test_made_on_the_node(self, pair: Pair) -> None:
        """When it is asked for the first time, and only where there is somebody to nudge."""
        xen = pair.xens["node1"]
        path = xen.node.path("run", "nudge_key")
        made: list[tuple[str, ...]] = []

        def keygen(argv: tuple[str, ...], _data: bytes) -> Outcome:
            made.append(argv)
            Path(f"{path}.pub").write_text(f"{KEY} cxm\n", encoding="ascii")
            return Outcome()

        xen.node.model("ssh-keygen", keygen)
        machine = replace(xen.machine(), nudge_key=path)
        call = Call(machine, CloudId("testcloud"))
        assert nudge.key(call) == {"key": ""}
        call.machine = replace(machine, config=replace(machine.config, one_host=("front",)))
        assert nudge.key(call) == nudge.key(call) == {"key": f"{KEY} cxm"}
        assert len(made) == 1

    def test_let_in(self, tmp_path: Path) -> None:
        """A line each, that forces one command; others' lines stay."""
        home = tmp_path / "home"
        (home / ".ssh").mkdir(parents=True)
        path = home / ".ssh/authorized_keys"
        path.write_bytes(b"ssh-rsa BBBB J\xf6rg\x0c\r\n")
        host = Host(0, "node1", offline=False, ours=True, monitored=True)
        answer = Answer("node1", clustered=True, hosts=("node1", "stranger"))
        seen = Seen(World((answer,)), {}, {"node1": host})

        def told(verb: str, _args: dict[str, Any]) -> dict[str, Any]:
            assert verb == "nudge-key"
            return {"key": f"{KEY} x"}

        for _twice in range(2):
            keys.let_in(lambda host: Answering(host, told), seen, str(home), keys.COMMAND)
        line = f'command="/usr/sbin/cxm-sync --nudged",restrict {KEY} cxm-sync:node=node1\n'
        assert path.read_bytes() == b"ssh-rsa BBBB J\xf6rg\x0c\r\n" + line.encode()
        assert path.stat().st_mode & 0o777 == 0o600

    @pytest.mark.parametrize(
        ("told", "known", "stays"),
        [(True, True, True), (False, True, True), (False, False, False)],
    )
    def test_a_host_that_is_gone_loses_its_line(self, told: bool, known: bool, stays: bool) -> None:
        """One that does not answer for a moment keeps it."""
        key = setup_keys.public_key(KEY)
        line = keys.line_of("node1", key, keys.COMMAND)
        wanted = {"node1": key if told else None} if known else {}
        new = keys.merge(f"{line}\n", wanted, ["node1"] if known else [], keys.COMMAND)
        assert new == (f"{line}\n" if stays else "")

    def test_a_path_that_would_break_the_line(self) -> None:
        """Is refused."""
        with pytest.raises(UsageError, match="cannot be written into authorized_keys"):
            keys.line_of("node1", setup_keys.public_key(KEY), '/x"y')
