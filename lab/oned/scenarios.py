# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what tests, demo and benchmarks play on an OpenNebula, whichever it is: the main jobs.

A scenario asks for things as a user does and raises CxmError where something else happens. What
is true outside of OpenNebula (guests, volumes, files) its caller looks at, at the stages named.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from cxm.errors import CxmError
from lab.lab import Lab
from lab.oned import attached
from lab.oned.cloud import Cloud, Network, VmView
from lab.oned.inlab import open_standin

# Called at each stage with its name and the VM; what it raises ends the scenario.
Look = Callable[[str, VmView], None]


def _ignore(_stage: str, _vm: VmView) -> None:
    """Look at nothing."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What a scenario works with."""

    host: str
    image_file: str  # a root file system as tar.gz
    network: Network
    memory_mib: int = 112
    lv_size: str = "256"
    guest_type: str = "auto"
    address: str = ""  # any of the network when empty
    more: str = ""  # further lines of the VM's template

    def vm_template(self, name: str, image: int, *, context: str) -> str:
        """A VM with one disk and one network interface."""
        address = f',IP="{self.address}"' if self.address else ""
        return (
            f'NAME="{name}"\nCPU="0.5"\nVCPU="1"\nMEMORY="{self.memory_mib}"\n'
            f'XEN_TYPE="{self.guest_type}"\nDISK=[IMAGE_ID="{image}"]\n'
            f'NIC=[NETWORK="{self.network.name}"{address}]\n{context}\n{self.more}\n'
        )


def context_of(cloud: Cloud, name: str) -> str:
    """A context that tells the guest its name and address; before 4.4 a user writes the latter."""
    own = f'SET_HOSTNAME="{name}"'
    if cloud.version >= (4, 4):
        return f'CONTEXT=[NETWORK="YES",{own}]'
    return f'CONTEXT=[ETH0_IP="$NIC[IP]",ETH0_MASK="255.255.255.0",{own}]'


def prepare(cloud: Cloud, parts: Parts) -> None:
    """Add the host and the network, and wait until the host can take VMs."""
    cloud.add_host(parts.host)
    cloud.create_network(parts.network)
    cloud.wait_host(parts.host)


def register(cloud: Cloud, parts: Parts, name: str, *, persistent: bool = False) -> int:
    """Register the image file; the image is ready."""
    keep = "YES" if persistent else "NO"
    image = cloud.register_image(
        parts.image_file,
        f'NAME="{name}"\nTYPE="OS"\nPERSISTENT="{keep}"\nDEV_PREFIX="xvd"\n'
        f'LV_SIZE="{parts.lv_size}"\nFSTYPE="ext4"\n',
    )
    cloud.wait_image(image)
    return image


def deploy(cloud: Cloud, parts: Parts, name: str, image: int) -> int:
    """Create a VM and wait until it runs."""
    vm = cloud.create_vm(parts.vm_template(name, image, context=context_of(cloud, name)))
    cloud.wait(vm, "RUNNING")
    return vm


def open_cloud(lab: Lab, version: str) -> AbstractContextManager[Cloud]:
    """An OpenNebula in the lab's frontend: the one of this machine, or the stand-in's ``version``.

    The latter where no OpenNebula is installed (``lab/oned/attached.py`` says where it is sought).
    """
    one = attached.find()
    return open_standin(lab, version) if one is None else attached.open_real(lab, one)


def main_job(cloud: Cloud, parts: Parts, look: Look = _ignore) -> None:
    """A VM's whole life: run, watch, suspend, power off, stop, save its disk back, end.

    Stages: running, suspended, resumed, off, on again, stopped, back, done. The host and the
    network are there (:func:`prepare`).
    """
    image = register(cloud, parts, "main", persistent=True)
    vm = deploy(cloud, parts, "main", image)
    look("running", cloud.vm(vm))
    cloud.wait_monitored(vm)
    cloud.suspend(vm)
    look("suspended", cloud.wait(vm, "SUSPENDED"))
    cloud.resume(vm)
    look("resumed", cloud.wait(vm, "RUNNING"))
    cloud.poweroff(vm)
    look("off", cloud.wait(vm, "POWEROFF"))
    cloud.resume(vm)
    look("on again", cloud.wait(vm, "RUNNING"))
    cloud.stop(vm)
    look("stopped", cloud.wait(vm, "STOPPED"))
    cloud.resume(vm)
    look("back", cloud.wait(vm, "RUNNING"))
    cloud.terminate(vm)
    look("done", cloud.wait(vm, "DONE"))
    cloud.wait_image(image)


def undeploy_and_back(cloud: Cloud, parts: Parts, look: Look = _ignore) -> None:
    """A VM leaves its host without its memory and starts again (5.0 and later here).

    Stages: running, undeployed, back, done.
    """
    image = register(cloud, parts, "undeployed")
    vm = deploy(cloud, parts, "undeployed", image)
    look("running", cloud.vm(vm))
    cloud.undeploy(vm)
    look("undeployed", cloud.wait(vm, "UNDEPLOYED"))
    cloud.resume(vm)
    look("back", cloud.wait(vm, "RUNNING"))
    cloud.terminate(vm, hard=True)
    look("done", cloud.wait(vm, "DONE"))
    cloud.delete_image(image)


def second_try(
    cloud: Cloud, parts: Parts, spoil: Callable[[], None], mend: Callable[[], None]
) -> VmView:
    """A deployment fails (``spoil`` sees to that), is mended and tried again."""
    image = register(cloud, parts, "retried")
    spoil()
    try:
        vm = cloud.create_vm(parts.vm_template("retried", image, context=context_of(cloud, "r")))
        failed = await_failure(cloud, vm)
    finally:
        mend()
    cloud.retry(vm)
    cloud.wait(vm, "RUNNING")
    cloud.terminate(vm, hard=True)
    cloud.wait(vm, "DONE")
    cloud.delete_image(image)
    return failed


def await_failure(cloud: Cloud, vm: int) -> VmView:
    """Wait until the deployment of a VM has failed."""
    state = "BOOT_FAILURE" if cloud.version >= (5, 0) else "FAILED"
    try:
        return cloud.wait(vm, state)
    except CxmError:
        view = cloud.vm(vm)
        if view.state == "PROLOG_FAILURE":
            return view
        raise
