# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what tests of the domain verbs share: VM 7, ordinary calls, a picture of what is there."""

import os
from pathlib import Path
from typing import Any

from cxm.names import CHECKPOINT, VmId
from cxm.node import guests
from cxm.node.guests import Life
from cxm.xen.guest import Disk, GuestSpec, Nic
from tests.fakes.call import Answer, ask
from tests.fakes.machine import CLOUD, FakeNode
from tests.fakes.xen import FakeXen

MEMORY = 4
NAME = "user-vm7.home.net"


def new_xen(path: Path) -> FakeXen:
    """A standalone host with Xen, and the disk of VM 7."""
    made = FakeXen(FakeNode(str(path)))
    made.add_disk(7, name=NAME)
    return made


def guest(**changes: Any) -> dict[str, Any]:
    """A small guest that boots from its disk."""
    given: dict[str, Any] = {
        "name": NAME,
        "memory_mib": MEMORY,
        "disks": (Disk("0", "xvda"),),
        "nics": (Nic(mac="02:00:00:00:00:07", bridge="xenbr0"),),
    }
    return GuestSpec(**given | changes).to_json()


def start(xen: FakeXen, vm: int = 7, **changes: Any) -> Answer:
    """domain-start."""
    directory = xen.node.path("datastores", "0", str(vm))
    os.makedirs(directory, exist_ok=True)
    return ask(xen.machine(), "domain-start", vm=vm, dir=directory, guest=guest(**changes))


def stop(xen: FakeXen, how: str = "shutdown", vm: int = 7, timeout_s: int = 60) -> Answer:
    """domain-stop."""
    return ask(xen.machine(), "domain-stop", vm=vm, how=how, timeout_s=timeout_s)


def save(xen: FakeXen) -> Answer:
    """domain-save."""
    return ask(xen.machine(), "domain-save", vm=7)


def restore(xen: FakeXen, spec: dict[str, Any] | None = None) -> Answer:
    """domain-restore."""
    directory = xen.node.path("datastores", "0", "7")
    return ask(xen.machine(), "domain-restore", vm=7, dir=directory, guest=spec)


def life(xen: FakeXen, vm: int = 7) -> Life | None:
    """What the host remembers of a VM."""
    record = guests.read(xen.machine(), CLOUD, VmId(vm))
    return None if record is None else record.life


def link(xen: FakeXen, name: str = NAME) -> str:
    """The autostart link."""
    return xen.node.path("auto", name)


def active(xen: FakeXen) -> list[str]:
    """The active volumes."""
    return sorted(lv.name for lv in xen.node.state.lvs.values() if lv.active)


def checkpoint(xen: FakeXen) -> str | None:
    """The state of the checkpoint of VM 7, None where there is none."""
    lv = xen.node.state.lvs.get(f"lv-one-7-{CHECKPOINT}")
    return None if lv is None else next(tag for tag in lv.tags if "state" in tag).split("=")[1]


def picture(xen: FakeXen) -> dict[str, Any]:
    """All that a verb may leave behind."""
    domain = xen.of_vm(7)
    return {
        "domain": None if domain is None else (domain.name, domain.life, domain.config),
        "active": active(xen),
        "lvs": sorted((lv.name, lv.tags) for lv in xen.node.state.lvs.values()),
        "cfg": {
            name: Path(xen.node.path("cfg", name)).read_text(encoding="utf-8")
            for name in sorted(os.listdir(xen.node.path("cfg")))
        },
        "auto": sorted(os.listdir(xen.node.path("auto"))),
        "life": life(xen),
    }


def assert_off(xen: FakeXen) -> None:
    """Nothing of the VM runs, is active or will start by itself."""
    assert xen.of_vm(7) is None
    assert active(xen) == []
    assert os.listdir(xen.node.path("auto")) == []
