# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""The main jobs on a real Xen host, driven by the stand-in for oned of each version.

Where an OpenNebula is installed (ONE_LOCATION, or oned on the path), by that one instead.

# Requirements: the lab with solo1, cxm installed on it.
"""

import pytest

from lab.oned import scenarios
from lab.oned.cloud import VmView
from tests.lab.sites import Site, versions

# Without it no disk gets a file system; monitoring, which would bar the host, does not miss it.
_MKFS = "/usr/sbin/mke2fs"


@pytest.mark.extensive
@pytest.mark.parametrize("version", versions("7.4", "3.8", "5.10", "6.10"), scope="module")
def test_a_vm_lives_its_whole_life(site: Site) -> None:
    """Memory survives suspend and stop, not a poweroff; at the end nothing is left.

    The demo, which is a case of make test, plays most of it by the stand-in of 7.4.
    """
    boots: dict[str, str] = {}

    def look(stage: str, vm: VmView) -> None:
        if vm.state == "RUNNING":
            boots[stage] = site.answers().boot
        else:
            assert site.domains() == [], stage

    scenarios.main_job(site.cloud, site.parts, look)
    assert boots["resumed"] == boots["running"]
    assert boots["on again"] != boots["running"]
    assert boots["back"] == boots["on again"]
    site.finish()


@pytest.mark.parametrize(
    "version", versions("7.4", pytest.param("3.8", marks=pytest.mark.extensive)), scope="module"
)
def test_a_failed_deployment_is_tried_again(site: Site) -> None:
    """Without mkfs a deployment fails; when it is back, the second try runs."""

    def spoil() -> None:
        site.host.run(["mv", _MKFS, f"{_MKFS}.away"])

    def mend() -> None:
        site.host.run(["mv", f"{_MKFS}.away", _MKFS])

    scenarios.second_try(site.cloud, site.parts, spoil, mend)
    site.finish()


@pytest.mark.extensive
@pytest.mark.parametrize("version", versions("7.4", since=(4, 4)), scope="module")
def test_an_undeployed_vm_comes_back(site: Site) -> None:
    """Its disk goes to the frontend and returns."""
    scenarios.undeploy_and_back(site.cloud, site.parts)
    site.finish()
