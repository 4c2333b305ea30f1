# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what tests, demo and benchmarks play on an OpenNebula, whichever it is: the main jobs.

A scenario asks for things as a user does and raises CxmError where something else happens. What
is true outside of OpenNebula (guests, volumes, files) its caller looks at, at the stages named.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Final

from cxm.errors import CxmError
from lab import process
from lab.guest_image import GuestImage
from lab.lab import Lab
from lab.machine import Machine
from lab.oned import attached, inlab
from lab.oned.cloud import Cloud, Network, VmView

# Called at each stage with its name and the VM; what it raises ends the scenario.
Look = Callable[[str, VmView], None]
# Where a host has what it boots VMs with that do not boot from their disk.
KERNEL = "/boot/lab-kernel"
INITRD = "/boot/lab-initrd"
_EVERY_S: Final = 20.0  # packaging/systemd/cxm-sync.timer


def _ignore(_stage: str, _vm: VmView) -> None:
    """Look at nothing."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What a scenario works with."""

    host: str
    image_file: str  # a root file system as tar.gz
    network: Network
    memory_mib: int = 112
    cpu: str = "0.5"  # of a processor; a node of the lab has one
    lv_size: str = "256"
    guest_type: str = "auto"
    address: str = ""  # any of the network when empty
    more: str = ""  # further lines of the VM's template
    other: str = ""  # a second host, of the same cluster

    def vm_template(self, name: str, image: int, *, context: str) -> str:
        """A VM with one disk and one network interface."""
        address = f',IP="{self.address}"' if self.address else ""
        return (
            f'NAME="{name}"\nCPU="{self.cpu}"\nVCPU="1"\nMEMORY="{self.memory_mib}"\n'
            f'XEN_TYPE="{self.guest_type}"\nDISK=[IMAGE_ID="{image}"]\n'
            f'NIC=[NETWORK="{self.network.name}"{address}]\n{context}\n{self.more}\n'
        )


def directly(host: Machine, guest: GuestImage) -> str:
    """Bring a kernel and a ramdisk onto a host: the line of a VM's template that boots them.

    Such a VM boots sooner than one that boots from its disk, and needs less memory.
    """
    host.push(guest.fast_kernel, KERNEL)
    host.push(guest.initrd, INITRD)
    return f'OS=[KERNEL="{KERNEL}",INITRD="{INITRD}",ROOT="xvda",KERNEL_CMD="console=hvc0"]'


def context_of(cloud: Cloud, name: str) -> str:
    """A context that tells the guest its name and address; before 4.4 a user writes the latter."""
    own = f'SET_HOSTNAME="{name}"'
    if cloud.version >= (4, 4):
        return f'CONTEXT=[NETWORK="YES",{own}]'
    return f'CONTEXT=[ETH0_IP="$NIC[IP]",ETH0_MASK="255.255.255.0",{own}]'


def prepare(cloud: Cloud, parts: Parts) -> None:
    """Add the hosts and the network, and wait until the hosts can take VMs."""
    hosts = [host for host in (parts.host, parts.other) if host]
    for host in hosts:
        cloud.add_host(host)
    cloud.create_network(parts.network)
    for host in hosts:
        cloud.wait_host(host)


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


def on_host(cloud: Cloud, host: str) -> str:
    """The line of a VM's template that lets the scheduler place it on this host only."""
    name = "SCHED_REQUIREMENTS" if cloud.version >= (4, 0) else "REQUIREMENTS"
    return f'{name}="NAME=\\"{host}\\""'


def deploy(cloud: Cloud, parts: Parts, name: str, image: int) -> int:
    """Create a VM and wait until it runs; of two hosts it gets the first."""
    text = parts.vm_template(name, image, context=context_of(cloud, name))
    if parts.other:
        text += f"{on_host(cloud, parts.host)}\n"
    vm = cloud.create_vm(text)
    cloud.wait(vm, "RUNNING")
    return vm


def open_cloud(lab: Lab, version: str, *, san: bool = False) -> AbstractContextManager[Cloud]:
    """An OpenNebula in the lab's frontend: the one of this machine, or the stand-in's ``version``.

    The latter where no OpenNebula is installed (``lab/oned/attached.py`` says where it is sought).
    With ``san`` its hosts are nodes that share their volume group, else standalone ones.
    """
    one = attached.find()
    if one is not None:
        return attached.open_real(lab, one, san=inlab.SAN.system if san else None)
    return inlab.open_standin(lab, version, setup=inlab.SAN if san else inlab.STANDALONE)


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


