# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the command ``cxm``: its arguments, its errors and its exit code."""

import argparse
import logging
import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from cxm import __version__, log
from cxm.cli.verbs import VERBS, Verb, expand
from cxm.cli.world import World, unheard, who
from cxm.errors import CxmError, system_error

_log = logging.getLogger(__name__)

_UNEXPECTED: Final = 1
_INTERRUPTED: Final = 130
_DESCRIPTION: Final = (
    "The cluster tool of cxm for OpenNebula: a thin face over Pacemaker, from any node. "
    "A subcommand may be shortened as long as it is the only one that begins so."
)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="cxm", description=_DESCRIPTION)
    made.add_argument("--version", action="version", version=f"cxm {__version__}")
    made.add_argument("-d", "--debug", action="store_true", help="show every command that is run")
    verbs = made.add_subparsers(dest="verb", required=True, metavar="SUBCOMMAND")
    for verb in VERBS:
        sub = verbs.add_parser(verb.name, help=verb.help, description=f"{verb.help.capitalize()}.")
        for add in verb.arguments:
            add(sub)
    return made


def _expanded(argv: Sequence[str]) -> list[str]:
    """The arguments with the subcommand in full."""
    words = list(argv)
    for at, word in enumerate(words):
        if word == "help":
            return ["--help"]
        if not word.startswith("-"):
            words[at] = expand(word)
            break
    return words


def _run(verb: Verb, world: World, arguments: dict[str, object], argv: Sequence[str]) -> int:
    as_json = bool(arguments.pop("json", False))
    world = replace(world, as_json=as_json, persists=verb.changes)
    if verb.name != "init" and not arguments.get("from_"):
        world.require_member()
    if verb.changes:
        _log.info("%s: cxm %s", who(os.environ), shlex.join(argv))
    return verb.run(world, **arguments)


def bounded(work: Callable[[], int], prog: str) -> int:
    """Do something; every failure is one sentence on the error output, and an exit code."""
    try:
        return work()
    except CxmError as error:
        sys.stderr.write(f"{prog}: {error.sentence()}\n")
        return error.code
    except BrokenPipeError:
        unheard(sys.stdout)
        return 0
    except OSError as error:
        sys.stderr.write(f"{prog}: {system_error(error)}\n")
        return _UNEXPECTED
    except KeyboardInterrupt:
        sys.stderr.write(f"{prog}: interrupted\n")
        return _INTERRUPTED
    except Exception as error:
        logging.getLogger("cxm").exception("%s failed unexpectedly", prog)
        sys.stderr.write(
            f"{prog}: failed unexpectedly: {type(error).__name__}: {error} "
            "(this is a defect of cxm; please report it with what the system's log says)\n"
        )
        return _UNEXPECTED


def main(argv: Sequence[str], world: World | None = None) -> int:
    """Run the command; returns its exit code."""
    if world is None:
        # As Ctrl-C does, so that what was begun is undone: the terminal may be gone.
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.default_int_handler)

    def work() -> int:
        arguments = vars(parser().parse_args(_expanded(argv)))
        name, debug = arguments.pop("verb"), arguments.pop("debug")
        if debug:
            log.to_stream(sys.stderr, action="cxm", debug=True)
        elif world is None:
            log.to_syslog(ident="cxm", debug=False)
        verb = next(each for each in VERBS if each.name == name)
        return _run(verb, world or World(), arguments, argv)

    return bounded(work, "cxm")
