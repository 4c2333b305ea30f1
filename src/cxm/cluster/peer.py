# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what a node of a cluster asks of another: one ssh, one forced command, a few words.

The other's address and host key are in its node attributes: the CIB is authenticated, the network
is not (docs/design/0010). The other end is :mod:`cxm.cluster.peerserver`.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar
from xml.etree.ElementTree import Element

from cxm import together, wholefile
from cxm.cluster import journal, nodes
from cxm.cluster.history import Event
from cxm.cluster.pacemaker import Status
from cxm.errors import CommandError, CxmError, DataError, RefusedError, UnreachableError
from cxm.names import CloudId, VmId
from cxm.node.machine import Machine

KEY: Final = "/etc/cxm/peer_key"
_ALIVE: Final = ("-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3")
_CONNECT_S: Final = 10
_TIMEOUT_S: Final = 60.0
_COPY_S: Final = 240.0  # of a kernel or ramdisk; an agent's start, which may fetch two, has 300 s
_CHECK_S: Final = 180.0
_JOURNAL_S: Final = 30.0  # whoever looks back does not wait for a node that hangs
_SSH_FAILED: Final = 255
_SAYS: Final = "cxm-peer: "
_AT_ONCE: Final = 8
_T = TypeVar("_T")


def refused(answer: Mapping[str, Any]) -> str:
    """What a node says on its error output when it does not do what it was asked."""
    return f"{_SAYS}{' '.join(str(answer['error']).split())}\n"


def refusal(error: CxmError) -> str:
    """What another node said in the midst of a command's error output; empty for nothing."""
    said = error.stderr if isinstance(error, CommandError) else ""
    return next(
        (line.removeprefix(_SAYS) for line in said.splitlines() if line.startswith(_SAYS)), ""
    )


def others(machine: Machine, status: Status) -> list[str]:
    """The other nodes that can be asked."""
    return [
        node.name
        for node in status.nodes
        if node.online and not (node.pending or node.unclean) and node.name != machine.hostname
    ]


