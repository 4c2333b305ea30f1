# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Migrations of the stand-in for oned: the calls of drivers, and what OpenNebula says after each.

Those of 3.8.5 and 7.4.0 were recorded from real ones (``recorder.py``), the others follow from
oned's source (protocol section 3.1).
"""

import base64
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from cxm.errors import CxmError
from lab.oned import scenarios, states
from lab.oned.cloud import Network, VmView
from lab.oned.scenarios import Parts
from tests.contract import migrations, recorder
from tests.contract.recorded_world import World, standin
from tests.contract.recorder import Call, Played

_DATA = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "data")
_RECORDED = {"3.8": "oned-migrations-3.8.5.json", "7.4": "oned-migrations-7.4.0.json"}


@dataclass(frozen=True, slots=True)
class Moved:
    """The play of one version."""

    version: str
    world: World
    views: dict[str, VmView]
    played: Played

    def scripts(self, step: str) -> list[str]:
        """The scripts that a step called, with the host where that is the second one."""
        found = [call for call in self.played.steps[step] if "script" in call]
        return [
            "/".join(str(call["script"]).split("/")[-3::2]) + ("@2" if "host" in call else "")
            for call in found
        ]

    def call(self, step: str, action: str) -> Call:
        """The one call of a script in a step, as it was written down."""
        entries = iter(self.world.notes.entries())
        next(entry for entry in entries if entry.get("mark") == step)
        for entry in entries:
            if "mark" in entry:
                break
            if str(entry.get("path", "")).endswith(f"/{action}"):
                return entry
        raise AssertionError(f"{step} did not call {action}")


_FURTHER = pytest.mark.extensive


@pytest.fixture(
    scope="module",
    params=["7.4", *(pytest.param(each, marks=_FURTHER) for each in ("3.8", "5.10", "6.10"))],
)
def moved(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Moved]:
    """The play on a stand-in of one version, without privileges."""
    with standin(str(tmp_path_factory.mktemp("oned")), request.param) as world:
        world.notes.mark("prepare")
        migrations.prepare(world.cloud, world.image)
        views = migrations.Play(world.cloud, world.notes, world.cloud.settle).play()
        played = recorder.normal(world.notes.entries(), world.names)
        yield Moved(request.param, world, views, played)


@pytest.mark.parametrize("moved", ["7.4", pytest.param("3.8", marks=_FURTHER)], indirect=True)
def test_it_calls_the_drivers_as_real_opennebula_does(moved: Moved) -> None:
    """The same actions in the same order, with the same arguments, inputs and stream commands.

    After each step it says the same of the VM: its host, its state, how many records it has.
    """
    path = os.path.join(_DATA, _RECORDED[moved.version])
    real = recorder.recorded(path)
    assert list(moved.played.steps) == list(real.steps)
    for step, calls in real.steps.items():
        assert _in_order(moved.played.steps[step]) == _in_order(calls), step
    for kind, paths in real.shapes.items():
        theirs = {path for path in paths if "TEMPLATE" not in path}
        assert {path for path in moved.played.shapes[kind] if "TEMPLATE" not in path} == theirs
    with open(path, encoding="utf-8") as file:
        said = json.load(file)["views"]
    ours = {name: [view.host, view.state, view.sequence] for name, view in moved.views.items()}
    assert ours == said


def _in_order(calls: list[Call]) -> list[Call]:
    """The two streams of a live migration end at the same time: the order of that is chance."""
    streams = sorted((call for call in calls if "stream" in call), key=str)
    return [call for call in calls if "stream" not in call] + streams


def test_a_live_migration_takes_the_steps_of_its_version(moved: Moved) -> None:
    """The target is prepared first, the source is cleaned before the target's last step."""
    between = ["vnm/pre@2", "vmm/migrate", "vnm/clean", "vnm/post@2"]
    expected = ["tm/premigrate", *between, "tm/postmigrate"]
    assert moved.scripts("live") == expected
    argv = moved.call("live", "premigrate")["argv"]
    hosts = [recorder.HOST, migrations.OTHER]
    assert argv[:2] == (hosts[::-1] if moved.version == "3.8" else hosts)
    assert moved.call("live", "migrate")["argv"] == ["rec-0", *hosts[::-1], "0", hosts[0]]


