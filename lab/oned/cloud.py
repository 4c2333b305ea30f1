# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what scenarios, demo and benchmarks may ask of an OpenNebula, whichever it is."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Self, TypeVar

from cxm.errors import CxmError
from cxm.one.version import OneVersion

PATIENCE_S = 900.0  # an emulated host on a busy machine is slow; failures are seen at once
_GRACE_S = 3.0  # a state of before a request may be seen for a moment
_RESTING = ("RUNNING", "SUSPENDED", "POWEROFF", "STOPPED", "UNDEPLOYED")
_COUNTED = ("MEMORY", "NETRX", "NETTX")
_View = TypeVar("_View")


class Action(StrEnum):
    """What a user asks of a VM, by the names of today's command ``onevm``."""

    SUSPEND = "suspend"
    RESUME = "resume"
    POWEROFF = "poweroff"
    POWEROFF_HARD = "poweroff --hard"
    STOP = "stop"
    UNDEPLOY = "undeploy"
    UNDEPLOY_HARD = "undeploy --hard"
    TERMINATE = "terminate"
    TERMINATE_HARD = "terminate --hard"
    REBOOT = "reboot"
    RESET = "reboot --hard"
    DELETE = "recover --delete"
    RETRY = "recover --retry"
    RECREATE = "recover --recreate"


@dataclass(frozen=True, slots=True)
class VmView:
    """A VM as OpenNebula keeps it at one moment."""

    id: int
    name: str
    state: str  # as users see it: RUNNING, POWEROFF, BOOT_FAILURE, ...
    host: str  # of the last history record; empty before the first placement
    deploy_id: str
    sequence: int  # of the last history record; -1 before the first placement
    monitoring: Mapping[str, str]
    error: str = ""  # what OpenNebula shows as the reason of the last failure
    moving: bool = False  # the record before the last is open: a migration has not ended


@dataclass(frozen=True, slots=True)
class ImageView:
    """An image as OpenNebula keeps it at one moment."""

    id: int
    name: str
    state: str  # READY, USED, USED_PERS, LOCKED, ERROR
    source: str
    size_mib: int
    persistent: bool


@dataclass(frozen=True, slots=True)
class HostView:
    """A host as OpenNebula keeps it at one moment."""

    id: int
    name: str
    state: str  # MONITORED when it can take VMs
    facts: Mapping[str, str] = field(default_factory=dict)  # what its probes said


@dataclass(frozen=True, slots=True)
class Network:
    """A virtual network to create: a bridge of the hosts and addresses for its VMs."""

    name: str
    bridge: str
    first_ip: str
    size: int = 10
    vn_mad: str = "bridge"  # from 5.0 on; before, the host's network driver says it


