# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the benchmark of monitors: dom0's CPU for 100 healthy VMs, beside ``xl list`` for each."""

import json
import re
import sys
from typing import Any, Final

from bench import figures, monitoring
from bench.figures import Series
from bench.stage import HOST, Stage, check
from cxm.errors import CxmError
from lab import lab, visit
from lab.machine import Machine
from lab.oned.model import Vm

VMS: Final = 100
INTERVAL_S: Final = 10  # as in the cluster's template (cxm.cluster.basis)

HEADING: Final = f"""\
The monitors of {VMS} healthy VMs in one interval of {INTERVAL_S} s: seconds of dom0's CPU (user and
system, of the command and what it starts), median (min-max) of the rounds. In each round both take
turns, beginning with the other one. What xenstored does for xl is in none of them. The list of
domains is a real one of few guests: with 100 both ways read a longer list at each xl.
  cxm       the monitor of ocf:cxm:domain
  xl list   'xl list NAME' for each VM, the one command that ocf:heartbeat:Xen runs at least"""

_AGENT: Final = "/usr/lib/ocf/resource.d/cxm/domain"
_MEMO: Final = "/run/cxm/uuid/bench-1"
_ROW: Final = re.compile(
    r"^(\S+)\s.*\s([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\s", re.MULTILINE
)
_MARGIN: Final = 20  # a busy emulated node may take so many times longer than the interval
_TEMPLATE: Final = """NAME="bench-monitors"
CPU="0.5"
VCPU="1"
MEMORY="112"
{direct}
DISK=[IMAGE_ID="{image}"]
NIC=[NETWORK="bench"]
CONTEXT=[NETWORK="YES",SET_HOSTNAME="bench"]
"""


def guest_of(listed: str) -> tuple[str, str]:
    """Name and UUID of the last domain that ``xl list -v`` shows: a guest, where there is one."""
    rows = _ROW.findall(listed)
    if not rows:
        raise CxmError("'xl list -v' shows no domain")
    return str(rows[-1][0]), str(rows[-1][1])


def ways(name: str) -> dict[str, list[str]]:
    """The commands that are compared, for the domain of this name."""
    given = ("OCF_RESKEY_cloud=bench", "OCF_RESKEY_vm=1")
    interval = f"OCF_RESKEY_CRM_meta_interval={INTERVAL_S * 1000}"
    return {
        "cxm": ["env", *given, interval, _AGENT, "monitor"],
        "xl list": ["xl", "list", name],
    }


class Monitors:
    """Plays an interval of all monitors again and again, on any node with cxm and Xen."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        with open(monitoring.__file__, encoding="utf-8") as file:
            self._program = file.read()
        self._taken: dict[str, list[float]] = {}

    def round(self, number: int) -> None:
        """One interval each way."""
        machine = self._machine
        name, uuid = guest_of(machine.run(["xl", "list", "-v"]).stdout)
        machine.run(["mkdir", "-p", _MEMO.rpartition("/")[0]])
        machine.write(_MEMO, f"{uuid}\n")
        try:
            turns = list(ways(name).items())
            for way, argv in turns if number % 2 == 0 else turns[::-1]:
                self._taken.setdefault(way, []).append(self._spread(argv))
        finally:
            machine.run(["rm", "-f", _MEMO])

    def _spread(self, argv: list[str]) -> float:
        said = self._machine.run(
            ["python3", "-", str(VMS), str(INTERVAL_S), *argv],
            stdin=self._program.encode(),
            timeout_s=_MARGIN * INTERVAL_S,
        )
        return float(json.loads(said.stdout)["cpu_s"])

    def report(self) -> "Report":
        """What was measured."""
        return Report({way: figures.series(values) for way, values in self._taken.items()})


class Report:
    """The figures of both ways."""

    def __init__(self, taken: dict[str, Series]) -> None:
        self._taken = taken

    def text(self) -> str:
        ours = self._taken["cxm"]
        rows = []
        for way, cpu in self._taken.items():
            mark = "" if way == "cxm" else f"{figures.ratio(cpu, ours).shown(1)} x cxm"
            rows.append((way, cpu.median, f"{cpu.shown(2)} s  {mark}".rstrip()))
        return f"{HEADING}\n\n{figures.chart(rows)}"

    def to_json(self) -> dict[str, Any]:
        return {
            "unit": "s",
            "definition": HEADING,
            "vms": VMS,
            "interval_s": INTERVAL_S,
            "ways": {
                way: cpu.to_json()
                | {"ratio_to_cxm": figures.ratio(cpu, self._taken["cxm"]).to_json()}
                for way, cpu in self._taken.items()
            },
        }


def guest(on: Stage) -> Vm:
    """Have a guest run on the stage's host."""
    image = on.image(on.guest.tgz, "monitors", 'LV_SIZE="64"\n')
    vm = on.vm(
        _TEMPLATE.format(direct=on.direct, image=image),
        "PROLOG",
    )
    for line in on.transfers.prolog(vm):
        on.line(vm, line)
    context = on.transfers.context(vm)
    if context is not None:
        on.line(vm, context)
    vm.state = "BOOT"
    vm.deploy_id = check(on.hypervisor.deploy(vm, vm.say), f"deploy on {HOST}")
    vm.state = "RUNNING"
    visit.await_status(on.lab, vm.nics[0]["IP"])
    return vm


def remove(on: Stage, vm: Vm) -> None:
    """End the guest and remove its disks."""
    check(on.hypervisor.end(vm, "cancel", vm.say), "cancel")
    vm.state = "EPILOG"
    for line in on.transfers.epilog(vm):
        on.line(vm, line)


def main(names: list[str]) -> None:
    """On a node of a lab that runs: ``python -m bench.monitors LAB NODE [ROUNDS]``."""
    name, node, *rounds = names
    bench = Monitors(lab.attach(name).machine(node))
    for number in range(int(rounds[0]) if rounds else 3):
        bench.round(number)
    print(bench.report().text())


if __name__ == "__main__":
    main(sys.argv[1:])