def cluster_job(cloud: Cloud, parts: Parts, look: Look = _ignore) -> None:
    """A VM's life on two nodes that share their storage: it moves while it runs, saved, at rest.

    Stages: running, moved (there, and back), suspended, resumed, moved saved, moved asleep
    (where OpenNebula can, 5.0 and later here), awake, off, on again, done. Hosts and network are
    there (:func:`prepare`).
    """
    image = register(cloud, parts, "cluster")
    vm = deploy(cloud, parts, "cluster", image)
    look("running", cloud.vm(vm))
    for host in (parts.other, parts.host):
        look("moved", move(cloud, vm, host, live=True))
    cloud.suspend(vm)
    look("suspended", cloud.wait(vm, "SUSPENDED"))
    cloud.resume(vm)
    look("resumed", cloud.wait(vm, "RUNNING"))
    look("moved saved", move(cloud, vm, parts.other, live=False))
    if cloud.version >= (5, 0):
        cloud.suspend(vm)
        cloud.wait(vm, "SUSPENDED")
        look("moved asleep", move(cloud, vm, parts.host, live=False, state="SUSPENDED"))
        cloud.resume(vm)
        look("awake", cloud.wait(vm, "RUNNING"))
    cloud.poweroff(vm)
    look("off", cloud.wait(vm, "POWEROFF"))
    cloud.resume(vm)
    look("on again", cloud.wait(vm, "RUNNING"))
    cloud.terminate(vm)
    look("done", cloud.wait(vm, "DONE"))
    cloud.wait_image(image)
    cloud.delete_image(image)


def move(cloud: Cloud, vm: int, host: str, *, live: bool, state: str = "RUNNING") -> VmView:
    """Migrate a VM; it is on the other host then, in ``state``."""
    cloud.migrate(vm, host, live=live)
    view = cloud.wait_migrated(vm)
    if (view.host, view.state) != (host, state):
        raise CxmError(
            f"VM {vm} is {view.state} on {view.host}, not {state} on {host}: "
            f"{view.error or 'no reason given'}"
        )
    return view


def failed_move(
    cloud: Cloud,
    parts: Parts,
    spoil: Callable[[], None],
    mend: Callable[[], None],
    look: Look = _ignore,
) -> VmView:
    """A live migration fails (``spoil`` sees to that): the VM runs on, where OpenNebula says.

    Then it is mended, and the VM moves. The view is of after the failure. Stages: running, stayed,
    moved.
    """
    image = register(cloud, parts, "stays")
    vm = deploy(cloud, parts, "stays", image)
    look("running", cloud.vm(vm))
    spoil()
    try:
        cloud.migrate(vm, parts.other, live=True)
        stayed = cloud.wait_migrated(vm)
    finally:
        mend()
    if (stayed.host, stayed.state) != (parts.host, "RUNNING") or not stayed.error:
        raise CxmError(f"VM {vm} is {stayed.state} on {stayed.host} after a failed migration")
    look("stayed", stayed)
    look("moved", move(cloud, vm, parts.other, live=True))
    cloud.terminate(vm, hard=True)
    cloud.wait(vm, "DONE")
    cloud.delete_image(image)
    return stayed


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


def in_line(cloud: Cloud, vms: Sequence[int], host: str) -> None:
    """Raise CxmError unless OpenNebula says, after a turn of ``cxm-sync``, that VMs run there."""
    said = cloud.sync()
    for vm in vms:
        view = cloud.vm(vm)
        if (view.host, view.state) != (host, "RUNNING"):
            raise CxmError(f"VM {vm} is {view.state} on {view.host}, not RUNNING on {host}: {said}")


@contextmanager
def timer(cloud: Cloud) -> Iterator[None]:
    """``cxm-sync`` looks at once and as often as the package's timer lets it; nobody else asks."""
    done = threading.Event()

    def look() -> None:
        while True:
            cloud.sync()
            if done.wait(_EVERY_S):
                return

    with ThreadPoolExecutor(1) as pool:
        looking = pool.submit(look)
        try:
            yield
        finally:
            done.set()
        looking.result()


def await_told(cloud: Cloud, vms: Sequence[int], host: str, *, timeout_s: float) -> None:
    """Wait until OpenNebula says that VMs run on a host, whoever has told it."""

    def is_told() -> bool:
        views = [cloud.vm(vm) for vm in vms]
        return all((view.host, view.state) == (host, "RUNNING") for view in views)

    process.wait_until(is_told, timeout_s=timeout_s, what=f"OpenNebula: VMs {vms} on {host}")


def ended(cloud: Cloud, vms: Sequence[int]) -> None:
    """Every VM is terminated by OpenNebula, wherever it has come to, and its disks are removed."""
    for vm in vms:
        cloud.terminate(vm, hard=True)
    for vm in vms:
        cloud.wait(vm, "DONE")
    cloud.settle()
