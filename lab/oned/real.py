# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns how a real oned is driven: through its XML-RPC interface, from inside the lab's frontend."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Protocol
from xml.etree import ElementTree as ET

from cxm.errors import CxmError, UsageError
from cxm.one.version import OneVersion
from cxm.run import Runner
from cxm.setup import datastores, parts
from cxm.sync.main import ATTENTION
from lab.oned import states
from lab.oned.cloud import Action, Cloud, HostView, ImageView, Network, VmView

_CALL: Final = os.path.join(os.path.dirname(os.path.abspath(__file__)), "call.py")
_TIMEOUT_S: Final = 60.0
_RECOVER: Final = {Action.RETRY: 2, Action.DELETE: 3, Action.RECREATE: 4}
_TODAY: Final = {
    Action.SUSPEND: "suspend",
    Action.RESUME: "resume",
    Action.POWEROFF: "poweroff",
    Action.POWEROFF_HARD: "poweroff-hard",
    Action.STOP: "stop",
    Action.UNDEPLOY: "undeploy",
    Action.UNDEPLOY_HARD: "undeploy-hard",
    Action.TERMINATE: "terminate",
    Action.TERMINATE_HARD: "terminate-hard",
    Action.REBOOT: "reboot",
    Action.RESET: "reboot-hard",
}
_OLDEST: Final = {
    Action.SUSPEND: "suspend",
    Action.RESUME: "resume",
    Action.POWEROFF: "poweroff",
    Action.STOP: "stop",
    Action.TERMINATE: "shutdown",
    Action.TERMINATE_HARD: "cancel",
    Action.REBOOT: "reboot",
    Action.RESET: "reset",
    Action.DELETE: "finalize",
    Action.RETRY: "resubmit",
    Action.RECREATE: "resubmit",
}
_FIRST_WITH_RECOVER: Final = (5, 0)


@dataclass(frozen=True, slots=True)
class Names:
    """What a frontend calls cxm's drivers and datastores."""

    im_mad: str = parts.IM_MAD
    vm_mad: str = parts.VM_MAD
    vn_mad: str = "dummy"  # the host's network driver, up to 4.14
    image_datastore: str = datastores.IMAGES
    cluster: str = datastores.LOCAL.name


_SYNC_S = 600.0


class Daemon(Protocol):
    """Whoever started oned."""

    def start(self) -> None:
        """Start it; it answers then."""

    def stop(self) -> None:
        """Stop it, and all that it has started."""


