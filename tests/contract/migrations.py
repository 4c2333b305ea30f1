# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""The play of recorder.py for two hosts: a VM moves between them, and fails to, in every way."""

from collections.abc import Callable

from lab.oned import scenarios
from lab.oned.cloud import Cloud, VmView
from tests.contract import recorder
from tests.contract.recorder import Notes

OTHER = "rechost2"


def prepare(cloud: Cloud, image_file: str) -> None:
    """Register what the play needs."""
    recorder.prepare(cloud, image_file)
    cloud.add_host(OTHER)
    cloud.wait_host(OTHER)


class Play:
    """One VM, whose every step is marked in the notes."""

    def __init__(self, cloud: Cloud, notes: Notes, settle: Callable[[], None]) -> None:
        self._cloud = cloud
        self._notes = notes
        self._settle = settle
        self._old = cloud.version < (5, 0)
        self.views: dict[str, VmView] = {}
        self.vm = -1

    def _mark(self, name: str) -> None:
        self._settle()
        self._notes.mark(name)

    def create(self) -> None:
        """A VM on the first host."""
        self._mark("create")
        text = recorder.template("one", old=self._old, with_data=True)
        text += scenarios.on_host(self._cloud, recorder.HOST)
        self.vm = self._cloud.create_vm(text)
        self._cloud.wait(self.vm, "RUNNING")

    def act(self, name: str, action: Callable[[int], None], state: str) -> None:
        """Whatever is no migration."""
        self._mark(name)
        action(self.vm)
        self.views[name] = self._cloud.wait(self.vm, state)

    def move(self, name: str, host: str, *, live: bool, fails: str = "") -> None:
        """A migration; ``fails`` is the script that fails in it."""
        self._mark(name)
        if fails:
            self._notes.fail(fails, recorder.error("it cannot", self._cloud))
        self._cloud.migrate(self.vm, host, live=live)
        self.views[name] = self._cloud.wait_migrated(self.vm)
        if fails:
            self._settle()
            self._notes.fail(fails, None)

    def play(self) -> dict[str, VmView]:
        """All of it; returns what OpenNebula said of the VM after each step."""
        here, there, cloud = recorder.HOST, OTHER, self._cloud
        self.create()
        self.move("live", there, live=True)
        self.move("live back", here, live=True)
        for script in ("tm.premigrate", "vnm.pre", "vmm.migrate"):
            self.move(f"live, {script} fails", there, live=True, fails=script)
        self.move("saved", there, live=False)
        self.move("saved, vmm.save fails", here, live=False, fails="vmm.save")
        self.move("saved back", here, live=False)
        if not self._old:
            self.act("suspend", cloud.suspend, "SUSPENDED")
            self.move("asleep", there, live=False)
            self.act("resume suspended", cloud.resume, "RUNNING")
            self.act("poweroff", cloud.poweroff, "POWEROFF")
            self.move("off", here, live=True)
            self.act("resume powered off", cloud.resume, "RUNNING")
            self.move("saved, tm.mv fails", there, live=False, fails="tm.mv")
            self.act("retry moving", cloud.retry, "RUNNING")
            self.move("saved, vmm.restore fails", here, live=False, fails="vmm.restore")
            self.act("retry restoring", cloud.retry, "RUNNING")
            self.move("live, tm.postmigrate fails", there, live=True, fails="tm.postmigrate")
            self.act("terminate", cloud.terminate, "DONE")
        else:
            self.move("live, tm.postmigrate fails", there, live=True, fails="tm.postmigrate")
            self.move("saved, tm.mv fails", there, live=False, fails="tm.mv")
            self.act("retry moving", cloud.retry, "RUNNING")
            self.act("terminate", cloud.terminate, "DONE")
        self._mark("end")
        return self.views
