# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns Pacemaker: the only caller of its programs, and what their output means.

Its own command line is used, with XML output: it is the same on every distribution.
"""

import html
import logging
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final
from xml.etree import ElementTree as ET
from xml.etree.ElementTree import Element

from cxm.errors import CommandError, DataError, RefusedError
from cxm.run import Runner

_log = logging.getLogger(__name__)

_TIMEOUT_S: Final = 60.0
# crm_diff's exit code when two documents differ, and cibadmin's when the CIB has changed meanwhile.
_DIFFERENT: Final = 1
_STALE: Final = (103, 104)
_TRIES: Final = 20
_NOT_CONNECTED: Final = 102
_DOWN_HINT: Final = "'systemctl status pacemaker corosync' on it says why"


# --- what it says -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Node:
    """A node of the cluster as Pacemaker sees it."""

    name: str
    online: bool
    standby: bool = False
    maintenance: bool = False
    unclean: bool = False  # it has to be fenced before anything of it is started elsewhere
    pending: bool = False  # it is joining
    dc: bool = False
    member: bool = True  # of Corosync; a node may also be a remote one of Pacemaker's


@dataclass(frozen=True, slots=True)
class Placed:
    """A resource, and where it is."""

    id: str
    role: str  # Started, Stopped, Starting, Stopping, Migrating
    nodes: tuple[str, ...] = ()
    pending: str = ""  # what is being done to it
    managed: bool = True
    blocked: bool = False  # something went wrong with it that Pacemaker does not touch
    failed: bool = False

    @property
    def at_rest(self) -> bool:
        """Whether nothing is being done to it."""
        return self.role in ("Started", "Stopped") and not self.pending


@dataclass(frozen=True, slots=True)
class Failure:
    """An action of a resource that went wrong and has not been cleaned up."""

    resource: str
    operation: str
    node: str
    reason: str  # the agent's own words, if it had any
    when: str


@dataclass(frozen=True, slots=True)
class Fencing:
    """A node that was, is being, or could not be fenced."""

    target: str
    action: str
    status: str  # success, failed, pending
    by: str
    when: str
    reason: str = ""
    client: str = ""  # the program that asked for it: pacemaker-controld decides by itself
    origin: str = ""  # the node that it asked on


@dataclass(frozen=True, slots=True)
class Status:
    """The cluster at one moment."""

    nodes: tuple[Node, ...]
    quorate: bool
    fencing_enabled: bool
    resources: Mapping[str, Placed] = field(default_factory=dict)
    failures: tuple[Failure, ...] = ()
    fencing: tuple[Fencing, ...] = ()

    def node(self, name: str) -> Node | None:
        """The node of this name."""
        return next((node for node in self.nodes if node.name == name), None)

    def works(self, resource: str) -> bool:
        """Whether nothing is wrong with it; a device that merely has no node to run on may work."""
        found = self.resources.get(resource)
        failed = any(failure.resource == resource for failure in self.failures)
        return found is None or not failed or (found.role == "Started" and not found.failed)

    @property
    def dc(self) -> str:
        """The node that decides at the moment; empty while none does."""
        return next((node.name for node in self.nodes if node.dc), "")


def _flag(element: Element, name: str) -> bool:
    return element.get(name) == "true"


def _failures(root: Element) -> Iterator[Failure]:
    for element in root.iterfind("failures/failure"):
        task, interval = element.get("task", ""), element.get("interval", "0")
        yield Failure(
            element.get("op_key", "").removesuffix(f"_{task}_{interval}"),
            task,
            element.get("node", ""),
            # crm_mon escapes an agent's words once more than XML wants.
            html.unescape(element.get("exitreason", "")) or element.get("exitstatus", ""),
            element.get("last-rc-change", ""),
        )


def _fencing(root: Element) -> Iterator[Fencing]:
    for element in root.iter("fence_event"):
        yield Fencing(
            element.get("target", ""),
            element.get("action", ""),
            element.get("status", ""),
            element.get("delegate", "") or element.get("origin", ""),
            element.get("completed", ""),
            element.get("exit-reason", ""),
            element.get("client", ""),
            element.get("origin", ""),
        )


def parse_fencing(text: str) -> tuple[Fencing, ...]:
    """The meaning of ``stonith_admin --history --output-as=xml``; raises DataError."""
    try:
        return tuple(_fencing(ET.fromstring(text)))  # noqa: S314 - our own Pacemaker wrote it
    except ET.ParseError as error:
        raise DataError(f"stonith_admin's output cannot be read: {error}") from error


def parse_status(text: str) -> Status:
    """The meaning of ``crm_mon --output-as=xml``; raises DataError."""
    try:
        root = ET.fromstring(text)  # noqa: S314 - our own Pacemaker wrote it
    except ET.ParseError as error:
        raise DataError(f"crm_mon's output cannot be read: {error}") from error
    dc, options = root.find("summary/current_dc"), root.find("summary/cluster_options")
    if dc is None or options is None:
        raise DataError(f"crm_mon's output has no summary: {text[:120]!r}")
    nodes = tuple(
        Node(
            element.get("name", ""),
            online=_flag(element, "online"),
            standby=_flag(element, "standby"),
            maintenance=_flag(element, "maintenance"),
            unclean=_flag(element, "unclean"),
            pending=_flag(element, "pending"),
            dc=_flag(element, "is_dc"),
            member=element.get("type", "member") == "member",
        )
        for element in root.iterfind("nodes/node")
    )
    resources: dict[str, Placed] = {}
    for element in root.iterfind("resources//resource"):
        rid = element.get("id", "")
        where = tuple(node.get("name", "") for node in element.iterfind("node"))
        known = resources.get(rid)
        # Of a clone's instances, one that is not at rest says what goes on, else one that runs.
        is_stopped = element.get("role") == "Stopped"
        said = known if known and (is_stopped or not known.at_rest) else None
        resources[rid] = Placed(
            rid,
            said.role if said else element.get("role", ""),
            (known.nodes if known else ()) + where,
            said.pending if said else element.get("pending", ""),
            managed=_flag(element, "managed"),
            blocked=_flag(element, "blocked"),
            failed=_flag(element, "failed"),
        )
    return Status(
        nodes,
        quorate=_flag(dc, "with_quorum"),
        fencing_enabled=_flag(options, "stonith-enabled"),
        resources=resources,
        failures=tuple(_failures(root)),
        fencing=tuple(_fencing(root)),
    )


def status(runner: Runner, *, timeout_s: float = _TIMEOUT_S) -> Status:
    """The cluster as it is now; raises RefusedError where Pacemaker does not run."""
    return parse_status(_ask(runner, ["crm_mon", "-1", "--output-as=xml"], timeout_s))


def _ask(runner: Runner, argv: list[str], timeout_s: float = _TIMEOUT_S) -> str:
    try:
        return runner.run(argv, timeout_s=timeout_s).stdout
    except CommandError as error:
        if error.exit_code == _NOT_CONNECTED or "not connected" in error.stderr:
            raise RefusedError(
                "this node is a member of a cluster whose Pacemaker does not run here, "
                "so nothing is done",
                hint=_DOWN_HINT,
            ) from error
        raise


# --- the CIB ------------------------------------------------------------------------------------


def cib(runner: Runner, *, local: bool = False, timeout_s: float = _TIMEOUT_S) -> Element:
    """The whole CIB; with ``local`` this node's copy, which is there even without a quorum."""
    argv = ["cibadmin", "--query", *(["--local"] if local else [])]
    try:
        return ET.fromstring(_ask(runner, argv, timeout_s))  # noqa: S314 - our own Pacemaker
    except ET.ParseError as error:
        raise DataError(f"cibadmin's output cannot be read: {error}") from error


