# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the benchmark of every action: ssh connections, start-up, overhead, in a VM's whole life."""

import base64
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from bench import figures, notes, probe
from bench.figures import Series
from bench.stage import HOST, Stage, check
from bench.timed import Instruments
from cxm.errors import CxmError
from lab import visit
from lab.oned.model import Datastore, Vm

_MIB: Final = 64
_EMPTY_CALLS: Final = 3  # of each baseline in a round
_PROBES: Final = ("host/monitor/probe", "vm/monitor/probe", "vm/status/probe")

HEADING = """\
Every action of the drivers, called as oned 7.4 calls it: TM, and what cxm-setup lists with -l, on
the frontend; the others on the host, inside of oned's own ssh. Milliseconds: median (min-max) of
the rounds.
  ssh        connections that the action itself makes; none where it runs on the host
  start-up   from the shell's start of the action to its first command; an action that asks oned
             for the VM first has that in it. Compare with an empty interpreter, below.
  overhead   the action's time from its start to its end, less the time in which other programs did
             its work (LVM, mkfs, tar, xl, the guest that is waited for). What remains is ssh, sudo,
             two interpreters and cxm's own code; zeroing and reading blocks count as that, too.
  in all     the action's whole time"""

_TEMPLATE: Final = """NAME="bench-{number}"
CPU="0.5"
VCPU="1"
MEMORY="112"
{direct}
DISK=[IMAGE_ID="{plain}"]
DISK=[IMAGE_ID="{kept}"]
DISK=[TYPE="fs",SIZE="{mib}",FORMAT="raw",FS="ext4",DEV_PREFIX="xvd"]
DISK=[TYPE="swap",SIZE="{mib}",DEV_PREFIX="xvd"]
NIC=[NETWORK="bench"]
CONTEXT=[NETWORK="YES",SET_HOSTNAME="bench"]
"""


def _address(vm: Vm) -> str:
    return vm.nics[0]["IP"]


