# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""A defect of cxm reaches Pacemaker and the other node as one sentence, not as a traceback."""

import io
from pathlib import Path

import pytest

from cxm.cluster import agentmain, peerserver
from cxm.cluster.agent import Ocf
from cxm.config import NodeConfig
from cxm.node.machine import Machine
from tests.fakes.machine import CLOUD, FakeNode


def _broken() -> NodeConfig:
    raise ZeroDivisionError("of what?")


@pytest.mark.parametrize("action", ["start", "monitor", "migrate_to"])
def test_an_agents_defect_is_one_sentence(tmp_path: Path, action: str) -> None:
    """With the code of a failed action, and what Pacemaker shows beside it."""
    said: list[str] = []
    env = {"OCF_RESKEY_cloud": CLOUD, "OCF_RESKEY_vm": "7"}
    machine = FakeNode(str(tmp_path)).machine()
    assert agentmain.perform(machine, action, env, _broken, say=said.append) == Ocf.ERROR
    (sentence,) = said
    assert sentence.startswith(f"VM 7: {action} failed unexpectedly: ZeroDivisionError: of what? ")
    assert "this is a defect of cxm" in sentence


def test_an_agent_without_parameters_is_not_configured(tmp_path: Path) -> None:
    """As ocf-tester asks it."""
    said: list[str] = []
    machine = FakeNode(str(tmp_path)).machine()
    code = agentmain.perform(machine, "validate-all", {}, NodeConfig, say=said.append)
    assert code == Ocf.NOT_CONFIGURED
    assert len(said) == 1


def test_a_peers_defect_is_an_answer() -> None:
    """The node that asked shows it; a traceback would be no answer at all."""

    def broken() -> Machine:
        raise ZeroDivisionError("of what?")

    answer = peerserver.answered(broken, f"state {CLOUD} 7", lambda _argv: None, io.BytesIO())
    assert answer["error"].endswith("failed unexpectedly: ZeroDivisionError: of what?")
    assert "defect of cxm" in answer["hint"]


def test_a_node_without_settings_tells_its_boot() -> None:
    """A new node's fencing is proven before it is a host of OpenNebula."""
    for word in ("boot", "corosync", "journal 1"):
        assert peerserver.machine_for(word, _broken).config == NodeConfig()
    with pytest.raises(ZeroDivisionError):
        peerserver.machine_for("check", _broken)
