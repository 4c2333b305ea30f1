# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""DLM's request to fence waits for Pacemaker's own, and never gets lost."""

import re
from pathlib import Path

import pytest

from cxm.run import System
from cxm.setup import corosync
from tests.unit.test_setup_corosync import PAIR

AGENT = Path(__file__).parents[2] / "packaging/dlm/cxm-dlm-fence"
REQUEST = "fail_time=1795653809\nnode=2\n"
# As stonith_admin 2.1.5 prints it.
HISTORY = """<pacemaker-result api-version="2.25" request="stonith_admin --history node2">
  <list name="fencing history" count="1">
    <fence_event action="reboot" target="node2" client="pacemaker-controld.322" origin="node1"
 status="{status}" delegate="node1" completed="{at}"/>
  </list>
  <status code="0" message="OK"/>
</pacemaker-result>
""".replace('"node1"\n status', '"node1" status')


class Place:
    """The agent among tools that write down how they are called."""

    def __init__(self, top: Path) -> None:
        self.top = top
        (top / "tools").mkdir()
        (top / "corosync.conf").write_text(corosync.conf(PAIR))
        text = AGENT.read_text().replace("/etc/corosync/", f"{top}/")
        text = text.replace("/proc/uptime", f"{top}/uptime")
        (top / "agent").write_text(text)
        self.tool("dlm_stonith", f"cat >{top}/asked; exit 3")
        (top / "uptime").write_text("4711.32 9000.00")
        self.tool("sleep", f"echo $(($(cut -d. -f1 {top}/uptime) + 1)).5 >{top}/uptime")
        self.tool("stonith_admin", f"cat {top}/history 2>/dev/null")

    def tool(self, name: str, does: str) -> None:
        path = self.top / "tools" / name
        path.write_text(f'#!/bin/sh\necho "{name} $*" >>{self.top}/log\n{does}\n')
        path.chmod(0o755)

    def happened(self, status: str, at: str) -> None:
        (self.top / "history").write_text(HISTORY.format(status=status, at=at))

    def run(self, request: str = REQUEST) -> int:
        """One request; returns how many seconds it waited."""
        argv = ["env", f"PATH={self.top}/tools:/usr/bin:/bin", "/bin/sh", str(self.top / "agent")]
        done = System().run(argv, stdin=request.encode(), ok=range(256))
        assert done.code == 3, "the last word is dlm_stonith's"
        assert (self.top / "asked").read_text() == request
        return len(re.findall("^sleep", (self.top / "log").read_text(), re.MULTILINE))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A node of a pair."""
    return Place(tmp_path)


def test_node_that_has_been_fenced_is_waited_for_no_longer(place: Place) -> None:
    """Pacemaker was faster."""
    place.happened("success", "2026-11-26 00:43:45Z")
    assert place.run() == 0
    assert "stonith_admin --history node2 --verbose" in (place.top / "log").read_text()


@pytest.mark.parametrize(
    ("status", "at"),
    [
        ("success", "2026-11-26 00:38:45Z"),
        pytest.param("failed", "2026-11-26 00:43:45Z", marks=pytest.mark.extensive),
        pytest.param("success", "?", marks=pytest.mark.extensive),
    ],
)
def test_else_it_waits_and_then_asks(place: Place, status: str, at: str) -> None:
    """A former fencing, one that failed, and what cannot be read prove nothing."""
    place.happened(status, at)
    assert place.run() == 30


def test_pacemaker_that_says_nothing_keeps_nobody_waiting_for_ever(place: Place) -> None:
    """DLM's own request is made then."""
    assert place.run() == 30


def test_node_that_is_not_known_is_asked_for_at_once(place: Place) -> None:
    """There is nothing to wait for."""
    assert place.run("fail_time=1795653809\nnode=7\n") == 0
