# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the benchmark of a disk's making: cxm's clone beside the original's ssh commands.

The original's sequence is described in the lab's notes on nagius/cxm 0.9.4 and written anew here,
with the repairs without which it does not run today. It logs in as root, which spares it sudo.
"""

import os
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from bench import figures
from bench.actions import check_code
from bench.figures import Series
from bench.stage import Stage
from lab.oned.model import Vm

HEADING = """\
The same image into a volume of the same size on the same host, in seconds as oned sees them:
median (min-max) of the rounds. In each round all ways take turns, beginning with another one.
  cxm        the clone action, called as oned 7.4 calls it: one ssh connection; zeroes the volume,
             tags it, checks lengths and checksum
  original   its sequence: mkdir, lvcreate, ln, mktemp, mkfs and mount, cat | tar, umount: seven ssh
             connections, as root; zeroes nothing, checks nothing
  raw dump   the same files as a file system image of the volume's whole size, by dd over ssh, as
             drivers that know no tar images copy a disk: three ssh connections"""

_VG: Final = "LVM_XEN"


@dataclass(frozen=True, slots=True)
class Case:
    """An image and a size of the volume that it goes into."""

    name: str
    path: str
    size_mib: int
    raw: str = ""  # a file system image of this size, for the raw dump

    @property
    def title(self) -> str:
        size = f"{self.size_mib >> 10} GiB" if self.size_mib >= 1 << 10 else f"{self.size_mib} MiB"
        return f"{self.name} ({os.path.getsize(self.path) / 1e6:.0f} MB) into {size}"


def original(root: str, image: str, directory: str, volume: str, size_mib: int) -> str:
    """The original's way, as a script of the frontend; root is the words of a login as root."""
    device, there = f"/dev/{_VG}/{volume}", shlex.quote(f"{directory}/disk.0")
    made = f"lvcreate -q -y -W y -L {size_mib}m -n {volume} {_VG}"
    return "\n".join(
        (
            "set -e",
            f"{root} -n mkdir -p {shlex.quote(directory)}",
            f"{root} -n {made} >/dev/null",
            f"{root} -n ln -s {device} {there}",
            f"mounted=$({root} -n mktemp -d)",
            f'{root} -n "mkfs.ext4 -q {device} && mount {device} $mounted"',
            f'cat {shlex.quote(image)} | {root} tar -xzf - -C "$mounted"',
            f'{root} -n "umount $mounted && rmdir $mounted"',
        )
    )


def dump(root: str, raw: str, directory: str, volume: str, size_mib: int) -> str:
    """A whole raw image over ssh, as a script of the frontend."""
    device, there = f"/dev/{_VG}/{volume}", shlex.quote(f"{directory}/disk.0")
    made = f"lvcreate -q -y -W y -L {size_mib}m -n {volume} {_VG}"
    written = f"dd of={device} bs=1M conv=fsync iflag=fullblock status=none"
    return "\n".join(
        (
            "set -e",
            f"{root} -n mkdir -p {shlex.quote(directory)}",
            f'{root} -n "{made} >/dev/null && ln -s {device} {there}"',
            f"dd if={shlex.quote(raw)} bs=1M status=none | {root} {written}",
        )
    )


@dataclass(slots=True)
class _Taken:
    """The seconds of one case, by way."""

    case: Case
    vm: Vm
    seconds: dict[str, list[float]] = field(default_factory=dict)


class Clones:
    """Makes the same disks again and again, each way in turn."""

    def __init__(self, on: Stage, cases: list[Case]) -> None:
        self._on = on
        self._taken: list[_Taken] = []
        for number, case in enumerate(cases):
            image = on.image(case.path, f"clone-{number}", f'LV_SIZE="{case.size_mib}"\n')
            vm = on.vm(
                f'NAME="clone-{number}"\nCPU="1"\nMEMORY="64"\nDISK=[IMAGE_ID="{image}"]\n',
                "PROLOG",
            )
            self._taken.append(_Taken(case, vm))

    def round(self, number: int) -> None:
        """Every case, every way; each round begins with another way."""
        for taken in self._taken:
            ways = list(self._ways(taken).items())
            turn = number % len(ways)
            for name, way in [*ways[turn:], *ways[:turn]]:
                with self._on.lab.progress.step(f"{taken.case.title}: {name}"):
                    began = time.monotonic()
                    way()
                    taken.seconds.setdefault(name, []).append(time.monotonic() - began)
                self._check(taken, name)
                self._clean(taken)

    def _ways(self, taken: _Taken) -> dict[str, Callable[[], None]]:
        on, case, vm = self._on, taken.case, taken.vm
        line = on.transfers.prolog(vm)[0]
        directory = on.transfers.host_dir(vm).replace("//", "/")
        words = (directory, self._volume(vm), case.size_mib)
        root = on.root_ssh()
        ways: dict[str, Callable[[], None]] = {
            "cxm": lambda: on.line(vm, line),
            "original": lambda: self._script(original(root, case.path, *words)),
        }
        if case.raw:
            ways["raw dump"] = lambda: self._script(dump(root, case.raw, *words))
        return ways

    @staticmethod
    def _volume(vm: Vm) -> str:
        return f"lv-one-{vm.id}-0"

    def _script(self, script: str) -> None:
        done = self._on.scripts.local(script)
        check_code(done.code, f"a script of the benchmark ({done.stderr.strip()[-200:]})")

    def _check(self, taken: _Taken, way: str) -> None:
        """All ways have made the same: a file system with the guest's files in it."""
        device = f"/dev/{_VG}/{self._volume(taken.vm)}"
        seen = f"mount -o ro {device} /mnt && test -s /mnt/sbin/init; c=$?; umount /mnt; exit $c"
        code = self._on.machine.run(["sh", "-c", seen], ok=range(256)).code
        check_code(code, f"{taken.case.title}: looking into what {way} has made")

    def _clean(self, taken: _Taken) -> None:
        directory = self._on.transfers.host_dir(taken.vm)
        volume = f"{_VG}/{self._volume(taken.vm)}"
        self._on.machine.run(
            ["sh", "-c", f"lvremove -q -f -y {volume} && rm -rf {shlex.quote(directory)} && sync"]
        )

    def report(self) -> "Report":
        """What was measured."""
        return Report(
            {
                taken.case.title: {
                    way: figures.series(values) for way, values in taken.seconds.items()
                }
                for taken in self._taken
            }
        )


class Report:
    """The figures of all ways, to be read and to be kept."""

    def __init__(self, cases: dict[str, dict[str, Series]]) -> None:
        self._cases = cases

    def text(self) -> str:
        parts = [HEADING]
        for title, ways in self._cases.items():
            rows = []
            for way, seconds in ways.items():
                times = figures.ratio(seconds, ways["cxm"])
                mark = "" if way == "cxm" else f"{times.shown(2)} x cxm"
                rows.append((way, seconds.median, f"{seconds.shown(1)} s  {mark}".rstrip()))
            parts.append(f"{title}\n{figures.chart(rows)}")
        return "\n\n".join(parts)

    def to_json(self) -> dict[str, Any]:
        return {
            "unit": "s",
            "definition": HEADING,
            "cases": {
                title: {
                    way: seconds.to_json()
                    | {"ratio_to_cxm": figures.ratio(seconds, ways["cxm"]).to_json()}
                    for way, seconds in ways.items()
                }
                for title, ways in self._cases.items()
            },
        }
