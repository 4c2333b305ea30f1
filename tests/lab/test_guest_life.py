# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""What a standalone host does by itself when a guest ends, on real Xen (docs/design/0004)."""

# Requirements: the lab with solo1, cxm installed on it.

from contextlib import suppress

import pytest

from cxm.errors import CxmError
from lab import visit
from lab.oned import scenarios
from tests.lab.sites import ADDRESS, Site

_AGAIN_S = 480.0  # measured 60 to 100 s beside another lab; the second fall waits for its turn


def tell(site: Site, what: str) -> None:
    """Have the guest do something that may be its last deed."""
    with suppress(CxmError):
        visit.fetch(site.lab, ADDRESS, f"cgi-bin/{what}")


def answers_again(site: Site, before: visit.Status) -> visit.Status:
    """The guest, booted once more since ``before``."""
    return visit.await_status(
        site.lab, ADDRESS, lambda now: now.boot != before.boot, timeout_s=_AGAIN_S
    )


def test_a_guest_ends_by_itself(site: Site) -> None:
    """One that crashes or vanishes is started again; one that switches itself off stays off."""
    cloud, host = site.cloud, site.host
    image = scenarios.register(cloud, site.parts, "life")
    vm = scenarios.deploy(cloud, site.parts, "life", image)
    first = site.answers()

    tell(site, "crash")
    second = answers_again(site, first)
    assert second.boots == first.boots + 1

    [name] = site.domains()
    host.run(["xl", "destroy", name])
    third = answers_again(site, second)
    assert third.boots == second.boots + 1
    cloud.wait(vm, "RUNNING")

    tell(site, "poweroff")
    cloud.wait(vm, "POWEROFF")
    active = ["lvs", "--noheadings", "-o", "lv_name", "-S", "lv_active=active", "LVM_XEN"]
    host.wait_until(lambda: host.run(active).stdout.split() == [], timeout_s=240)
    assert site.domains() == []
    host.run(["/usr/lib/cxm/cxm-helper", "tend"])
    assert site.domains() == []

    cloud.resume(vm)
    cloud.wait(vm, "RUNNING")
    assert answers_again(site, third).boots == third.boots + 1
    cloud.terminate(vm)
    cloud.wait(vm, "DONE")
    cloud.delete_image(image)
    site.finish()


@pytest.mark.extensive
def test_xendomains_keeps_a_guests_memory(site: Site) -> None:
    """Stopped and started, as when the host goes down and up: the guest goes on where it was."""
    cloud, host = site.cloud, site.host
    image = scenarios.register(cloud, site.parts, "kept")
    vm = scenarios.deploy(cloud, site.parts, "kept", image)
    before = site.answers()
    host.run(["systemctl", "stop", "xendomains"], timeout_s=480)
    assert site.domains() == []
    host.run(["/usr/lib/cxm/cxm-helper", "tend"])
    assert site.domains() == []
    host.run(["systemctl", "start", "xendomains"], timeout_s=480)
    after = visit.await_status(site.lab, ADDRESS, lambda now: now.count >= before.count)
    assert after.boot == before.boot
    cloud.wait(vm, "RUNNING")
    cloud.terminate(vm)
    cloud.wait(vm, "DONE")
    cloud.delete_image(image)
    site.finish()
