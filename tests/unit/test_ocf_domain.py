# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""The shell part of the VMs' resource agent: it answers for healthy guests only."""

import re
from pathlib import Path
from xml.etree.ElementTree import fromstring

import pytest

from cxm.cluster import basis
from cxm.names import CloudId, VmId, domain_uuid
from cxm.run import Result, System

AGENT = Path(__file__).parents[2] / "packaging/ocf/domain"
CLOUD = CloudId("lab")
UUID = domain_uuid(CLOUD, VmId(1))
HELPER = 99
HEAD = (
    "Name                                        ID   Mem VCPUs\tState\tTime(s)"
    "   UUID                            Reason-Code\tSecurity Label\n"
)
DOM0 = (
    "Domain-0                                     0   384     1     r-----      52.6 "
    "00000000-0000-0000-0000-000000000000        -                -\n"
)


def row(name: str = "vm1", state: str = "-b----", uuid: str = UUID, reason: str = "-") -> str:
    """A line of ``xl list -v``."""
    return f"{name:<40} {7:5} {128:5} {1:5}     {state}  {12.3:8.1f} {uuid} {reason:>8} {'-':>16}\n"


class Place:
    """The agent among tools that write down how they are called."""

    def __init__(self, top: Path) -> None:
        self.top = top
        (top / "bin").mkdir()
        (top / "run/cxm/uuid").mkdir(parents=True)
        for vm in (1, 10):
            self.memo(vm).write_text(f"{domain_uuid(CLOUD, VmId(vm))}\n")
        self.tool("xl", f"cat {top}/list")
        self.tool("cxm-agent", f"exit {HELPER}")
        text = AGENT.read_text()
        text = text.replace("RUN=/run/cxm", f"RUN={top}/run/cxm")
        text = text.replace("/usr/lib/cxm/cxm-agent", f"{top}/bin/cxm-agent")
        self.agent = top / "agent"
        self.agent.write_text(text)
        self.has(row())

    def memo(self, vm: int) -> Path:
        return self.top / f"run/cxm/uuid/{CLOUD}-{vm}"

    def tool(self, name: str, does: str) -> None:
        path = self.top / "bin" / name
        path.write_text(f'#!/bin/sh\necho "{name} $*" >>{self.top}/log\n{does}\n')
        path.chmod(0o755)

    def has(self, *rows: str) -> None:
        (self.top / "list").write_text(HEAD + DOM0 + "".join(rows))

    def run(self, action: str = "monitor", vm: int = 1, interval: str = "10000") -> Result:
        given = [f"OCF_RESKEY_cloud={CLOUD}", f"OCF_RESKEY_vm={vm}"]
        given += [f"OCF_RESKEY_CRM_meta_interval={interval}"] if interval else []
        path = f"PATH={self.top}/bin:/usr/bin:/bin"
        return System().run(
            ["env", path, *given, "/bin/sh", str(self.agent), action], ok=range(256)
        )

    def calls(self) -> list[str]:
        log = self.top / "log"
        return log.read_text().splitlines() if log.exists() else []


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A node on which VM 1 runs."""
    return Place(tmp_path)


@pytest.mark.parametrize("state", ["r-----", "-b----", "------"])
def test_healthy_guest_costs_no_python(place: Place, state: str) -> None:
    """Running, blocked, or waiting for a CPU."""
    place.has(row("other", "--p---", domain_uuid(CLOUD, VmId(5))), row(state=state))
    assert place.run().code == 0
    assert place.calls() == ["xl list -v"]


@pytest.mark.parametrize(
    "rows",
    [
        (),
        (row(state="--p---"),),
        (row(state="---s--", reason="0"),),
        (row(state="---sc-", reason="3"),),
        (row(state="---s--", reason="2"),),
        (row(state="--psr-", reason="1"),),
        (row(state="-----d"),),
        (row(state="r----d"),),
        (row("vm1--incoming"),),
        (row("vm1--migratedaway"),),
        (row(uuid=domain_uuid(CLOUD, VmId(10))),),
        (row(uuid=domain_uuid(CloudId("lab2"), VmId(1))),),
        (row("x y z", "-b----", "0" * 8 + UUID[8:]),),
        (f"vm1 -b---- {UUID}\n",),
    ],
)
def test_everything_else_is_left_to_python(place: Place, rows: tuple[str, ...]) -> None:
    """Whatever is odd about it."""
    place.has(*rows)
    assert place.run().code == HELPER
    assert place.calls() == ["xl list -v", "cxm-agent monitor"]


def test_names_of_others_do_not_matter(place: Place) -> None:
    """They may hold blanks, be nobody's, or be our VM's."""
    place.has(
        row("a foreign one", "--p---", "1" * 8 + UUID[8:]),
        row("(null)", "--p---", "2" * 8 + UUID[8:]),
        row("vm1", "--p---", "3" * 8 + UUID[8:]),
        row("b--incoming c", "--p---", "4" * 8 + UUID[8:]),
        row("renamed"),
    )
    assert place.run().code == 0


def test_half_of_a_migration_hides_nothing(place: Place) -> None:
    """VM 1 has left; VM 10 runs."""
    place.has(row("vm1--migratedaway"), row("vm10", uuid=domain_uuid(CLOUD, VmId(10))))
    assert place.run().code == HELPER
    assert place.run(vm=10).code == 0


def test_monitors_share_a_list(place: Place) -> None:
    """One xl for all that look within three seconds."""
    assert [place.run().code for _time in range(3)] == [0, 0, 0]
    assert place.calls() == ["xl list -v"]
    (place.top / "run/cxm/domains").write_text(f"1\n{HEAD}{row()}")
    assert place.run().code == 0
    assert place.calls() == ["xl list -v"] * 2


@pytest.mark.parametrize("interval", ["0", ""])
def test_probe_looks_for_itself(place: Place, interval: str) -> None:
    """The VM was here a moment ago, when another monitor looked."""
    assert place.run().code == 0
    place.has()
    assert place.run(interval=interval).code == HELPER
    place.has(row())
    assert place.run(interval=interval).code == 0


def test_list_of_an_earlier_boot_is_not_believed(place: Place) -> None:
    """Its time lies ahead."""
    (place.top / "run/cxm/domains").write_text(f"99999999999\n{HEAD}{row()}")
    place.has()
    assert place.run().code == HELPER


def test_disks_that_may_be_shared_are_for_python(place: Place) -> None:
    """Also while the guest is well."""
    (place.top / "run/cxm/moving").mkdir()
    (place.top / f"run/cxm/moving/{CLOUD}-1").touch()
    assert place.run().code == HELPER
    place.has(row("vm10", uuid=domain_uuid(CLOUD, VmId(10))))
    assert place.run(vm=10).code == 0


def test_without_a_list_python_finds_out(place: Place) -> None:
    """Neither is a list that broke off left for others."""
    place.tool("xl", f"head -c 60 {place.top}/list; exit 1")
    assert place.run().code == HELPER
    assert sorted(each.name for each in (place.top / "run/cxm").iterdir()) == ["uuid"]


def test_without_a_uuid_python_works_it_out(place: Place) -> None:
    """Once per boot of the host."""
    place.memo(1).unlink()
    assert place.run().code == HELPER
    place.memo(1).write_text("")
    assert place.run().code == HELPER


@pytest.mark.parametrize("action", ["start", "stop", "migrate_to", "migrate_from", "validate-all"])
def test_other_actions_are_python(place: Place, action: str) -> None:
    """And nothing is asked before."""
    assert place.run(action).code == HELPER
    assert place.calls() == [f"cxm-agent {action}"]


def test_unknown_action(place: Place) -> None:
    """Is unimplemented; the usage is shown."""
    said = place.run("promote")
    assert said.code == 3
    assert "usage:" in said.stderr
    assert place.run("usage").code == 0
    assert place.calls() == []


def test_meta_data(place: Place) -> None:
    """Names every action that the agent knows, and that the cluster's template times."""
    said = place.run("meta-data")
    root = fromstring(said.stdout)
    assert root.get("name") == "domain"
    assert {each.get("name") for each in root.iter("parameter")} == {"cloud", "vm"}
    named = {each.get("name") for each in root.iter("action")}
    usage = re.search(r"usage: \S+ (\S+)", place.run("usage").stdout)
    assert usage is not None
    assert named == set(usage[1].split("|"))
    assert set(basis._DOMAIN) <= named
    unique = {each.get("unique") for each in root.iter("parameter")}
    assert unique == {"0"}, "a parameter that is unique alone would forbid a second VM"
