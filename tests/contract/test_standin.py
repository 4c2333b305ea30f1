# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""The stand-in for oned against real OpenNebula: the same play makes the same calls of drivers.

``recorder.py`` says how the calls of real OpenNebula were recorded.
"""

import os
import re

import pytest

from tests.contract import recorder
from tests.contract.recorded_world import standin
from tests.contract.recorder import Call, Played

_DATA = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "data")
_RECORDED = {"3.8": "oned-calls-3.8.5.json", "7.4": "oned-calls-7.4.0.json"}
# What oned writes beside the things that a driver of a disk or a domain may want to know.
_NOT_MODELLED = re.compile(
    r"TEMPLATE/(AUTOMATIC_|SECURITY_GROUP_RULE|TM_MAD_SYSTEM|CONTEXT/ETH0_|GRAPHICS/PORT)"
    r"|DISK/(ALLOW_ORPHANS|DISK_SNAPSHOT_TOTAL_SIZE|DISK_TYPE|IMAGE_STATE|PERSISTENT_SNAPSHOTS)"
    r"|NIC/(AR_ID|BRIDGE_TYPE|CLUSTER_ID|VLAN)|OS/MACHINE|DATASTORE/TEMPLATE/|USER_TEMPLATE/ERROR"
)


@pytest.fixture(scope="module", params=[pytest.param("3.8", marks=pytest.mark.extensive), "7.4"])
def played(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Played, Played]:
    """The play on a stand-in of one version, without privileges, and on the real one."""
    top = str(tmp_path_factory.mktemp("oned"))
    with standin(top, request.param) as world:
        world.notes.mark("prepare")
        recorder.prepare(world.cloud, world.image)
        recorder.play(world.cloud, world.notes, world.cloud.settle)
    ours = recorder.normal(world.notes.entries(), world.names)
    return ours, recorder.recorded(os.path.join(_DATA, _RECORDED[request.param]))


def _by_script(calls: list[Call]) -> list[str]:
    return sorted(str(call) for call in calls)


def test_it_calls_the_drivers_as_real_opennebula_does(played: tuple[Played, Played]) -> None:
    """The same actions in the same order, with the same arguments, inputs and stream commands."""
    ours, real = played
    assert list(ours.steps) == list(real.steps)
    for step, calls in real.steps.items():
        if step == "delete running" and "undeploy" not in real.steps:
            # Up to 4.14 oned asks two drivers at once.
            assert _by_script(ours.steps[step]) == _by_script(calls)
        else:
            assert ours.steps[step] == calls, step


def test_its_xml_has_the_shape_of_real_opennebulas(played: tuple[Played, Played]) -> None:
    """Every path is one that oned writes, and none is missing but those that no driver needs."""
    ours, real = played
    assert set(ours.shapes) == set(real.shapes)
    for kind, paths in real.shapes.items():
        missing = set(paths) - set(ours.shapes[kind])
        assert {path for path in missing if not _NOT_MODELLED.search(path)} == set()
        added = set(ours.shapes[kind]) - set(paths)
        assert {path for path in added if not _NOT_MODELLED.search(path)} == set()