class Cloud(ABC):
    """An OpenNebula, driven as a user drives it. Calls return at once; ``wait`` waits."""

    version: OneVersion
    poll_s = 1.0  # seconds between two looks of ``wait``; each starts a program

    @abstractmethod
    def add_host(self, name: str) -> int:
        """Add a host with cxm's drivers; return its id."""

    @abstractmethod
    def host(self, name: str) -> HostView:
        """The host called ``name``."""

    @abstractmethod
    def create_network(self, network: Network) -> int:
        """Create a virtual network; return its id."""

    @abstractmethod
    def register_image(self, path: str, template: str) -> int:
        """Register the file ``path`` (none when empty) in cxm's image datastore; return its id."""

    @abstractmethod
    def image(self, image: int) -> ImageView:
        """An image."""

    @abstractmethod
    def delete_image(self, image: int) -> None:
        """Remove an image that no VM uses."""

    @abstractmethod
    def create_vm(self, template: str) -> int:
        """Create a VM for the scheduler to place; return its id."""

    @abstractmethod
    def vm(self, vm: int) -> VmView:
        """A VM; also one that is done."""

    @abstractmethod
    def act(self, vm: int, action: Action) -> None:
        """Ask for something; raises CxmError when it is refused in the VM's state."""

    @abstractmethod
    def migrate(self, vm: int, host: str, *, live: bool) -> None:
        """Ask for a move to another host; raises CxmError when it is refused.

        What runs moves without a stop if ``live``, else it is saved and restored. Since 4.14 what
        is suspended or powered off moves too, and stays what it is.
        """

    @abstractmethod
    def close(self) -> None:
        """End what runs for this object."""

    @abstractmethod
    def vm_log(self, vm: int) -> str:
        """What oned wrote about the VM."""

    @abstractmethod
    def left_behind(self) -> list[str]:
        """What VMs that are gone have left on the frontend, but for logs: a path each."""

    @abstractmethod
    def settle(self) -> None:
        """Wait for what oned does behind a user's back, such as the cleanup of a deleted VM."""

    @abstractmethod
    def sync(self, *words: str) -> str:
        """Have the frontend's ``cxm-sync`` take a turn, as its timer would; its output."""

    @abstractmethod
    def oned_stopped(self) -> AbstractContextManager[None]:
        """No oned answers and none watches its hosts while the block runs; it knows all as before.

        For a VM in the middle of nothing: what oned itself has under way is not kept.
        """

    @property
    @abstractmethod
    def host_datastores(self) -> str:
        """The directory on the hosts that VMs' directories are made in."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def image_source(self, image: int) -> str:
        """Where the image's file lies on the frontend."""
        return self.image(image).source

    def suspend(self, vm: int) -> None:
        self.act(vm, Action.SUSPEND)

    def resume(self, vm: int) -> None:
        """Resume what is suspended, stopped, undeployed or powered off."""
        self.act(vm, Action.RESUME)

    def poweroff(self, vm: int, *, hard: bool = False) -> None:
        self.act(vm, Action.POWEROFF_HARD if hard else Action.POWEROFF)

    def stop(self, vm: int) -> None:
        self.act(vm, Action.STOP)

    def undeploy(self, vm: int, *, hard: bool = False) -> None:
        self.act(vm, Action.UNDEPLOY_HARD if hard else Action.UNDEPLOY)

    def terminate(self, vm: int, *, hard: bool = False) -> None:
        """Shut down for good: ``onevm shutdown`` (or cancel) up to 4.14."""
        self.act(vm, Action.TERMINATE_HARD if hard else Action.TERMINATE)

    def reboot(self, vm: int, *, hard: bool = False) -> None:
        self.act(vm, Action.RESET if hard else Action.REBOOT)

    def delete(self, vm: int) -> None:
        """Remove whatever state the VM is in: ``onevm delete`` up to 4.14."""
        self.act(vm, Action.DELETE)

    def recreate(self, vm: int) -> None:
        """Remove and make it anew, in whatever state it is: ``onevm resubmit`` up to 4.14."""
        self.act(vm, Action.RECREATE)

    def retry(self, vm: int) -> None:
        """A second try of what failed, as an operator of that version makes it."""
        self.act(vm, Action.RETRY)

    def wait(self, vm: int, state: str, *, timeout_s: float = PATIENCE_S) -> VmView:
        """Wait until the VM is in ``state``; fail at once when it ends somewhere else."""
        ends = {"FAILED", "DONE"} - {state}
        began = time.monotonic()
        known = self.vm(vm).error

        def look() -> VmView | None:
            view = self.vm(vm)
            if view.state == state:
                return view
            ended = view.state in ends or view.state.endswith("_FAILURE")
            # What could not be suspended or resumed stays what it was, with a reason.
            ended |= view.state in _RESTING and view.error != known
            if ended and time.monotonic() - began > _GRACE_S:
                raise CxmError(
                    f"VM {vm} is {view.state}, not {state}: {view.error or 'no reason given'}",
                    hint=f"the end of its log: {_last_lines(self.vm_log(vm))}",
                )
            return None

        return self._wait(look, timeout_s, lambda: f"VM {vm} is {self.vm(vm).state}, not {state}")

    def wait_migrated(self, vm: int, *, timeout_s: float = PATIENCE_S) -> VmView:
        """Wait until a migration has ended, well or not: the view says where the VM is then."""
        seen: list[VmView] = []

        def look() -> VmView | None:
            view = self.vm(vm)
            seen.append(view)
            rests = view.state in _RESTING or view.state == "FAILED"
            if view.moving or not (rests or view.state.endswith("_FAILURE")):
                seen.clear()
            # Twice the same: oned names the new host a moment before it changes the state.
            return view if len(seen) > 1 else None

        return self._wait(look, timeout_s, lambda: f"VM {vm} is still {self.vm(vm).state}")

    def wait_monitored(self, vm: int, *, timeout_s: float = PATIENCE_S) -> VmView:
        """Wait until monitoring has seen the VM's processor, memory and traffic.

        For a guest that has answered over the network; zeros are what oned shows before 4.14 until
        the first values have come, and of the traffic what a look before the answer has seen.
        """

        def look() -> VmView | None:
            view = self.vm(vm)
            counted = all(float(view.monitoring.get(name) or 0) > 0 for name in _COUNTED)
            return view if counted and view.monitoring.get("CPU") else None

        def lacking() -> str:
            return f"VM {vm} is not monitored: {self.vm(vm).monitoring}"

        return self._wait(look, timeout_s, lacking)

    def wait_image(
        self, image: int, state: str = "READY", *, timeout_s: float = 120.0
    ) -> ImageView:
        """Wait until the image is in ``state``."""

        def look() -> ImageView | None:
            view = self.image(image)
            if view.state == "ERROR" != state:
                raise CxmError(f"image {image} is in state ERROR")
            return view if view.state == state else None

        return self._wait(look, timeout_s, lambda: f"image {image} is {self.image(image).state}")

    def wait_host(
        self, name: str, state: str = "MONITORED", *, timeout_s: float = PATIENCE_S
    ) -> HostView:
        """Wait until the host is in ``state``; a working host becomes MONITORED."""

        def look() -> HostView | None:
            view = self.host(name)
            return view if view.state == state else None

        return self._wait(look, timeout_s, lambda: f"host {name} is {self.host(name).state}")

    def _wait(
        self, look: Callable[[], _View | None], timeout_s: float, what: Callable[[], str]
    ) -> _View:
        until = time.monotonic() + timeout_s
        while (found := look()) is None:
            if time.monotonic() > until:
                raise CxmError(f"{what()}, after {timeout_s:g} s")
            time.sleep(self.poll_s)
        return found


def _last_lines(text: str, count: int = 5) -> str:
    return " | ".join(text.strip().splitlines()[-count:])
