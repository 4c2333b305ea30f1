# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what ``cxm`` reaches of the world: commands, terminal, files, clock.

Tests pass a world that lives in a temporary directory and whose runner is a model.
"""

import json
import os
import pwd
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, TextIO, TypeVar
from xml.etree.ElementTree import Element

from cxm import config, run
from cxm.cli.text import Style
from cxm.cluster import nodes, pacemaker, peer, survey
from cxm.cluster.model import Cluster
from cxm.cluster.peer import Peer
from cxm.errors import CxmError, RefusedError, UsageError
from cxm.node.machine import Caller, Machine, settings, this_machine

_T = TypeVar("_T")
_WITHOUT: Final = "this machine is not a node of a cxm cluster: there is no {path}"


def _style(out: TextIO) -> Style:
    is_terminal = out.isatty()
    encoding = (getattr(out, "encoding", "") or "").lower().replace("-", "")
    return Style(color=is_terminal and "NO_COLOR" not in os.environ, unicode=encoding == "utf8")


def unheard(stream: TextIO) -> None:
    """Who read this has seen enough: what else is written goes nowhere, at the exit too."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def who(environ: Mapping[str, str]) -> str:
    """Who gives an order."""
    try:
        account = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        account = str(os.getuid())
    person = environ.get("SUDO_USER", "")
    return f"{person} (as {account})" if person and person != account else account


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """This node, and who sits before it."""

    runner: run.Runner = field(default_factory=run.System)
    root: str = "/"  # where the node's files are
    out: TextIO = field(default_factory=lambda: sys.stdout)
    err: TextIO = field(default_factory=lambda: sys.stderr)
    as_json: bool = False  # the output is one document, for a program
    persists: bool = False  # an order goes on when nobody reads what it says any more
    typed: Callable[[str], str] = input  # asks a question; raises EOFError where nobody is
    uid: int = field(default_factory=os.geteuid)
    style: Style | None = None
    settings: config.NodeConfig | None = None  # None: those in the node's file
    now: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    foreground: Callable[[list[str]], int] = run.foreground

    def path(self, name: str) -> str:
        """A file of the node."""
        return os.path.join(self.root, name.lstrip("/"))

    def say(self, text: str) -> None:
        """A line for the reader, at once; on the error output where the output is a document."""
        self._write(self.err if self.as_json else self.out, f"{text}\n")

    def show(self, text: str) -> None:
        """A text of several lines."""
        self._write(self.out, text)

    def _write(self, stream: TextIO, text: str) -> None:
        try:
            stream.write(text)
            stream.flush()
        except BrokenPipeError:
            if not self.persists:
                raise
            unheard(stream)

    def show_json(self, value: Any) -> None:
        """A result for a program."""
        self.show(json.dumps(value, indent=1) + "\n")

    def end(self, text: str, value: Any) -> None:
        """What came of an order: a line for the reader, or the document for a program."""
        if self.as_json:
            self.show_json(value)
        else:
            self.say(text)

    def looks(self) -> Style:
        """How text looks here."""
        return self.style or _style(self.out)

    def require_member(self) -> None:
        """Raise RefusedError unless this machine is a node of a cluster and we may ask it."""
        if not os.path.exists(self.path(config.CLUSTER_MARKER)):
            raise RefusedError(
                _WITHOUT.format(path=config.CLUSTER_MARKER),
                hint="'cxm-setup cluster' makes it one; a standalone host needs no cxm command",
            )
        if self.uid != 0:
            raise RefusedError("only root may ask the cluster", hint="run it with sudo")

    def look(self) -> tuple[Cluster, Element]:
        """The cluster as it is now, and its CIB."""
        return survey.cluster(self.runner)

    def cluster(self) -> Cluster:
        """The cluster as it is now."""
        return self.look()[0]

    def set_attribute(self, node: str, key: str, value: str | None, *, what: str) -> bool:
        """Set or remove a node's attribute; False when it was so already."""

        def edit(cib: Element) -> None:
            nodes.set_attribute(cib, node, key, value)

        return pacemaker.change(self.runner, edit, what=what)

    def here(self) -> str:
        """This node's name."""
        return pacemaker.local_node(self.runner)

    def ask(
        self, cib: Element, names: Iterable[str], question: Callable[[Peer], _T]
    ) -> dict[str, _T | CxmError]:
        """What other nodes answer, or why one does not; all are asked at the same time."""
        return peer.ask_all(self.bare(), cib, names, question)

    def bare(self) -> Machine:
        """This node as others are asked from it: its settings may be broken, or absent yet."""
        plain = this_machine(runner=self.runner)
        return replace(plain, hostname=self.here(), run_dir=self.path("/run/cxm"))

    def machine(self) -> Machine:
        """This node as the verbs use it, for its volumes and locks."""
        own = self.settings or settings(self.path(config.NODE_FILE))[0]
        return replace(
            this_machine(Caller(self.uid, self.uid), self.runner),
            config=own,
            dev_dir=self.path("/dev"),
            run_dir=self.path("/run/cxm"),
            state_dir=self.path("/var/lib/cxm"),
            sys_dir=self.path("/sys"),
            now=self.now,
            monotonic=self.monotonic,
            sleep=self.sleep,
        )

    def confirm(self, question: str, wanted: str) -> None:
        """Have the reader type one word; raises UsageError for any other, and for a program."""
        if self.as_json:
            raise UsageError("with --json nobody is asked, so nothing was done", hint="--yes")
        self.say(question)
        try:
            typed = self.typed(f"Type '{wanted}' to go on: ")
        except EOFError:
            typed = ""
        if typed.strip() != wanted:
            raise UsageError("not confirmed, so nothing was done", hint="--yes asks no question")