class RealOned(Cloud):
    """A running oned; ``prefix`` are the words that make a command run where oned is reached.

    Files of images are copied to ``inbox`` first, where oned's account can read them.
    """

    def __init__(
        self,
        runner: Runner,
        *,
        prefix: Sequence[str],
        url: str,
        session: str,
        var: str = "/var/lib/one",
        inbox: str = "",
        names: Names | None = None,
        daemon: Daemon | None = None,
        as_account: Callable[[Sequence[str]], list[str]] | None = None,
    ) -> None:
        self._runner = runner
        self._prefix = tuple(prefix)
        self._url = url
        self._session = session
        self._var = var
        self._inbox = inbox
        self._as_account = as_account or (lambda argv: [*self._prefix, *argv])
        self.names = names or Names()
        self._daemon = daemon
        major, minor, patch = str(self._call("one.system.version")).split(".")[:3]
        self.version = OneVersion(int(major), int(minor), int(patch))

    def _call(self, method: str, *params: object) -> Any:
        argv = [*self._prefix, sys.executable, "-IS", _CALL, self._url]
        asked = json.dumps({"method": method, "params": [self._session, *params]})
        result = self._runner.run(argv, stdin=asked.encode(), timeout_s=_TIMEOUT_S)
        answer = json.loads(result.stdout)
        if answer[0] is not True:
            raise CxmError(f"{method}: oned answered: {answer[1]}")
        return answer[1]

    def _info(self, method: str, number: int) -> ET.Element:
        return ET.fromstring(str(self._call(method, number)))  # noqa: S314 - oned's own answer

    def _pool(self, method: str, *params: object) -> ET.Element:
        return ET.fromstring(str(self._call(method, *params)))  # noqa: S314 - oned's own answer

    def _named(self, method: str, name: str, *params: object) -> ET.Element:
        for entry in self._pool(method, *params):
            if entry.findtext("NAME") == name:
                return entry
        raise CxmError(f"{method} knows nothing called '{name}'")

    def _cluster(self) -> int:
        return _number(self._named("one.clusterpool.info", self.names.cluster), "ID")

    def add_host(self, name: str) -> int:
        drivers = [self.names.im_mad, self.names.vm_mad]
        if self.version < (5, 0):
            drivers.append(self.names.vn_mad)
        return int(self._call("one.host.allocate", name, *drivers, self._cluster()))

    def host(self, name: str) -> HostView:
        found = self._named("one.hostpool.info", name)
        facts = {
            row.tag: row.text or ""
            for part in ("TEMPLATE", "HOST_SHARE", "MONITORING/CAPACITY", "MONITORING/SYSTEM")
            for row in found.findall(f"{part}/*")
            if len(row) == 0
        }
        state = states.HOST_NAMES.get(_number(found, "STATE"), "?")
        return HostView(_number(found, "ID"), name, state, facts)

    def create_network(self, network: Network) -> int:
        if self.version < (5, 0):
            base, _, last = network.first_ip.rpartition(".")
            leases = "".join(
                f'LEASES=[IP="{base}.{int(last) + step}"]\n' for step in range(network.size)
            )
            text = f'NAME="{network.name}"\nTYPE="FIXED"\nBRIDGE="{network.bridge}"\n{leases}'
        else:
            text = (
                f'NAME="{network.name}"\nVN_MAD="{network.vn_mad}"\nBRIDGE="{network.bridge}"\n'
                f'AR=[TYPE="IP4",IP="{network.first_ip}",SIZE="{network.size}"]\n'
            )
        return int(self._call("one.vn.allocate", text, self._cluster()))

    def register_image(self, path: str, template: str) -> int:
        store = self._named("one.datastorepool.info", self.names.image_datastore)
        if path and self._inbox:
            path = shutil.copy(path, self._inbox)
            os.chmod(path, 0o644)
        text = f'PATH="{path}"\n{template}' if path else template
        return int(self._call("one.image.allocate", text, _number(store, "ID")))

    def image(self, image: int) -> ImageView:
        found = self._info("one.image.info", image)
        return ImageView(
            id=image,
            name=found.findtext("NAME", ""),
            state=states.IMAGE_NAMES.get(_number(found, "STATE"), "?"),
            source=found.findtext("SOURCE", ""),
            size_mib=_number(found, "SIZE"),
            persistent=found.findtext("PERSISTENT") == "1",
        )

    def delete_image(self, image: int) -> None:
        self._call("one.image.delete", image)

    def create_vm(self, template: str) -> int:
        return int(self._call("one.vm.allocate", template))

    def vm(self, vm: int) -> VmView:
        return view_of_vm(self._info("one.vm.info", vm))

    def act(self, vm: int, action: Action) -> None:
        if self.version >= _FIRST_WITH_RECOVER:
            if action in _RECOVER:
                self._call("one.vm.recover", vm, _RECOVER[action])
            else:
                self._call("one.vm.action", _TODAY[action], vm)
            return
        if action not in _OLDEST:
            raise UsageError(f"OpenNebula {self.version} has no action '{action}'")
        word = _OLDEST[action]
        if action is Action.RESUME and self.vm(vm).state in ("POWEROFF", "UNKNOWN"):
            word = "restart"
        self._call("one.vm.action", word, vm)

    def migrate(self, vm: int, host: str, *, live: bool) -> None:
        # Neither a check of the capacity, nor another datastore, nor by powering off.
        known = (((4, 0), False), ((4, 14), -1), ((5, 8), 0))
        more = [value for since, value in known if self.version >= since]
        self._call("one.vm.migrate", vm, self.host(host).id, live, *more)

    def vm_log(self, vm: int) -> str:
        for path in (
            f"{self._var}/vms/{vm}/vm.log",
            f"{self._var}/{vm}/vm.log",
            f"/var/log/one/{vm}.log",
        ):
            argv = [*self._prefix, "cat", path]
            result = self._runner.run(argv, ok=(0, 1))
            if result.code == 0:
                return result.stdout
        return ""

    def left_behind(self) -> list[str]:
        top = f"{self._var}/datastores"
        argv = [*self._prefix, "find", top, "-mindepth", "2", "-maxdepth", "2", "-type", "d"]
        return self._runner.run(argv).stdout.splitlines()

    def sync(self, *words: str) -> str:
        argv = self._as_account(["/usr/sbin/cxm-sync", *words])
        return self._runner.run(argv, timeout_s=_SYNC_S, ok=(0, ATTENTION)).stdout

    @contextmanager
    def oned_stopped(self) -> Iterator[None]:
        if self._daemon is None:
            raise UsageError("this oned was not started here: it is not stopped here either")
        self._daemon.stop()
        try:
            yield
        finally:
            self._daemon.start()

    def settle(self) -> None:
        """Nothing to wait for: a VM that a real oned calls DONE has been cleaned up."""

    @property
    def host_datastores(self) -> str:
        return f"{self._var}/datastores"

    def close(self) -> None:
        """Leave oned as it is: whoever started it ends it."""


def _number(element: ET.Element, path: str, default: int = -1) -> int:
    return int(element.findtext(path) or default)


def _error(vm: ET.Element) -> str:
    """The reason of the last failure; in 3.x its time and text are two values."""
    paths = ("USER_TEMPLATE/ERROR", "TEMPLATE/ERROR/TIMESTAMP", "TEMPLATE/ERROR/MESSAGE")
    return " : ".join(filter(None, map(vm.findtext, paths))) or vm.findtext("TEMPLATE/ERROR", "")


def view_of_vm(found: ET.Element) -> VmView:
    """A VM from the XML that oned gives."""
    histories = found.findall("HISTORY_RECORDS/HISTORY")
    last = histories[-1] if histories else None
    monitoring = {row.tag: row.text or "" for row in found.findall("MONITORING/*")}
    if found.find("MONITORING") is None and _number(found, "LAST_POLL", 0):  # up to 4.12
        tags = {"CPU": "CPU", "MEMORY": "MEMORY", "NETTX": "NET_TX", "NETRX": "NET_RX"}
        monitoring = {name: found.findtext(tag, "") for name, tag in tags.items()}
    return VmView(
        id=_number(found, "ID"),
        name=found.findtext("NAME", ""),
        state=states.vm_state_name(_number(found, "STATE"), _number(found, "LCM_STATE")),
        host="" if last is None else last.findtext("HOSTNAME", ""),
        deploy_id=found.findtext("DEPLOY_ID", ""),
        sequence=-1 if last is None else _number(last, "SEQ"),
        monitoring=monitoring,
        moving=any(_number(record, "ETIME", 0) == 0 for record in histories[-2:-1]),
        error=_error(found),
    )
