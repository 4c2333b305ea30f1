# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the model of a running Pacemaker: its CIB, and the real scheduler's decisions carried out.

What crm_simulate orders is done by whoever made the model; what came of it is told to crm_simulate,
which writes the history. All its programs read files only; an answer to the same file is kept.
"""

import os
import re
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Final
from xml.etree.ElementTree import Element, SubElement, fromstring, tostring

from cxm.cluster import basis
from cxm.run import System
from tests.fakes.cib import Cluster
from tests.fakes.machine import CLOUD, Outcome

NODES: Final = {"node1": "10.0.0.1", "node2": "10.0.0.2"}
_PREFIX: Final = f"cxm-{CLOUD}-"
_KEY: Final = "9:9:0:00000000-0000-0000-0000-000000000000"  # action, plan, expected code, whose
_STAMP: Final = re.compile(r'"(1[789]\d{8})"')
# Moments are written as so many transitions after this one: the same file, the same answer. It is
# to come: for Pacemaker's programs, which look at the real clock, no failure ever expires.
BEGIN: Final = int(time.time()) + 86400
_BASE: Final = BEGIN - 300


def _ask(text: str, *argv: str, env: str = "") -> tuple[int, str]:
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "cib.xml")
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        words = [word.replace("CIB", path) for word in argv]
        result = System().run(["env", f"{env}={path}", *words] if env else words, ok=range(256))
        return result.code, result.stdout


@cache
def _mon(text: str) -> str:
    return _ask(text, "crm_mon", "-1", "--output-as=xml", env="CIB_file")[1]


@cache
def _foresee(text: str) -> str:
    return _ask(text, "crm_simulate", "--simulate", "--xml-file", "CIB", "--output-as=xml")[1]


@cache
def _diff(old: str, new: str) -> tuple[int, str]:
    with tempfile.NamedTemporaryFile("w", suffix=".xml") as file:
        file.write(new)
        file.flush()
        return _ask(old, "crm_diff", "--cib", "--original", "CIB", "--new", file.name)


@cache
def _patched(text: str, patch: str) -> tuple[int, str]:
    with tempfile.NamedTemporaryFile("w", suffix=".xml") as file:
        file.write(patch)
        file.flush()
        return _ask(text, "crm_diff", "--cib", "--original", "CIB", "--patch", file.name)


@cache
def _simulate(text: str, *events: str) -> tuple[str, str]:
    """The transition graph, and the CIB when all of it has been done."""
    with tempfile.TemporaryDirectory() as directory:
        graph, after = (os.path.join(directory, name) for name in ("graph", "after"))
        argv = ["crm_simulate", "-S", "-Q", "-x", "CIB", "-G", graph, "-O", after, *events]
        code, said = _ask(text, *argv)
        assert code == 0, said
        with open(graph, encoding="utf-8") as one, open(after, encoding="utf-8") as two:
            return one.read(), two.read()


@cache
def _at_rest() -> str:
    with tempfile.TemporaryDirectory() as directory:
        made = Cluster(directory, {}, *NODES)
    for name, address in NODES.items():
        facts = {"cxm-address": address, "cxm-hostkey": "ssh-ed25519 AAAA", "cxm-fencing": "1"}
        basis.edit_facts(made.cib, name, facts, {"memory": "600", "cpu": "400"})
    return _STAMP.sub(f'"{_BASE}"', tostring(made.cib, encoding="unicode"))


@dataclass(frozen=True, slots=True)
class Order:
    """An action on a VM that the scheduler orders."""

    key: str  # resource_operation_interval
    action: str
    node: str
    env: Mapping[str, str]
    expected: int


class NodeLostError(Exception):
    """The node died while it carried out an order."""

    def __init__(self, order: Order) -> None:
        super().__init__(order.node)
        self.order = order


class FakePacemaker:
    """A cluster of two nodes; ``act`` does an order and returns the agent's code and sentence."""

    def __init__(
        self, act: Callable[[Order], tuple[int, str]], fence: Callable[[str], None]
    ) -> None:
        self._act, self._fence = act, fence
        self.file = ""  # the CIB as it is on the disk of every node, if anybody looks at it
        self._text = _at_rest()
        self.is_working = False
        self.is_dirty = False
        self.transitions = 1
        self.done: list[tuple[str, str, int]] = []  # action, node, code
        self._deleted: set[tuple[str, str]] = set()  # history of a resource on a node
        self.runs = True  # on the node that asks

    @property
    def text(self) -> str:
        """The CIB."""
        return self._text

    @text.setter
    def text(self, text: str) -> None:
        is_new = _configuration(text) != _configuration(self._text)
        self._text = text
        if is_new and self.file:
            with open(f"{self.file}.new", "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(file.name, self.file)

    # --- its programs --------------------------------------------------------------------------

    def handlers(self) -> dict[str, Callable[[tuple[str, ...], bytes], Outcome]]:
        """What of it is called on a node."""
        return {
            "cibadmin": self._cibadmin,
            "crm_mon": lambda _argv, _in: self._answer(_mon(self.text)),
            "crm_diff": self._crm_diff,
            "crm_simulate": self._crm_simulate,
            "crm_resource": self._crm_resource,
        }

    def _answer(self, text: str) -> Outcome:
        if self.runs:
            return Outcome(text)
        return Outcome(stderr="crm_mon: Connection to cluster failed: not connected", code=102)

    def _cibadmin(self, argv: tuple[str, ...], data: bytes) -> Outcome:
        if argv[1] == "--query":
            return self._answer(self.text)
        assert argv[1:] == ("--patch", "--xml-pipe")
        code, text = _patched(self.text, data.decode())
        if code:
            return Outcome(stderr="Call failed: Update does not conform", code=103)
        self.text, self.is_dirty = text, True
        return Outcome()

    def _crm_diff(self, argv: tuple[str, ...], _in: bytes) -> Outcome:
        code, text = _diff(_read(argv[3]), _read(argv[5]))
        return Outcome(text, code=code)

    def _crm_simulate(self, argv: tuple[str, ...], _in: bytes) -> Outcome:
        assert argv[1:3] == ("--simulate", "--xml-file")
        return Outcome(_foresee(_read(argv[3])))

    def _crm_resource(self, argv: tuple[str, ...], _in: bytes) -> Outcome:
        """What is known of a resource is forgotten: all, or where an action of it failed."""
        assert argv[1] in ("--cleanup", "--refresh")
        assert argv[2] == "--resource"
        cib = fromstring(self.text)
        for state in cib.iter("node_state"):
            for holder in state.iter("lrm_resources"):
                for each in list(holder):
                    failed = any(_has_failed(op) for op in each)
                    if each.get("id") == argv[3] and (failed or argv[1] == "--refresh"):
                        holder.remove(each)
            for holder in state.iter("instance_attributes"):
                for pair in list(holder):
                    if argv[3] in pair.get("name", ""):
                        holder.remove(pair)
        self.text, self.is_dirty = tostring(cib, encoding="unicode"), True
        return Outcome()

    # --- its work ------------------------------------------------------------------------------

    def edit(self, change: Callable[[Element], None]) -> None:
        """Somebody changes the CIB."""
        cib = fromstring(self.text)
        change(cib)
        self.text, self.is_dirty = tostring(cib, encoding="unicode"), True

    def go_on(self, *events: str) -> None:
        """Do all that the scheduler orders; ``events`` are options of crm_simulate."""
        if self.is_working:
            return
        self.is_working = True
        try:
            for _turn in range(20):
                self.is_dirty = False
                if not self._transition(events) and not self.is_dirty:
                    return
                events = ()
            raise AssertionError(f"Pacemaker does not come to rest: {self.done[-12:]}")
        finally:
            self.is_working = False

    def _transition(self, events: tuple[str, ...]) -> bool:
        before = self.text
        graph, after = _simulate(before, *events)
        try:
            failed = self._perform(fromstring(graph))
        except NodeLostError as lost:
            # Nobody hears what became of its orders, but that they were given has been noted.
            self.text = _pending(self.text, lost.order)
            self._transition((*events, "--node-fail", lost.order.node))
            return True
        if failed:
            told = [f"--op-fail={key}@{node}={code}" for key, node, code, _said in failed]
            _graph, after = _simulate(before, *events, *told)
        after = _without(self._dated(before, after), self._deleted)
        for key, node, _code, said in failed:
            after = _explained(after, key, node, said)
        has_worked = "<rsc_op" in graph or "<crm_event" in graph
        if self.text == before:
            self.text = after
        else:
            # The agents have changed the configuration meanwhile: only the history is new.
            self.text = _with_status(self.text, after)
            self.is_dirty = True
        self.transitions += 1
        return has_worked or bool(events)

    def _dated(self, before: str, after: str) -> str:
        known = set(_STAMP.findall(before))
        now = f'"{_BASE + self.transitions}"'
        return _STAMP.sub(lambda m: m[0] if m[1] in known else now, after)

    def _perform(self, graph: Element) -> list[tuple[str, str, int, str]]:
        """Do the orders, each after those it waits for; returns those that went wrong."""
        todo = {}
        for synapse in graph.iter("synapse"):
            waits = {each.get("id") for each in synapse.findall("inputs/trigger/*")}
            for action in synapse.findall("action_set/*"):
                todo[action.get("id")] = (action, waits)
        failed = []
        lost: set[str | None] = set()
        while todo:
            number = next(
                (key for key, (_action, waits) in todo.items() if not waits & set(todo)), None
            )
            assert number is not None
            action, waits = todo.pop(number)
            if waits & lost:
                lost.add(number)
                continue
            wrong = self._one(action)
            if wrong is not None:
                lost.add(number)
                failed.append(wrong)
        return failed

    def _one(self, action: Element) -> tuple[str, str, int, str] | None:
        node, operation = action.get("on_node", ""), action.get("operation", "")
        if operation == "stonith":
            self._fence(node)
        found = action.find("primitive")
        name = "" if found is None else found.get("id", "")
        if action.tag != "rsc_op" or not name.startswith(_PREFIX):
            return None
        if operation == "delete":
            self._deleted.add((name, node))
            return None
        given = action.find("attributes")
        assert given is not None
        env = {f"OCF_RESKEY_{key}": value for key, value in given.attrib.items()}
        interval = given.get("CRM_meta_interval", "0")
        target = int(given.get("CRM_meta_op_target_rc", "0"))
        order = Order(f"{name}_{operation}_{interval}", operation, node, env, target)
        code, said = self._act(order)
        self.done.append((operation, node, code))
        return None if code == target else (order.key, node, code, said)


def _has_failed(op: Element) -> bool:
    return op.get("rc-code") not in ("0", "7", "193") or op.get("id", "").endswith("_failure_0")


def _configuration(text: str) -> str:
    """The part of a CIB that Pacemaker writes to the disk."""
    return text[text.index("<configuration") : text.index("<status")]


def _read(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()


def _pending(text: str, order: Order) -> str:
    """With the note that an order was given, as Pacemaker makes it (seen in 2.1.5)."""
    rid = order.key.removesuffix(f"_{order.action}_0")
    cib = fromstring(text)
    path = f"status/node_state[@uname='{order.node}']/lrm/lrm_resources/lrm_resource[@id='{rid}']"
    for history in cib.iterfind(path):
        for known in history.findall(f"lrm_rsc_op[@id='{order.key}']"):
            history.remove(known)
        meta = {
            name: order.env[f"OCF_RESKEY_CRM_meta_{name}"]
            for name in ("migrate_source", "migrate_target")
            if f"OCF_RESKEY_CRM_meta_{name}" in order.env
        }
        given = {"id": order.key, "operation_key": order.key, "operation": order.action}
        told = {"call-id": "-1", "rc-code": "193", "op-status": "-1", "interval": "0"}
        SubElement(
            history,
            "lrm_rsc_op",
            given | told | meta | {"transition-key": _KEY, "transition-magic": f"-1:193;{_KEY}"},
        )
    return tostring(cib, encoding="unicode")


def _explained(text: str, key: str, node: str, said: str) -> str:
    """With the words of the agent; of a migration Pacemaker keeps none (seen in 2.1.5)."""
    cib = fromstring(text)
    for state in cib.iter("node_state"):
        for op in state.iter("lrm_rsc_op"):
            if state.get("uname") != node or op.get("operation_key") != key:
                continue
            is_move = op.get("operation", "").startswith("migrate_")
            op.set("exit-reason", "" if is_move else said)
    return tostring(cib, encoding="unicode")


def _without(text: str, deleted: set[tuple[str, str]]) -> str:
    if not deleted:
        return text
    cib = fromstring(text)
    for state in cib.iter("node_state"):
        for holder in state.iter("lrm_resources"):
            for each in list(holder):
                if (each.get("id", ""), state.get("uname", "")) in deleted:
                    holder.remove(each)
    deleted.clear()
    return tostring(cib, encoding="unicode")


def _with_status(text: str, after: str) -> str:
    cib, other = fromstring(text), fromstring(after)
    old, new = cib.find("status"), other.find("status")
    assert old is not None
    assert new is not None
    cib.remove(old)
    cib.append(new)
    return tostring(cib, encoding="unicode")
