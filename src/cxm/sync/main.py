# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the command ``cxm-sync``: its arguments, its turns, its output and its exit code.

It runs as oned's account, from a timer and at every nudge of a node. A nudge is only a hint that
something has changed: it starts a turn now, in the background, and carries no order.
"""

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Final, TextIO

from cxm import __version__, config, lock, log
from cxm.errors import CxmError, LockTimeoutError, UsageError, explained
from cxm.names import CloudId, VmId, vm_id
from cxm.node.client import Node, RemoteNode
from cxm.one import frontend
from cxm.one import version as one_version
from cxm.one.api import Recorder, XmlRpc
from cxm.one.version import OneVersion
from cxm.run import Runner, System
from cxm.sync import act, claims, keys, memory, removal
from cxm.sync.act import Seen, Tools
from cxm.sync.decide import Decision, Kind
from cxm.sync.memory import Memory
from cxm.sync.removal import Removal

_log = logging.getLogger(__name__)

# How long a nudge waits for the turn that is under way, and how long it goes on looking at a VM
# whose start or move is just ending.
_LOCK_S: Final = 300.0
_SETTLES_S: Final = 45.0
_AGAIN_S: Final = 3.0
_KEYS_EVERY_S: Final = 600.0


@dataclass(frozen=True, slots=True)
class Here:
    """What the command may use of the frontend."""

    remotes: str
    runner: Runner
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    now: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep
    oned: Callable[[str, Mapping[str, str]], Recorder] = XmlRpc
    node: Callable[[str, CloudId], Node] | None = None
    home: str = ""  # of oned's account, for the keys of nudges; empty: HOME
    command: str = keys.COMMAND

    @property
    def place(self) -> str:
        """Where claims and memory are."""
        return claims.directory(self.remotes)

    def tools(self) -> Tools:
        """What a turn may use; raises CxmError where oned does not answer."""
        source = os.path.join(self.remotes, "cxmrc")
        settings, _warnings = config.frontend(config.read(source), source)
        oned = self.oned(self.remotes, self.environ)

        def reached(host: str) -> Node:
            if self.node is not None:
                return self.node(host, settings.cloud_id)
            return RemoteNode(self.runner, host, settings.cloud_id)

        return Tools(oned, reached, self.place, _version(oned, self.remotes), self.now, self.sleep)


def _version(oned: Recorder, remotes: str) -> OneVersion:
    """The version that oned gives itself; the oldest do not tell all of it."""
    try:
        return one_version.parse(oned.version())
    except CxmError:
        if frontend.setting(remotes, "PORT") is None:
            raise
        return one_version.of_remotes(remotes)


@dataclass(slots=True)
class Turn:
    """What one turn has found and done."""

    decisions: list[Decision] = field(default_factory=list)
    removals: list[Removal] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    is_follower: bool = False

    @property
    def is_settled(self) -> bool:
        """Whether nothing will show within moments."""
        return not any(each.kind is Kind.WAIT for each in self.decisions)


def turn(here: Here, *, dry_run: bool, remove: VmId | None = None) -> Turn:
    """Look once, and with ``dry_run`` do nothing about it. Raises CxmError where oned is away."""
    tools = here.tools()
    known = memory.load(here.place)
    if not tools.oned.leads():
        note = "another frontend leads this zone: nothing is done here"
        return Turn(notes=[note], is_follower=True)
    known.began_at = here.now()
    is_due = not 0 <= here.now() - known.removals_at < removal.EVERY_S
    everybody = is_due or dry_run or remove is not None
    seen = act.look(tools, known, everybody=everybody)
    done = Turn(notes=_notes(seen, known))
    done.decisions = act.judge(tools, seen, known)
    if not dry_run:
        act.end_claims(tools, seen)
        act.confirm(tools, seen, done.decisions)
        done.decisions = act.act(tools, seen, done.decisions, known)
    if everybody:
        done.removals = removal.run(tools, seen, dry_run=dry_run, only=remove)
        known.removals_at = here.now()
    if not dry_run:
        _let_in(here, tools, seen, known)
        _tell(known, done)
        memory.store(here.place, known)
    return done


def _notes(seen: Seen, known: Memory) -> list[str]:
    """What is wrong with the looking itself."""
    notes = [f"{answer.asked}: {answer.doubt}" for answer in seen.world.answers if answer.doubt]
    notes += [
        f"{host} is the name of two nodes, or of a node and a host: 'cxm-setup node --host'"
        for answer in seen.world.answers
        for host in answer.unclear
    ]
    # Of a host in no cluster nothing can be said, whether it answers or not.
    silent = {host: why for host, why in seen.world.silent.items() if host not in known.alone}
    notes += [f"{host}: {why}" for host, why in silent.items() if not seen.world.covers(host)]
    return notes


def _let_in(here: Here, tools: Tools, seen: Seen, known: Memory) -> None:
    """Let nodes nudge, now and then: a hint that is missing costs seconds."""
    if 0 <= here.now() - known.keys_at < _KEYS_EVERY_S:
        return
    known.keys_at = here.now()
    home = here.home or here.environ.get("HOME", "")
    try:
        keys.let_in(tools.node, seen, home, here.command)
    except (CxmError, OSError) as error:
        _log.warning("nodes cannot be let in to nudge: %s", error)


def _tell(known: Memory, done: Turn) -> None:
    """Log what is new: a turn every few seconds would fill the log with what stays."""
    said: dict[str, str] = {str(note): "" for note in done.notes}
    for each in done.decisions:
        if each.kind in (Kind.STUCK, Kind.WAIT):
            said[each.sentence] = ""
        elif each.kind is Kind.AGREED and each.calls:
            _log.info("%s", each.sentence)
    said |= {each.sentence: "" for each in done.removals if not each.removed}
    for sentence in said.keys() - set(known.said):
        _log.warning("%s", sentence)
    known.said = sorted(said)


# --- turns ----------------------------------------------------------------------------------------


def sync(here: Here, *, nudged: bool) -> Turn | None:
    """Take turns until nothing is about to show; None where another run looks, or is about to."""
    asked_at = here.now()
    try:
        with ExitStack() as held:
            # Of several nudges one waits for the turn that is under way: it will see for all.
            with lock.hold(here.place, "waiting", timeout_s=0.0):
                patience_s = _LOCK_S if nudged else 0.0
                held.enter_context(lock.hold(here.place, "sync", timeout_s=patience_s))
            if nudged and memory.load(here.place).began_at > asked_at:
                return None
            done = turn(here, dry_run=False)
            while nudged and not done.is_settled and 0 <= here.now() - asked_at < _SETTLES_S:
                here.sleep(_AGAIN_S)
                done = turn(here, dry_run=False)
            return done
    except LockTimeoutError:
        return None


def detach(work: Callable[[], int]) -> int:
    """Do it in a process of its own, which outlives the connection that asked; 0 at once."""
    if os.fork():
        return 0
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    os._exit(work())


# --- the command ----------------------------------------------------------------------------------


def text(done: Turn) -> str:
    """For people: a sentence for each VM."""
    lines = [f"note: {note}" for note in done.notes]
    lines += [f"{each.kind.value:<6}  {each.sentence}" for each in done.decisions]
    lines += [f"volume  {each.sentence}" for each in done.removals]
    return "".join(f"{line}\n" for line in lines) or "No cluster has a VM of this OpenNebula.\n"


def as_json(done: Turn) -> dict[str, Any]:
    """For programs."""
    return {
        "notes": done.notes,
        "vms": [
            {
                "vm": each.record.vm,
                "name": each.record.name,
                "state": each.record.state,
                "host": each.record.host,
                "runs_on": each.host,
                "kind": each.kind.value,
                "why": each.why,
                "calls": [call.value for call in each.calls],
            }
            for each in done.decisions
        ],
        "volumes": [
            {"vm": each.vm, "host": each.host, "volumes": list(each.volumes),
             "removed": each.removed, "why": each.why}
            for each in done.removals
        ],
    }  # fmt: skip


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="cxm-sync",
        description="Brings OpenNebula's record in line with where VMs run. Starts and moves none.",
    )
    made.add_argument("--version", action="version", version=f"cxm {__version__}")
    made.add_argument("--one-location", metavar="DIR", help="a self-contained OpenNebula")
    made.add_argument("--dry-run", action="store_true", help="say what would be done")
    made.add_argument("--json", action="store_true", help="for programs")
    made.add_argument("--debug", action="store_true", help="log every call")
    made.add_argument("--nudged", action="store_true", help="begin now, in the background")
    made.add_argument(
        "--remove", metavar="VM", help="also remove a DONE VM's volumes that were kept: nobody "
        "needs them"
    )  # fmt: skip
    return made


def _remotes(location: str | None) -> str:
    return os.path.join(location, "var", "remotes") if location else "/var/lib/one/remotes"


def run(here: Here, given: argparse.Namespace, out: TextIO) -> int:
    """The command; raises CxmError."""
    vm = None if given.remove is None else vm_id(given.remove)
    if given.dry_run:
        done: Turn | None = turn(here, dry_run=True, remove=vm)
    elif vm is not None:
        with lock.hold(here.place, "sync", timeout_s=_LOCK_S):
            done = turn(here, dry_run=False, remove=vm)
    else:
        done = sync(here, nudged=False)
    if done is None:
        # No failure: the timer's runs meet a nudge's in every failover.
        done = Turn(notes=["another cxm-sync is at work, and sees what this one would"])
    out.write(json.dumps(as_json(done), indent=1) + "\n" if given.json else text(done))
    return 0


def main(argv: Sequence[str], here: Here | None = None) -> int:
    """The entry point of ``cxm-sync``."""
    given = parser().parse_args(argv)
    location = given.one_location or os.environ.get("ONE_LOCATION") or None
    log.to_syslog(ident="cxm-sync", debug=given.debug)
    command = keys.COMMAND if location is None else f"{keys.COMMAND} --one-location {location}"
    here = here or Here(_remotes(location), System(), command=command)
    os.umask(0o077)
    try:
        _require_account(here.remotes)
        if given.nudged:
            return detach(lambda: _quietly(here))
        return run(here, given, sys.stdout)
    except Exception as error:  # noqa: BLE001 - the boundary
        failure = explained(error, "cxm-sync", _log)
        _log.error("%s", failure.sentence())
        sys.stderr.write(f"cxm-sync: {failure.sentence()}\n")
        return failure.code


def _require_account(remotes: str) -> None:
    """Raise UsageError for root: what it leaves behind oned's account could not change."""
    if os.geteuid() == 0 and os.path.isdir(remotes) and os.stat(remotes).st_uid != 0:
        raise UsageError(
            "cxm-sync runs as oned's account, not as root", hint="runuser -u oneadmin -- cxm-sync"
        )


def _quietly(here: Here) -> int:
    try:
        sync(here, nudged=True)
    except Exception as error:  # noqa: BLE001 - the boundary
        _log.error("%s", explained(error, "cxm-sync", _log).sentence())
        return CxmError.code
    return 0
