# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the choice between KVM and plain emulation (TCG).

A KVM device can exist and still be useless for Xen, so it is believed only after a trial: the
node's own hypervisor must come up under it. The answer is kept until the machine reboots.
"""

import fcntl
import os
from collections.abc import Sequence

from cxm.errors import UsageError
from cxm.run import System
from lab.places import Places

TCG = "tcg"
KVM = "kvm"
_DEVICE = "/dev/kvm"
_KVM_GET_API_VERSION = 0xAE00
_API_VERSION = 12
_TRIAL_S = 20.0
_BOOTED = b"Initial low memory virq threshold"  # one of Xen's last words before it starts dom0


def choose(places: Places, xen: Sequence[str]) -> str:
    """``kvm`` where a trial boot of Xen (the QEMU arguments ``xen``) works, else ``tcg``."""
    forced = os.environ.get("CXM_LAB_ACCEL")
    if forced:
        if forced not in (TCG, KVM):
            raise UsageError(f"CXM_LAB_ACCEL is '{forced}', but must be {TCG} or {KVM}")
        return forced
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        boot = file.read().strip()
    memory = places.cached("accel")
    try:
        with open(memory, encoding="ascii") as file:
            known, answer = file.read().split()
        if known == boot and answer in (TCG, KVM):
            return answer
    except (OSError, ValueError):
        pass
    answer = KVM if _device_answers() and _nested() and _trial(places, xen) else TCG
    with open(memory, "w", encoding="ascii") as file:
        file.write(f"{boot} {answer}\n")
    return answer


def _device_answers() -> bool:
    try:
        handle = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return fcntl.ioctl(handle, _KVM_GET_API_VERSION) == _API_VERSION
    except OSError:
        return False
    finally:
        os.close(handle)


def _nested() -> bool:
    """Whether guests of the nodes can have hardware help: Xen needs it for PVH."""
    for vendor in ("kvm_intel", "kvm_amd"):
        try:
            with open(f"/sys/module/{vendor}/parameters/nested", encoding="ascii") as file:
                if file.read().strip() in ("Y", "1"):
                    return True
        except OSError:
            continue
    return False


def _trial(places: Places, xen: Sequence[str]) -> bool:
    log = places.log("kvm-trial")
    console = ["-chardev", f"file,id=console,path={log}", "-serial", "chardev:console"]
    System().run(
        ["timeout", f"{_TRIAL_S:g}", "qemu-system-x86_64", "-accel", KVM, "-cpu", "host",
         *xen, *console],
        timeout_s=_TRIAL_S + 5,
        ok=range(256),
    )  # fmt: skip
    try:
        with open(log, "rb") as file:
            return _BOOTED in file.read()
    except OSError:
        return False
