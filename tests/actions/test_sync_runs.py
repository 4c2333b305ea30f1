# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Runs of ``cxm-sync``: by the timer, for a nudge, by a human, several at once; what they say."""

import json
import os
from argparse import Namespace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from cxm import lock
from cxm.errors import BY_NAME, LockTimeoutError, RefusedError, UsageError
from cxm.names import VmId
from cxm.sync import main, memory
from tests.actions.test_sync import fail_over, moved, quietly
from tests.fakes.believing import Believing


class TestNudges:
    """A hint: lost, doubled, late, it changes nothing but the moment."""

    def test_goes_on_looking_until_it_is_certain(self, world: Believing) -> None:
        """The VM was just being started when the nudge came."""
        fail_over(world)
        world.pair.pacemaker.edit(lambda root: root.set("have-quorum", "0"))
        real = world.sleep

        def better(seconds: float) -> None:
            world.pair.pacemaker.edit(lambda root: root.set("have-quorum", "1"))
            real(seconds)

        world.sleep = better  # type: ignore[method-assign]
        quietly(world, nudged=True)
        assert world.belief() == ("RUNNING", "node2")

    def test_gives_up_after_a_while(self, world: Believing) -> None:
        """The timer goes on."""
        moved(world)
        world.pair.pacemaker.edit(lambda root: root.set("have-quorum", "0"))
        began = world.now
        quietly(world, nudged=True)
        assert world.now - began < 60

    def test_a_clock_that_is_set_back(self, world: Believing) -> None:
        """It ends no later: whoever waits holds up all other runs."""
        moved(world)
        world.pair.pacemaker.edit(lambda root: root.set("have-quorum", "0"))
        turns: list[float] = []

        def back(seconds: float) -> None:
            turns.append(seconds)
            world.now -= 3600
            assert len(turns) < 10

        world.sleep = back  # type: ignore[method-assign]
        quietly(world, nudged=True)

    def test_a_clock_that_is_set_back_while_oned_is_at_it(self, world: Believing) -> None:
        """The next run sees what became of it."""
        fail_over(world)
        turns: list[float] = []

        def begins(vm: VmId, host: int, *, live: bool) -> None:
            assert (vm, host, live) == (7, 1, True)
            world.state, world.host = "MIGRATE", "node2"

        def back(seconds: float) -> None:
            turns.append(seconds)
            world.now -= 3600
            assert len(turns) < 10

        world.sleep, world.migrate = back, begins  # type: ignore[method-assign]
        (only,) = world.sync().decisions
        assert "OpenNebula is still at it" in only.sentence

    def test_doubled(self, world: Believing) -> None:
        """Who waited for the run that has just looked need not look again."""
        here = world.here()
        known = memory.load(here.place)
        known.began_at = world.now + 1
        memory.store(here.place, known)
        assert main.sync(here, nudged=True) is None
        assert world.asked == []

    def test_one_waits_for_all(self, world: Believing) -> None:
        """A node that nudges a hundred times does not make a hundred processes wait."""
        here = world.here()
        with lock.hold(here.place, "waiting", timeout_s=0.0):
            assert main.sync(here, nudged=True) is None
        assert world.asked == []


class Flushed(StringIO):
    """What somebody before a screen has seen."""

    shown = ""

    def flush(self) -> None:
        self.shown = self.getvalue()


