# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns how tests run a VMM action as oned does: arguments, input, place, and the real helper."""

import io
import os
from dataclasses import dataclass, field
from typing import Any

from cxm import config
from cxm.node.client import Node
from cxm.one.action import Call, Context, load
from cxm.one.version import OneVersion
from cxm.setup import parts
from tests.fakes.answering import NoTransfers
from tests.fakes.call import ask
from tests.fakes.machine import CLOUD
from tests.fakes.xen import FakeXen

HOST = "solo1"


class LocalNode(NoTransfers):
    """The node itself: calls go as bytes into the helper on the modelled machine."""

    name = "this node"

    def __init__(self, xen: FakeXen) -> None:
        self._xen = xen

    def call(self, verb: str, args: dict[str, Any], *, timeout_s: float = 120.0) -> dict[str, Any]:
        return ask(self._xen.machine(), verb, **args).result


@dataclass(frozen=True, slots=True)
class _Here(Context):
    """The context of an action on the modelled node."""

    xen: FakeXen = field(kw_only=True)

    def node(self, host: str | None) -> Node:
        assert host == (HOST if self.remotes.startswith(f"{self.xen.node.root}-") else None)
        return LocalNode(self.xen)


class Stream(io.StringIO):
    """The ssh stream of 3.6 to 4.14: whoever reads it swallows the commands that follow."""

    def read(self, size: int | None = -1) -> str:
        raise AssertionError("the ssh stream was read")

    readline = read  # type: ignore[assignment]


class Oned:
    """An oned of one version that runs VMM actions for a modelled node.

    Those that cxm-setup puts into the list ``-l`` run on the frontend, unless ``is_local`` is off.
    """

    def __init__(
        self, xen: FakeXen, version: OneVersion, *, is_local: bool = True, **settings: Any
    ) -> None:
        self.xen = xen
        self.version = version
        self._local = parts.local_actions(version) if is_local else []
        frontend = f"{xen.node.root}-frontend"
        self._remotes = os.path.join(frontend, "remotes")
        os.makedirs(self._remotes, exist_ok=True)
        with open(os.path.join(frontend, "config"), "w", encoding="utf-8"):
            pass
        given: dict[str, Any] = {"cloud_id": CLOUD, "shutdown_timeout": 60}
        self.config = config.FrontendConfig(**given | settings)

    def directory(self, vm: int = 7) -> str:
        """The VM's directory, as oned writes it."""
        return self.xen.node.path("datastores", "", "0", str(vm))

    def run(self, action: str, *argv: str, vm: int = 7, stdin: str | None = None) -> str:
        """Run an action with its own arguments; oned adds the VM's id and the host."""
        sent = io.StringIO(stdin) if stdin is not None else Stream()
        words = tuple(word for word in argv if word or self.version >= (4, 4))
        remotes = self._remotes if action in self._local else "/var/tmp/one"
        context = _Here(self.config, self.version, self.xen.node, remotes, os.environ, xen=self.xen)
        call = Call("vmm", action, (*words, str(vm), HOST), sent)
        result = load("vmm", action).run(context, call)
        # oned's driver may wait for whoever does not take it.
        assert action not in self._local or sent.tell() == len(stdin or "")
        return result
