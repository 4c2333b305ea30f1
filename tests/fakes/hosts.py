# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the model of a cloud for driver actions: a frontend, oned, and hosts with real helpers.

An action's calls go as real bytes through the wire format and :mod:`cxm.node.helper` into the
models of :mod:`tests.fakes.machine`. Each call of a verb is a step, counted from 0; a
:class:`Cut` says where in a step what breaks: the connection, or the frontend's process, as SIGKILL
ends it (what cleanup code does afterwards is taken back by :meth:`Cloud.revive`).
"""

import hashlib
import io
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Final

from cxm import config, wire
from cxm.errors import CxmError, NotFoundError, UnreachableError
from cxm.names import VmId
from cxm.node import helper
from cxm.node.client import Node
from cxm.one.action import ACTIONS, Call, Context, load
from cxm.one.api import Oned
from cxm.one.version import OneVersion
from cxm.run import System
from tests.fakes import copies
from tests.fakes.call import request, typed
from tests.fakes.machine import CLOUD, FakeNode, KilledError, Outcome
from tests.fakes.san import San, SanNode

FRONTEND: Final = "front"


class Where(Enum):
    """Where in a step it breaks."""

    BEFORE = "before the verb"
    IN_DATA = "in the data"
    AFTER = "after the verb, before its reply"


@dataclass(frozen=True, slots=True)
class Cut:
    """One thing that breaks: the connection, or with ``kill`` the frontend's process."""

    step: int
    where: Where
    kill: bool


def _no_domains(_argv: tuple[str, ...], _input: bytes) -> Outcome:
    return Outcome("Name ID Mem VCPUs State Time(s) UUID Reason-Code Security Label\n")


class Cloud:
    """A frontend with its files, oned's records, and hosts by name; with a SAN they share that."""

    def __init__(self, root: Path, *hosts: str, san: San | None = None) -> None:
        self.root = root
        self.front = root / FRONTEND
        (self.front / "datastores" / "1").mkdir(parents=True)
        (self.front / "vms" / "42").mkdir(parents=True)
        (self.front / "tmp").mkdir()
        self.hosts: dict[str, FakeNode] = {}
        for number, name in enumerate(hosts):
            path = str(root / name)
            node = FakeNode(path) if san is None else SanNode(path, name, san)
            node.uuid = f"uuid-of-group-{0 if san else number}"
            node.model("xl", _no_domains)
            self.hosts[name] = node
        self.vms: dict[int, str] = {}
        self.images: dict[int, str] = {}
        self.pool = "<HOST_POOL/>"
        self.oned_answers = True
        self.dead: set[str] = set()
        self.now = 0.0
        self.later: Callable[[], None] = lambda: None  # happens while an action waits
        self.steps: list[tuple[str, str]] = []
        self.limit_s = 0.0  # how long the last call of a verb was allowed to take
        self.cut: Cut | None = None

    def revive(self) -> None:
        """After a failure: nothing breaks any more; what a killed frontend did not do is undone."""
        self.cut = None
        self.steps.clear()
        killed = self.root / "killed"
        if killed.exists():
            shutil.rmtree(self.front)
            killed.rename(self.front)

    def step(self, host: str, verb: str) -> "Step":
        """Begin a step; raises what breaks before it."""
        number = len(self.steps)
        self.steps.append((host, verb))
        cut = self.cut if self.cut is not None and self.cut.step == number else None
        made = Step(self, host, cut)
        made.at(Where.BEFORE)
        if host not in self.hosts or host in self.dead:
            raise UnreachableError(f"{host} cannot be reached by ssh")
        return made

    def kill(self) -> None:
        """End the frontend's process: nothing that it does from now on counts."""
        if not (self.root / "killed").exists():
            copies.tree(str(self.front), str(self.root / "killed"))
        raise KilledError

    def wait(self, seconds: float) -> None:
        """Let time pass for an action."""
        self.now += seconds
        self.later()

    def place(self, host: str, name: str = "", vm: int = 42) -> str:
        """``HOST:PATH`` of a VM's directory, or of something in it; the path is one for all."""
        return f"{host}:{self.directory(FRONTEND, vm) / name}"

    def directory(self, host: str, vm: int = 42) -> Path:
        """Where a VM's directory in the system datastore of a machine really is."""
        root = self.front if host == FRONTEND else Path(self.hosts[host].root)
        return root / "datastores" / "0" / str(vm)


@dataclass(frozen=True, slots=True)
class Step:
    """A call of a verb that is under way."""

    cloud: Cloud
    host: str
    cut: Cut | None

    def at(self, where: Where) -> None:
        """Break here, if that was asked for."""
        if self.cut is None or self.cut.where is not where:
            return
        if self.cut.kill:
            self.cloud.kill()
        raise UnreachableError(f"{self.host} cannot be reached by ssh: the connection broke")

    def breaks_in_data(self) -> bool:
        return self.cut is not None and self.cut.where is Where.IN_DATA


