# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""The agent of the lockspace is started when locks can be used, and never harms a guest."""

import os
import re
from pathlib import Path
from xml.etree.ElementTree import fromstring

import pytest

from cxm.run import Result, System

AGENT = Path(__file__).parents[2] / "packaging/ocf/lockspace"
SUCCESS, GENERIC, NOT_INSTALLED, NOT_CONFIGURED, NOT_RUNNING = 0, 1, 5, 6, 7
# As lvmlockctl of 2.03.16 prints it; of the lockspace of all groups it knows no group.
GLOBAL = "VG vg_uuid= lock_type= \nLS  lvm_global\nLK VG un ver 0\nLK GL un ver 1\n"
GROUP = """VG LVM_XEN lock_type=dlm 6blhFh-kisV-XnXF-L4pD-QYPc-u3eV-9BVpf5
LS dlm lvm_LVM_XEN
LK VG un ver 0
"""
INFO = f"{GLOBAL}\n{GROUP}"


class Place:
    """The agent among tools that write down how they are called."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.tools = top / "tools"
        for name in ("tools", "run", "sys/kernel/dlm", "proc"):
            (top / name).mkdir(parents=True)
        self.tool("vgchange", f"mkdir -p {top}/sys/kernel/dlm/lvm_LVM_XEN")
        self.tool("lvmlockctl", f"cat {top}/info")
        # Time passes by sleeping only.
        (top / "now").write_text("1000\n")
        self.tool("date", f"cat {top}/now")
        self.tool("sleep", f"echo $(($(cat {top}/now) + $1)) >{top}/now")
        self.tool("systemctl", "exit 1")
        (top / "info").write_text(INFO)
        text = AGENT.read_text()
        self.agent = top / "agent"
        self.agent.write_text(re.sub(r"(?<![\w$}/.])/(?=(?:run|sys|proc)/)", f"{top}/", text))

    def tool(self, name: str, does: str) -> None:
        path = self.tools / name
        path.write_text(f'#!/bin/sh\necho "{name} $*" >>{self.top}/log\n{does}\n')
        path.chmod(0o755)

    def lvmlockd(self) -> None:
        (self.top / "proc/77").mkdir()
        (self.top / "proc/77/comm").write_text("lvmlockd\n")
        (self.top / "run/lvmlockd.pid").write_text("77\n")

    def lockspace(self) -> None:
        (self.top / "sys/kernel/dlm/lvm_LVM_XEN").mkdir()

    def run(self, action: str, vg: str = "LVM_XEN", timeout_ms: int = 30000) -> Result:
        given = [f"OCF_RESKEY_vg={vg}", f"OCF_RESKEY_CRM_meta_timeout={timeout_ms}"]
        path = f"PATH={self.tools}:/usr/bin:/bin"
        argv = ["env", path, *given, "/bin/sh", str(self.agent), action]
        return System().run(argv, ok=range(256))

    def calls(self, name: str) -> list[str]:
        log = self.top / "log"
        said = log.read_text().splitlines() if log.exists() else []
        return [line for line in said if line.startswith(name)]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A node with lvmlockd, the group's lockspace not started."""
    made = Place(tmp_path)
    made.lvmlockd()
    return made


@pytest.mark.parametrize("first", [GLOBAL, GROUP, ""])
def test_start_ends_when_the_locks_can_be_used(place: Place, first: str) -> None:
    """Both lockspaces have to be there: the group's, and the one of all groups."""
    (place.top / "info").write_text(first)
    place.tool("sleep", f"cat >{place.top}/info <<'X'\n{INFO}X")  # a second later
    assert place.run("start").code == SUCCESS
    assert place.calls("sleep") == ["sleep 1"]
    assert place.run("monitor").code == SUCCESS
    before = place.calls("vgchange")
    assert place.run("start").code == SUCCESS, "started again"
    assert place.calls("vgchange") == before


def test_start_waits_for_a_group_that_is_not_there_yet(place: Place) -> None:
    """A SAN may come after its node; what LVM says is shown when the time is over."""
    place.tool("vgchange", 'echo "  Volume group \\"LVM_XEN\\" not found" >&2; exit 5')
    said = place.run("start", timeout_ms=12000)
    assert said.code == GENERIC
    assert said.stderr == (
        "ocf-exit-reason:the locks of LVM_XEN cannot be used yet:"
        ' Volume group "LVM_XEN" not found\n'
    )


def test_a_similar_name_is_not_the_group(place: Place) -> None:
    """LVM_XEN2 is another one."""
    (place.top / "info").write_text(INFO.replace("LVM_XEN", "LVM_XEN2"))
    assert place.run("start", timeout_ms=11000).code == GENERIC


def test_start_without_lvmlockd_fails_at_once(place: Place) -> None:
    """The cluster starts it first."""
    os.unlink(place.top / "run/lvmlockd.pid")
    said = place.run("start")
    assert (said.code, "lvmlockd does not run" in said.stderr) == (GENERIC, True)


def test_stop_gives_the_lockspace_back(place: Place) -> None:
    """Where it is not, nothing is to be done. What is active and used by nobody goes first."""
    assert place.run("stop").code == SUCCESS
    assert not place.calls("vgchange")
    place.lockspace()
    assert place.run("stop").code == SUCCESS
    wanted = ["vgchange --activate n LVM_XEN", "vgchange --lockstop LVM_XEN"]
    assert place.calls("vgchange") == wanted


def test_stop_without_lvmlockd_leaves_guests_alone(place: Place) -> None:
    """Their locks are in the kernel, and the next lvmlockd adopts them."""
    place.lockspace()
    (place.top / "proc/77/comm").write_text("other\n")  # the number was given away
    assert place.run("stop").code == SUCCESS
    assert not place.calls("vgchange")


def test_stop_with_active_volumes_is_a_failure(place: Place) -> None:
    """The cluster must not believe that the node is free."""
    place.lockspace()
    place.tool(
        "vgchange", 'echo "  VG LVM_XEN stop failed: LVs must first be deactivated" >&2; exit 5'
    )
    said = place.run("stop")
    assert said.code == GENERIC
    assert "LVs must first be deactivated" in said.stderr


def test_monitor_starts_no_process(place: Place) -> None:
    """It looks at one directory. A dead lvmlockd is found by the monitor of lvmlockd."""
    assert place.run("monitor").code == NOT_RUNNING
    place.lockspace()
    assert place.run("monitor").code == SUCCESS
    os.unlink(place.top / "run/lvmlockd.pid")
    assert place.run("monitor").code == SUCCESS
    assert not place.calls("")


@pytest.mark.parametrize("vg", ["", "..", "-a", "a b", "a/b"])
def test_wrong_name_is_said(place: Place, vg: str) -> None:
    """It would reach LVM as an option or as a path."""
    assert place.run("validate-all", vg).code == NOT_CONFIGURED
    assert place.run("start", vg).code == NOT_CONFIGURED


def test_missing_program_is_said(place: Place) -> None:
    """The node lacks a package."""
    os.unlink(place.tools / "lvmlockctl")
    assert place.run("monitor").code == NOT_INSTALLED


def test_cluster_can_read_what_the_agent_is(place: Place) -> None:
    """Its description is XML and names its actions."""
    said = fromstring(place.run("meta-data").stdout)
    names = {each.get("name") for each in said.iter("action")}
    assert names == {"start", "stop", "monitor", "meta-data", "validate-all"}
