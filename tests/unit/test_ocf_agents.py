# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""What every resource agent owes the cluster: the OCF API, as ocf-tester checks it."""

import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from cxm.run import Result, System

AGENTS = Path(__file__).parents[2] / "packaging/ocf"
NAMES = ("balance", "domain", "lockspace", "storage", "watch")
SUCCESS, ARGUMENTS, UNIMPLEMENTED, NOT_CONFIGURED = 0, 2, 3, 6
# Of ra-api-1.dtd and metadata.rng of the package resource-agents, what our agents use.
CHILDREN = {
    "resource-agent": ["version", "longdesc", "shortdesc", "parameters", "actions"],
    "parameter": ["longdesc", "shortdesc", "content"],
}
ATTRIBUTES = {
    "resource-agent": ({"name"}, {"name", "version"}),
    "parameter": ({"name"}, {"name", "required", "unique", "unique-group"}),
    "longdesc": ({"lang"}, {"lang"}),
    "shortdesc": ({"lang"}, {"lang"}),
    "content": ({"type"}, {"type", "default"}),
    "action": ({"name", "timeout"}, {"name", "timeout", "interval", "depth"}),
}
TYPES = {"string", "integer", "boolean"}
ACTIONS = {"start", "stop", "monitor", "migrate_to", "migrate_from", "validate-all", "meta-data"}
NEEDED = {"start", "stop", "monitor", "meta-data", "validate-all"}


def run(agent: str, *argv: str) -> Result:
    """The agent without a parameter."""
    words = ["env", "-u", "OCF_ROOT", "/bin/sh", str(AGENTS / agent), *argv]
    return System().run(words, ok=range(256))


@pytest.fixture(scope="module", params=NAMES)
def agent(request: pytest.FixtureRequest) -> str:
    """Each of them."""
    return str(request.param)


def test_every_agent_is_checked() -> None:
    """A new one is to be named here."""
    assert {each.name for each in AGENTS.iterdir()} == set(NAMES)


def test_meta_data_has_the_form_that_the_api_wants(agent: str) -> None:
    """Tools refuse an agent whose description they cannot read."""
    said = run(agent, "meta-data")
    assert (said.code, said.stderr) == (SUCCESS, "")
    root = ET.fromstring(said.stdout)
    assert root.get("name") == agent
    for each in root.iter():
        if each.tag in CHILDREN:
            assert [child.tag for child in each] == CHILDREN[each.tag]
        needed, allowed = ATTRIBUTES.get(each.tag, (set(), set()))
        assert needed <= set(each.keys()) <= allowed, each.tag
    assert all(content.get("type") in TYPES for content in root.iter("content"))
    assert all(re.fullmatch(r"\d+s", each.get("timeout", "")) for each in root.iter("action"))
    names = {each.get("name", "") for each in root.iter("action")}
    assert NEEDED <= names <= ACTIONS


def test_every_action_of_the_meta_data_is_known_and_no_other(agent: str) -> None:
    """Its usage names them all; what is not there is told as such, and touches nothing."""
    said = run(agent, "promote")
    assert said.code == UNIMPLEMENTED
    usage = re.search(r"usage: \S+ (\S+)", said.stderr)
    assert usage is not None
    named = {
        each.get("name") for each in ET.fromstring(run(agent, "meta-data").stdout).iter("action")
    }
    assert set(usage[1].split("|")) == named


@pytest.mark.parametrize("which", ["lockspace", "storage"])
def test_without_its_parameter_an_agent_is_not_configured(which: str) -> None:
    """And says so; the Python part of the VMs' agent answers for itself (test_cluster_life)."""
    said = run(which, "validate-all")
    assert said.code == NOT_CONFIGURED
    assert said.stderr.startswith("ocf-exit-reason:")
