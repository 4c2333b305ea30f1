# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the command ``cxm-sync``: its arguments, when it takes turns, its output and its exit code.

It runs as oned's account, from a timer and at every nudge of a node. A nudge is only a hint that
something has changed: it starts a turn now, in the background, and carries no order.
"""

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, suppress
from typing import Any, Final, TextIO

from cxm import __version__, lock, log
from cxm.errors import CxmError, LockTimeoutError, RefusedError, UsageError, explained
from cxm.names import VmId, vm_id
from cxm.run import System
from cxm.sync import keys, memory
from cxm.sync.decide import Kind
from cxm.sync.turns import LOCK_S, Here, Turn, around, turn

_log = logging.getLogger(__name__)

# How long a nudge goes on looking at a VM whose start or move is just ending.
_SETTLES_S: Final = 45.0
_AGAIN_S: Final = 3.0
_EVERY_S: Final = 20.0  # as the timer
# The exit code that says "something is for a human"; no failure of this command has it, and its
# service takes it for success.
ATTENTION: Final = 10


# --- turns ----------------------------------------------------------------------------------------


def _unheard(_done: Turn) -> None:
    pass


def sync(here: Here, *, nudged: bool, told: Callable[[Turn], None] = _unheard) -> Turn | None:
    """Take turns until nothing is about to show; None where another run looks, or is about to.

    ``told`` is called with what they have come to before the look around, which may take a minute.
    """
    asked_at = here.now()
    with ExitStack() as held:
        try:
            # Of several nudges one waits for the turn that is under way: it will see for all.
            with lock.hold(here.place, "waiting", timeout_s=0.0):
                patience_s = LOCK_S if nudged else 0.0
                held.enter_context(lock.hold(here.place, "sync", timeout_s=patience_s))
        except LockTimeoutError:
            return None
        if nudged and memory.load(here.place).began_at > asked_at:
            return None
        done = turn(here, dry_run=False)
        is_due = done.is_due
        while nudged and not done.is_settled and 0 <= here.now() - asked_at < _SETTLES_S:
            here.sleep(_AGAIN_S)
            done = turn(here, dry_run=False)
    told(done)
    if is_due:
        with suppress(LockTimeoutError), lock.hold(here.place, "around", timeout_s=0.0):
            _beside(here, lambda: around(here, done))
    return done


def _beside(here: Here, work: Callable[[], None]) -> None:
    """Do it, and go on taking turns for as long as it takes: the timer waits for this process."""
    with ThreadPoolExecutor(1) as pool:
        doing = pool.submit(work)
        while wait([doing], timeout=_EVERY_S).not_done:
            with suppress(LockTimeoutError), lock.hold(here.place, "sync", timeout_s=0.0):
                turn(here, dry_run=False)
        doing.result()


def remove(here: Here, vm: VmId, *, told: Callable[[Turn], None] = _unheard) -> Turn:
    """Remove a DONE VM's volumes that were kept: a human has said that nobody needs them."""
    with lock.hold(here.place, "sync", timeout_s=LOCK_S):
        done = turn(here, dry_run=False)
    told(done)
    with lock.hold(here.place, "around", timeout_s=LOCK_S):
        around(here, done, only=vm)
    return done


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
    return "".join(f"{line}\n" for line in lines) or "No cluster has a VM of this OpenNebula.\n"


def text_of_volumes(done: Turn) -> str:
    """For people: what the look around has found, a sentence for each VM."""
    return "".join(f"volume  {each.sentence}\n" for each in done.removals)


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

    def told(done: Turn) -> None:
        if not given.json:
            out.write(text(done))
            out.flush()

    done: Turn | None
    if given.dry_run:
        done = looked = turn(here, dry_run=True)
        told(looked)
        around(here, looked, dry_run=True, only=vm)
    elif vm is not None:
        done = remove(here, vm, told=told)
    else:
        done = sync(here, nudged=False, told=told)
    if done is None:
        # No failure: the timer's runs meet a nudge's in every failover.
        done = Turn(notes=["another cxm-sync is at work, and sees what this one would"])
        told(done)
    out.write(json.dumps(as_json(done), indent=1) + "\n" if given.json else text_of_volumes(done))
    if vm is not None:
        is_kept = not given.dry_run and not any(x.removed for x in done.removals)
        return RefusedError.code if is_kept else 0
    return ATTENTION if any(each.kind is Kind.STUCK for each in done.decisions) else 0


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
