# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the command ``cxm-setup``: its arguments, its output and its exit code."""

import argparse
import logging
import sys
from collections.abc import Sequence
from typing import Final

from cxm import __version__
from cxm.errors import CxmError
from cxm.run import System
from cxm.setup import cluster, frontend, node, nodecheck, parts

_UNEXPECTED: Final = 1
_INTERRUPTED: Final = 130


def _node_parser(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = verbs.add_parser(
        "node",
        help="make this Xen host a node of a cloud",
        description="Checks this Xen host, writes /etc/cxm/cxmrc and lets the frontend in.",
    )
    parser.add_argument("--frontend", required=True, metavar="HOST", help="name of the frontend")
    parser.add_argument("--cloud", metavar="ID", help="id of its cloud")
    parser.add_argument("--key", metavar="'TYPE KEY'", help="public key of the frontend's oneadmin")
    parser.add_argument("--key-file", metavar="FILE", help="the same, from a file")
    parser.add_argument("--vg", metavar="NAME", help="volume group for the disks of VMs")
    parser.add_argument(
        "--host", metavar="NAME", help="what OpenNebula calls this node of a cluster (its hostname)"
    )
    _common(parser)


def _frontend_parser(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = verbs.add_parser(
        "frontend",
        help="put the drivers into this machine's OpenNebula",
        description="Puts the drivers and their settings in place and shows, or with --apply "
        "makes, the changes to OpenNebula's own files.",
    )
    parser.add_argument(
        "--one-location", metavar="DIR", help="a self-contained OpenNebula (also: ONE_LOCATION)"
    )
    parser.add_argument(
        "--apply", action="store_true", help="edit OpenNebula's files; keeps copies"
    )
    parser.add_argument(
        "--datastores", action="store_true", help="make or update datastores; oned must run"
    )
    parser.add_argument(
        "--san",
        action="append",
        default=[],
        metavar="NAME",
        help="with --datastores: cluster and system datastore of hosts that share a SAN",
    )
    parser.add_argument(
        "--vm-mad",
        default="",
        metavar="NAME",
        help=f"name of the VM driver (the one it has in oned.conf, else {parts.VM_MAD})",
    )
    parser.add_argument(
        "--take-over", action="store_true", help="replace another VM driver of that name"
    )
    parser.add_argument(
        "--xen-only", action="store_true", help="new images get DEV_PREFIX=xvd, in the whole cloud"
    )
    parser.add_argument("--name", metavar="HOST", help="what nodes call this machine")
    _common(parser)


def _cluster_parser(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = verbs.add_parser(
        "cluster",
        help="make this Xen host a node of a cluster that shares a SAN",
        description="On the first node: writes the configuration of Corosync, Pacemaker and LVM, "
        "prints the line for the other nodes and waits for them. The same command goes on where "
        "it was broken off.",
    )
    parser.add_argument("--name", metavar="NAME", help="name of the new cluster")
    parser.add_argument(
        "--node",
        action="append",
        default=[],
        dest="nodes",
        metavar="NAME=ADDRESS",
        help="once for each node: its hostname, its address in the cluster's network",
    )
    parser.add_argument("--device", metavar="/dev/disk/by-id/...", help="the disk they share")
    parser.add_argument("--vg", metavar="NAME", help="volume group on it (that of cxmrc)")
    parser.add_argument(
        "--fence",
        action="append",
        default=[],
        dest="fencing",
        metavar="NODE=AGENT,KEY=VALUE,...",
        help="what can cut a node off; a second one of a node is tried when the first fails; "
        "KEY=@FILE takes the value from a file",
    )
    parser.add_argument(
        "--sbd",
        metavar="/dev/disk/by-id/...",
        help="a small disk they share, for fencing by SBD: after --fence, or in place of it",
    )
    parser.add_argument(
        "--system-datastore",
        dest="datastore",
        metavar="none|gfs2,id=N|nfs:SERVER:/PATH,id=N",
        help="a system datastore that the cluster mounts on all nodes; id is OpenNebula's; "
        "directory=/PATH in place of it; size=MIB for gfs2 (none)",
    )
    parser.add_argument(
        "--token-ms", type=int, metavar="N", help="silence after which a node is lost (5000)"
    )
    parser.add_argument(
        "--import",
        dest="original",
        metavar="FILE",
        help="take the name and, of the timer, --token-ms from the cxm.conf of an original cxm; "
        "each node that it allows needs its --node",
    )
    parser.add_argument(
        "--join", metavar="TOKEN", help="on each other node: the line's token; - reads it"
    )
    parser.add_argument("--dry-run", action="store_true", help="change nothing, show what would be")


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="settings",
        metavar="KEY=VALUE",
        help="a setting for cxmrc; may be given more than once",
    )
    parser.add_argument("--dry-run", action="store_true", help="change nothing, show what would be")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="cxm-setup", description="Sets up cxm for OpenNebula.")
    made.add_argument("--version", action="version", version=f"cxm {__version__}")
    made.add_argument("--debug", action="store_true", help="show every command that is run")
    verbs = made.add_subparsers(dest="verb", required=True, metavar="node|frontend|cluster")
    _node_parser(verbs)
    _frontend_parser(verbs)
    _cluster_parser(verbs)
    return made


def _say(text: str) -> None:
    if text:
        print(text, flush=True)


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit code. Every failure is one sentence on the error output."""
    arguments = vars(parser().parse_args(argv))
    verb, debug = arguments.pop("verb"), arguments.pop("debug")
    if debug:
        logging.basicConfig(level=logging.DEBUG, format="%(message)s")
    if "san" in arguments:
        arguments["sans"] = arguments.pop("san")
    try:
        if verb == "node":
            node.run(nodecheck.Host(System()), node.Options(**arguments), _say)
        elif verb == "cluster":
            if arguments["join"] == "-":
                arguments["join"] = sys.stdin.read()
            cluster.run(nodecheck.Host(System()), cluster.Options(**arguments), _say)
        else:
            frontend.run(frontend.World(System()), frontend.Options(**arguments), _say)
    except CxmError as error:
        sys.stderr.write(f"cxm-setup: {error.sentence()}\n")
        return error.code
    except OSError as error:
        sys.stderr.write(f"cxm-setup: {error}\n")
        return _UNEXPECTED
    except KeyboardInterrupt:
        sys.stderr.write("cxm-setup: interrupted\n")
        return _INTERRUPTED
    except Exception as error:
        logging.getLogger("cxm").exception("cxm-setup failed unexpectedly")
        sys.stderr.write(
            f"cxm-setup: failed unexpectedly: {type(error).__name__}: {error} "
            "(this is a defect of cxm; please report it with the lines above)\n"
        )
        return _UNEXPECTED
    return 0