class HostNode:
    """A host as the drivers reach it; a :class:`cxm.node.client.Node`."""

    def __init__(self, cloud: Cloud, host: str) -> None:
        self._cloud = cloud
        self._host = host

    @property
    def name(self) -> str:
        return self._host

    def _request(self, args: dict[str, Any]) -> bytes:
        """The request as the host's own file system has the paths of all machines."""
        if args.get("dir") is None:
            return request(args)
        node = self._cloud.hosts[self._host]
        return request(args | {"dir": args["dir"].replace(str(self._cloud.front), node.root)})

    def _serve(self, verb: str, sent: bytes) -> bytes:
        output = io.BytesIO()
        node = self._cloud.hosts[self._host]
        with typed(sent) as stdin:
            helper.serve(verb, stdin, output, node.machine(hostname=self._host))
        return output.getvalue()

    def call(self, verb: str, args: dict[str, Any], *, timeout_s: float = 120.0) -> dict[str, Any]:
        step = self._cloud.step(self._host, verb)
        self._cloud.limit_s = timeout_s
        said = self._serve(verb, self._request(args))
        step.at(Where.AFTER)
        return wire.parse_reply(said)[0]

    def upload(
        self, verb: str, args: dict[str, Any], items: Iterable[wire.Item], *, pack: bool
    ) -> dict[str, Any]:
        step = self._cloud.step(self._host, verb)
        sent = bytearray(self._request(args))
        try:
            for chunk in wire.encode(items):
                sent += chunk
            if step.breaks_in_data():
                del sent[-100:]
                step.at(Where.IN_DATA)
        except BaseException:
            # As over ssh: the node gets what was sent so far, and its end.
            self._serve(verb, bytes(sent))
            raise
        said = self._serve(verb, bytes(sent))
        step.at(Where.AFTER)
        return wire.parse_reply(said)[0]

    def download(
        self,
        verb: str,
        args: dict[str, Any],
        take: Callable[[Iterator[wire.Item]], None],
        *,
        pack: bool,
    ) -> dict[str, Any]:
        step = self._cloud.step(self._host, verb)
        said = self._serve(verb, self._request(args))
        decoder = wire.Decoder(io.BytesIO(said).read, expect_reply=True)
        items = iter(decoder)
        if step.breaks_in_data():
            items = self._broken(items, step)
        take(items)
        for _rest in items:
            pass
        step.at(Where.AFTER)
        return wire.open_reply(decoder.reply or {})[0]

    @staticmethod
    def _broken(items: Iterator[wire.Item], step: Step) -> Iterator[wire.Item]:
        yield from (item for item, _next in zip(items, range(2), strict=False))
        step.at(Where.IN_DATA)


class FakeOned:
    """Oned's records; a :class:`cxm.one.api.Oned`."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud

    def _get(self, what: str, records: dict[int, str], number: int) -> str:
        if not self._cloud.oned_answers:
            raise UnreachableError("oned does not answer at http://127.0.0.1:2633/RPC2")
        if number not in records:
            raise NotFoundError(f"oned refused one.{what}.info({number})")
        return records[number]

    def vm_info(self, vm: VmId) -> str:
        return self._get("vm", self._cloud.vms, vm)

    def image_info(self, image: int) -> str:
        return self._get("image", self._cloud.images, image)

    def datastore_info(self, datastore: int) -> str:
        return self._get("datastore", {}, datastore)

    def hosts_info(self) -> str:
        return self._get("hostpool", {0: self._cloud.pool}, 0)

    def version(self) -> str:
        return "7.4.0"


@dataclass(frozen=True, slots=True)
class CloudContext(Context):
    """The context of an action in the model."""

    cloud: Cloud = field(kw_only=True)

    def node(self, host: str | None) -> Node:
        assert host is not None
        return HostNode(self.cloud, host)

    def oned(self) -> Oned:
        return FakeOned(self.cloud)

    def is_store(self, host: str) -> bool:
        return host == FRONTEND


def run(
    cloud: Cloud,
    action: str,
    *argv: str,
    version: OneVersion = OneVersion(7, 4),  # noqa: B008 - a constant
    stdin: str = "",
    **settings: str,
) -> str:
    """Run a TM action as the stub would; raises its failure."""
    assert action in ACTIONS["tm"]
    lines = "".join(f'{key.upper()}="{value}"\n' for key, value in settings.items())
    made, _warnings = config.frontend(f'CLOUD_ID="{CLOUD}"\n{lines}', "cxmrc")
    ctx = CloudContext(
        made,
        version,
        System(),
        str(cloud.front / "remotes"),
        {},
        monotonic=lambda: cloud.now,
        sleep=cloud.wait,
        cloud=cloud,
    )
    return load("tm", action).run(ctx, Call("tm", action, argv, io.StringIO(stdin)))


def is_failure(error: BaseException) -> bool:
    """Whether an action ended as it may: by a sentence, or killed."""
    return isinstance(error, CxmError | KilledError)


def with_id(text: str, vm: int, *, name: str | None = None) -> str:
    """A VM's XML for another VM."""
    changed = re.sub(r"<ID>\d+</ID>", f"<ID>{vm}</ID>", text, count=1)
    if name is not None:
        changed = re.sub(r"<NAME>[^<]*</NAME>", f"<NAME>{name}</NAME>", changed, count=1)
    return changed


def tree(root: str) -> dict[str, str]:
    """All entries below a directory: links by their target, files by their content."""
    found = {}
    for directory, names, files in os.walk(root):
        for name in [*names, *files]:
            path = os.path.join(directory, name)
            short = os.path.relpath(path, root)
            if os.path.islink(path):
                found[short] = f"-> {os.path.basename(os.readlink(path))}"
            elif os.path.isdir(path):
                found[short] = "directory"
            else:
                found[short] = _content(path)
    return found


def _content(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()
