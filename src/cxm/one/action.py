# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the boundary with oned: from a stub's path, arguments and input to output and exit code.

The stub calls :func:`main`; this module finds the action's module in an explicit table, imports
only that one, and is the only place on OpenNebula's side that catches errors.
"""

import base64
import binascii
import importlib
import io
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol, TextIO

from cxm import config, interrupt, log, run
from cxm.errors import CxmError, UsageError, system_error
from cxm.interrupt import InterruptedBySignalError
from cxm.node.client import Node, RemoteNode
from cxm.one import api, frontend
from cxm.one import version as one_version
from cxm.one.version import OneVersion

_log = logging.getLogger(__name__)

# Action -> module below cxm.one.<kind>. Stubs and this table are compared by a test. An action of
# "im" is a path, for OpenNebula runs whatever lies in the directories of its probes.
ACTIONS: Final[Mapping[str, Mapping[str, str]]] = {
    "tm": {
        "clone": "clone",
        "ln": "clone",
        "mkimage": "blank",
        "mkswap": "blank",
        "context": "context",
        "delete": "delete",
        "mv": "mv",
        "mvds": "mvds",
        "monitor": "monitor",
        "premigrate": "migration",
        "postmigrate": "migration",
        "failmigrate": "migration",
    }
    | dict.fromkeys(
        (
            "cpds",
            "postbackup",
            "postbackup_live",
            "prebackup",
            "prebackup_live",
            "resize",
            "restore",
            "snap_create",
            "snap_create_live",
            "snap_delete",
            "snap_revert",
        ),
        "unsupported",
    ),
    "vmm": {
        "deploy": "deploy",
        "shutdown": "power",
        "cancel": "power",
        "reboot": "power",
        "reset": "power",
        "save": "memory",
        "restore": "memory",
        "poll": "poll",
        "migrate": "migrate",
    }
    | dict.fromkeys(
        (
            "attach_disk",
            "attach_nic",
            "detach_disk",
            "detach_nic",
            "exec",
            "exec_cancel",
            "prereconfigure",
            "reconfigure",
            "resize",
            "resize_disk",
            "snapshot_create",
            "snapshot_delete",
            "snapshot_revert",
        ),
        "unsupported",
    ),
    "im": {
        "cxm.d/probe": "pull",  # 3.6 to 4.2
        "cxm-probes.d/probe": "pull",  # 4.4 to 5.10
        "cxm.d/monitord-client_control.sh": "control",  # 5.12 to 7.4, as the rest
        "cxm-probes.d/host/beacon/probe": "probe",
        "cxm-probes.d/host/monitor/probe": "probe",
        "cxm-probes.d/host/system/probe": "probe",
        "cxm-probes.d/vm/monitor/probe": "probe",
        "cxm-probes.d/vm/status/probe": "probe",
    },
}


@dataclass(frozen=True, slots=True)
class Context:
    """What an action may use of the world."""

    config: config.FrontendConfig
    version: OneVersion
    runner: run.Runner
    remotes: str  # the root of the remotes tree that the stub lives in
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    def node(self, host: str | None) -> Node:
        """The node that is OpenNebula's host ``host``; None is the machine that we run on."""
        return RemoteNode(self.runner, host, self.config.cloud_id, block_mib=self.config.block_size)

    def oned(self) -> api.Oned:
        """The oned that calls us."""
        return api.XmlRpc(self.remotes, self.environ)

    def is_store(self, host: str) -> bool:
        """Whether oned means by ``host`` this frontend, which keeps stopped VMs as plain files.

        A frontend that is a node as well keeps them as a node does, in volumes.
        """
        return frontend.is_this_machine(self.remotes, host) and not frontend.is_node()


@dataclass(frozen=True, slots=True)
class Call:
    """One call of an action by oned."""

    kind: str  # tm, vmm or im
    action: str
    argv: tuple[str, ...]
    input: TextIO

    def read_input(self) -> str:
        """All of the standard input, decoded when oned sent it as base64.

        Up to 4.14 the input of a VMM action other than deploy is the ssh stream that carries the
        commands which follow: the caller must not read it there.
        """
        text = self.input.read()
        packed = "".join(text.split())
        if packed and not text.lstrip().startswith("<"):
            try:
                return base64.b64decode(packed, validate=True).decode()
            except (binascii.Error, UnicodeDecodeError):
                return text
        return text


