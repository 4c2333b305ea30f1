# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""The calls of ``cxm-sync`` on the stand-in for oned, over its real API: what oned makes of them.

The drivers only write down how they are called: here it matters which are, where, and in which
order, by version.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from cxm.errors import CxmError
from cxm.names import VmId
from cxm.one import frontend
from cxm.one.api import XmlRpc
from cxm.sync import act, claims, views
from cxm.sync.decide import Decision, Kind, decide
from cxm.sync.look import Seen, Tools, record_of
from cxm.sync.memory import Memory
from cxm.sync.views import Sighting
from cxm.sync.views import World as Clusters
from tests.contract import migrations, recorder
from tests.contract.recorded_world import World, standin
from tests.fakes.answering import Answering

_OLD: Final = pytest.param("3.8", marks=pytest.mark.extensive)
_MIDDLE: Final = pytest.param("5.10", marks=pytest.mark.extensive)

# A version in which there is nothing to prove is not named.
since_4 = pytest.mark.parametrize("world", ["7.4", _MIDDLE], indirect=True)


@pytest.fixture(params=["7.4", _MIDDLE, _OLD])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    """An OpenNebula as cxm-setup leaves it, with VM 0 on the first of two hosts."""
    with standin(str(tmp_path), request.param, is_local=True) as made:
        made.notes.mark("prepare")
        migrations.prepare(made.cloud, made.image)
        migrations.Play(made.cloud, made.notes, made.cloud.settle).create()
        yield made


def api(world: World) -> XmlRpc:
    """The client that cxm-sync uses."""
    port = world.cloud.api.server_address[1]
    auth = world.cloud.place.here(world.cloud.place.auth_file)
    environ = {"ONE_XMLRPC": f"http://127.0.0.1:{port}/RPC2", "ONE_AUTH": auth}
    return XmlRpc(world.cloud.place.remotes, environ)


def believed(world: World) -> tuple[str, str]:
    """State and host of the VM as the pool has them."""
    (record,) = views.records(api(world).vms_info())
    return record.state, record.host


def bring_in_line(world: World, memory: Memory | None = None) -> Decision:
    """What a turn does for a VM that certainly runs on the other host."""
    oned = api(world)

    def node(host: str) -> Answering:
        def answer(verb: str, _args: dict[str, Any]) -> dict[str, Any]:
            assert verb == "domain-claim"
            return {"refused": {}}

        return Answering(host, answer)

    place = claims.directory(world.cloud.place.here(world.cloud.place.remotes))
    tools = Tools(
        oned, node, lambda _vm_mad: True, lambda _text, _host: None, place, world.cloud.version,
        time.time, time.sleep,
    )  # fmt: skip
    hosts = {host.name: host for host in views.hosts(oned.hosts_info())}
    record = record_of(tools, VmId(0))
    ages = {claim.vm: time.time() - claim.made_at for claim in claims.all_of(place)}
    sighting = Sighting(VmId(0), migrations.OTHER)
    found = decide(record, sighting, hosts, tools.version, claimed_s=ages.get(VmId(0)))
    seen = Seen(Clusters(), {record.vm: record}, hosts)
    (done,) = act.act(tools, seen, [found], memory or Memory())
    return done


def scripts(world: World, step: str) -> list[str]:
    """Which scripts a step called: ``tm/premigrate``, and of what runs on a host ``@host``."""
    world.cloud.settle()
    found = []
    entries = iter(world.notes.entries())
    next(entry for entry in entries if entry.get("mark") == step)
    for entry in entries:
        if "path" in entry:
            kind, _driver, action = str(entry["path"]).split("/")[-3:]
            if action != "poll":
                found.append(f"{kind}/{action}" + (f"@{entry['host']}" if entry["host"] else ""))
    return found


def test_running(world: World) -> None:
    """Migrate is on the frontend, and nothing but the network's clean-up looks for the source."""
    place = world.cloud.place
    assert frontend.runs_here(place.here(place.remotes), "vmm_cxm", "migrate")
    world.notes.mark("sync")
    bring_in_line(world)
    assert believed(world) == ("RUNNING", migrations.OTHER)
    clean = "vnm/clean" if world.cloud.version < (4, 0) else f"vnm/clean@{recorder.HOST}"
    assert scripts(world, "sync") == [
        "tm/premigrate", f"vnm/pre@{migrations.OTHER}", "vmm/migrate", clean,
        f"vnm/post@{migrations.OTHER}", "tm/postmigrate",
    ]  # fmt: skip


@since_4
def test_unknown(world: World) -> None:
    """Recovered without a driver, then moved."""
    world.cloud.record(0).state = "UNKNOWN"
    world.notes.mark("sync")
    bring_in_line(world)
    assert believed(world) == ("RUNNING", migrations.OTHER)
    assert "vmm/deploy" not in " ".join(scripts(world, "sync"))
    assert "vmm/migrate" in scripts(world, "sync")


@pytest.mark.parametrize("world", [_OLD], indirect=True)
def test_unknown_without_a_way(world: World) -> None:
    """It is left, and oned would not have taken a call."""
    world.cloud.record(0).state = "UNKNOWN"
    world.notes.mark("sync")
    assert bring_in_line(world).kind is Kind.LEFT
    with pytest.raises(CxmError, match=r"one\.vm\.recover"):
        api(world).recover(VmId(0), success=True)
    with pytest.raises(CxmError, match="not available"):
        api(world).migrate(VmId(0), 1, live=True)
    assert believed(world) == ("UNKNOWN", recorder.HOST)
    assert scripts(world, "sync") == []
    world.cloud.record(0).state = "RUNNING"


