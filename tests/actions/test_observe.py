# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""The verb ``observe``: what it says of a node, its guests and its disks."""

import io
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cxm import names
from cxm.names import CloudId, LvName, State, Tags, VmId
from cxm.node import guests, helper
from cxm.node.guests import Guest, Life
from tests.fakes.call import ask, request
from tests.fakes.machine import CLOUD, FakeNode
from tests.fakes.xl_list import Xen

OTHER = "11111111-2222-4333-8444-555555555555"


@pytest.fixture
def xen(node: FakeNode) -> Xen:
    """A node with Domain-0 alone."""
    return Xen(node)


@pytest.fixture
def observe(node: FakeNode, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Call the verb at a time."""
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("processor: 0\nmodel name\t: A CPU, fast\n")

    def call(detail: str, now: float = 0.0) -> dict[str, Any]:
        machine = node.machine(
            sys_dir=str(tmp_path / "sys"), proc_dir=str(tmp_path / "proc"), monotonic=lambda: now
        )
        return ask(machine, "observe", detail=detail).result

    return call


def record(node: FakeNode, vm: int, life: Life, *, cloud: CloudId = CLOUD) -> None:
    """What the node remembers of a guest."""
    guest = Guest(cloud, VmId(vm), f"one-{vm}", life, "for the test", 0.0)
    guests.write(node.machine(), guest)


def states(result: dict[str, Any]) -> dict[int, str]:
    """The state of each guest."""
    return {guest["vm"]: guest["state"] for guest in result["guests"]}


def test_guests_are_known_by_their_uuid(xen: Xen, observe: Callable[..., dict[str, Any]]) -> None:
    """Names prove nothing: VM 4 beside 42, another cloud's VM, halves of migrations, strangers."""
    xen.vm(4, 1, name="web")
    xen.vm(42, 2, name="one-4")
    xen.add("one-5", 3, "-b----", uuid=names.domain_uuid(CloudId("othercloud"), VmId(5)))
    xen.add("somebody's own", 4, "r-----", uuid=OTHER)
    xen.vm(6, 5, "--p---", name="one-6--incoming")
    result = observe("state")
    assert [(guest["vm"], guest["name"]) for guest in result["guests"]] == [
        (4, "web"),
        (42, "one-4"),
    ]
    assert result["foreign"] == ["one-5", "somebody's own"]


def test_states_come_from_domains_and_records(
    xen: Xen, node: FakeNode, observe: Callable[..., dict[str, Any]]
) -> None:
    """Each way a guest can be, and another cloud's record."""
    xen.vm(1, 1)
    xen.vm(2, 2, "---s--", reason="0")
    xen.vm(3, 3, "---s--", reason="3")
    record(node, 4, Life.OFF)
    record(node, 5, Life.RUNNING)
    record(node, 6, Life.STOPPED)
    record(node, 7, Life.RUNNING, cloud=CloudId("othercloud"))
    assert states(observe("state")) == {
        1: "running",
        2: "poweroff",
        3: "failure",
        4: "poweroff",
        5: "running",
    }
    assert states(observe("state", now=60.0))[5] == "vanished"


def test_remains_do_not_hide_the_living(xen: Xen, observe: Callable[..., dict[str, Any]]) -> None:
    """A new domain beside the old one's last breath is what counts."""
    xen.vm(1, 8, "-----d", name="(null)")
    xen.vm(1, 9)
    xen.vm(1, 10, "---s-d", reason="0")
    assert states(observe("state")) == {1: "running"}


def test_a_vm_at_work_is_busy(
    xen: Xen, node: FakeNode, observe: Callable[..., dict[str, Any]]
) -> None:
    """Whoever holds its lock knows more than we see; so does who makes a domain without a name."""
    xen.vm(1, 1, "--p---")
    xen.vm(2, 2, "--p---", name="(null)")
    with node.machine().vm_lock(CLOUD, VmId(1)):
        assert states(observe("state")) == {1: "busy", 2: "busy"}
    assert states(observe("state", now=30.0)) == {1: "running", 2: "busy"}


def test_a_vm_under_orders_is_busy(
    xen: Xen, node: FakeNode, observe: Callable[..., dict[str, Any]]
) -> None:
    """Reported as running before its deployment has ended, 7.4 would believe what it asks next."""
    xen.vm(1, 1)
    with node.machine().order_lock(CLOUD, VmId(1)):
        assert states(observe("state")) == {1: "busy"}
    assert states(observe("state", now=29.0)) == {1: "busy"}
    assert states(observe("state", now=30.0)) == {1: "running"}


def test_state_costs_one_command(
    xen: Xen, node: FakeNode, observe: Callable[..., dict[str, Any]]
) -> None:
    """What is asked every few seconds starts one process; all of it starts three."""
    xen.vm(1, 1)
    for detail, commands in (
        ("state", [("xl", "list")]),
        ("usage", [("xl", "list")]),
        ("host", [("xl", "list"), ("xl", "info")]),
        ("all", [("xl", "list"), ("xl", "info"), ("lvm", "fullreport")]),
    ):
        node.ran.clear()
        observe(detail)
        assert [argv[:2] for argv in node.ran] == commands


def _count(tmp_path: Path, device: str, **values: int) -> None:
    counters = tmp_path / "sys" / device / "statistics"
    counters.mkdir(parents=True)
    for name, value in values.items():
        (counters / name).write_text(f"{value}\n")


def test_usage_of_a_guest(xen: Xen, tmp_path: Path, observe: Callable[..., dict[str, Any]]) -> None:
    """CPU since the last look, memory, and traffic of exactly its own devices."""
    xen.vm(1, 1, seconds=10.0, memory=256)
    observe("state", now=0.0)
    xen.rows.pop()
    xen.vm(1, 1, seconds=25.0, memory=256)
    for card in ("vif1.0", "vif1.1"):
        _count(tmp_path, f"class/net/{card}", rx_bytes=100, tx_bytes=7)
    _count(tmp_path, "class/net/vif10.0", rx_bytes=5000, tx_bytes=5000)
    disks = "bus/xen-backend/devices"
    _count(tmp_path, f"{disks}/vbd-1-51712", rd_sect=2, wr_sect=4, rd_req=1, wr_req=3)
    _count(tmp_path, f"{disks}/vbd-10-51712", rd_sect=99, wr_sect=99, rd_req=99, wr_req=99)
    (guest,) = observe("usage", now=30.0)["guests"]
    assert guest == {
        "vm": 1,
        "name": "one-1",
        "state": "running",
        "cpu": 50.0,
        "memory_kib": 256 * 1024,
        "net_rx": 14,
        "net_tx": 200,
        "read_bytes": 1024,
        "write_bytes": 2048,
        "reads": 1,
        "writes": 3,
    }


def test_facts_of_the_machine(
    xen: Xen, tmp_path: Path, observe: Callable[..., dict[str, Any]]
) -> None:
    """Memory is what guests have or could have: not dom0's. CPU time is everybody's."""
    xen.vm(1, 1, memory=256, seconds=0.0)
    observe("state", now=0.0)
    xen.rows[0] = xen.rows[0].replace("100.0", "115.0")
    _count(tmp_path, "class/net/eth0", rx_bytes=11, tx_bytes=22)
    (tmp_path / "sys/class/net/eth0/device").mkdir()
    _count(tmp_path, "class/net/br0", rx_bytes=11, tx_bytes=22)
    node = observe("host", now=30.0)["node"]
    assert node["model"] == "A CPU, fast"
    assert (node["total_cpu"], node["used_cpu"], node["free_cpu"]) == (400, 50, 350)
    assert node["total_memory_kib"] == (5000 + 256) * 1024
    assert node["used_memory_kib"] == 256 * 1024
    assert node["free_memory_kib"] == 5000 * 1024
    assert (node["net_rx"], node["net_tx"], node["mhz"]) == (11, 22, 2799)


def test_memory_that_dom0_would_give_is_free(
    xen: Xen, observe: Callable[..., dict[str, Any]]
) -> None:
    """Without dom0_mem Xen takes what it needs from dom0, down to what we leave it."""
    xen.dom0_mem = ""
    xen.rows[0] = xen.rows[0].replace(" 1024 ", " 7000 ")
    assert observe("host")["node"]["free_memory_kib"] == (5000 + 7000 - 1024) * 1024


def test_disks_and_space(xen: Xen, node: FakeNode, observe: Callable[..., dict[str, Any]]) -> None:
    """Sizes of disks, VMs that have only disks, the group; others' volumes are not ours."""
    xen.vm(1, 1)
    for vm, kind, cloud in (
        (1, "0", CLOUD),
        (1, "1", CLOUD),
        (1, "checkpoint", CLOUD),
        (2, "0", CLOUD),
        (3, "0", CloudId("othercloud")),
    ):
        tags = Tags(cloud, VmId(vm), kind, State.READY).encode()
        node.add_lv(LvName(f"lv-one-{vm}-{kind}"), 8, tags=tags, content=b"")
    node.add_lv("root", 16, content=b"")
    node.add_lv("damaged", 8, tags=["cxm.vm=1"], content=b"")
    result = observe("all")
    assert result["guests"][0]["disks"] == {"0": 8, "1": 8}
    assert result["held"] == [2]
    assert result["vg"] == {
        "name": "LVM_XEN",
        "total_mib": 1024,
        "used_mib": 64,
        "free_mib": 960,
        "shared": False,
    }


def test_a_helper_that_stays_answers_until_its_input_ends(xen: Xen, node: FakeNode) -> None:
    """One process, a reply to each line, a failure among them; other verbs never stay."""
    xen.vm(1, 1)
    lines = [
        request({"detail": "state"}, stay=True),
        request({"detail": "nonsense"}, stay=True),
        request({"detail": "state"}, stay=True),
    ]
    said = io.BytesIO()
    helper.serve("observe", io.BytesIO(b"".join(lines)), said, node.machine())
    replies = [json.loads(line) for line in said.getvalue().splitlines()]
    assert [reply["ok"] for reply in replies] == [True, False, True]
    said = io.BytesIO()
    lines = [request({}, stay=True), request({}, stay=True)]
    helper.serve("vg-usage", io.BytesIO(b"".join(lines)), said, node.machine())
    assert len(said.getvalue().splitlines()) == 1


def test_a_helper_that_stays_waits_for_ever(xen: Xen, node: FakeNode) -> None:
    """Monitoring asks when it is time to; only an upload may not fall silent."""
    xen.vm(1, 1)
    line = request({"detail": "state"}, stay=True)
    reading, writing = os.pipe()
    os.write(writing, line)

    def later() -> None:
        os.write(writing, line)
        os.close(writing)

    said = io.BytesIO()
    with open(reading, "rb", buffering=0) as stdin:
        threading.Timer(0.3, later).start()
        helper.serve("observe", stdin, said, node.machine(silence_s=0.05))
    assert [json.loads(each)["ok"] for each in said.getvalue().splitlines()] == [True, True]


def test_a_helper_that_need_not_stay_leaves(xen: Xen, node: FakeNode) -> None:
    """What follows a request that does not ask to stay is not read."""
    both = request({"detail": "state"}) * 2
    sent, said = io.BytesIO(both), io.BytesIO()
    assert helper.serve("observe", sent, said, node.machine()) == 0
    assert len(said.getvalue().splitlines()) == 1
    assert sent.tell() == len(both) // 2
