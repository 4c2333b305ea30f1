# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns how hosts and datastores are watched: oned's timers, the calls they make, the listeners."""

import base64
import logging
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from cxm.errors import CxmError, DataError
from lab.oned.documents import Documents
from lab.oned.drivers import Outcome, Scripts, answer
from lab.oned.model import Datastore, Host
from lab.oned.reports import Message, Reports, decode, first_messages, store_space
from lab.oned.templates import Template, to_xml
from lab.oned.vmm import Hypervisor

_log = logging.getLogger(__name__)
_TICK_S: Final = 0.5
_DATAGRAM: Final = 1 << 16
_COLLECTD_PORT: Final = 4124
_LISTENER: Final = "monitor-listen"


@dataclass(frozen=True, slots=True)
class Periods:
    """Seconds between looks; a real oned's are longer.

    An emulated host works several seconds for a look at everything: with shorter periods it would
    do nothing else, and its own scripts, which have 40 s, would not end in time.
    """

    hosts: float = 20.0
    stores: float = 20.0
    beacon: float = 20.0
    system: float = 120.0  # cxm's client says it by itself when VMs come and go
    state: float = 5.0  # as long as a real oned's
    sync: float = 30.0
    silence: float = 80.0  # without a word for this long, the client is started again


class Watch:
    """Watches what it is told to, from threads of its own, until it is closed."""

    def __init__(
        self,
        scripts: Scripts,
        documents: Documents,
        hypervisor: Hypervisor,
        reports: Reports,
        *,
        periods: Periods,
        listening: Iterable[socket.socket],
        lock: threading.RLock,
        after: Callable[[], None],
    ) -> None:
        self._scripts = scripts
        self._profile = scripts.profile
        self._documents = documents
        self._hypervisor = hypervisor
        self._reports = reports
        self._periods = periods
        self._lock = lock
        self._after = after
        self._end = threading.Event()
        self._awake = threading.Event()
        self._hosts: dict[int, Host] = {}
        self._complaints: dict[int, str] = {}  # by datastore; each is said once
        self._listening: list[socket.socket] = []
        self.messages: list[Message] = []
        self._threads: list[threading.Thread] = []
        self.go_on(listening)

    def _spawn(self, work: Callable[[], None], name: str) -> None:
        thread = threading.Thread(target=work, daemon=True, name=name)
        self._threads.append(thread)
        thread.start()

    def close(self) -> None:
        """End all watching; clients on hosts are asked to end."""
        self._end.set()
        if self._profile.monitord:
            for host in self._hosts.values():
                self._call(host, "stop_monitord_client")
        for thread in self._threads:
            thread.join(timeout=10)
        for one in self._listening:
            one.close()

    def pause(self) -> None:
        """Look at nothing and hear nothing until :meth:`go_on`: what hosts send is refused."""
        self._awake.clear()
        for thread in [each for each in self._threads if each.name == _LISTENER]:
            thread.join(timeout=10)
            self._threads.remove(thread)
        for one in self._listening:
            one.close()

    def go_on(self, listening: Iterable[socket.socket]) -> None:
        """Watch, and hear what hosts send to these sockets; all hosts are greeted anew."""
        self._listening = list(listening)
        self._awake.set()
        if self._listening:
            self._spawn(self._listen, _LISTENER)

    def host(self, host: Host) -> None:
        """Watch a host from now on."""
        self._hosts[host.id] = host
        work = self._serve if self._profile.monitord else self._pull
        self._spawn(lambda: self._guard(lambda: work(host)), f"watch-{host.name}")

    def store(self, store: Datastore) -> None:
        """Watch the space of a shared system datastore."""
        self._spawn(lambda: self._guard(lambda: self._space(store)), f"watch-store-{store.id}")

    def _guard(self, work: Callable[[], None]) -> None:
        while not self._end.is_set():
            if not self._awake.wait(_TICK_S):
                continue
            try:
                work()
            except CxmError as error:
                _log.warning("%s", error.sentence())
            self._after()
            self._end.wait(_TICK_S)

    # Up to 5.10: oned asks.

    def _pull(self, host: Host) -> None:
        if host.state == "INIT":
            if not self._profile.polls_vms:
                self._scripts.local(f"ssh -n {host.name} mkdir -p {self._scripts.place.remote_dir}")
            self._scripts.copy_remotes(host.name)
        place = self._scripts.place
        if self._profile.polls_vms:
            words = "cxm"
        else:
            words = f"cxm-probes {place.host_datastores()} {_COLLECTD_PORT} 20"
        command = f"{place.remote_dir}/im/run_probes {words} {host.id} {host.name}"
        outcome = self._scripts.remote(host.name, command)
        with self._lock:
            self._take_probes(host, outcome)
        if self._profile.polls_vms:
            self._poll(host)
        self._after()
        self._end.wait(self._periods.hosts)

    def _take_probes(self, host: Host, outcome: Outcome) -> None:
        done = answer(outcome, self._profile, lambda text, _severity: _log.info("%s", text))
        if done.ok:
            self._reports.probed(host, done.info)
        else:
            self._reports.lost(host, done.info if done.info != "-" else outcome.stderr)

    def _poll(self, host: Host) -> None:
        for vm in self._reports.of_host(host):
            if vm.state in ("RUNNING", "UNKNOWN"):
                done = self._hypervisor.direct(vm, "poll", vm.say)
                if done.ok:
                    with self._lock:
                        self._reports.polled(vm, done.info)

    # From 5.12 on: the host tells.

    def configuration(self, host: Host) -> str:
        """What a host's client gets on its standard input."""
        periods = self._periods
        place = self._scripts.place
        quick = str(max(1, round(periods.beacon)))
        rows: Template = [
            ("DATASTORE_LOCATION", place.host_datastores()),
            ("NETWORK", {"ADDRESS": "::", "MONITOR_ADDRESS": "auto", "PRIKEY": "", "PUBKEY": "",
                         "PORT": str(place.monitor_port), "THREADS": "8"}),
            ("PROBES_PERIOD", {"BEACON_HOST": quick, "MONITOR_HOST": quick, "MONITOR_VM": quick,
                               "SYSTEM_HOST": str(max(1, round(periods.system))),
                               "STATE_VM": str(max(1, round(periods.state))),
                               "SYNC_STATE_VM": str(max(1, round(periods.sync)))}),
        ]  # fmt: skip
        xml = to_xml(rows, "MONITOR_CONFIGURATION")
        return xml.replace(
            "</MONITOR_CONFIGURATION>", f"<HOST_ID>{host.id}</HOST_ID></MONITOR_CONFIGURATION>"
        )

    def _call(self, host: Host, script: str) -> Outcome:
        command = (
            f"{self._scripts.place.remote_dir}/im/{script} {host.im_mad} {host.id} {host.name}"
        )
        return self._scripts.remote(host.name, command, self.configuration(host))

    def _serve(self, host: Host) -> None:
        if self._scripts.synchronize(host.name).code != 0:
            outcome = Outcome(1, "", "Could not update remotes")
        else:
            outcome = self._call(host, "run_monitord_client")
        with self._lock:
            self._greet(host, outcome)
        self._after()
        while self._awake.is_set() and not self._end.wait(_TICK_S):
            if time.time() - host.last_seen > self._periods.silence:
                return

    def _greet(self, host: Host, outcome: Outcome) -> None:
        done = answer(outcome, self._profile, lambda text, _severity: _log.info("%s", text))
        if not done.ok:
            self._reports.lost(host, done.info)
            host.last_seen = time.time()
            return
        for message in first_messages(host.id, done.info):
            self._take(host, message)

    def _take(self, host: Host, message: Message) -> None:
        self.messages.append(message)
        self._reports.message(host, message)

    def _listen(self) -> None:
        with selectors.DefaultSelector() as ready:
            for one in self._listening:
                ready.register(one, selectors.EVENT_READ)
            while self._awake.is_set() and not self._end.is_set():
                for key, _events in ready.select(timeout=_TICK_S):
                    if isinstance(key.fileobj, socket.socket):
                        self._receive(key.fileobj)

    def _receive(self, one: socket.socket) -> None:
        if one.type == socket.SOCK_DGRAM:
            data = one.recv(_DATAGRAM)
        else:
            connection, _address = one.accept()
            with connection:
                connection.settimeout(5)
                data = b"".join(iter(lambda: connection.recv(_DATAGRAM), b""))
        for line in data.splitlines():
            try:
                message = decode(line)
            except DataError as error:
                _log.warning("%s", error.sentence())
                continue
            host = self._hosts.get(message.host)
            if host is not None:
                with self._lock:
                    self._take(host, message)
        self._after()

    # Shared system datastores.

    def _space(self, store: Datastore) -> None:
        place, version = self._scripts.place, self._profile.version
        script = f"{place.remotes}/tm/{store.tm_mad}/monitor"
        xml = self._documents.datastore(store, ())
        data = f"<DS_DRIVER_ACTION_DATA>{xml}</DS_DRIVER_ACTION_DATA>"
        packed = base64.b64encode(data.encode()).decode()
        if version >= (6, 8):
            outcome = self._scripts.local(f"{script} {store.id}", packed)
        else:
            outcome = self._scripts.local(f"{script} {packed} {store.id}")
        if outcome.code == 0:
            with self._lock:
                store_space(store, outcome.stdout)
        else:
            said = outcome.stderr.strip()
            if self._complaints.get(store.id) != said:
                _log.warning("datastore %s is not monitored yet: %s", store.id, said)
            self._complaints[store.id] = said
            return
        self._complaints.pop(store.id, None)
        self._after()
        self._end.wait(self._periods.stores)
