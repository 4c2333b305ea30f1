# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""The monitoring client as a process: it starts, speaks to monitord, gives way and stops."""

import base64
import os
import select
import socket
import sys
import time
import uuid
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from cxm.errors import CommandError
from cxm.one.im import control, single
from cxm.run import System
from tests.fakes import template

LAUNCHER = """
import sys
sys.path[:0] = {path!r}
from cxm import config, run
from cxm.node.client import RemoteNode
from cxm.one.action import Call, Context
from cxm.one.im import control
from cxm.one.im.observation import Watcher
from cxm.one.version import OneVersion
settings = config.FrontendConfig(cloud_id={cloud!r})
ctx = Context(settings, OneVersion(7, 4), run.System(), {remotes!r})
call = Call("im", "cxm.d/monitord-client_control.sh", tuple(sys.argv[1:]), sys.stdin)
here = RemoteNode(ctx.runner, None, {cloud!r})
talk = here.converse("observe", lambda _sudo: run.Dialogue([sys.executable, "-B", {helper!r}]))
sys.stdout.write(control.control(ctx, call, Watcher(talk)))
"""
# The root helper as sudo would start it, on a model of a node; each start leaves a mark.
HELPER = """
import os, sys
sys.path[:0] = {path!r}
from dataclasses import replace
from cxm import names
from cxm.errors import CommandError
from cxm.node import helper
from tests.fakes.machine import FakeNode
from tests.fakes.xl_list import Xen
os.write(os.open({starts!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT), b"x")
node = FakeNode({world!r} + str(os.getpid()))
xen = Xen(node)
xen.add("one-7", 1, "-b----", uuid=names.domain_uuid({cloud!r}, 7))
if {broken!r}:
    node.has_vg = False
machine = node.machine()
machine = replace(machine, config=replace(machine.config, clouds=({cloud!r},)))
stdin, stdout = open(0, "rb", buffering=0), open(1, "wb", buffering=0)
sys.exit(helper.serve("observe", stdin, stdout, machine))
"""
CONFIGURATION = """<MONITOR_CONFIGURATION><NETWORK><MONITOR_ADDRESS>127.0.0.1</MONITOR_ADDRESS>
<PORT>{port}</PORT><PUBKEY/></NETWORK><PROBES_PERIOD><BEACON_HOST>1</BEACON_HOST>
<SYSTEM_HOST>{system_s}</SYSTEM_HOST><MONITOR_HOST>1</MONITOR_HOST><STATE_VM>1</STATE_VM>
<MONITOR_VM>1</MONITOR_VM><SYNC_STATE_VM>1</SYNC_STATE_VM></PROBES_PERIOD>
<HOST_ID>3</HOST_ID></MONITOR_CONFIGURATION>"""


@dataclass
class Monitord:
    """Listens as monitord does."""

    stream: socket.socket
    datagrams: socket.socket
    heard: list[tuple[str, str, str, str]] = field(default_factory=list)  # way, type, host, text

    @property
    def port(self) -> int:
        return int(self.stream.getsockname()[1])

    def listen(self, seconds: float, *, until: set[str] | None = None) -> None:
        """Collect messages for a time, or until there is one of each of these types."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if until is not None and until <= {kind for _way, kind, _host, _text in self.heard}:
                return
            ready, _, _ = select.select([self.stream, self.datagrams], [], [], left)
            for each in ready:
                if each is self.datagrams:
                    self._take("udp", self.datagrams.recv(65536))
                else:
                    connection = self.stream.accept()[0]
                    with connection, connection.makefile("rb") as file:
                        self._take("tcp", file.read())

    def looks(self) -> int:
        """How often the states of VMs were told."""
        return len([kind for _way, kind, _host, _text in self.heard if kind == "STATE_VM"])

    def _take(self, way: str, line: bytes) -> None:
        kind, result, host, _stamp, packed = line.decode().split()
        assert result == "SUCCESS"
        text = zlib.decompress(base64.b64decode(packed)).decode()
        self.heard.append((way, kind, host, text))


@pytest.fixture
def monitord() -> Iterator[Monitord]:
    """A monitord on loopback."""
    with socket.create_server(("127.0.0.1", 0)) as stream, socket.socket(type=2) as datagrams:
        datagrams.bind(stream.getsockname())
        yield Monitord(stream, datagrams)


@dataclass
class Host:
    """A host's side: the script as oned starts it."""

    directory: Path
    cloud: str

    def script(self, *, broken: bool = False) -> str:
        (self.directory / "im/cxm.d").mkdir(parents=True, exist_ok=True)
        path = self.directory / "im/cxm.d/monitord-client_control.sh"
        root = Path(__file__).parents[2]
        given = {
            "path": [str(root / "src"), str(root)],
            "remotes": str(self.directory),
            "cloud": self.cloud,
            "broken": broken,
            "helper": str(self.directory / "helper"),
            "starts": str(self.directory / "starts"),
            "world": str(self.directory / "world"),
        }
        (self.directory / "helper").write_text(HELPER.format(**given))
        path.write_text(LAUNCHER.format(**given))
        return str(path)

    def helpers(self) -> int:
        """How many helpers have been started."""
        return len((self.directory / "starts").read_text())

    def run(self, *argv: str, port: int = 1, broken: bool = False, system_s: int = 2) -> str:
        """Run the script to its end; a background process must not hold its output."""
        command = [sys.executable, "-B", self.script(broken=broken), *argv]
        configuration = " ".join(CONFIGURATION.format(port=port, system_s=system_s).split())
        return System().run(command, stdin=configuration.encode(), timeout_s=20).stdout

    def holder(self, what: str) -> int | None:
        """The process that is this host's client."""
        found = single._holder(f"cxm-im/{os.getuid()}/{self.cloud}/{what}")
        return None if found is None else found[0]


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """A host of a cloud of its own; no client is left at the end."""
    made = Host(tmp_path, uuid.uuid4().hex[:16])
    yield made
    made.run("stop", "cxm", "3", "solo1")
    made.run("stop", "cxm", "4", "solo1")


