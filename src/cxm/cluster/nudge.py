# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the nudge: a node tells the frontend that a VM has come to run on it, so that it looks now.

It is a hint and carries no order; the frontend's own timer makes up for one that is lost. No action
of Pacemaker waits for a network: the note is a file in ``/run``, and a service of its own sends it
(``cxm-nudge``), by a key that may do nothing else. After a live migration that service also runs
the administrator's POST_MIGRATION_HOOK.
"""

import json
import logging
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from cxm import log, wholefile
from cxm.errors import (
    CommandError,
    CxmError,
    RefusedError,
    UsageError,
    explained,
    system_error,
)
from cxm.node.machine import Machine, settings, this_machine
from cxm.node.verbs import Call

_log = logging.getLogger(__name__)

_KNOWN: Final = "nudge_hosts"  # below the node's state: frontends' host keys, taken once
_USER: Final = "oneadmin"
_SEND_S: Final = 20.0
_HOOK_S: Final = 300.0
# After that the frontend's timer has looked many times.
_STALE_S: Final = 600.0
_OLD_HOOK: Final = "one-migrate"  # what the original's hook was: now the cluster does it itself
_PLACES: Final = 3


@dataclass(frozen=True, slots=True)
class Note:
    """A VM that has come to run on a node; ``source`` is empty for one that was started there."""

    name: str
    source: str
    target: str
    at: float  # seconds since 1970
    hook: bool  # whether the administrator's hook is to be run


def _directory(machine: Machine) -> str:
    return os.path.join(machine.run_dir, "nudge")


def _leave(machine: Machine, note: Note) -> None:
    """Leave a note for the sender; raises OSError."""
    path = os.path.join(_directory(machine), f"{note.at:.3f}-{os.getpid()}")
    # Hidden until it is whole: the sender's path unit looks for what is not.
    wholefile.write(path, json.dumps(asdict(note)), directory_mode=0o700)


def spool(machine: Machine, name: str, source: str = "") -> None:
    """Leave a note of a VM. Never fails: whoever calls this has done what mattered."""
    try:
        _leave(machine, Note(name, source, machine.hostname, machine.now(), bool(source)))
    except OSError as error:
        _log.warning("the frontend is not told at once that %s is here: %s", name, error)


def _notes(machine: Machine) -> Iterator[tuple[str, Note]]:
    """The notes with their files, the oldest first; one that cannot be read is removed."""
    directory = _directory(machine)
    names = sorted(os.listdir(directory)) if os.path.isdir(directory) else []
    for name in names:
        path = os.path.join(directory, name)
        if name.startswith("."):
            continue
        try:
            with open(path, encoding="utf-8") as file:
                raw: dict[str, Any] = json.load(file)
            note = Note(
                str(raw["name"]),
                str(raw["source"]),
                str(raw["target"]),
                float(raw["at"]),
                raw["hook"] is True,
            )
        except (OSError, ValueError, KeyError, TypeError):
            with suppress(OSError):
                os.unlink(path)
            continue
        yield path, note


# --- sending --------------------------------------------------------------------------------------


def send(machine: Machine) -> bool:
    """Deal with all notes; False when one stays, because no frontend was reached."""
    done = True
    while found := list(_notes(machine)):
        # First: a hook may take its minutes.
        hosts = _hearers(machine)
        heard = [_nudge(machine, host, found[0][1]) for host in hosts]
        reached = not hosts or any(heard)
        for path, note in found:
            if note.hook:
                _keep_without_hook(path, note)
                _run_hook(machine, note)
            is_stale = not 0 <= machine.now() - note.at < _STALE_S
            if reached or is_stale:
                os.unlink(path)
            done = done and (reached or is_stale)
        if not reached:
            return done
    return done


def _hearers(machine: Machine) -> tuple[str, ...]:
    """The frontends that can be told: none before one of them has asked for this node's key."""
    hosts = machine.config.one_host
    if hosts and not os.path.exists(machine.nudge_key):
        _log.info("no frontend is told: none has asked for this node's key yet")
        return ()
    return hosts


def _keep_without_hook(path: str, note: Note) -> None:
    """Before it is run: a hook that hangs, or ends the node, is not run twice."""
    wholefile.write(path, json.dumps(asdict(note) | {"hook": False}))


