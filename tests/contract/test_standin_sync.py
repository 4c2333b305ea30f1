# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""The calls of ``cxm-sync`` on the stand-in for oned, over its real API: what oned makes of them.

The drivers only write down how they are called: here it matters which are, where, and in which
order, by version.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cxm.errors import CxmError
from cxm.names import VmId
from cxm.one import frontend
from cxm.one.api import XmlRpc
from cxm.sync import views
from cxm.sync.decide import Call, calls
from tests.contract import migrations, recorder
from tests.contract.recorded_world import World, standin

VERSIONS = ["7.4", *(pytest.param(each, marks=pytest.mark.extensive) for each in ("3.8", "5.10"))]


@pytest.fixture(params=VERSIONS)
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


def bring_in_line(world: World) -> None:
    """The calls for the VM's state, if it runs on the other host."""
    oned = api(world)
    (record,) = views.records(oned.vms_info())
    hosts = {host.name: host.id for host in views.hosts(oned.hosts_info())}
    for call in calls(world.cloud.version, record.state, same_host=False) or ():
        if call is Call.RECOVER:
            oned.recover(VmId(0), success=True)
        else:
            oned.migrate(VmId(0), hosts[migrations.OTHER], live=True)
    world.cloud.wait_migrated(0)


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


def test_unknown(world: World) -> None:
    """Recovered without a driver, then moved; 3.8 has no way, and is left alone."""
    world.cloud.record(0).state = "UNKNOWN"
    world.notes.mark("sync")
    if world.cloud.version < (4, 0):
        assert calls(world.cloud.version, "UNKNOWN", same_host=False) is None
        world.cloud.record(0).state = "RUNNING"
        return
    bring_in_line(world)
    assert believed(world) == ("RUNNING", migrations.OTHER)
    assert "vmm/deploy" not in " ".join(scripts(world, "sync"))
    assert "vmm/migrate" in scripts(world, "sync")


def test_taken_for_off(world: World) -> None:
    """Its files are moved, nothing else; then its host's report brings it back."""
    if world.cloud.version < (4, 14):
        return
    world.cloud.poweroff(0)
    world.cloud.wait(0, "POWEROFF")
    world.notes.mark("sync")
    bring_in_line(world)
    assert believed(world) == ("POWEROFF", migrations.OTHER)
    assert set(scripts(world, "sync")) == {"tm/mv"}
    world.cloud._life.report(world.cloud.record(0), "RUNNING")
    assert believed(world) == ("RUNNING", migrations.OTHER)


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
    """What oned refuses raises its words."""
    with pytest.raises(CxmError, match="already running"):
        api(world).migrate(VmId(0), 0, live=True)
    world.cloud.poweroff(0)
    world.cloud.wait(0, "POWEROFF")
    if world.cloud.version < (4, 14):
        with pytest.raises(CxmError, match="not available"):
            api(world).migrate(VmId(0), 1, live=True)
    assert os.path.isdir(world.cloud.place.here(world.cloud.place.remotes))