def test_drivers_read_of_the_target_while_it_migrates(moved: Moved) -> None:
    """Oned has written the new history record already, and the state is MIGRATE."""
    call = moved.call("live", "premigrate")
    if moved.version == "3.8":
        assert call["stdin"] == ""
        data = call["argv"][5]
    else:
        assert len(call["argv"]) == 5
        data = call["stdin"]
    text = base64.b64decode(data).decode()
    assert "<LCM_STATE>4</LCM_STATE>" in text
    assert f"<HOSTNAME>{migrations.OTHER}</HOSTNAME>" in text
    assert "<SEQ>1</SEQ>" in text


@pytest.mark.parametrize(
    ("script", "told"),
    [("tm.premigrate", {"7.4"}), ("vnm.pre", set()), ("vmm.migrate", {"5.10", "6.10", "7.4"})],
)
def test_a_failed_live_migration_leaves_the_vm_where_it_was(
    moved: Moved, script: str, told: set[str]
) -> None:
    """It runs, in another record of the old host; the TM is told of it by some versions."""
    step = f"live, {script} fails"
    view = moved.views[step]
    assert (view.host, view.state, view.moving) == (recorder.HOST, "RUNNING", False)
    assert "it cannot" in view.error
    before = list(moved.views.values())[list(moved.views).index(step) - 1]
    assert view.sequence == before.sequence + 2
    assert ("tm/failmigrate" in moved.scripts(step)) is (moved.version in told)


def test_what_fails_after_the_move_matters_to_3_8_only(moved: Moved) -> None:
    """3.8 believes the VM on the old host then, where it is not."""
    view = moved.views["live, tm.postmigrate fails"]
    assert view.host == (recorder.HOST if moved.version == "3.8" else migrations.OTHER)
    assert view.state == "RUNNING"


def test_a_cold_migration_saves_moves_and_restores(moved: Moved) -> None:
    """The disks move before the directory; the context is made again from 5.0 on."""
    disks = ["tm/mv"] * 6
    context = [] if moved.version == "3.8" else ["tm/context"]
    tail = [*context, "vnm/pre@2", "vmm/restore@2", "vnm/post@2"]
    assert moved.scripts("saved") == ["vmm/save", "vnm/clean", *disks, *tail]
    assert moved.views["saved"].host == migrations.OTHER
    failed = moved.views["saved, vmm.save fails"]
    assert (failed.host, failed.state) == (migrations.OTHER, "RUNNING")


def test_a_vm_at_rest_moves_its_files_only(moved: Moved) -> None:
    """It stays what it is; 3.8 refuses that."""
    if moved.version == "3.8":
        assert "asleep" not in moved.views
        return
    assert moved.scripts("asleep") == moved.scripts("off") == ["tm/mv"] * 6
    assert moved.views["asleep"].state == "SUSPENDED"
    assert moved.views["off"].state == "POWEROFF"
    assert moved.views["resume suspended"].host == migrations.OTHER


def test_a_failed_cold_migration_waits_to_be_tried_again(moved: Moved) -> None:
    """In 3.8 the VM has failed, and is made anew."""
    state = moved.views["saved, tm.mv fails"].state
    assert state == ("FAILED" if moved.version == "3.8" else "PROLOG_MIGRATE_FAILURE")
    assert moved.views["retry moving"].state == "RUNNING"
    if moved.version != "3.8":
        assert moved.views["saved, vmm.restore fails"].state == "BOOT_MIGRATE_FAILURE"


