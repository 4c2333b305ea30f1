# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""The main jobs on a real Xen host, driven by the stand-in for oned of each version.

# Requirements: the lab with solo1, cxm installed on it.
"""

import pytest

from lab import installed, traces, visit
from lab.guest_image import GuestImage
from lab.lab import Lab
from lab.oned import scenarios
from lab.oned.cloud import Cloud, Network, VmView
from lab.oned.scenarios import Parts
from lab.spec import BRIDGE

_HOST = "solo1"
_ADDRESS = "10.77.1.150"


# Not seen green yet on real Xen; the whole module moves to make test when it has been.
pytestmark = pytest.mark.extensive


@pytest.fixture
def cxm_lab(solo_session: Lab) -> Lab:
    """The lab with cxm on solo1 and in the frontend's place."""
    installed.bring_up(solo_session)
    return solo_session


def _parts(guest: GuestImage) -> Parts:
    return Parts(_HOST, guest.tgz, Network("lan", BRIDGE, _ADDRESS))


def _left(lab: Lab, cloud: Cloud) -> list[str]:
    return traces.of_vms(lab.machine(_HOST)) + cloud.left_behind()


@pytest.mark.parametrize(
    "version",
    [
        "3.8",
        "7.4",
        "5.10",
        "6.10",
    ],
)
def test_a_vm_lives_its_whole_life(cxm_lab: Lab, guest: GuestImage, version: str) -> None:
    """Memory survives suspend and stop, not a poweroff; at the end nothing is left."""
    seen: dict[str, visit.Status] = {}

    def look(stage: str, vm: VmView) -> None:
        if vm.state == "RUNNING":
            seen[stage] = visit.await_status(cxm_lab, _ADDRESS)
        elif vm.state != "DONE":
            domains = [line for line in traces.of_vms(cxm_lab.machine(_HOST)) if "domain:" in line]
            assert domains == [], stage

    with scenarios.open_standin(cxm_lab, version) as cloud:
        parts = _parts(guest)
        scenarios.prepare(cloud, parts)
        scenarios.main_job(cloud, parts, look)
        cloud.settle()
        assert seen["resumed"].boot == seen["running"].boot
        assert seen["on again"].boot != seen["running"].boot
        assert seen["back"].boot == seen["on again"].boot
        assert _left(cxm_lab, cloud) == []


def test_an_undeployed_vm_comes_back(cxm_lab: Lab, guest: GuestImage) -> None:
    """Its disk goes to the frontend and returns."""
    with scenarios.open_standin(cxm_lab, "7.4") as cloud:
        parts = _parts(guest)
        scenarios.prepare(cloud, parts)
        scenarios.undeploy_and_back(cloud, parts)
        cloud.settle()
        assert _left(cxm_lab, cloud) == []


@pytest.mark.parametrize("version", ["3.8", "7.4"])
def test_a_failed_deployment_is_tried_again(cxm_lab: Lab, guest: GuestImage, version: str) -> None:
    """Without the helper a deployment fails; when it is back, the second try runs."""
    machine = cxm_lab.machine(_HOST)
    helper = "/usr/lib/cxm/cxm-helper"

    def spoil() -> None:
        machine.run(["mv", helper, f"{helper}.away"])

    def mend() -> None:
        machine.run(["mv", f"{helper}.away", helper])

    with scenarios.open_standin(cxm_lab, version) as cloud:
        parts = _parts(guest)
        scenarios.prepare(cloud, parts)
        scenarios.second_try(cloud, parts, spoil, mend)
        cloud.settle()
        assert _left(cxm_lab, cloud) == []
