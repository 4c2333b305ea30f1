# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what must never be seen in a cluster, and the watch that is kept from outside all along.

Never two unpaused domains of one VM; a volume active on two nodes only while that VM moves. Each
node prints what it has once a second; what two samples in a row agree on was so in between.
"""

import itertools
import math
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import combinations, pairwise

from cxm.errors import CxmError
from cxm.run import System
from cxm.xen import xl
from lab.lab import Lab
from lab.machine import Machine

# A sample takes less on its way, the tests' machines stand still for longer.
_FROZEN_S = 10.0
# Of what it starts an emulated node would do little else: only what must be asked is a process.
_SCRIPT = """shopt -s nullglob
exec 3<> <(:)
while :; do
    echo "at $EPOCHREALTIME"; xl list -v; echo volumes; dmsetup ls
    echo moving; for mark in /run/cxm/moving/*; do echo "$mark"; done; echo end
    read -rt 1 -u 3
done
"""


@dataclass(frozen=True, slots=True)
class Sample:
    """What a node had at one moment."""

    at: float  # by the node's clock
    running: frozenset[str] = frozenset()  # UUIDs of domains that run
    volumes: frozenset[str] = frozenset()  # active, as the device mapper calls them
    moving: frozenset[str] = frozenset()  # the numbers of VMs that are on their way
    heard: float = 0.0  # by this machine's clock
    stream: int = 0  # samples of one connection have the same
    lag: float = 0.0  # of the node's clock


def parse(lines: Iterable[str]) -> Iterator[Sample]:
    """The samples in the output of a node; one that was cut off is left out."""
    part: list[str] = []
    for line in lines:
        if line.startswith("at "):
            part = []
        part.append(line)
        if line == "end" and part[0].startswith("at "):
            yield _sample(part)


def _sample(part: list[str]) -> Sample:
    volumes, moving = part.index("volumes"), part.index("moving")
    domains = xl.parse_list("\n".join(part[1:volumes]))
    return Sample(
        at=float(part[0].split()[1]),
        running=frozenset(
            domain.uuid for domain in domains if domain.domid and domain.alive and not domain.paused
        ),
        volumes=frozenset(
            line.split()[0] for line in part[volumes + 1 : moving] if "lv--one" in line
        ),
        moving=frozenset(mark.rpartition("-")[2] for mark in part[moving + 1 : -1]),
    )


def _vm_of(volume: str) -> str:
    """The number of the VM whose volume this is: ``LVM_XEN-lv--one--7--0``."""
    return volume.split("--")[-2]


def in_our_time(samples: Sequence[Sample]) -> list[Sample]:
    """A node's samples by this machine's clock.

    The clock of a machine that was frozen lags by that time from then on, and no sample is heard
    before it is made: so a clock lags as much as the least that this or any later sample took.
    """
    found: list[Sample] = []
    lag, stream = math.inf, None
    for sample in reversed(samples):
        if sample.stream != stream:
            lag, stream = math.inf, sample.stream
        lag = min(lag, sample.heard - sample.at)
        found.append(replace(sample, at=sample.at + lag, lag=lag))
    return found[::-1]


def _spans(samples: Sequence[Sample]) -> Iterator[tuple[Sample, Sample]]:
    """Two samples in a row; not those between which the machine stood still, and its guests too."""
    for one, other in pairwise(samples):
        if other.lag - one.lag < _FROZEN_S:
            yield one, other


def broken(nodes: Mapping[str, Sequence[Sample]]) -> list[str]:
    """What was seen that must never be: a sentence each."""
    found: dict[str, None] = {}
    for (left, ours), (right, theirs) in combinations(nodes.items(), 2):
        for first in _spans(ours):
            for second in _spans(theirs):
                if first[1].at < second[0].at or second[1].at < first[0].at:
                    continue
                samples = (*first, *second)
                both = frozenset.intersection(*(each.running for each in samples))
                for uuid in both:
                    found[f"{uuid} ran on {left} and {right} at once"] = None
                on_their_way = frozenset.union(*(each.moving for each in samples))
                for volume in frozenset.intersection(*(each.volumes for each in samples)):
                    if _vm_of(volume) not in on_their_way:
                        found[f"{volume} was active on {left} and {right}"] = None
    return list(found)


@dataclass(slots=True)
class Watch:
    """A watch that is being kept."""

    seen: dict[str, list[Sample]] = field(default_factory=dict)

    def check(self) -> None:
        """Raise AssertionError when something was seen that must never be."""
        nodes = {name: in_our_time(samples) for name, samples in self.seen.items()}
        assert broken(nodes) == []
        assert any(len(samples) > 1 for samples in self.seen.values()), "nothing was watched"


def _follow(machine: Machine, samples: list[Sample], done: threading.Event) -> None:
    """Watch a node, also after it has been away."""
    for stream in itertools.count():
        if done.is_set():
            return
        with suppress(CxmError, ValueError):
            argv = machine.ssh(["bash", "-c", _SCRIPT], options=["-o", "ServerAliveInterval=5"])
            with System().produce(argv, timeout_s=3600.0) as output:
                samples.extend(
                    replace(sample, heard=time.time(), stream=stream)
                    for sample in parse(_lines(output, done))
                )
        done.wait(2.0)


def _lines(output: Iterator[bytes], done: threading.Event) -> Iterator[str]:
    rest = b""
    for chunk in output:
        *whole, rest = (rest + chunk).split(b"\n")
        yield from (line.decode(errors="replace") for line in whole)
        if done.is_set():
            return


@contextmanager
def watched(lab: Lab) -> Iterator[Watch]:
    """Keep watch over all nodes of a lab while the block runs, and judge at its end."""
    watch, done = Watch(), threading.Event()
    threads = []
    for name, machine in lab.machines.items():
        samples = watch.seen.setdefault(name, [])
        thread = threading.Thread(target=_follow, args=(machine, samples, done), daemon=True)
        thread.start()
        threads.append(thread)
    try:
        yield watch
    finally:
        done.set()
        for thread in threads:
            thread.join(30.0)
    watch.check()