@pytest.mark.extensive
@pytest.mark.parametrize("version", ["7.4", "3.8", "5.10", "6.10"])
def test_the_clusters_scenario_plays(version: str, tmp_path: os.PathLike[str]) -> None:
    """On two hosts, with a failing migration after it; nothing is left of either."""
    with standin(str(tmp_path), version) as world:
        network = Network("lan", "xenbr0", "10.77.1.100", 10, recorder.NETWORK_DRIVER)
        more = 'OS=[BOOTLOADER="grub"]'
        parts = Parts(recorder.HOST, world.image, network, other=migrations.OTHER, more=more)
        scenarios.prepare(world.cloud, parts)
        stages: list[tuple[str, str]] = []
        scenarios.cluster_job(world.cloud, parts, lambda stage, vm: stages.append((stage, vm.host)))
        assert stages[:3] == [
            ("running", parts.host),
            ("moved", parts.other),
            ("moved", parts.host),
        ]
        assert stages[-1][0] == "done"
        with pytest.raises(CxmError, match="already running"):
            _migrate_to_itself(world, parts)
        stayed = scenarios.failed_move(
            world.cloud,
            parts,
            lambda: world.notes.fail("vmm.migrate", recorder.error("no", world.cloud)),
            lambda: world.notes.fail("vmm.migrate", None),
        )
        assert stayed.host == parts.host
        world.cloud.settle()


@pytest.mark.parametrize("version", [pytest.param("5.10", marks=_FURTHER), "7.4"])
def test_a_vm_whose_host_is_lost_starts_on_another(
    version: str, tmp_path: os.PathLike[str]
) -> None:
    """Its files move and it is deployed there; no script is run on the old host."""
    assert states.vm_state_numbers("PROLOG_MIGRATE_UNKNOWN") == (states.ACTIVE, 60)
    with standin(str(tmp_path), version) as world:
        world.notes.mark("prepare")
        migrations.prepare(world.cloud, world.image)
        play = migrations.Play(world.cloud, world.notes, world.cloud.settle)
        play.create()
        world.cloud.record(play.vm).state = "UNKNOWN"
        play.move("lost", migrations.OTHER, live=True)
        played = recorder.normal(world.notes.entries(), world.names)
        found = Moved(version, world, play.views, played).scripts("lost")
        start = ["tm/context", "vnm/pre@2", "vmm/deploy@2", "vnm/post@2"]
        assert found == [*["tm/mv"] * 6, *start]
        assert play.views["lost"].host == migrations.OTHER
        play.act("terminate", world.cloud.terminate, "DONE")


def test_a_vm_that_failed_to_move_is_deleted_on_both_hosts(tmp_path: os.PathLike[str]) -> None:
    """On the target first; oned's source says so."""
    with standin(str(tmp_path), "7.4") as world:
        world.notes.mark("prepare")
        migrations.prepare(world.cloud, world.image)
        play = migrations.Play(world.cloud, world.notes, world.cloud.settle)
        play.create()
        play.move("saved", migrations.OTHER, live=False, fails="tm.mv")
        play.act("delete", world.cloud.delete, "DONE")
        world.cloud.settle()
        calls = recorder.normal(world.notes.entries(), world.names).steps["delete"]
        hosts = [call["argv"][0].partition(":")[0] for call in calls]
        assert hosts == [migrations.OTHER] * 6 + [recorder.HOST] * 6


def test_3_8_moves_nothing_but_what_runs(tmp_path: os.PathLike[str]) -> None:
    """A VM at rest stays; its history does too."""
    with standin(str(tmp_path), "3.8") as world:
        world.notes.mark("prepare")
        migrations.prepare(world.cloud, world.image)
        play = migrations.Play(world.cloud, world.notes, world.cloud.settle)
        play.create()
        play.act("suspend", world.cloud.suspend, "SUSPENDED")
        with pytest.raises(CxmError, match="not available for state SUSPENDED"):
            world.cloud.migrate(play.vm, migrations.OTHER, live=False)
        assert world.cloud.vm(play.vm).sequence == 0


def _migrate_to_itself(world: World, parts: Parts) -> None:
    image = scenarios.register(world.cloud, parts, "still")
    vm = scenarios.deploy(world.cloud, parts, "still", image)
    try:
        world.cloud.migrate(vm, parts.host, live=True)
    finally:
        world.cloud.terminate(vm, hard=True)
        world.cloud.wait(vm, "DONE")