def change(
    runner: Runner,
    edit: Callable[[Element], None],
    *,
    what: str,
    check: Callable[[Element], None] | None = None,
) -> bool:
    """Change the CIB: ``edit`` alters the ``<cib>`` element that it is given.

    All that differs is sent as one patch, which applies to exactly the CIB that was read: when
    another change was faster, this one is thought through again. False when nothing differs.
    ``check`` is given what would be written, and raises what forbids it. ``what`` says in the log
    what the change is. Raises CommandError when Pacemaker refuses it.
    """
    checked = ""
    for _try in range(_TRIES):
        root = cib(runner)
        before = ET.tostring(root)
        edit(root)
        if ET.tostring(root) == before:
            return False
        # What resources do meanwhile makes a patch stale, but not what was found out about it.
        version = f"{root.get('admin_epoch')}.{root.get('epoch')}"
        if check is not None and checked != version:
            check(root)
            checked = version
        patch = _patch(runner, before, root)
        argv = ["cibadmin", "--patch", "--xml-pipe"]
        result = runner.run(argv, stdin=patch, timeout_s=_TIMEOUT_S, ok=(0, *_STALE))
        if result.code == 0:
            _log.info("%s", what)
            return True
        _log.debug("the CIB has changed meanwhile: %s", result.stderr)
    raise CommandError(
        f"Pacemaker's configuration changes all the time, so this could not be written: {what}",
        hint="'crm_mon' shows what goes on; run the action again",
        argv=("cibadmin", "--patch"),
        exit_code=_STALE[0],
        stderr="",
    )


def _patch(runner: Runner, before: bytes, root: Element) -> bytes:
    """The difference between a CIB and what has been made of it."""
    root.set("epoch", str(int(root.get("epoch", "0")) + 1))
    root.set("num_updates", "0")
    with tempfile.TemporaryDirectory(prefix="cxm-cib-") as directory:
        old, new = os.path.join(directory, "old"), os.path.join(directory, "new")
        for path, text in ((old, before), (new, ET.tostring(root))):
            with open(path, "wb") as file:
                file.write(text)
        argv = ["crm_diff", "--cib", "--original", old, "--new", new]
        return runner.run(argv, timeout_s=_TIMEOUT_S, ok=(0, _DIFFERENT)).stdout.encode()


