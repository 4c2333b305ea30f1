# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""The stand-in for oned: keeps what oned keeps, and calls the real drivers as oned calls them.

It is no OpenNebula: one user, one cluster, the simplest scheduler that respects space and memory.
What it must get right is what drivers see: actions and their order, arguments, inputs, files,
answers and states, by version.
"""

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from cxm.errors import CxmError, NotFoundError, RefusedError, UsageError
from cxm.run import Runner
from cxm.setup import parts
from cxm.sync.main import ATTENTION
from lab.oned import foreign, images, instantiate, reports, sockets, templates
from lab.oned.cloud import Action, Cloud, HostView, ImageView, Network, VmView
from lab.oned.documents import Documents
from lab.oned.drivers import Scripts
from lab.oned.lifecycle import Lifecycle
from lab.oned.model import Datastore, Host, Image, VirtualNetwork, Vm, volatile
from lab.oned.place import Place
from lab.oned.profiles import Profile
from lab.oned.templates import Template, single
from lab.oned.transfer import Transfers
from lab.oned.vmm import Hypervisor
from lab.oned.watch import Periods, Watch
from lab.oned.xmlrpc import Method, Server

SESSION: Final = "oneadmin:opennebula"
_FIRST_STORE: Final = 100
_STANDARD: Final = ("system", "default", "files")
_SYSTEM: Final = 1
_OCCUPYING: Final = ("DONE", "STOPPED", "UNDEPLOYED", "PENDING", "FAILED")


@dataclass(frozen=True, slots=True)
class Setup:
    """How cxm is configured in this OpenNebula."""

    im_mad: str = "cxm"
    vm_mad: str = "vmm_cxm"
    vn_mad: str = "dummy"  # the hosts' network driver, up to 4.14
    images: str = "cxm"
    image_tm: str = "cxm"
    system: str = "cxm_local"
    system_tm: str = "cxm_local"  # "cxm" for a volume group on a SAN
    is_local: bool = True  # what cxm-setup puts into the list -l runs on the frontend
    defaults: str = ""  # the VM driver's file of defaults, which oned reads up to 4.14

    @property
    def shared(self) -> bool:
        return self.system_tm == "cxm"


class StandIn(Cloud):
    """A stand-in for the oned of one version, at one place."""

    poll_s = 0.05
    raft_state = 0  # of this server in its zone: 0 the only one, 2 a follower, 3 the leader

    def __init__(
        self,
        runner: Runner,
        place: Place,
        profile: Profile,
        *,
        setup: Setup | None = None,
        periods: Periods | None = None,
        quiet_s: float = 30.0,
    ) -> None:
        self.version = profile.version
        self.profile = profile
        self.place = place
        self.setup = setup or Setup()
        self._lock = threading.RLock()
        self._hosts: dict[int, Host] = {}
        self._stores: dict[int, Datastore] = {}
        self._images: dict[int, Image] = {}
        self._networks: dict[int, VirtualNetwork] = {}
        self._vms: dict[int, Vm] = {}
        place.prepare()
        foreign.put(place.here(place.remotes), profile)
        self._write_settings()
        self._make_stores()
        self._documents = Documents(profile, place)
        scripts = self._scripts = Scripts(runner, place, profile)
        transfers = Transfers(scripts)
        local = parts.local_actions(profile.version) if self.setup.is_local else []
        defaults = templates.parse(self.setup.defaults)
        hypervisor = Hypervisor(scripts, self._documents, transfers, defaults, local)
        self._life = Lifecycle(
            profile,
            transfers,
            hypervisor,
            lock=self._lock,
            vm_dir=lambda vm: place.here(place.vm_dir(vm)),
            done=self._release,
            schedule=self._schedule,
        )
        self._reports = reports.Reports(
            profile, self._vms, self._stores, self._life.report, quiet_s=quiet_s
        )
        self._runner = runner
        self.api, listening = self._open_doors()
        self.watch = Watch(
            scripts,
            self._documents,
            hypervisor,
            self._reports,
            periods=periods or Periods(),
            listening=listening,
            lock=self._lock,
            after=self._schedule,
        )
        for store in self._stores.values():
            if store.type == _SYSTEM and store.shared and profile.version >= (5, 0):
                self.watch.store(store)

    def _open_doors(self) -> tuple[Server, list[socket.socket]]:
        """Answer calls from now on; also the sockets that hosts send their reports to."""
        place = self.place
        words = [f"tcp:127.0.0.1:{place.xmlrpc_port}"]
        if self.profile.monitord:
            words += [f"{kind}:0.0.0.0:{place.monitor_port}" for kind in ("udp", "tcp")]
        door, *listening = sockets.inside(self._runner, place.prefix, words)
        return Server(door, SESSION, self._methods()), listening

    # What a real installation has.

    def _write_settings(self) -> None:
        """The settings in force, which oned writes beside its remotes; and the credentials."""
        local = parts.local_actions(self.version) if self.setup.is_local else []
        listed = f"-l {','.join(local)} " if local else ""
        settings = {
            "DATASTORE_LOCATION": self.place.host_datastores(),
            "PORT": str(self.place.xmlrpc_port),
            "SCRIPTS_REMOTE_DIR": self.place.remote_dir,
            "VM_MAD": f"ARGUMENTS=-t 15 -r 0 {listed}cxm,EXECUTABLE=one_vmm_exec,"
            f"NAME={parts.VM_MAD},TYPE=xml",
        }
        if self.version >= (6, 0):
            settings["HOSTNAME"] = self.place.hostname
        with open(os.path.join(self.place.files, "config"), "w", encoding="utf-8") as file:
            file.writelines(f"{name}={value}\n" for name, value in settings.items())
        descriptor = os.open(
            self.place.here(self.place.auth_file), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600
        )
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(f"{SESSION}\n")

    def _make_stores(self) -> None:
        for number, name in enumerate(_STANDARD):
            kind = {"system": _SYSTEM, "default": 0, "files": 2}[name]
            self._stores[number] = Datastore(number, name, kind, "fs", "ssh", [])
        setup = self.setup
        shared = "YES" if setup.shared else "NO"
        rows = [
            (setup.images, 0, "fs", setup.image_tm,
             [("DS_MAD", "fs"), ("TM_MAD", setup.image_tm), ("NO_DECOMPRESS", "yes"),
              ("DRIVER", "raw"), ("CLONE_TARGET", "SYSTEM"), ("LN_TARGET", "SYSTEM")]),
            (setup.system, _SYSTEM, "-", setup.system_tm,
             [("TM_MAD", setup.system_tm), ("TYPE", "SYSTEM_DS"), ("SHARED", shared)]),
        ]  # fmt: skip
        for number, (name, kind, driver, manager, template) in enumerate(rows, _FIRST_STORE):
            known: Template = list(template)
            self._stores[number] = Datastore(number, name, kind, driver, manager, known)
            os.makedirs(os.path.join(self.place.files, "datastores", str(number)), exist_ok=True)

    @property
    def image_store(self) -> Datastore:
        return self._stores[_FIRST_STORE]

    @property
    def system_store(self) -> Datastore:
        return self._stores[_FIRST_STORE + 1]

    # The API of oned that cxm uses.

    def _methods(self) -> dict[str, Method]:
        def dump(kind: str, rows: list[str]) -> str:
            return f"<{kind}>{''.join(rows)}</{kind}>"

        def vm_pool(*_filter: int) -> str:
            living = [vm for vm in self._vms.values() if vm.state != "DONE"]
            return dump("VM_POOL", [self._documents.vm(vm, full=False) for vm in living])

        changing: dict[str, Method] = {"one.vm.migrate": self._migrate_by_api}
        if self.profile.recovers:
            changing["one.vm.recover"] = self._recover_by_api
        if self.profile.has_raft:
            changing["one.zone.raftstatus"] = lambda: (
                f"<RAFT><SERVER_ID>{-1 if self.raft_state == 0 else 0}</SERVER_ID>"
                f"<STATE>{self.raft_state}</STATE></RAFT>"
            )
        return changing | {
            "one.system.version": lambda: str(self.version),
            "one.vm.info": lambda number, *_: self._documents.vm(self._vm(number), full=True),
            "one.vmpool.info": vm_pool,
            "one.image.info": lambda number, *_: self._image_xml(number),
            "one.datastore.info": lambda number, *_: self._store_xml(number),
            "one.datastorepool.info": lambda: dump(
                "DATASTORE_POOL", [self._store_xml(number) for number in self._stores]
            ),
            "one.host.info": lambda number, *_: self._host_xml(number),
            "one.hostpool.info": lambda: dump(
                "HOST_POOL", [self._host_xml(number) for number in self._hosts]
            ),
        }

    def _migrate_by_api(self, vm: int, host: int, live: bool, *_more: object) -> int:  # noqa: FBT001 - oned's order
        if host not in self._hosts:
            raise NotFoundError(f"Error getting host [{host}].")
        self._life.migrate(self._vm(vm), self._hosts[host], live=live)
        return vm

    def _recover_by_api(self, vm: int, how: int) -> int:
        # A number from 4.14 on, before it is true or false; xmlrpc makes both what they are.
        if isinstance(how, bool) is (self.version >= (4, 14)):
            raise UsageError(f"parameter 2 is of the wrong type for {self.version}")
        self._life.recover(self._vm(vm), success=bool(how))
        return vm

    def _image_xml(self, number: int) -> str:
        if number not in self._images:
            raise NotFoundError(f"Error getting image [{number}].")
        image = self._images[number]
        return self._documents.image(image, self._stores[image.datastore])

    def _store_xml(self, number: int) -> str:
        if number not in self._stores:
            raise NotFoundError(f"Error getting datastore [{number}].")
        held = [image.id for image in self._images.values() if image.datastore == number]
        return self._documents.datastore(self._stores[number], held)

    def _host_xml(self, number: int) -> str:
        if number not in self._hosts:
            raise NotFoundError(f"Error getting host [{number}].")
        host = self._hosts[number]
        return self._documents.host(host, [vm.id for vm in self._reports.of_host(host)])

    def _vm(self, number: int) -> Vm:
        if number not in self._vms:
            raise NotFoundError(f"Error getting virtual machine [{number}].")
        return self._vms[number]

    def record(self, vm: int) -> Vm:
        """All that is kept of a VM, for who calls its drivers' actions one by one."""
        with self._lock:
            return self._vm(vm)

    # Cloud.

    def add_host(self, name: str) -> int:
        with self._lock:
            if any(host.name == name for host in self._hosts.values()):
                raise RefusedError(f"there is a host called {name} already")
            setup = self.setup
            host = Host(len(self._hosts), name, setup.im_mad, setup.vm_mad, setup.vn_mad)
            self._hosts[host.id] = host
        self.watch.host(host)
        return host.id

    def host(self, name: str) -> HostView:
        for host in self._hosts.values():
            if host.name == name:
                facts = {key: value for key, value in host.facts if isinstance(value, str)}
                return HostView(host.id, name, host.state, facts | {"ERROR": host.reason})
        raise NotFoundError(f"no host called {name}")

    def create_network(self, network: Network) -> int:
        base, _, last = network.first_ip.rpartition(".")
        addresses = [f"{base}.{int(last) + step}" for step in range(network.size)]
        with self._lock:
            number = len(self._networks)
            self._networks[number] = VirtualNetwork(
                number, network.name, network.bridge, network.vn_mad, addresses
            )
        return number

    def register_image(self, path: str, template: str) -> int:
        text = f'PATH="{path}"\n{template}' if path else template
        with self._lock:
            number = max(self._images, default=-1) + 1
            base = self.place.datastores(self.profile)
            image = images.make(number, templates.parse(text), self.image_store, base, self.profile)
            self._images[number] = image
        threading.Thread(target=self._fill, args=(image,), daemon=True).start()
        return number

    def _fill(self, image: Image) -> None:
        try:
            images.fill(image, self.place.here(image.source))
        except OSError:
            image.state = "ERROR"
            return
        image.state = "READY"

    def image(self, image: int) -> ImageView:
        if image not in self._images:
            raise NotFoundError(f"no image {image}")
        found = self._images[image]
        return ImageView(
            id=found.id,
            name=found.name,
            state=found.state,
            source=self.place.here(found.source),
            size_mib=found.size_mib,
            persistent=found.persistent,
        )

    def delete_image(self, image: int) -> None:
        with self._lock:
            found = self._images[image]
            if found.vms:
                raise RefusedError(f"image {image} is used by VMs {sorted(found.vms)}")
            del self._images[image]
            os.unlink(self.place.here(found.source))

    def create_vm(self, template: str) -> int:
        with self._lock:
            catalogue = instantiate.Catalogue(self._images, self._stores, self._networks)
            number = max(self._vms, default=-1) + 1
            vm = instantiate.make(number, templates.parse(template), catalogue, self.profile)
            used = [catalogue.image(disk) for disk in vm.disks if not volatile(disk)]
            for image in used:
                if image.state != "READY" and (image.persistent or image.state != "USED"):
                    raise RefusedError(f"Cannot acquire image {image.id}, it is {image.state}")
            for image in used:
                image.vms.add(number)
                image.state = "USED_PERS" if image.persistent and self.version >= (4, 0) else "USED"
            self._vms[number] = vm
        self._schedule()
        return number

    def vm(self, vm: int) -> VmView:
        with self._lock:
            found = self._vm(vm)
            last = found.histories[-1] if found.histories else None
            return VmView(
                id=vm,
                name=found.name,
                state=found.state,
                host=last.host.name if last else "",
                deploy_id=found.deploy_id,
                sequence=last.sequence if last else -1,
                monitoring=dict(found.monitoring),
                error=found.error,
                moving=any(record.ended == 0 for record in found.histories[-2:-1]),
            )

    def act(self, vm: int, action: Action) -> None:
        self._life.act(self._vm(vm), action)
        self._schedule()

    def migrate(self, vm: int, host: str, *, live: bool) -> None:
        target = self._hosts[self.host(host).id]
        self._life.migrate(self._vm(vm), target, live=live)

    def vm_log(self, vm: int) -> str:
        return "\n".join(self._vm(vm).log) + "\n"

    def left_behind(self) -> list[str]:
        system = os.path.join(self.place.files, "datastores", str(self.system_store.id))
        places = (system, self.place.here(self.place.scratch))
        return [os.path.join(place, name) for place in places for name in os.listdir(place)]

    def sync(self, *words: str) -> str:
        # Not the home of who runs the stand-in: the keys of nudges are written there.
        command = f"HOME={self.place.var} /usr/sbin/cxm-sync {' '.join(words)}"
        outcome = self._scripts.local(command)
        if outcome.code not in (0, ATTENTION):
            raise CxmError(f"cxm-sync ended with {outcome.code}: {outcome.stderr}")
        return outcome.stdout

    @contextmanager
    def oned_stopped(self) -> Iterator[None]:
        self.watch.pause()
        self.api.stop()
        try:
            yield
        finally:
            self.api, listening = self._open_doors()
            self.watch.go_on(listening)

    @property
    def host_datastores(self) -> str:
        return os.path.normpath(self.place.host_datastores())

    def settle(self, timeout_s: float = 60.0) -> None:
        """Wait for what oned does behind a user's back, such as the cleanup of a deleted VM."""
        self._life.finish(timeout_s)

    def close(self) -> None:
        self.settle()
        self.watch.close()
        self.api.stop()

    # Behind the scenes.

    def _release(self, vm: Vm, removed: bool) -> None:  # noqa: FBT001 - a callback's signature
        """A VM is done: free its images and addresses."""
        for disk in vm.disks:
            image = self._images.get(int(disk.get("IMAGE_ID", "-1")))
            if image is None:
                continue
            image.vms.discard(vm.id)
            if removed and image.persistent and vm.histories:
                image.state = "ERROR"  # oned does not know what is in it now
            elif not image.vms:
                image.state = "READY"
        for network in self._networks.values():
            network.release(vm.id)

    def _schedule(self) -> None:
        """Place what is pending, where there is room."""
        with self._lock:
            for vm in self._vms.values():
                if vm.state != "PENDING":
                    continue
                host = next((one for one in self._hosts.values() if self._fits(vm, one)), None)
                if host is not None:
                    self._life.place(vm, host, self.system_store)

    def _fits(self, vm: Vm, host: Host) -> bool:
        if host.state != "MONITORED" or not instantiate.allows(vm, host.name):
            return False
        there = [one for one in self._reports.of_host(host) if one.state not in _OCCUPYING]
        memory = sum(int(single(one.template, "MEMORY", "0")) for one in [*there, vm])
        if memory << 10 > host.number("TOTALMEMORY"):
            return False
        if self.version < (5, 0):
            return True
        store = self.system_store
        free = store.free_mib if store.shared else reports.space_of(host, store)
        return free >= sum(int(disk.get("SIZE", "0")) for disk in vm.disks)
