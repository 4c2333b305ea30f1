# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""``monitord-client_control.sh`` (5.12 to 7.4): starts and stops this host's monitoring client.

Started with ``<im> <host id> <host name>`` and the configuration on its input, it prints what
monitord wants to know first, leaves a process in the background and returns. With ``stop`` in front
it ends that process.
"""

import logging
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Sequence
from typing import Final

import cxm
from cxm import log
from cxm.errors import CxmError, UsageError
from cxm.node.client import RemoteNode
from cxm.one import version as one_version
from cxm.one.action import Call, Context
from cxm.one.im import channel, settings, single
from cxm.one.im.client import Client
from cxm.one.im.observation import Observation, Watcher
from cxm.one.im.settings import Settings

_log = logging.getLogger(__name__)

_ARGUMENTS: Final = 3
# A sync of the remotes may take the script away for some seconds, but not for so long.
_GONE_S: Final = 60.0
_LOOK_EVERY_S: Final = 15.0


class ThisNode:
    """The world of a client that runs on its host."""

    def __init__(self, watcher: Watcher, conf: Settings) -> None:
        self._watcher = watcher
        self._conf = conf

    def observe(self, detail: str) -> Observation:
        """Let this node observe itself."""
        return self._watcher.look(detail)

    def deliver(self, kind: channel.Kind, line: bytes) -> None:
        """Send a message to monitord; raises OSError."""
        channel.deliver(self._conf.address, self._conf.port, kind, line)

    def now(self) -> float:
        """Seconds that only go forward."""
        return time.monotonic()

    def stamp(self) -> int:
        """Seconds since 1970, as this host believes."""
        return int(time.time())


class Watch:
    """Tells when a client should leave by itself."""

    def __init__(self, script: str) -> None:
        self._script = script
        self._code = self._installed()
        self._missing_since: float | None = None
        self._next_look = 0.0

    @staticmethod
    def _installed() -> tuple[int, int] | None:
        try:
            status = os.stat(cxm.__file__)
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns

    def farewell(self, now: float) -> str | None:
        """Why to leave, None to stay; looks only now and then."""
        if now < self._next_look:
            return None
        self._next_look = now + _LOOK_EVERY_S
        if self._installed() != self._code:
            return "cxm has been upgraded or removed"
        if os.path.lexists(self._script):
            self._missing_since = None
        elif self._missing_since is None:
            self._missing_since = now
        elif now - self._missing_since >= _GONE_S:
            return f"{self._script} is gone"
        return None


def serve(client: Client, watch: Watch, doors: Sequence[socket.socket]) -> None:
    """Go on until there is a reason to leave; a signal ends the process at any time."""
    while (reason := watch.farewell(time.monotonic())) is None:
        wait_s = min(client.next_at() - time.monotonic(), _LOOK_EVERY_S)
        knocking, _, _ = select.select(doors, [], [], max(0.0, wait_s))
        for door in knocking:
            # Whoever wants to know who we are has learned it by connecting.
            door.accept()[0].close()
        if client.next_at() <= time.monotonic():
            client.round()
    _log.warning("the monitoring client ends: %s", reason)


def _names(ctx: Context, host_id: str, host_name: str) -> list[str]:
    """What this host's client is known by, by id and by name.

    A host that was deleted and made anew has a new id, one that was renamed a new name.
    """
    prefix = f"cxm-im/{os.getuid()}/{ctx.config.cloud_id}"
    return [f"{prefix}/id/{host_id}", f"{prefix}/name/{host_name}"[:100]]


def _log_to_syslog() -> None:
    """OpenNebula joins our error output to what we print: a log line would spoil the XML."""
    logging.getLogger("cxm").handlers.clear()
    log.to_syslog(ident="cxm-monitord", debug=False)


def _into_background(client: Client, script: str, doors: Sequence[socket.socket]) -> None:
    """Leave a process that serves; only the caller's process returns, when the other listens.

    Who asks the doors right afterwards (a stop, the next start) must find it.
    """
    sys.stdout.flush()
    listens, tell = os.pipe()
    if os.fork() != 0:
        os.close(tell)
        with open(listens, "rb") as file:
            if not file.read(1):
                raise CxmError("the monitoring client ended before it listened")
        return
    code = 1
    try:
        os.close(listens)
        os.setsid()
        os.chdir("/")
        nothing = os.open(os.devnull, os.O_RDWR)
        for number in range(3):
            os.dup2(nothing, number)
        for sign in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(sign, signal.SIG_DFL)  # there is nothing to undo
        for door in doors:
            door.listen(8)
        os.write(tell, b"+")
        os.close(tell)
        serve(client, Watch(script), doors)
        code = 0
    except Exception:  # noqa: BLE001 - nobody is left to catch it
        _log.exception("the monitoring client has failed; monitord will start another")
    finally:
        os._exit(code)


def run(ctx: Context, call: Call) -> str:
    """Start or stop; what a start prints is monitord's first information about the host."""
    this_node = RemoteNode(ctx.runner, None, ctx.config.cloud_id)
    return control(ctx, call, Watcher(this_node.converse("observe")))


def control(ctx: Context, call: Call, watcher: Watcher) -> str:
    """The same with a watcher of the caller's choice."""
    argv = list(call.argv)
    stop = argv[:1] == ["stop"]
    if stop:
        argv.pop(0)
    if len(argv) < _ARGUMENTS:
        raise UsageError(f"{call.action} takes [stop] IM HOST_ID HOST_NAME, not {call.argv}")
    host_id, host_name = argv[1], argv[2]
    names = _names(ctx, host_id, host_name)
    if stop:
        single.release(names, uid=os.getuid())
        return ""
    conf = settings.parse(call.read_input(), host_name, ctx.environ)
    _log_to_syslog()
    doors = single.claim(names, uid=os.getuid())
    client = Client(conf, ThisNode(watcher, conf), one_version.text_of_remotes(ctx.remotes))
    greeting = client.greeting()
    watcher.rest()  # a helper answers the process that started it, and this one ends
    _into_background(client, os.path.join(ctx.remotes, "im", call.action), doors)
    return greeting
