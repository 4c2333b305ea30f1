# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the command ``cxmd_ctl``, for scripts that ask the original's daemon. It changes nothing."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from cxm.cli.world import World
from cxm.cluster.model import UP, NodeState
from cxm.errors import CxmError, system_error

_NO: Final = 1


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="cxmd_ctl",
        description="Asks the cluster, as the original's tool did. Its other options have no "
        "meaning any more: Pacemaker elects, and 'cxm' does the rest.",
    )
    what = made.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "-p",
        "--ping",
        action="store_true",
        help="exit code 0 when this node is in a working, quorate cluster",
    )
    what.add_argument("-l", "--list-nodes", action="store_true", help="the nodes that are online")
    what.add_argument("-s", "--status", action="store_true", help="role and state of this node")
    made.add_argument("--json", action="store_true", help="as JSON, for programs")
    return made


def _ping(world: World) -> int:
    cluster = world.cluster()
    member = cluster.node(world.here())
    works = member.state in UP and cluster.quorate
    if world.as_json:
        world.show_json({"works": works})
    return 0 if works else _NO


def _list(world: World) -> int:
    away = (NodeState.OFFLINE, NodeState.UNCLEAN)
    online = [each.name for each in world.cluster().nodes if each.state not in away]
    if world.as_json:
        world.show_json(online)
    else:
        world.show("".join(f"{name}\n" for name in online))
    return 0


def _status(world: World) -> int:
    cluster, here = world.cluster(), world.here()
    member = cluster.node(here)
    role = "active" if member.dc else "passive"
    state = "normal" if cluster.quorate else "panic"
    if cluster.quorate and any(each.status == "pending" for each in cluster.fencing):
        state = "recovery"
    world.end(
        f"{here}: {member.state}, role {role}, state {state}",
        {"node": here, "state": member.state.value.lower(), "role": role, "cluster": state},
    )
    return 0 if cluster.quorate else _NO


def main(argv: Sequence[str], world: World | None = None) -> int:
    """Run the command; returns its exit code."""
    chosen = parser().parse_args(argv)
    at = replace(world or World(), as_json=chosen.json)
    try:
        at.require_member()
        if chosen.ping:
            return _ping(at)
        return _list(at) if chosen.list_nodes else _status(at)
    except CxmError as error:
        sys.stderr.write(f"cxmd_ctl: {error.sentence()}\n")
        return _NO
    except OSError as error:
        sys.stderr.write(f"cxmd_ctl: {system_error(error)}\n")
        return _NO
