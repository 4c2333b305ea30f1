# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""cxm-setup cluster and the fence devices: asked before a change, tried after it."""

import threading
from dataclasses import replace
from pathlib import Path
from xml.etree.ElementTree import tostring

import pytest

from cxm.cluster import nodes
from cxm.cluster.pacemaker import Failure
from cxm.errors import CxmError, RefusedError
from cxm.setup import cluster
from tests.fakes.administration import Said
from tests.fakes.forming import GIVEN, Pair
from tests.fakes.machine import Outcome


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    """Two machines with the packages installed, Corosync's example as Debian leaves it."""
    return Pair(tmp_path)


def test_fence_devices_are_asked_before_anything_is_changed(pair: Pair) -> None:
    """With what they were given, but what is for Pacemaker, nor an action of somebody's own."""
    more = "node2=fence_x,ip=10.0.1.9,pcmk_host_map=node2:7,action=off"
    given = replace(GIVEN, fencing=[*GIVEN.fencing, more], dry_run=True)
    said = pair.run(pair.first, given)
    assert "fence-node2-2 (fence_x) answers" in said
    assert sorted(pair.san.asked, key=lambda each: each["ip"]) == [
        {"action": "monitor", "ip": "10.0.1.1", "username": "u", "password": "secret1"},
        {"action": "monitor", "ip": "10.0.1.2", "username": "u", "password": "secret2"},
        {"action": "monitor", "ip": "10.0.1.9"},
    ]


def test_agent_without_a_monitor_is_asked_for_its_nodes_status(pair: Pair) -> None:
    """That of the outlet which the node is on; off is an answer too."""
    pair.san.actions = "status off on reboot metadata"
    more = "node2=fence_x,ip=10.0.1.9,pcmk_host_map=node1:6;node2:7"
    pair.run(pair.first, replace(GIVEN, fencing=[*GIVEN.fencing, more], dry_run=True))
    (asked,) = (each for each in pair.san.asked if each["ip"] == "10.0.1.9")
    assert asked == {"action": "status", "ip": "10.0.1.9", "nodename": "node2", "port": "7"}


def test_agent_that_repeats_a_password_does_not_get_it_shown(pair: Pair) -> None:
    """Its words are told, with node and device."""
    pair.san.broken["10.0.1.2"] = "Invalid password {password} for {username}"
    said = Said()
    with pytest.raises(RefusedError):
        cluster.work(pair.first.world(pair.pacemaker, said), GIVEN)
    assert (
        "FAILED   fencing node2  fence-node2 does not answer: 'fence_ipmilan' failed" in said.text
    )
    assert "Invalid password *** for u" in said.text
    assert "secret2" not in said.text


def test_fence_devices_are_asked_all_at_once(pair: Pair) -> None:
    """Sixteen nodes whose BMCs are silent for a minute each cost one minute."""
    together, one = threading.Barrier(2, timeout=30), pair.first._fence

    def asked(argv: tuple[str, ...], stdin: bytes) -> Outcome:
        together.wait()
        return one(argv, stdin)

    pair.first.node.model("fence_ipmilan", asked)
    assert "fence-node2 (fence_ipmilan) answers" in pair.run(
        pair.first, replace(GIVEN, dry_run=True)
    )


@pytest.mark.parametrize("dry_run", [True, False])
def test_dead_bmc_of_another_node_does_not_stop_what_else_is_asked_for(
    pair: Pair, *, dry_run: bool
) -> None:
    """The cluster has it already, as it is given: somebody may be repairing just that.

    It is not waited for; whether it is switched off meanwhile or fails.
    """
    pair.form()
    pair.san.broken["10.0.1.2"] = "Unable to connect"
    pair.pacemaker.started.discard("fence-node2")
    for pacemaker_runs in (True, not dry_run):
        pair.pacemaker.answers = pacemaker_runs
        cib = tostring(pair.pacemaker.cib, encoding="unicode")
        pair.first.write("var/lib/pacemaker/cib/cib.xml", cib)
        said = pair.run(pair.first, replace(GIVEN, dry_run=dry_run))
        assert "warning  fencing node2  fence-node2 does not answer: 'fence_ipmilan' fai" in said
        assert "-> the cluster has it already, so this goes on" in said
        assert "Nothing to change" in said


