# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""What guests of a cluster do by themselves, and what an operator does with ``cxm``.

Requirements: the lab with node1 and node2, a cluster by cxm-setup, a VM on each, no frontend.
"""

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Final

import pytest

from cxm.errors import CxmError, RefusedError
from lab import town as towns
from lab import visit
from lab.town import FAILOVER_S, Resident, Town, status
from tests.lab.inplace import node_of
from tests.lab.invariant import watched

_ORDER_S: Final = 900.0
_AGENT: Final = "/usr/lib/ocf/resource.d/cxm"


def _tell(resident: Resident, what: str) -> None:
    """Have the guest do something that may be its last deed."""
    with suppress(CxmError):
        visit.fetch(resident.lab, resident.address, f"cgi-bin/{what}")


@pytest.mark.extensive
def test_guests_own_life(town: Town) -> None:
    """It reboots, crashes, vanishes: it lives again, where it was; switched off, it stays off."""
    first, _second = town.nodes
    web = town.web.answers()
    at_home = {0: (first.name,), 1: (town.db.home,)}
    with watched(town.lab):
        _tell(town.web, "reboot")
        web = town.web.booted_again(web)
        towns.running(town, first)
        assert not [each for each in status(first).failures if each.resource.endswith("-0")]

        crashed(town)
        web = town.web.answers()

        first.run(["xl", "destroy", "web"])
        web = town.web.booted_again(web)
        town.await_places(first, at_home)

        _tell(town.web, "poweroff")
        town.await_places(first, {1: (town.db.home,)})
        listed = first.run(["cxm", "list"]).stdout
        assert "its guest switched itself off" in listed
        assert "web" not in first.run(["xl", "list"]).stdout
        first.run(["cxm", "create", "web"], timeout_s=_ORDER_S)
        town.web.booted_again(web)
        town.await_places(first, at_home)


def crashed(town: Town) -> None:
    """The guest of web crashes, and lives again where it was."""
    first, _second = town.nodes
    before = town.web.answers()
    home = towns.running(town, first)
    _tell(town.web, "crash")
    town.web.booted_again(before)
    town.await_places(first, home)


@pytest.mark.extensive
def test_saved_memory(town: Town) -> None:
    """A save that is killed harms nothing; memory that a cold start has overtaken is gone."""
    first, _second = town.nodes
    node = node_of(town.lab, first.name)
    before = town.web.answers()
    with watched(town.lab), ThreadPoolExecutor(1) as pool:
        saving = pool.submit(node.call, "domain-save", {"vm": town.web.vm}, timeout_s=_ORDER_S)
        first.wait_until(["pgrep", "-f", "bin/xl save "], timeout_s=FAILOVER_S)
        first.run(["pkill", "-KILL", "-f", "cxm-helper domain-save|bin/xl save "])
        with pytest.raises(CxmError):
            saving.result()
        assert set(towns.running(town, first)) == {town.web.vm, town.db.vm}
        now = visit.await_status(town.lab, town.web.address, timeout_s=FAILOVER_S)
        assert now.boots in (before.boots, before.boots + 1)

        node.call("domain-save", {"vm": town.web.vm}, timeout_s=_ORDER_S)
        town.await_places(first, {town.db.vm: (town.db.home,)})
        refused = first.run(["cxm", "create", "web"], ok=range(256))
        assert refused.code == RefusedError.code
        assert "the memory of VM 0 is saved" in refused.stderr

        # An operator who knows better than cxm.
        (rid,) = (each for each in status(first).resources if each.endswith("-0"))
        words = ["--meta", "--set-parameter", "target-role", "--parameter-value", "Started"]
        first.run(["crm_resource", "--resource", rid, *words])
        town.web.booted_again(now)
        first.run(["cxm", "shutdown", "web"], timeout_s=_ORDER_S)
        asked = {"vm": town.web.vm, "dir": "/var/lib/one/datastores/0/0", "guest": None}
        with pytest.raises(CxmError, match="VM 0 has no saved memory"):
            node.call("domain-restore", asked, timeout_s=_ORDER_S)
        town.await_places(first, {town.db.vm: (town.db.home,)})


@pytest.mark.extensive
def test_an_operators_day(town: Town) -> None:
    """Fencing is proven, a node emptied and given back, VMs shut down, begun, ended at once."""
    first, second = town.nodes
    web, db = town.web.answers(), town.db.answers()
    with watched(town.lab):
        second.run(["cxm", "eject", "node1"], timeout_s=_ORDER_S)
        town.await_places(second, {0: ("node2",), 1: ("node2",)})
        web = town.web.lives_on(web)
        second.run(["cxm", "eject", "--back", "node1"])

        proven = second.run(["cxm", "fence", "--test", "--yes", "node1"], timeout_s=_ORDER_S * 2)
        assert "fencing is proven: node1" in proven.stdout
        town.await_whole()
        web, db = town.web.lives_on(web), town.db.lives_on(db)

        first.run(["cxm", "shutdown", "web"], timeout_s=_ORDER_S)
        town.await_places(first, {1: ("node2",)})
        first.run(["cxm", "create", "web", "node1"], timeout_s=_ORDER_S)
        town.await_places(first, {0: ("node1",), 1: ("node2",)})
        web = town.web.booted_again(web)
        second.run(["cxm", "reboot", "web"], timeout_s=_ORDER_S)
        town.web.booted_again(web)
        towns.running(town, first)
        first.run(["cxm", "destroy", "db"], timeout_s=_ORDER_S)
        town.await_places(first, {0: ("node1",)})
        first.run(["cxm", "shutdown-all", "--yes"], timeout_s=_ORDER_S)
        town.await_places(first, {})
        checked = {node.name: node.run(["cxm", "check"], ok=(0, 1)) for node in town.nodes}
        for said in checked.values():
            assert "FAILED" not in said.stdout, said.stdout
        for node in town.nodes:
            assert node.run(["cxmd_ctl", "--ping"]).code == 0
            shown = node.run(["cxmd_ctl", "--list-nodes"]).stdout
            assert shown.split() == ["node1", "node2"]
            assert node.run(["cxm", "top", "-n", "1"]).stdout


@pytest.mark.extensive
def test_agents_pass_ocf_tester(town: Town) -> None:
    """The tester of the agents' specification finds nothing."""
    _first, second = town.nodes
    second.run(["cxm", "shutdown", "db"], timeout_s=_ORDER_S)
    town.await_places(second, {0: (town.web.home,)})
    found = status(second).resources
    (cloud,) = {rid.split("-")[1] for rid in found if rid.endswith("-0")}
    # Pacemaker would put right what the tester does.
    second.run(["crm_attribute", "--name", "maintenance-mode", "--update", "true"])
    devices = "/dev/disk/by-id/virtio-CXMSAN0"
    for agent, options in (
        ("domain", [f"cloud={cloud}", f"vm={town.db.vm}"]),
        ("storage", [f"devices={devices}"]),
        ("watch", []),
        ("balance", []),
    ):
        words = [word for option in options for word in ("-o", option)]
        tested = second.run(
            ["ocf-tester", "-n", f"tested-{agent}", *words, f"{_AGENT}/{agent}"],
            timeout_s=_ORDER_S,
            ok=range(256),
        )
        assert tested.code == 0, tested.stdout + tested.stderr
        assert "passed all tests" in tested.stdout