class Actions:
    """Plays a VM's life round by round and keeps what each action took."""

    def __init__(self, on: Stage) -> None:
        self._on = on
        self._instruments = Instruments(on.lab, on.standin.place, on.machine)
        check_code(on.scripts.synchronize(HOST).code, "copying the drivers to the host")
        self._taken: dict[str, list[notes.Figures]] = {}
        self._bare: dict[str, list[float]] = {}
        self._deploy_id = ""
        self._plain = on.image(on.guest.tgz, "plain", f'LV_SIZE="{_MIB}"\n')

    def round(self, number: int) -> None:
        """One VM's life, with the baselines around it."""
        on = self._on
        self._baselines()
        kept = on.image(on.guest.tgz, f"kept-{number}", f'LV_SIZE="{_MIB}"\nPERSISTENT="YES"\n')
        vm = on.vm(
            _TEMPLATE.format(
                number=number,
                direct=on.direct,
                plain=self._plain,
                kept=kept,
                mib=_MIB,
            ),
            "PROLOG",
        )
        for line in on.transfers.prolog(vm):
            self._line(vm, line)
        context = on.transfers.context(vm)
        if context is not None:
            self._line(vm, context)
        self._run(vm)
        self._leave(vm)
        self._baselines()

    def _measure(
        self, label: str, action: str, work: Callable[[], object], *, verbs: str = ""
    ) -> None:
        here, there = self._instruments.noted(work)
        calls = [one for one in here + there if one.name.endswith(action)]
        if len(calls) != 1:
            raise CxmError(f"the bench saw {len(calls)} calls of {action} instead of one")
        helpers = [one for one in there if "/" not in one.name and one.name.startswith(verbs)]
        self._taken.setdefault(label, []).append(notes.figures(calls[0], helpers))

    def _line(self, vm: Vm, line: str) -> None:
        verb, manager = line.split()[:2]
        action = verb.lower()
        self._measure(f"tm {action}", f"{manager}/{action}", lambda: self._on.line(vm, line))

    def _run(self, vm: Vm) -> None:
        """The VM on its host, from its start to its end."""
        on, hypervisor = self._on, self._on.hypervisor
        self._deploy(vm)
        boot = visit.await_status(on.lab, _address(vm)).boot
        self._watch(vm)
        self._vmm("save", lambda: hypervisor.save(vm, vm.say))
        self._vmm("restore", lambda: hypervisor.restore(vm, vm.say))
        visit.await_status(on.lab, _address(vm), lambda seen: seen.boot == boot)
        for action in ("reboot", "reset"):
            self._vmm(action, partial(hypervisor.restart, vm, action, vm.say))
            boot = self._await_boot_other_than(vm, boot)
        self._vmm("shutdown", lambda: hypervisor.end(vm, "shutdown", vm.say))
        on.again(vm)
        vm.state = "BOOT_POWEROFF"
        check(hypervisor.deploy(vm, vm.say), "deploy")
        self._vmm("cancel", lambda: hypervisor.end(vm, "cancel", vm.say))

    def _await_boot_other_than(self, vm: Vm, boot: str) -> str:
        def is_new(seen: visit.Status) -> bool:
            return seen.boot != boot

        return visit.await_status(self._on.lab, _address(vm), is_new).boot

    def _deploy(self, vm: Vm) -> None:
        vm.state = "BOOT"
        self._vmm("deploy", lambda: self._on.hypervisor.deploy(vm, vm.say))
        vm.deploy_id = self._deploy_id
        vm.state = "RUNNING"

    def _vmm(self, action: str, work: Callable[[], Any]) -> None:
        def checked() -> None:
            self._deploy_id = check(work(), action)

        self._measure(f"vmm {action}", f"vmm/cxm/{action}", checked, verbs="domain-")

    def _watch(self, vm: Vm) -> None:
        """What monitoring calls: each probe, and the poll of 3.6 to 5.10."""
        on = self._on
        directory = on.standin.place.remote_dir
        stream = on.scripts.stream(HOST)
        try:
            poll = f"{directory}/vmm/cxm/poll {vm.deploy_id} {HOST} {vm.id} {HOST}"
            self._measure("vmm poll", "vmm/cxm/poll", lambda: stream.run(poll))
            for name in _PROBES:
                words = f"{directory}/im/cxm-probes.d/{name} cxm 0 {HOST}"
                work = partial(stream.run, words, "<MONITOR_CONFIGURATION/>")
                self._measure(f"im {name.removesuffix('/probe')}", name, work)
        finally:
            stream.close()

    def _leave(self, vm: Vm) -> None:
        """The VM's disks go to the frontend and back, into their image, and away."""
        on = self._on
        vm.state = "EPILOG_STOP"
        self._line(vm, on.transfers.stop(vm)[0])
        on.again(vm)
        vm.state = "PROLOG_RESUME"
        on.line(vm, on.transfers.resume(vm)[0])
        vm.state = "EPILOG"
        for line in on.transfers.epilog(vm):
            if line.startswith("DELETE") and f"/disk.0 {vm.id}" not in line:
                on.line(vm, line)
            else:
                self._line(vm, line)
        self._monitor()

    def _monitor(self) -> None:
        """The space of a shared datastore; this lab's one is named as if it were shared."""
        on = self._on
        store = Datastore(9, "shared", 1, "-", "cxm", [("BRIDGE_LIST", HOST), ("SHARED", "YES")])
        data = f"<DS_DRIVER_ACTION_DATA>{on.documents.datastore(store, ())}</DS_DRIVER_ACTION_DATA>"
        packed = base64.b64encode(data.encode()).decode()
        script = f"{on.standin.place.remotes}/tm/cxm/monitor 9"
        self._measure("tm monitor", "tm/cxm/monitor", lambda: on.scripts.local(script, packed))

    def _baselines(self) -> None:
        """What nobody can do without: an empty interpreter, an empty ssh."""
        on = self._on
        program = f"import os, time; print(time.time() - float(os.environ['{probe.BEGAN}']))"
        empty = f'/usr/bin/python3 -ISB -c "{program}"'
        stream = on.scripts.stream(HOST)
        try:
            for _call in range(_EMPTY_CALLS):
                self._add("python3, frontend", float(on.scripts.local(empty).stdout))
                self._add("python3, host", float(stream.run(empty).stdout))
                began = time.monotonic()
                check_code(on.scripts.local("true").code, "an empty command")
                nothing = time.monotonic() - began
                check_code(on.scripts.local(f"ssh {HOST} true").code, "an empty ssh")
                self._add("ssh, empty", time.monotonic() - began - 2 * nothing)
        finally:
            stream.close()

    def _add(self, name: str, seconds: float) -> None:
        self._bare.setdefault(name, []).append(1000 * seconds)

    def report(self) -> "Report":
        """What was measured."""
        return Report(
            {name: figures.series(values) for name, values in self._bare.items()},
            {
                name: (
                    calls[0].ssh,
                    figures.series([call.startup for call in calls]),
                    figures.series([call.overhead for call in calls]),
                    figures.series([call.wall for call in calls]),
                )
                for name, calls in self._taken.items()
            },
        )


def check_code(code: int, what: str) -> None:
    """Raise CxmError when a command has failed."""
    if code != 0:
        raise CxmError(f"{what} failed with exit code {code}")


class Report:
    """The figures of all actions, to be read and to be kept."""

    def __init__(
        self,
        bare: dict[str, Series],
        rows: dict[str, tuple[int, Series, Series, Series]],
    ) -> None:
        self._bare = bare
        self._rows = rows

    def _interpreter(self, ssh: int) -> Series:
        return self._bare[f"python3, {'frontend' if ssh else 'host'}"]

    def text(self) -> str:
        heads = ("action", "ssh", "start-up", "x python3", "overhead", "in all")
        rows = [
            (
                name,
                str(ssh),
                startup.shown(),
                f"{startup.median / self._interpreter(ssh).median:.1f}",
                overhead.shown(),
                wall.shown(),
            )
            for name, (ssh, startup, overhead, wall) in self._rows.items()
        ]
        bare = "\n".join(f"  {name:<18} {one.shown()}" for name, one in self._bare.items())
        return f"{HEADING}\n\n{figures.table(heads, rows)}\n\nFor comparison, empty:\n{bare}"

    def to_json(self) -> dict[str, Any]:
        return {
            "unit": "ms",
            "definition": HEADING,
            "empty": {name: one.to_json() for name, one in self._bare.items()},
            "actions": {
                name: {
                    "ssh": ssh,
                    "startup": startup.to_json(),
                    "startup_ratio": round(startup.median / self._interpreter(ssh).median, 2),
                    "overhead": overhead.to_json(),
                    "wall": wall.to_json(),
                }
                for name, (ssh, startup, overhead, wall) in self._rows.items()
            },
        }