class Module(Protocol):
    """What a module of an action offers."""

    def run(self, ctx: Context, call: Call) -> str:
        """Do the action; the return value is what oned reads as its result."""


def split_path(path: str) -> tuple[str, str, str]:
    """The remotes root, kind and action that a stub's path names.

    ``<root>/tm/cxm/clone`` -> (root, "tm", "clone"), ``<root>/im/cxm.d/probe`` -> (root, "im",
    "cxm.d/probe"). Never follows links: in the remotes tree a stub is a link, on hosts a copy of
    its target.
    """
    whole = os.path.abspath(path)
    above, _im, below = whole.rpartition("/im/")
    if below in ACTIONS["im"]:
        return above, "im", below
    head, action = os.path.split(whole)
    above, _driver = os.path.split(head)
    root, kind = os.path.split(above)
    if kind not in ACTIONS or kind == "im" or action not in ACTIONS[kind]:
        message = f"{path} is not one of cxm's actions"
        raise UsageError(message)
    return root, kind, action


def load(kind: str, action: str) -> Module:
    """Import the module of an action, and only that one."""
    module: Module = importlib.import_module(f"cxm.one.{kind}.{ACTIONS[kind][action]}")
    return module


def main(path: str, argv: Sequence[str]) -> int:
    """Run the action that ``path`` names as oned's driver would; returns the exit code."""
    version = one_version.OLDEST
    place = Place("", os.path.basename(path), argv)
    messages: TextIO = sys.stderr
    interrupt.install()
    try:
        root, kind, action = split_path(path)
        place = Place(kind, os.path.basename(path), argv)
        version = one_version.of_remotes(root)
        source = os.path.join(root, "cxmrc")
        settings, warnings = config.frontend(config.read(source), source)
        if version.takes_all_stderr and not settings.debug:
            # A failure must leave its sentence alone on the error output.
            messages = io.StringIO()
        log.to_stream(messages, action=action, debug=settings.debug)
        # In the log of each VM that starts, and not at every step of every VM.
        level = logging.WARNING if action == "deploy" else logging.DEBUG
        for warning in warnings:
            _log.log(level, "%s", warning)
        ctx = Context(settings, version, run.System(), root)
        result = load(kind, action).run(ctx, Call(kind, action, tuple(argv), sys.stdin))
    except (Exception, InterruptedBySignalError) as error:  # noqa: BLE001 - the boundary
        return _fail(version, place, error)
    if isinstance(messages, io.StringIO):
        sys.stderr.write(messages.getvalue())
    if result:
        sys.stdout.write(f"{result}\n")
    return 0


@dataclass(frozen=True, slots=True)
class Place:
    """What failed, as far as it is known: an action may fail before it has understood anything."""

    kind: str
    name: str
    argv: Sequence[str]

    def __str__(self) -> str:
        """``VM 42: deploy failed on node1``: actions run on the frontend and on hosts."""
        # The id of the VM and its host are the last two arguments of all VMM actions.
        vm = self.argv[-2] if self.kind == "vmm" and len(self.argv) > 1 else ""
        about = f"VM {vm}: " if vm.isdecimal() else ""
        return f"{about}{self.name} failed on {os.uname().nodename}"


def _fail(version: OneVersion, place: Place, error: BaseException) -> int:
    """Say on the error output why an action failed; returns its exit code."""
    name = place.name
    if isinstance(error, CxmError):
        failure = error
    elif isinstance(error, InterruptedBySignalError):
        failure = CxmError(f"{name} was ended by {error} and has undone what it did")
    elif isinstance(error, OSError):
        failure = CxmError(f"{place}: {system_error(error)}")
    else:
        for line in traceback.format_exception(error):
            for part in line.splitlines():
                sys.stderr.write(f"DEBUG: {name}: {part}\n")
        failure = CxmError(
            f"{name} failed unexpectedly: {type(error).__name__}: {error}",
            hint="this is a defect of cxm; please report it with the lines above",
        )
    sys.stderr.write(one_version.error_output(version, name, failure))
    return failure.code