@since_4
def test_a_failed_boot(world: World) -> None:
    """Oned recovers it after it has answered, and takes no migration before."""
    world.cloud.record(0).state = "BOOT_FAILURE"
    world.notes.mark("sync")
    assert bring_in_line(world).kind is Kind.AGREED
    assert believed(world) == ("RUNNING", migrations.OTHER)
    assert "vmm/deploy" not in " ".join(scripts(world, "sync"))


@since_4
def test_taken_for_off(world: World) -> None:
    """Its files are moved, nothing else; then its host's report brings it back."""
    world.cloud.poweroff(0)
    world.cloud.wait(0, "POWEROFF")
    world.notes.mark("sync")
    bring_in_line(world)
    assert believed(world) == ("POWEROFF", migrations.OTHER)
    assert set(scripts(world, "sync")) == {"tm/mv"}
    world.cloud._life.report(world.cloud.record(0), "RUNNING")
    assert believed(world) == ("RUNNING", migrations.OTHER)


@since_4
@pytest.mark.extensive
def test_files_that_cannot_be_moved(world: World) -> None:
    """Oned takes that back without a driver, and then it is tried again."""
    world.cloud.poweroff(0)
    world.cloud.wait(0, "POWEROFF")
    world.notes.fail("tm.mv", recorder.error("it cannot", world.cloud))
    assert bring_in_line(world).kind is Kind.STUCK
    assert believed(world) == ("PROLOG_MIGRATE_POWEROFF_FAILURE", migrations.OTHER)
    world.notes.fail("tm.mv", None)
    world.notes.mark("back")
    assert bring_in_line(world).kind is Kind.AGREED
    assert believed(world) == ("POWEROFF", recorder.HOST)
    assert scripts(world, "back") == []
    bring_in_line(world)
    assert believed(world) == ("POWEROFF", migrations.OTHER)


@pytest.mark.extensive
def test_refused_confirmation(world: World) -> None:
    """The driver says that the VM is not there: OpenNebula keeps it where it was, and says why."""
    world.notes.mark("sync")
    world.notes.fail("vmm.migrate", recorder.error("it is not there", world.cloud))
    bring_in_line(world)
    world.notes.fail("vmm.migrate", None)
    assert believed(world) == ("RUNNING", recorder.HOST)
    assert "it is not there" in world.cloud.vm(0).error


def test_leader(world: World) -> None:
    """Only one of several servers; the oldest have no others."""
    assert api(world).leads()
    world.cloud.raft_state = 2
    assert api(world).leads() is (world.cloud.version < (5, 4))


def test_refusals(world: World) -> None:
    """What oned refuses raises its words, and nothing comes of it."""
    world.notes.mark("refused")
    with pytest.raises(CxmError, match="already running"):
        api(world).migrate(VmId(0), 0, live=True)
    assert believed(world) == ("RUNNING", recorder.HOST)
    assert scripts(world, "refused") == []


@pytest.mark.parametrize("world", [_OLD], indirect=True)
def test_what_is_off_is_not_moved(world: World) -> None:
    """Before 4.14."""
    world.cloud.poweroff(0)
    world.cloud.wait(0, "POWEROFF")
    world.notes.mark("refused")
    with pytest.raises(CxmError, match="not available"):
        api(world).migrate(VmId(0), 1, live=True)
    assert believed(world) == ("POWEROFF", recorder.HOST)
    assert scripts(world, "refused") == []


def test_oned_is_away(world: World) -> None:
    """Nobody answers; later it knows what it knew."""
    oned = api(world)
    with world.cloud.oned_stopped(), pytest.raises(CxmError, match="does not answer"):
        oned.vms_info()
    assert believed(world) == ("RUNNING", recorder.HOST)
    world.notes.mark("sync")
    bring_in_line(world)
    assert believed(world) == ("RUNNING", migrations.OTHER)


def test_recreated(world: World) -> None:
    """All of a VM is removed, and it is made anew where the scheduler puts it."""
    world.notes.mark("recreate")
    world.cloud.recreate(0)
    assert world.cloud.wait(0, "RUNNING").sequence == 1
    called = [script.partition("@")[0] for script in scripts(world, "recreate")]
    assert called.index("vmm/cancel") < called.index("vmm/deploy")
    assert called.index("tm/delete") < called.index("tm/context") < called.index("vmm/deploy")


@since_4
def test_a_driver_that_cannot_reach_the_old_host_never_answers(world: World) -> None:
    """Seen with a real 7.4.0: the VM has come, and it is MIGRATE until oned is told otherwise."""
    dead = Path(world.notes.directory, "dead")
    world.cloud.settle()
    dead.write_text(recorder.HOST, encoding="ascii")
    world.cloud.migrate(0, migrations.OTHER, live=True)
    world.cloud.settle()
    assert "Successfully execute vmm operation: migrate" in world.cloud.vm_log(0)
    assert believed(world) == ("MIGRATE", migrations.OTHER)
    api(world).recover(VmId(0), success=True)
    assert believed(world) == ("RUNNING", migrations.OTHER)
    dead.unlink()