@pytest.mark.parametrize(
    "given",
    [
        "fence_ipmilan,ip=10.0.1.9,username=u,password=secret2",
        "fence_ipmilan,ip=10.0.1.2,username=u,password=another",
        "fence_ipmilan,ip=10.0.1.2,username=u",
        "fence_x,ip=10.0.1.2,username=u,password=secret2",
    ],
)
@pytest.mark.parametrize("dry_run", [True, False])
def test_device_that_is_another_has_to_answer(pair: Pair, given: str, *, dry_run: bool) -> None:
    """Another address, password or agent, one parameter less: what was there says nothing of it."""
    pair.form()
    pair.san.broken |= {"10.0.1.2": "no", "10.0.1.9": "no"}
    options = replace(GIVEN, fencing=[GIVEN.fencing[0], f"node2={given}"], dry_run=dry_run)
    with pytest.raises(RefusedError, match="because of the failed check: fencing node2"):
        pair.run(pair.first, options)


def test_own_bmc_is_not_waited_for_once_it_was_proven(pair: Pair) -> None:
    """Before that it may never have worked: only the others can say so."""
    pair.form()
    pair.san.broken["10.0.1.1"] = "timed out"
    pair.pacemaker.started.discard("fence-node1")
    failure = Failure("fence-node1", "start", "node2", "Unable to connect", "now")
    with pytest.raises(CxmError, match="fence-node1 does not work from node2"):
        pair.run(pair.first, GIVEN, lambda: pair.pacemaker.failures.append(failure))
    nodes.set_attribute(pair.pacemaker.cib, "node1", nodes.FENCING, "1700000000")
    assert "Nothing to change" in pair.run(pair.first, GIVEN)


def test_own_bmc_that_does_not_answer_is_a_warning(pair: Pair) -> None:
    """One that shares the network port of its machine answers all others, who are to use it."""
    pair.san.broken["10.0.1.1"] = "timed out"
    said = pair.run(pair.first, replace(GIVEN, dry_run=True))
    assert "warning  fencing node1  fence-node1 does not answer here: 'fence_ipmilan'" in said


def test_fence_device_that_does_not_work_is_said(pair: Pair) -> None:
    """Corrected, the same command goes on; what went wrong before is forgotten."""
    pair.form()
    failure = Failure("fence-node2", "start", "node1", "Unable to connect", "now")
    pair.pacemaker.failures.append(failure)
    assert "Nothing to change" in pair.run(pair.first, GIVEN), "it works again"
    pair.pacemaker.started.discard("fence-node2")
    with pytest.raises(CxmError, match="fence-node2 does not work from node1: Unable") as raised:
        pair.run(pair.first, GIVEN, lambda: pair.pacemaker.failures.append(failure))
    assert "correct --fence" in (raised.value.hint or "")
    pair.pacemaker.cleaned.clear()
    corrected = [GIVEN.fencing[0], GIVEN.fencing[1].replace("secret2", "right")]
    said = pair.run(
        pair.first,
        replace(GIVEN, fencing=corrected),
        lambda: pair.pacemaker.started.add("fence-node2"),
    )
    assert pair.pacemaker.cleaned == ["fence-node2"]
    assert "formed" in said


def test_fence_device_that_was_repaired_is_tried_again(pair: Pair) -> None:
    """Its old failure is not told: the same command is a new try."""
    pair.form()
    pair.pacemaker.started.discard("fence-node2")
    for resource in ("fence-node2", "cxm-dlm"):
        failure = Failure(resource, "start", "node1", "Unable to connect", "now")
        pair.pacemaker.failures.append(failure)
    started = pair.pacemaker.started
    said = pair.run(pair.first, GIVEN, lambda: started.add("fence-node2"))
    assert pair.pacemaker.cleaned == ["fence-node2"]
    assert "waiting for the fence devices fence-node2" in said
