# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the command cxm-lab: its words, and what they call."""

import argparse
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence

from cxm.errors import CxmError, UsageError
from lab import (
    cluster,
    console,
    faults,
    frontend,
    installed,
    lab,
    namespaces,
    process,
    report,
    snapshot,
)
from lab.places import places
from lab.progress import Progress
from lab.spec import HOSTS, make_spec

Handler = Callable[[argparse.Namespace], int]


def _memory(words: Sequence[str]) -> dict[str, int]:
    sizes = {}
    for word in words:
        host, _, mib = word.partition("=")
        if not mib.isdigit():
            raise UsageError(f"'--memory {word}' is not HOST=MIB")
        sizes[host] = int(mib)
    return sizes


def _up(args: argparse.Namespace) -> int:
    progress = Progress(quiet=args.quiet)
    if args.from_snapshot:
        found = snapshot.load(places(args.name), args.from_snapshot)
        running = lab.prepare(found.spec, name=args.name, progress=progress)
        try:
            running.restore(args.from_snapshot)
        except BaseException:
            running.down()
            raise
    else:
        spec = make_spec(args.host, _memory(args.memory))
        running = lab.up(spec, name=args.name, progress=progress, boot=args.boot)
        if not args.plain:
            _furnish(running, booted=args.boot)
    print(report.table(running))
    if not args.keep:
        _stay(running)
    return 0


def _furnish(running: lab.Lab, *, booted: bool) -> None:
    """Install cxm as a user does; node1 and node2 become a cluster."""
    try:
        if booted:
            cluster.make(running, installed.ready(running))
        else:
            cluster.bring_up(running)
    except BaseException:
        running.down()
        raise