def test_client_starts_speaks_and_stops(host: Host, monitord: Monitord) -> None:
    """First everything on the output, then messages of each kind, then silence."""
    root = ET.fromstring(host.run("cxm", "3", "solo1", port=monitord.port))
    assert [child.tag for child in root] == [
        "SYSTEM_HOST",
        "MONITOR_HOST",
        "STATE_VM",
        "MONITOR_VM",
        "TIMESTAMP",
    ]
    kinds = {"BEACON_HOST", "SYSTEM_HOST", "MONITOR_HOST", "STATE_VM", "MONITOR_VM"}
    monitord.listen(10, until=kinds)
    ways = {(kind, way) for way, kind, _host, _text in monitord.heard}
    assert ways == {(kind, "tcp" if kind == "STATE_VM" else "udp") for kind in kinds}
    assert {number for _way, _kind, number, _text in monitord.heard} == {"3"}
    text = next(text for _way, kind, _host, text in monitord.heard if kind == "STATE_VM")
    read = template.parse(text)
    assert template.singles(read)["MISSING_STATE"] == "UNKNOWN"
    assert template.vectors(read, "VM") == [{"ID": "7", "DEPLOY_ID": "one-7", "STATE": "RUNNING"}]
    assert host.run("stop", "cxm", "3", "solo1") == ""
    assert host.holder("id/3") is None


def test_many_looks_cost_one_helper(host: Host, monitord: Monitord) -> None:
    """Sudo and Python start once for the first words, and once for all that follow."""
    host.run("cxm", "3", "solo1", port=monitord.port, system_s=600)
    end = time.monotonic() + 15
    while time.monotonic() < end and monitord.looks() < 2:
        monitord.listen(0.1)
    assert monitord.looks() >= 2
    assert host.helpers() == 2


def test_newer_client_replaces_the_older(host: Host, monitord: Monitord) -> None:
    """Started again, and made anew under another id: one client is left."""
    host.run("cxm", "3", "solo1", port=monitord.port)
    first = host.holder("id/3")
    host.run("cxm", "3", "solo1", port=monitord.port)
    second = host.holder("id/3")
    assert first is not None
    assert second is not None
    assert first != second
    host.run("cxm", "4", "solo1", port=monitord.port)
    assert host.holder("id/3") is None
    assert host.holder("id/4") == host.holder("name/solo1")


def test_a_client_that_cannot_observe_does_not_start(host: Host, monitord: Monitord) -> None:
    """The start fails, and no process is left."""
    with pytest.raises(CommandError, match="volume group"):
        host.run("cxm", "3", "solo1", port=monitord.port, broken=True)
    assert host.holder("id/3") is None


def test_client_leaves_when_its_script_has_gone_for_good(tmp_path: Path) -> None:
    """A sync of the remotes takes it away for seconds; a deleted host for ever."""
    script = tmp_path / "control.sh"
    script.touch()
    watch = control.Watch(str(script))
    assert watch.farewell(0) is None
    script.unlink()
    assert watch.farewell(20) is None
    script.touch()
    assert watch.farewell(90) is None
    script.unlink()
    assert watch.farewell(110) is None
    assert watch.farewell(150) is None
    assert watch.farewell(171) == f"{script} is gone"
