# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the table of subcommands of ``cxm``: name, arguments, what runs it."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from cxm.cli import check, evacuate, fence, loadbalance, orders, show, timeline, vms
from cxm.cli.world import World
from cxm.errors import UsageError

Parser = argparse.ArgumentParser


@dataclass(frozen=True, slots=True)
class Verb:
    """A subcommand. ``run`` gets the world and the arguments by name, and returns the exit code."""

    name: str
    help: str
    run: Callable[..., int]
    arguments: tuple[Callable[[Parser], object], ...] = ()
    changes: bool = False  # it is an order, which is logged with who gave it


def _json(parser: Parser) -> None:
    parser.add_argument("--json", action="store_true", help="as JSON, for programs")


def _vm(parser: Parser) -> None:
    parser.add_argument("vm", metavar="VM", help="its name, its number, or CLOUD/NUMBER")


def _yes(parser: Parser) -> None:
    parser.add_argument("--yes", action="store_true", help="ask no question")


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e6:  # noqa: PLR2004 - eleven days
        raise argparse.ArgumentTypeError(f"'{text}' is no number of seconds")
    return value


def _name(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME", help="a part of the VM's name, or its number")


def _top(parser: Parser) -> None:
    every = "seconds between two pictures (%(default)s)"
    parser.add_argument("-d", "--every", type=_seconds, default=2.0, dest="every_s", help=every)
    parser.add_argument("-n", "--rounds", type=int, metavar="N", help="end after so many pictures")


def _since(parser: Parser) -> None:
    parser.add_argument(
        "--since",
        default="24h",
        dest="since_",
        metavar="WHEN",
        help="90min, 2h, 3d or a date (%(default)s)",
    )


def _eject(parser: Parser) -> None:
    parser.add_argument("node", metavar="NODE", nargs="?", help="this node where none is given")
    parser.add_argument("--back", action="store_true", dest="back_", help="let it have VMs again")
    parser.add_argument(
        "--restart",
        action="store_true",
        help="stop VMs that cannot move while they run, and start them elsewhere",
    )
    wait = "seconds to wait until it is empty (%(default)s)"
    parser.add_argument("--timeout", type=_seconds, default=3600.0, dest="timeout_s", help=wait)


def _fence(parser: Parser) -> None:
    parser.add_argument("node", metavar="NODE", nargs="?")
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--test", action="store_true", help="prove that fencing works; all other nodes without NODE"
    )
    how.add_argument(
        "--confirmed", action="store_true", help="a human has switched the node off: say so"
    )
    how.add_argument("--off", action="store_true", help="switch it off instead of resetting it")
    boot = "with --test: seconds until the node is back (%(default)s)"
    parser.add_argument("--boot-time", type=_seconds, default=1200.0, dest="boot_s", help=boot)


def _to(parser: Parser) -> None:
    parser.add_argument("node", metavar="NODE")


def _on(parser: Parser) -> None:
    parser.add_argument("node", metavar="NODE", nargs="?", help="where it was last, if not given")


def _patience(parser: Parser) -> None:
    wait = "seconds until it is ended (%(default)s)"
    parser.add_argument("--timeout", type=_seconds, default=180.0, dest="timeout_s", help=wait)


def _metrics(parser: Parser) -> None:
    used = "with the CPU that VMs used over the last hour, of which all nodes are asked"
    parser.add_argument("--metrics", action="store_true", dest="with_metrics", help=used)


def _balance(parser: Parser) -> None:
    offline = "plan for the cluster that this JSON document describes ('-': the standard input)"
    parser.add_argument("--from", metavar="FILE", dest="from_", help=offline)
    parser.add_argument("--dry-run", action="store_true", help="show the plan, move nothing")
    auto = "whether the cluster does this by itself, now and then: switch it, or show what it did"
    parser.add_argument("--auto", choices=("on", "off", "status"), help=auto)
    wary = "for a timer: move only what several rounds in a row find well worth it"
    parser.add_argument("--unasked", action="store_true", help=wary)


def _init(_world: World) -> int:
    raise UsageError(
        "'cxm init' is not needed any more: Pacemaker starts with the node",
        hint="a node is set up by 'cxm-setup cluster'",
    )


VERBS: Final = (
    Verb("list", "the VMs: what each does, where, and how much it takes", show.list_, (_json,)),
    Verb("infos", "the cluster: quorum, fencing, nodes, VMs, what is wrong", show.infos,
         (_metrics, _json)),
    Verb("search", "VMs by a part of their name", show.search, (_name, _json)),
    Verb("top", "the cluster, live", show.top, (_top, _json)),
    Verb("timeline", "what the cluster did, and why", timeline.run, (_since, _json)),
    Verb("check", "what is wrong with the cluster and its nodes", check.check, (_json,)),
    Verb("check-cpu", "whether guests can move between the nodes' processors", check.check_cpu,
         (_json,), changes=True),
    Verb("migrate", "move a VM while it runs", orders.migrate, (_vm, _to, _json), changes=True),
    Verb("create", "start a VM that the cluster knows", orders.create, (_vm, _on, _json),
         changes=True),
    Verb("shutdown", "ask a VM's guest to switch itself off; end it when its time is up",
         orders.shutdown, (_vm, _patience, _json), changes=True),
    Verb("shutdown-all", "the same, of all VMs of the cluster", orders.shutdown_all,
         (_patience, _yes, _json), changes=True),
    Verb("destroy", "end a VM at once", orders.destroy, (_vm, _json), changes=True),
    Verb("reboot", "ask a VM's guest to reboot", orders.reboot, (_vm, _json), changes=True),
    Verb("eject", "empty a node of its VMs, or give it back", evacuate.eject, (_eject, _json),
         changes=True),
    Verb("loadbalance", "even out the nodes' load by moving VMs", loadbalance.loadbalance,
         (_balance, _yes, _json), changes=True),
    Verb("fence", "reset a node, prove fencing, or confirm that a node is off", fence.fence,
         (_fence, _yes, _json), changes=True),
    Verb("console", "a VM's console", vms.console, (_vm,)),
    Verb("activate", "make the volumes of a VM that is off usable here", vms.activate, (_vm, _json),
         changes=True),
    Verb("deactivate", "let go of a VM's volumes here", vms.deactivate, (_vm, _json), changes=True),
    Verb("init", "(the original's) see cxm-setup cluster", _init),
)  # fmt: skip


def expand(word: str) -> str:
    """The subcommand that a word begins; raises UsageError for none and for more than one."""
    names = [verb.name for verb in VERBS]
    found = [name for name in names if name.startswith(word)]
    if word in names or not found:
        return word  # argparse knows what to say of one that it does not know
    if len(found) > 1:
        raise UsageError(f"'{word}' may be {' or '.join(found)}", hint="type some letters more")
    return found[0]
