# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""The agent of the balancer: its monitor starts a round, and waits for nothing."""

from pathlib import Path
from xml.etree.ElementTree import fromstring

import pytest

from cxm.cluster import balancer
from cxm.run import Result, System

ROOT = Path(__file__).parents[2]
AGENT = ROOT / "packaging/ocf/balance"
MARK = "/run/cxm/balancing"


class Place:
    """The agent, and a systemctl that writes down what it is asked."""

    def __init__(self, top: Path, code: int = 0) -> None:
        self.top = top
        (top / "bin").mkdir()
        tool = top / "bin/systemctl"
        tool.write_text(f'#!/bin/sh\necho "$*" >>{top}/log\nexit {code}\n')
        tool.chmod(0o755)
        self.agent = top / "agent"
        self.agent.write_text(AGENT.read_text().replace("/run/cxm", f"{top}/run"))

    def run(self, action: str, interval: str = "300000") -> Result:
        path = f"PATH={self.top}/bin:/usr/bin:/bin"
        argv = ["env", path, f"OCF_RESKEY_CRM_meta_interval={interval}", "/bin/sh"]
        return System().run([*argv, str(self.agent), action], ok=range(256))

    def asked(self) -> list[str]:
        log = self.top / "log"
        return log.read_text().splitlines() if log.exists() else []


def test_a_monitor_starts_a_round_where_it_was_started(tmp_path: Path) -> None:
    """A probe, or where it is not started: none."""
    place = Place(tmp_path)
    assert place.run("monitor").code == 7
    assert place.run("start").code == 0
    assert place.run("monitor", "0").code == 0
    assert place.asked() == []
    assert place.run("monitor").code == 0
    assert place.asked() == ["--no-block start cxm-balance.service"]
    assert place.run("stop").code == 0
    assert place.run("monitor").code == 7
    assert len(place.asked()) == 1


def test_a_round_that_cannot_be_started_is_no_failure(tmp_path: Path) -> None:
    """It is tried at the next turn; the agent's sentence says where to look."""
    place = Place(tmp_path, code=1)
    place.run("start")
    done = place.run("monitor")
    assert (done.code, "systemctl status" in done.stderr) == (0, True)


def test_meta_data_has_the_times_of_the_basis() -> None:
    """Who configures it by hand gets the same."""
    said = fromstring(System().run(["/bin/sh", str(AGENT), "meta-data"]).stdout)
    times = {each.get("name"): each.get("timeout") for each in said.iter("action")}
    for name, settings in balancer._OPERATIONS.items():
        assert times[name] == settings["timeout"]


@pytest.mark.parametrize("words", [f"ConditionPathExists={MARK}", "Type=oneshot"])
def test_the_round_is_a_service_of_its_own(words: str) -> None:
    """It dies with none of Pacemaker's processes, never runs twice, and needs the agent's mark."""
    unit = (ROOT / "packaging/systemd/cxm-balance.service").read_text().splitlines()
    assert words in unit
    assert f"MARK={MARK} " in AGENT.read_text()
    assert any(line.startswith("TimeoutStartSec=") for line in unit)
