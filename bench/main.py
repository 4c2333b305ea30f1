# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""``make bench``: all benchmarks, on a lone host and on a cluster; JSON in build/bench."""

import argparse
import json
import os
import platform
import sys
import time
from typing import Any, Final, Protocol

from bench import balance, failover, monitors, stage
from bench.actions import Actions
from bench.clones import Case, Clones
from bench.payload import larger
from bench.stage import Stage
from cxm import __version__
from cxm.errors import CxmError
from lab.town import NODES

_RESULTS: Final = "build/bench"
_ROUNDS: Final = 3
_SMALL_MIB: Final = 64
_PARTS: Final = ("balance", "actions", "clones", "monitors", "failover")


class _Report(Protocol):
    def text(self) -> str:
        """Tables for people."""

    def to_json(self) -> dict[str, Any]:
        """The same for programs."""


def _facts(host: str, rounds: int) -> dict[str, Any]:
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        models = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    return {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "cxm": __version__,
        "machine": f"{os.cpu_count()} x {models[0] if models else platform.machine()}",
        "load": round(os.getloadavg()[0], 1),
        "host": host,
        "rounds": rounds,
    }


def _keep(name: str, report: _Report, facts: dict[str, Any]) -> None:
    os.makedirs(_RESULTS, exist_ok=True)
    path = os.path.join(_RESULTS, f"{name}.json")
    with open(path, "w", encoding="utf-8") as file:
        json.dump(facts | report.to_json(), file, indent=1)
        file.write("\n")
    print(f"\n{report.text()}\n\n({path})", flush=True)


def _cases(on: Stage) -> list[Case]:
    guest = on.guest.tgz
    big = larger(on.lab.places, guest)
    return [
        Case("a small guest", guest, _SMALL_MIB, raw=on.guest.raw("ext4", _SMALL_MIB)),
        Case("a larger system", big, 8 << 10),
    ]


def _play(on: Stage, rounds: int, only: str) -> None:
    facts = _facts(f"{stage.HOST} in QEMU with {on.lab.accelerator}", rounds)
    clones = Clones(on, _cases(on)) if only in ("", "clones") else None
    # First without the instruments: what is compared with others is the product as it is.
    if clones is not None:
        for number in range(rounds):
            on.lab.progress.say(f"clones, round {number + 1} of {rounds}")
            clones.round(number)
        _keep("clone", clones.report(), facts)
    if only in ("", "monitors"):
        guest = monitors.guest(on)
        watched = monitors.Monitors(on.machine)
        for number in range(rounds):
            with on.lab.progress.step(f"monitors, round {number + 1} of {rounds}"):
                watched.round(number)
        monitors.remove(on, guest)
        _keep("monitors", watched.report(), facts)
    if only in ("", "actions"):
        actions = Actions(on)
        for number in range(rounds):
            with on.lab.progress.step(f"actions, round {number + 1} of {rounds}"):
                actions.round(number)
        _keep("actions", actions.report(), facts)


def _fail_over(name: str, rounds: int) -> None:
    """On a cluster, which has a lab of its own."""
    with stage.lab_of(name, NODES) as (running, guest):
        cuts = failover.Failovers(running, guest)
        facts = _facts(f"{', '.join(NODES)} in QEMU with {running.accelerator}", rounds)
        for number in range(rounds):
            with running.progress.step(f"failovers, round {number + 1} of {rounds}"):
                cuts.round()
        _keep("failover", cuts.report(), facts)


def main(argv: list[str] | None = None) -> int:
    """Run the benchmarks."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=_ROUNDS)
    parser.add_argument("--only", choices=_PARTS, default="")
    options = parser.parse_args(argv)
    if options.rounds < 1:
        parser.error("at least one round is needed")
    name = os.environ.get("CXM_LAB_NAME", "bench")
    try:
        if options.only in ("", "balance"):
            _keep("balance", balance.measure(options.rounds), _facts("none", options.rounds))
        if options.only not in ("balance", "failover"):
            with stage.opened(name) as on:
                _play(on, options.rounds, options.only)
        if options.only in ("", "failover"):
            _fail_over(f"{name}-pair", options.rounds)
    except CxmError as error:
        print(f"\nbench: {error.sentence()}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nbench: interrupted; everything it started is gone", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
