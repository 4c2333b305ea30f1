# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what one turn of ``cxm-sync`` consists of, and the look around that follows now and then."""

import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from cxm import config, lock
from cxm.errors import CxmError, NotFoundError
from cxm.names import CloudId, VmId
from cxm.node.client import Node, RemoteNode
from cxm.one import frontend, vnm
from cxm.one import version as one_version
from cxm.one.api import Recorder, of_this_machine
from cxm.one.version import OneVersion
from cxm.run import Runner
from cxm.sync import act, claims, keys, memory, removal
from cxm.sync.decide import Decision, Kind
from cxm.sync.look import Seen, Tools, learn, look, whereabouts
from cxm.sync.memory import Memory
from cxm.sync.removal import Removal

_log = logging.getLogger(__name__)

LOCK_S: Final = 300.0  # how long who must take a turn waits for the one that is under way
_AROUND_EVERY_S: Final = 300.0


@dataclass(frozen=True, slots=True)
class Here:
    """What the command may use of the frontend."""

    remotes: str
    runner: Runner
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    now: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep
    # Claims are here: only drivers that this machine's oned calls find them.
    oned: Callable[[str, Mapping[str, str]], Recorder] = of_this_machine
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

        def confirms(vm_mad: str) -> bool:
            # Where that is not known, nothing is called: the driver would not look for claims then.
            return frontend.runs_here(self.remotes, vm_mad, "migrate") is True

        version = _version(oned, self.remotes)

        def connect(text: str, host: str) -> None:
            remotes = frontend.setting(self.remotes, "SCRIPTS_REMOTE_DIR")
            if remotes is None:
                raise NotFoundError("oned's settings do not name SCRIPTS_REMOTE_DIR")
            vnm.post(self.runner, remotes, text, host)

        return Tools(oned, reached, confirms, connect, self.place, version, self.now, self.sleep)


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
    seen: Seen | None = None
    is_due: bool = False  # a look around should follow

    @property
    def is_settled(self) -> bool:
        """Whether nothing will show within moments."""
        return not any(each.kind is Kind.WAIT for each in self.decisions)


def turn(here: Here, *, dry_run: bool) -> Turn:
    """Look once, and with ``dry_run`` do nothing about it. Raises CxmError where oned is away."""
    tools = here.tools()
    known = memory.load(here.place)
    if not tools.oned.leads():
        note = "another frontend leads this zone: nothing is done here"
        return Turn(notes=[note], is_follower=True)
    known.began_at = here.now()
    is_first = known.around_at == 0
    seen = look(tools, known, everybody=dry_run or is_first)
    done = Turn(notes=_notes(seen), seen=seen)
    done.is_due = not 0 <= here.now() - known.around_at < _AROUND_EVERY_S
    done.decisions = act.judge(tools, seen, known)
    if not dry_run:
        act.end_claims(tools, seen)
        done.decisions = act.act(tools, seen, done.decisions, known)
        act.tell(tools, seen, done.decisions)
        # Where nobody is known yet, and nobody answers, the next turn asks everybody again.
        if done.is_due and (seen.world.answers or not is_first):
            known.around_at = here.now()
        _say(known, done)
        memory.store(here.place, known)
    return done


def _notes(seen: Seen) -> list[str]:
    """What is wrong with the looking itself."""
    notes = [f"{answer.asked}: {answer.doubt}" for answer in seen.world.answers if answer.doubt]
    notes += [
        f"{host} is the name of two nodes, or of a node and a host: 'cxm-setup node --host'"
        for answer in seen.world.answers
        for host in answer.unclear
    ]
    silent = seen.world.silent
    notes += [f"{host}: {why}" for host, why in silent.items() if not seen.world.covers(host)]
    return notes


def _say(known: Memory, done: Turn) -> None:
    """Log what is new: a turn every few seconds would fill the log with what stays."""
    said: dict[str, str] = {str(note): "" for note in done.notes}
    for each in done.decisions:
        if each.kind in (Kind.STUCK, Kind.WAIT):
            said[each.sentence] = ""
        elif each.kind is Kind.AGREED and each.calls:
            _log.info("%s", each.sentence)
    for sentence in said.keys() - set(known.said):
        _log.warning("%s", sentence)
    known.said = sorted(said)


# --- the look around ------------------------------------------------------------------------------


def around(here: Here, done: Turn, *, dry_run: bool = False, only: VmId | None = None) -> None:
    """After a turn, now and then: hosts in no known cluster, the keys of nudges, volumes that wait.

    None of that is urgent, and any of it may hang: a host that takes a connection and never
    answers, LVM while a node is lost. So it is done without the lock of the turns, which go on.
    """
    if done.seen is None:
        return
    tools, seen = here.tools(), done.seen
    world = seen.world
    heard = {answer.asked for answer in world.answers} | world.silent.keys()
    strangers = [
        host.name
        for host in seen.hosts.values()
        if host.ours and host.name not in heard and not world.covers(host.name)
    ]
    answers = [
        each for each in whereabouts(tools, strangers).values() if not isinstance(each, CxmError)
    ]
    # Of a cluster that was found just now the next turn asks one node.
    hosts = [each.asked for each in world.answers if each.counts]
    hosts += [each.asked for each in answers if not each.clustered]
    done.removals = removal.run(tools, hosts, seen.records, dry_run=dry_run, only=only)
    if dry_run:
        return
    _let_in(here, tools, seen)
    said = {each.sentence for each in done.removals if not each.removed}
    with lock.hold(here.place, "sync", timeout_s=LOCK_S):
        known = memory.load(here.place)
        learn(known, answers, seen.hosts)
        for sentence in said - set(known.said_around):
            _log.warning("%s", sentence)
        known.said_around = sorted(said)
        memory.store(here.place, known)


def _let_in(here: Here, tools: Tools, seen: Seen) -> None:
    """Let nodes nudge: a hint that is missing costs seconds."""
    home = here.home or here.environ.get("HOME", "")
    try:
        keys.let_in(tools.node, seen, home, here.command)
    except (CxmError, OSError) as error:
        _log.warning("nodes cannot be let in to nudge: %s", error)