def _run_hook(machine: Machine, note: Note) -> None:
    hook = machine.config.post_migration_hook
    if not hook or os.path.basename(hook) == _OLD_HOOK:
        return
    try:
        _require_roots(hook)
        argv = [hook, note.name, note.source, note.target]
        machine.runner.run(argv, timeout_s=_HOOK_S)
    except (CxmError, OSError) as error:
        _log.warning("POST_MIGRATION_HOOK for %s failed: %s", note.name, error)


def _require_roots(hook: str) -> None:
    """Raise RefusedError for a program that others than root can change: it would be theirs."""
    path, us = os.path.realpath(hook), os.geteuid()
    while True:
        status = os.stat(path)
        # In a directory with the sticky bit nobody replaces what is root's.
        is_open = status.st_mode & 0o022 and not (
            stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
        )
        if status.st_uid not in (0, us) or is_open:
            what = f"{hook} can be changed by others than root"
            raise RefusedError(f"{what}: {path}", hint=f"chown root {path}; chmod go-w {path}")
        if path == "/":
            return
        path = os.path.dirname(path)


def _nudge(machine: Machine, host: str, note: Note) -> bool:
    """Whether a frontend has heard that something has changed."""
    user, at, name = host.rpartition("@")
    options = {
        "BatchMode": "yes",
        "ConnectTimeout": "5",
        "StrictHostKeyChecking": "accept-new",
        "UserKnownHostsFile": os.path.join(machine.state_dir, _KNOWN),
        "IdentitiesOnly": "yes",
    }
    shown = [f"-o{key}={value}" for key, value in options.items()]
    there = f"{user if at else _USER}@{name}"
    argv = ["ssh", "-F", "none", "-T", "-i", machine.nudge_key, *shown, there, "--", "nudge"]
    try:
        machine.runner.run(argv, timeout_s=_SEND_S)
    except CommandError as error:
        said = " ".join(error.stderr.split()) or error.message
        _log.warning("the frontend %s was not told that %s is here: %s", host, note.name, said)
        return False
    _log.info("told the frontend %s to look: %s is here", host, note.name)
    return True


# --- the key --------------------------------------------------------------------------------------


def key(call: Call) -> dict[str, Any]:
    """The verb: this node's key for nudges, made when there is none; empty without ONE_HOST."""
    machine = call.machine
    if not machine.config.one_host:
        return {"key": ""}
    if not os.path.exists(f"{machine.nudge_key}.pub"):
        comment = f"cxm-nudge@{machine.hostname}"
        argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment]
        machine.runner.run([*argv, "-f", machine.nudge_key])
        _log.info("made the key for nudges")
    with open(f"{machine.nudge_key}.pub", encoding="utf-8") as file:
        return {"key": file.read().strip()}


# --- the commands ---------------------------------------------------------------------------------


def main() -> int:
    """The entry point of ``cxm-nudge``: sends what waits; 1 when something stays."""
    os.umask(0o077)
    log.to_syslog(ident="cxm-nudge", debug=False)
    machine = this_machine()
    try:
        return 0 if send(_configured(machine)) else 1
    except Exception as error:  # noqa: BLE001 - the boundary
        _log.error("%s", explained(error, "sending nudges", _log).sentence())
        return CxmError.code


def _configured(machine: Machine) -> Machine:
    """The node with its settings; broken ones name no frontend, and notes must not pile up."""
    try:
        return replace(machine, config=settings()[0])
    except CxmError as error:
        _log.error("no frontend is told anything: %s", error.sentence())
        return machine


def told(machine: Machine, argv: Sequence[str]) -> None:
    """What ``one-migrate VM SRC DST`` does; raises CxmError."""
    if len(argv) != _PLACES or not all(argv):
        raise UsageError("usage: one-migrate VM SOURCE TARGET")
    try:
        _leave(machine, Note(argv[0], argv[1], machine.hostname, machine.now(), hook=False))
    except OSError as error:
        why = f"{machine.hostname} keeps no note that {argv[0]} has moved: {system_error(error)}"
        hint = "only root can leave one; cxm-sync on the frontend finds out by itself"
        raise CxmError(why, hint=hint) from error


def hook(argv: Sequence[str]) -> int:
    """The entry point of ``one-migrate``: for scripts of the original; returns at once."""
    os.umask(0o077)
    log.to_syslog(ident="cxm-nudge", debug=False)
    try:
        told(this_machine(), argv)
    except CxmError as error:
        sys.stderr.write(f"one-migrate: {error.sentence()}\n")
        return error.code
    return 0
