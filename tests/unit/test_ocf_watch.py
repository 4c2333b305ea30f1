# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""The shell part of the agent that looks for VMs that nobody waits for."""

from pathlib import Path
from xml.etree.ElementTree import fromstring

import pytest

from cxm.cluster import basis
from cxm.run import Result, System

AGENT = Path(__file__).parents[2] / "packaging/ocf/watch"
CALM = '<resource id="cxm-lab-1" role="Started" blocked="false" managed="true"/>'
RULE = '<constraints><rsc_location id="cxm-lab-1-place" rsc="cxm-lab-1"/></constraints>'


class Place:
    """The agent among tools that print what a test has given them."""

    def __init__(self, top: Path) -> None:
        self.top = top
        (top / "bin").mkdir()
        self.tool("cibadmin", "<constraints/>")
        self.tool("crm_mon", CALM)
        self.tool("cxm-watch", "")
        text = AGENT.read_text().replace("/run/cxm", f"{top}/run")
        self.agent = top / "agent"
        self.agent.write_text(text.replace("/usr/lib/cxm/cxm-watch", f"{top}/bin/cxm-watch"))

    def tool(self, name: str, prints: str, code: int = 0) -> None:
        path = self.top / "bin" / name
        path.write_text(
            f"#!/bin/sh\necho {name} >>{self.top}/log\ncat <<'END'\n{prints}\nEND\nexit {code}\n"
        )
        path.chmod(0o755)

    def run(self, action: str, interval: str = "20000") -> Result:
        path = f"PATH={self.top}/bin:/usr/bin:/bin"
        argv = ["env", path, f"OCF_RESKEY_CRM_meta_interval={interval}", "/bin/sh"]
        return System().run([*argv, str(self.agent), action], ok=range(256))

    def calls(self) -> list[str]:
        log = self.top / "log"
        return log.read_text().split() if log.exists() else []


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A node on which it was started."""
    made = Place(tmp_path)
    assert made.run("start").code == 0
    return made


def test_probe_says_whether_it_was_started(tmp_path: Path) -> None:
    """It does nothing else."""
    made = Place(tmp_path)
    assert made.run("monitor", "0").code == 7
    made.run("start")
    assert made.run("monitor", "0").code == 0
    made.run("stop")
    assert made.run("monitor").code == 7
    assert made.calls() == []


@pytest.mark.parametrize(
    ("tool", "prints", "code", "looks"),
    [
        ("crm_mon", CALM, 0, False),
        ("crm_mon", CALM.replace('blocked="false"', 'blocked="true"'), 0, True),
        ("crm_mon", "", 102, True),
        ("cibadmin", RULE, 0, True),
        ("cibadmin", RULE.replace("-place", "-prefer"), 0, False),
    ],
)
def test_python_starts_only_when_there_is_something(
    place: Place, tool: str, prints: str, code: int, *, looks: bool
) -> None:
    """A rule, a blocked resource, or Pacemaker does not answer."""
    place.tool(tool, prints, code)
    assert place.run("monitor").code == 0
    assert ("cxm-watch" in place.calls()) == looks


def test_what_could_not_be_done_is_no_failure(place: Place) -> None:
    """It is tried at the next turn; the agent's sentence says where to look."""
    place.tool("cibadmin", RULE)
    place.tool("cxm-watch", "", 1)
    done = place.run("monitor")
    assert (done.code, "journalctl" in done.stderr) == (0, True)


def test_meta_data_has_the_times_of_the_basis(place: Place) -> None:
    """Who configures it by hand gets the same."""
    said = fromstring(place.run("meta-data").stdout)
    times = {each.get("name"): each.get("timeout") for each in said.iter("action")}
    for name, settings in basis._WATCH.items():
        assert times[name] == settings["timeout"]