class TestCommand:
    """What people and programs see."""

    def _run(self, world: Believing, *, code: int = 0, **given: Any) -> str:
        out = StringIO()
        known = {"remove": None, "dry_run": False, "json": False} | given
        assert main.run(world.here(), Namespace(**known), out) == code
        return out.getvalue()

    def test_what_is_not_removed_is_no_success(self, world: Believing) -> None:
        """Scripts go by the exit code."""
        world.state = "DONE"
        assert "kept: " in self._run(world, remove="7", code=RefusedError.code)
        assert "it runs on node1" in self._run(world, remove="7", code=RefusedError.code)
        world.pair.stop("node1")
        assert "to be removed" in self._run(world, remove="7", dry_run=True)
        assert "removed: " in self._run(world, remove="7")
        assert "nothing of it is there" in self._run(world, remove="7", code=RefusedError.code)

    @pytest.mark.parametrize("given", [{}, {"dry_run": True}, {"remove": "7"}], ids=str)
    def test_nobody_waits_for_the_look_around(
        self, world: Believing, given: dict[str, Any]
    ) -> None:
        """Slow nodes may take a minute for that: what was found is on the screen by then."""
        world.state = "DONE"
        out, seen = Flushed(), []

        def looks(_host: str, verb: str) -> None:
            if verb == "requested":
                seen.append(out.shown)

        world.before = looks
        main.run(
            world.here(),
            Namespace(**({"remove": None, "dry_run": False, "json": False} | given)),
            out,
        )
        assert seen
        assert all(text.startswith("stuck   VM 7 (web): ") for text in seen)
        assert "volume" not in seen[0]
        assert out.getvalue().startswith(seen[0])
        assert ("volume  VM 7: " in out.getvalue()) == ("remove" in given)

    def test_one_document_for_programs(self, world: Believing) -> None:
        """It has both."""
        world.state = "DONE"
        said = self._run(world, json=True, remove="7", code=RefusedError.code)
        document = json.loads(said)
        assert [len(document[key]) for key in ("vms", "volumes")] == [1, 1]

    def test_text(self, world: Believing) -> None:
        """A sentence for each VM."""
        fail_over(world)
        said = self._run(world, dry_run=True)
        assert said == (
            "act     VM 7 (web): OpenNebula says RUNNING on node1, but it runs on node2: "
            "one.vm.migrate, live\n"
        )

    def test_json(self, world: Believing) -> None:
        """The same, for programs."""
        (vm,) = json.loads(self._run(world, json=True))["vms"]
        expected = {"vm": 7, "state": "RUNNING", "host": "node1", "runs_on": "node1"}
        assert vm | expected == vm
        assert vm["kind"] == "agreed"

    @pytest.mark.parametrize("dry_run", [True, False])
    def test_what_is_for_a_human_is_told_by_the_exit_code(
        self, world: Believing, dry_run: bool
    ) -> None:
        """A script need not read sentences; what is done by itself is no news."""
        fail_over(world)
        self._run(world, dry_run=True)
        world.locked = True
        assert "onevm unlock 7" in self._run(world, dry_run=dry_run, code=main.ATTENTION)
        world.locked = False
        self._run(world)

    def test_the_service_does_not_fail_for_it(self) -> None:
        """A failed unit means that nobody looks."""
        unit = Path(__file__).parents[2] / "packaging/systemd/cxm-sync.service"
        assert f"\nSuccessExitStatus={main.ATTENTION}\n" in unit.read_text(encoding="ascii")
        assert main.ATTENTION not in {error.code for error in BY_NAME.values()}

    def test_two_at_once(self, world: Believing, monkeypatch: pytest.MonkeyPatch) -> None:
        """The timer's run leaves it to a nudge's, and has not failed; one that removes waits."""
        fail_over(world)
        monkeypatch.setattr(main, "LOCK_S", 0.0)
        with lock.hold(world.here().place, "sync", timeout_s=0.0):
            assert self._run(world) == (
                "note: another cxm-sync is at work, and sees what this one would\n"
            )
            with pytest.raises(LockTimeoutError):
                self._run(world, remove="7")
        assert world.told == []

    def test_wrong_number(self, world: Believing) -> None:
        """Is refused."""
        with pytest.raises(UsageError, match="is not the id of a VM"):
            self._run(world, remove="x")

    def test_nothing_is_written_for_others_to_read(self, world: Believing) -> None:
        """Claims are oned's account's own."""
        quietly(world)
        assert os.stat(world.here().place).st_mode & 0o077 == 0