@dataclass(frozen=True, slots=True)
class Peer:
    """Another node, as this one reaches it."""

    machine: Machine  # this node
    node: str
    address: str
    key: str  # its host key

    def command(self, words: list[str]) -> list[str]:
        """The ssh that has it do something; it must have its host key."""
        path = os.path.join(self.machine.run_dir, "peers", self.node)
        wholefile.write(path, f"{self.node} {self.key}\n", directory_mode=0o700)
        options = {
            "BatchMode": "yes",
            "ConnectTimeout": str(_CONNECT_S),
            "StrictHostKeyChecking": "yes",
            "UserKnownHostsFile": path,
            "GlobalKnownHostsFile": "none",
            "HostKeyAlias": self.node,
            "IdentitiesOnly": "yes",
            "Compression": "no",
        }
        shown = [f"-o{key}={value}" for key, value in options.items()]
        there = f"root@{self.address}"
        return ["ssh", "-F", "none", "-T", "-i", KEY, *_ALIVE, *shown, there, "--", *words]

    def ask(self, word: str, cloud: CloudId, vm: VmId, *, timeout_s: float = 180.0) -> Any:
        """Have it do something about a VM; returns its answer, raises its failure."""
        return self._answer([word, cloud, str(vm)], timeout_s=timeout_s)

    def lacks(self, digests: Iterable[str]) -> list[str]:
        """Which of these kernels and ramdisks it does not have; it keeps the others."""
        answer = self._answer(["lacks", *sorted(digests)], timeout_s=_TIMEOUT_S)
        return [str(digest) for digest in answer["lacks"]]

    def give(self, digest: str, content: Iterable[bytes]) -> None:
        """Have it keep a kernel or ramdisk; raises its failure."""
        self._answer(["keep", digest], timeout_s=_COPY_S, content=content)

    @contextmanager
    def taken(self, digest: str) -> Iterator[Iterator[bytes]]:
        """The content of a kernel or ramdisk of its; raises when it does not have it."""
        argv = self.command(["fetch", digest])
        try:
            with self.machine.runner.produce(argv, timeout_s=_COPY_S) as content:
                yield content
        except CommandError as error:
            raise self._unreachable(error) from error

    def settings_digest(self) -> str:
        """The SHA-256 of its corosync.conf."""
        return str(self._answer(["corosync"], timeout_s=_TIMEOUT_S)["sha256"])

    def domains(self, cloud: CloudId, *, timeout_s: float) -> Any:
        """What its Xen shows of a cloud's VMs (:mod:`cxm.cluster.whereabouts` reads it)."""
        return self._answer(["domains", cloud], timeout_s=timeout_s)

    def boot_id(self) -> str:
        """The identity of its present boot; it needs no Pacemaker for that."""
        return str(self._answer(["boot"], timeout_s=_TIMEOUT_S)["id"])

    def report(self) -> Any:
        """What it finds when it looks at itself (:func:`cxm.cluster.survey.heard` reads it)."""
        return self._answer(["check"], timeout_s=_CHECK_S)

    def usage(self) -> dict[str, float]:
        """CPU that its domains used over a window, by UUID, in percent of one processor."""
        answer = self._answer(["usage"], timeout_s=_TIMEOUT_S)
        return {str(uuid): float(used) for uuid, used in answer["used"].items()}

    def journal(self, since: float) -> list[Event]:
        """What its cxm has done since a moment, as its log has it."""
        answer = self._answer(["journal", f"{since:.0f}"], timeout_s=_JOURNAL_S)
        return journal.heard(answer, self.node)

    def _answer(self, words: list[str], *, timeout_s: float, content: Iterable[bytes] = ()) -> Any:
        argv, ok = self.command(words), (0, CxmError.code)
        try:
            result = self.machine.runner.feed(argv, content, timeout_s=timeout_s, ok=ok)
        except CommandError as error:
            raise self._unreachable(error) from error
        try:
            answer = json.loads(result.stdout)
        except ValueError as error:
            raise DataError(
                f"{self.node} gave no answer to '{words[0]}': {result.stderr[-200:]}"
            ) from error
        if "error" in answer:
            raise RefusedError(f"{self.node}: {answer['error']}", hint=answer.get("hint"))
        return answer

    def _unreachable(self, error: CommandError) -> CxmError:
        """What a failed ssh means: the node was not reached, or what it ran there failed."""
        here, code = self.machine.hostname, error.exit_code
        if code == _SSH_FAILED:
            said = " ".join(error.stderr.split()) or error.message
            message = f"the node {self.node} cannot be reached from {here}: {said}"
        elif code is None or code < 0:  # it was ended: by its time limit
            message = f"the node {self.node} did not answer {here}: {error.message}"
        else:
            return CommandError(
                f"the node {self.node} failed to answer {here}: {error.message}",
                argv=error.argv,
                exit_code=code,
                stderr=error.stderr,
            )
        return UnreachableError(message, hint="'cxm check' tries the connections between the nodes")


def find(machine: Machine, root: Element, node: str) -> Peer:
    """A node by what the CIB says of it; raises RefusedError for one that has not told."""
    known = nodes.attributes(root, node)
    try:
        return Peer(machine, node, known[nodes.ADDRESS], known[nodes.HOST_KEY])
    except KeyError as error:
        raise RefusedError(
            f"the node {node} has not told its address and host key",
            hint="run 'cxm-setup cluster' on it once more",
        ) from error


def ask_all(
    machine: Machine, root: Element, names: Iterable[str], question: Callable[[Peer], _T]
) -> dict[str, _T | CxmError]:
    """What other nodes answer, or why one does not; all are asked at the same time."""
    return together.ask(names, lambda name: question(find(machine, root, name)), at_once=_AT_ONCE)
