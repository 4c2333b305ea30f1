# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""How the stand-in starts scripts and reads what they say, by version (protocol section 1)."""

import os
from collections.abc import Iterator

import pytest

from cxm.errors import ConfigError, NotFoundError
from cxm.names import VmId
from cxm.one.api import XmlRpc
from lab.oned.drivers import Outcome, answer
from lab.oned.profiles import profile
from tests.contract import recorder
from tests.contract.recorded_world import World, standin
from tests.contract.recorder import Call

_MARKED = "INFO: a: b\nERROR MESSAGE --8<------\nno room\nERROR MESSAGE ------>8--\nExitCode: 1"
_PLAIN = "INFO: a: b\nno room \nExitCode: 1"


def _nothing(_text: str, _severity: str) -> None:
    """A log that nobody reads."""


@pytest.mark.parametrize(
    ("version", "stderr", "reason"),
    [
        ("3.8", _MARKED, "no room"),
        ("5.10", _MARKED, "no room"),
        ("5.10", _PLAIN, "-"),
        ("6.10", _PLAIN, "INFO: a: b no room  ExitCode: 1"),
        ("7.4", _PLAIN, "no roomExitCode: 1"),
    ],
)
def test_a_failures_reason_is_what_that_version_reads(
    version: str, stderr: str, reason: str
) -> None:
    """Markers up to 5.12, then all of the error output, then what has no severity, run together."""
    found = answer(Outcome(1, "", stderr), profile(version), _nothing)
    assert (found.ok, found.info) == (False, reason)


def test_lines_with_a_severity_are_logged_with_it() -> None:
    """7.x logs them and keeps them out of the reason."""
    said: list[tuple[str, str]] = []
    answer(
        Outcome(0, "x", "WARN: clone: slow\nDEBUG: 7 more\n"),
        profile("7.4"),
        lambda text, severity: said.append((severity, text)),
    )
    assert said == [("W", "clone: slow"), ("D", "more")]


@pytest.fixture(scope="module", params=["5.4", "5.10", "6.10"])
def deployed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[World, list[Call]]]:
    """A VM that runs on a stand-in of one version, and the calls that made it run."""
    with standin(str(tmp_path_factory.mktemp("oned")), request.param) as world:
        recorder.prepare(world.cloud, world.image)
        world.notes.mark("create")
        text = recorder.template("$HOME `id`", old=False, with_data=True)
        world.cloud.wait(world.cloud.create_vm(text), "RUNNING", timeout_s=60)
        world.cloud.settle()
        yield world, world.notes.entries()


def _call(calls: list[Call], script: str) -> Call:
    found = [call for call in calls if str(call.get("path", "")).endswith(script)]
    assert len(found) == 1
    return found[0]


def test_the_context_is_made_by_the_vmm_driver(deployed: tuple[World, list[Call]]) -> None:
    """From 5.0 on it comes after the disks, before the deployment, into a disk of its own."""
    calls = [str(call.get("path", "")) for call in deployed[1]]
    scripts = [os.path.basename(path) for path in calls if "/tm/cxm/" in path or "vmm" in path]
    expected = ["clone", "ln", "ln", "mkimage", "mkswap", "context", "deploy"]
    assert [name for name in scripts if name != "monitor"] == expected


def test_the_hosts_shell_expands_the_input_before_6_4(deployed: tuple[World, list[Call]]) -> None:
    """The here-document is unquoted there, so a name with ``$HOME`` reaches the script expanded."""
    world, calls = deployed
    text = _call(calls, "vmm/cxm/deploy")["stdin"]
    is_literal = "web $HOME `id`" in text
    assert is_literal is (world.cloud.version >= (6, 4, 3))


def test_vm_and_datastore_files_are_written_from_6_0_on(
    deployed: tuple[World, list[Call]],
) -> None:
    """They lie beside the deployment file on the host before the deployment."""
    world, calls = deployed
    directory = os.path.dirname(_call(calls, "vmm/cxm/deploy")["argv"][0])
    names = set(os.listdir(directory)) if os.path.isdir(directory) else set()
    expected = {"vm.xml", "ds.xml"} if world.cloud.version >= (6, 0) else set()
    assert names == expected


def test_our_client_talks_to_its_api(deployed: tuple[World, list[Call]]) -> None:
    """VMs, images, datastores and hosts are answered; what does not exist, and a stranger, not."""
    world, _calls = deployed
    port = world.cloud.api.server_address[1]
    place = world.cloud.place
    environ = {"ONE_XMLRPC": f"http://127.0.0.1:{port}/RPC2", "ONE_AUTH": place.auth_file}
    api = XmlRpc(place.remotes, environ)
    assert api.version() == str(world.cloud.version)
    assert "<LCM_STATE>3</LCM_STATE>" in api.vm_info(VmId(0))
    assert "<LV_SIZE>" in api.image_info(0)
    assert "<TM_MAD>" in api.datastore_info(101)
    assert f"<NAME>{recorder.HOST}</NAME>" in api.hosts_info()
    with pytest.raises(NotFoundError):
        api.vm_info(VmId(99))
    stranger = os.path.join(place.files, "stranger")
    with open(stranger, "w", encoding="utf-8") as file:
        file.write("somebody:else\n")
    with pytest.raises(ConfigError):
        XmlRpc(place.remotes, environ | {"ONE_AUTH": stranger}).version()


def test_a_host_without_the_drivers_gets_them(tmp_path: os.PathLike[str]) -> None:
    """A missing script is answered with 42; the remotes are copied and the script is run."""
    with standin(str(tmp_path), "3.8") as world:
        recorder.prepare(world.cloud, world.image)
        os.unlink(os.path.join(world.names.remote, "vmm", "cxm", "deploy"))
        vm = world.cloud.create_vm(recorder.template("x", old=True, with_data=False))
        world.cloud.wait(vm, "RUNNING")
        assert os.path.exists(os.path.join(world.names.remote, "vmm", "cxm", "deploy"))


def test_a_dead_host_fails_the_deployment(tmp_path: os.PathLike[str]) -> None:
    """Ssh's failure is the driver's, and the VM waits in the state of a failed boot."""
    with standin(str(tmp_path), "7.4") as world:
        recorder.prepare(world.cloud, world.image)
        with open(os.path.join(world.notes.directory, "dead"), "w", encoding="utf-8") as file:
            file.write(recorder.HOST)
        vm = world.cloud.create_vm(recorder.template("x", old=False, with_data=False))
        recorder.reach(world.cloud, vm, "BOOT_FAILURE")
        assert "No route to host" in world.cloud.vm(vm).error