def _stay(running: lab.Lab) -> None:
    """Stay in the foreground until somebody ends us, then take the lab down."""
    print("The lab is up until you press Ctrl-C (use --keep to get your prompt back).", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        while process.alive(running.core.pid):
            time.sleep(0.5)
    except KeyboardInterrupt:
        print()
    finally:
        running.down()


def _down(args: argparse.Namespace) -> int:
    if not lab.down(args.name):
        print(f"the lab '{places(args.name).name}' was not up")
    return 0


def _status(args: argparse.Namespace) -> int:
    running = lab.attach(args.name)
    if args.json:
        print(json.dumps(report.facts(running), indent=1))
    else:
        print(report.table(running))
    return 0


def _ssh(args: argparse.Namespace) -> int:
    running = lab.attach(args.name)
    machine = running.machine(args.host)
    options = ["-t"] if not args.command and sys.stdin.isatty() else []
    words = machine.ssh([], options=options)
    if args.command:
        words += ["--", " ".join(args.command)]  # as ssh itself does
    return process.interactive(words, running.lab_id)


def _exec(args: argparse.Namespace) -> int:
    running = lab.attach(args.name)
    command = args.command or [os.environ.get("SHELL", "/bin/sh")]
    return process.interactive(running.exec_argv(command), running.lab_id)


def _env(args: argparse.Namespace) -> int:
    running = lab.attach(args.name)
    outside = namespaces.as_seen_from_outside(running.frontend)
    values = frontend.environment(running.places, outside, running.spec)
    print(frontend.assignments(values), end="")
    return 0


def _snapshot(args: argparse.Namespace) -> int:
    running = lab.attach(args.name, Progress(quiet=args.quiet))
    began = time.monotonic()
    made = running.snapshot(snapshot.check_label(args.snapshot))
    seconds = time.monotonic() - began
    print(f"snapshot '{made.name}': {made.size() >> 20} MiB, {seconds:.1f} s")
    return 0


def _restore(args: argparse.Namespace) -> int:
    running = lab.attach(args.name, Progress(quiet=args.quiet))
    began = time.monotonic()
    running.restore(args.snapshot)
    print(f"restored '{args.snapshot}' in {time.monotonic() - began:.1f} s")
    return 0


def _snapshots(args: argparse.Namespace) -> int:
    where = places(args.name)
    for name in args.forget:
        snapshot.forget(where, name)
    print(report.snapshots(snapshot.everything(where)))
    return 0


def _power(args: argparse.Namespace) -> int:
    machine = lab.attach(args.name).machine(args.host)
    {"on": machine.power_on, "off": machine.power_off, "reset": machine.reset}[args.what]()
    return 0


def _hang(args: argparse.Namespace) -> int:
    lab.attach(args.name).machine(args.host).hang()
    return 0


def _resume(args: argparse.Namespace) -> int:
    lab.attach(args.name).machine(args.host).resume()
    return 0


def _cut(args: argparse.Namespace) -> int:
    faults.cut(lab.attach(args.name), args.host, args.what)
    return 0


def _slow(args: argparse.Namespace) -> int:
    faults.slow_bmc(lab.attach(args.name), args.host, args.seconds)
    return 0


def _bmc_power(args: argparse.Namespace) -> int:
    faults.link_bmc(lab.attach(args.name), args.host, linked=args.what == "host")
    return 0


def _heal(args: argparse.Namespace) -> int:
    faults.heal(lab.attach(args.name), args.host)
    return 0


def _console(args: argparse.Namespace) -> int:
    machine = lab.attach(args.name).machine(args.host)
    console.attach(machine.files.console, machine.files.console_log)
    return 0


def _logs(args: argparse.Namespace) -> int:
    where = places(args.name)
    if args.log:
        with open(where.log(args.log), "rb") as file:
            sys.stdout.buffer.write(file.read())
        return 0
    print(report.logs(where))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cxm-lab", description="Real Xen nodes in QEMU on this machine (docs/lab.md)."
    )
    parser.add_argument("--name", help="the lab's name (CXM_LAB_NAME, else 'default')")
    parser.add_argument("--quiet", "-q", action="store_true", help="do not tell each step")
    parser.add_argument("--debug", action="store_true", help="show every command that is run")
    verbs = parser.add_subparsers(required=True, metavar="COMMAND")

    def host(of: argparse.ArgumentParser) -> None:
        of.add_argument("host", metavar="HOST", help="one of the lab's hosts")

    def verb(name: str, handler: Handler, text: str) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=text, description=text)
        added.set_defaults(handler=handler)
        return added

    up = verb("up", _up, "build what is missing and bring the hosts up (all when none is named)")
    up.add_argument("host", nargs="*", metavar="HOST", help=" ".join(h.name for h in HOSTS))
    up.add_argument("--keep", action="store_true", help="return when it is up; end it with 'down'")
    up.add_argument("--boot", action="store_true", help="boot even if there is a snapshot of it")
    up.add_argument("--plain", action="store_true", help="without cxm, and without a cluster")
    up.add_argument("--from-snapshot", metavar="NAME", help="start from this snapshot")
    up.add_argument("--memory", action="append", default=[], metavar="HOST=MIB",
                    help="another size of a host's memory")  # fmt: skip
    verb("down", _down, "end the lab and all that belongs to it")
    status = verb("status", _status, "show the hosts, their power and what is broken")
    status.add_argument("--json", action="store_true")
    ssh = verb("ssh", _ssh, "log in to a host as root, or run a command there")
    host(ssh)
    ssh.add_argument("command", nargs=argparse.REMAINDER, metavar="CMD")
    run = verb("exec", _exec, "run a command in the frontend's place")
    run.add_argument("command", nargs=argparse.REMAINDER, metavar="CMD")
    verb("env", _env, "print shell assignments for an OpenNebula outside of the lab")
    verb("snapshot", _snapshot, "save the whole running lab").add_argument("snapshot")
    verb("restore", _restore, "put the lab back to a snapshot").add_argument("snapshot")
    listing = verb("snapshots", _snapshots, "list the snapshots")
    listing.add_argument("--forget", action="append", default=[], metavar="NAME")
    power = verb("power", _power, "switch a host off or on, or reset it")
    power.add_argument("what", choices=("off", "on", "reset"))
    host(power)
    host(verb("hang", _hang, "freeze a host"))
    host(verb("resume", _resume, "let a frozen host go on"))
    cut = verb("cut", _cut, "cut a host's networks, its SAN disk or its BMC off")
    cut.add_argument("what", choices=("net", "lan", "cluster", "san", "bmc"))
    host(cut)
    slow = verb("slow", _slow, "let a host's BMC answer late")
    slow.add_argument("what", choices=("bmc",))
    host(slow)
    slow.add_argument("--seconds", type=float, default=faults.SLOW_S)
    linked = verb("bmc-power", _bmc_power, "say whether a BMC loses its power with its host")
    linked.add_argument("what", choices=("own", "host"), help="whose power the BMC uses")
    host(linked)
    host(verb("heal", _heal, "undo all faults of a host"))
    host(verb("console", _console, "attach to a host's serial console"))
    logs = verb("logs", _logs, "list the log files of the lab's last run, or show one")
    logs.add_argument("log", nargs="?")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command of cxm-lab; return its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    args = _parser().parse_args(words)
    if args.debug:
        logging.basicConfig(level=logging.DEBUG, format="%(message)s")
    try:
        if not namespaces.inside():
            namespaces.enter_user_namespace(words, lab.keeper(args.name))
        handler: Handler = args.handler
        return handler(args)
    except CxmError as error:
        print(f"cxm-lab: {error.sentence()}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
