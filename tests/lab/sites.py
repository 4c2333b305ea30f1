# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""An OpenNebula of one version with a host attached, shared by the tests of a module.

Attaching takes longer than most tests. So a test gets the site of the test before it, if that one
ended with :meth:`Site.finish`; after a failure, or for another version, there is a new one.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

from lab import installed, traces, visit
from lab.guest_image import GuestImage
from lab.lab import Lab
from lab.machine import Machine
from lab.oned import attached, scenarios
from lab.oned.cloud import Cloud, Network
from lab.oned.scenarios import Parts
from lab.spec import BRIDGE

HOST: Final = "solo1"
ADDRESS: Final = "10.77.1.150"


def versions(*standins: Any, since: tuple[int, int] = (3, 6)) -> list[Any]:
    """The versions that a test is for: the OpenNebula of this machine, else these stand-ins.

    ``since`` is the first version that has what the test asks for.
    """
    one = attached.find()
    if one is None:
        return list(standins)
    real = attached.version_of(one)
    return [f"{real.major}.{real.minor}"] if real >= since else []


@dataclass(slots=True)
class Site:
    """An OpenNebula, real or a stand-in, and solo1 monitored by it."""

    lab: Lab
    cloud: Cloud
    parts: Parts
    clean: bool = False

    @property
    def host(self) -> Machine:
        return self.lab.machine(HOST)

    def answers(self) -> visit.Status:
        """What the guest says, as soon as it says something."""
        return visit.await_status(self.lab, ADDRESS)

    def domains(self) -> list[str]:
        """The domains on the host but for dom0."""
        rows = self.host.run(["xl", "list"]).stdout.splitlines()[2:]
        return [row.split()[0] for row in rows]

    def left(self) -> list[str]:
        """Whatever of a VM is still there, on the host or on the frontend."""
        self.cloud.settle()
        on_host = traces.of_vms(self.host, self.cloud.host_datastores)
        return on_host + self.cloud.left_behind()

    def finish(self) -> None:
        """The end of a test that went well: nothing is left, and the next test may go on here."""
        assert self.left() == []
        self.clean = True


class Sites:
    """Opens sites, one at a time."""

    def __init__(self, lab: Lab, guest: GuestImage) -> None:
        self._lab = lab
        self._guest = guest
        self._stack = ExitStack()
        self._version = ""
        self._site: Site | None = None

    def get(self, version: str) -> Site:
        """A clean site of this version."""
        if self._site is None or not self._site.clean or self._version != version:
            self.close()
            self._site = self._open(version)
            self._version = version
        self._site.clean = False
        return self._site

    def _open(self, version: str) -> Site:
        installed.bring_up(self._lab)
        cloud = self._stack.enter_context(scenarios.open_cloud(self._lab, version))
        network = Network("lan", BRIDGE, ADDRESS)
        parts = Parts(HOST, self._guest.tgz, network, address=ADDRESS)
        scenarios.prepare(cloud, parts)
        return Site(self._lab, cloud, parts)

    def close(self) -> None:
        """End the site that is open."""
        self._site = None
        self._stack.close()