@dataclass(frozen=True, slots=True)
class Deed:
    """What Pacemaker would do with a resource."""

    action: str  # start, stop, migrate, recover, restart, ...
    resource: str
    node: str  # where it would be afterwards, or be stopped


def parse_deeds(text: str) -> list[Deed]:
    """The actions that ``crm_simulate --output-as=xml`` foresees; raises DataError."""
    try:
        root = ET.fromstring(text)  # noqa: S314 - our own Pacemaker wrote it
    except ET.ParseError as error:
        raise DataError(f"crm_simulate's output cannot be read: {error}") from error
    return [
        Deed(
            element.get("action", ""),
            element.get("resource", ""),
            element.get("dest") or element.get("node") or element.get("source") or "",
        )
        for element in root.iterfind("actions/rsc_action")
    ]


def foresee(runner: Runner, root: Element) -> list[Deed]:
    """What Pacemaker would do if this were its CIB."""
    with tempfile.NamedTemporaryFile(prefix="cxm-cib-", suffix=".xml") as file:
        file.write(ET.tostring(root))
        file.flush()
        argv = ["crm_simulate", "--simulate", "--xml-file", file.name, "--output-as=xml"]
        return parse_deeds(runner.run(argv, timeout_s=_TIMEOUT_S).stdout)


def parse_stopped(text: str) -> set[str]:
    """The resources that are nowhere at the end of ``crm_simulate --output-as=xml``."""
    try:
        root = ET.fromstring(text)  # noqa: S314 - our own Pacemaker wrote it
    except ET.ParseError as error:
        raise DataError(f"crm_simulate's output cannot be read: {error}") from error
    found = root.iterfind("revised_cluster_status/resources//resource")
    return {each.get("id", "") for each in found if each.get("role") == "Stopped"}


def stopped_after(runner: Runner, root: Element, *events: str) -> set[str]:
    """The resources that would be nowhere if this were the CIB, and after events.

    An event is an option of crm_simulate: ``--node-fail=node2``.
    """
    with tempfile.NamedTemporaryFile(prefix="cxm-cib-", suffix=".xml") as file:
        file.write(ET.tostring(root))
        file.flush()
        argv = ["crm_simulate", "--simulate", "--xml-file", file.name, *events, "--output-as=xml"]
        return parse_stopped(runner.run(argv, timeout_s=_TIMEOUT_S).stdout)


# --- orders -------------------------------------------------------------------------------------


def clean_up(runner: Runner, resource: str, *, node: str | None = None) -> None:
    """Forget what went wrong with a resource, so that Pacemaker looks at it afresh."""
    argv = ["crm_resource", "--cleanup", "--resource", resource]
    _ask(runner, [*argv, "--node", node] if node else argv)
    _log.info("forgot the failures of %s", resource)


def refresh(runner: Runner, resource: str) -> None:
    """Forget all that is known of a resource, so that every node is asked whether it is there."""
    _ask(runner, ["crm_resource", "--refresh", "--resource", resource])
    _log.info("asked every node for %s", resource)


def local_node(runner: Runner) -> str:
    """What the cluster calls this node."""
    return _ask(runner, ["crm_node", "--name"]).strip()


def fencing_history(runner: Runner) -> tuple[Fencing, ...]:
    """Every fencing that the nodes remember; they forget when all of them restart."""
    argv = ["stonith_admin", "--history", "*", "--verbose", "--output-as=xml"]
    return parse_fencing(_ask(runner, argv))


def fence(runner: Runner, node: str, *, how: str, timeout_s: float) -> None:
    """Fence a node, ``how`` is ``reboot`` or ``off``; returns when its device says it is done."""
    argv = ["stonith_admin", "--fence" if how == "off" else "--reboot", node]
    _log.info("fencing node %s (%s)", node, how)
    patience = timeout_s + _TIMEOUT_S
    runner.run([*argv, "--timeout", f"{timeout_s:.0f}", "--tag", "cxm"], timeout_s=patience)
    _log.info("fenced node %s (%s)", node, how)


def confirm_fenced(runner: Runner, node: str) -> None:
    """Tell the cluster that a human has seen to it that a node is off."""
    runner.run(["stonith_admin", "--confirm", node], timeout_s=_TIMEOUT_S)
    _log.info("confirmed that node %s is off", node)


def remove_node(runner: Runner, node: str) -> None:
    """Have Pacemaker forget a node that Corosync does not know any more."""
    runner.run(["crm_node", "--remove", node, "--force"], timeout_s=_TIMEOUT_S)
    _log.info("forgot the node %s", node)


def versions(runner: Runner) -> dict[str, str]:
    """Which Pacemaker and Corosync are installed here; without one that does not say."""
    found = {}
    for name, argv in (
        ("pacemaker", ["pacemakerd", "--version"]),
        ("corosync", ["corosync", "-v"]),
    ):
        said = runner.run(argv, timeout_s=_TIMEOUT_S).stdout
        match = re.search(r"(?:Pacemaker|version) '?(\d[\w.+-]*)", said)
        if match:
            found[name] = match[1]
    return found
