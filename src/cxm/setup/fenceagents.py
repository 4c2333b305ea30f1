# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the fence agents as programs: whether what can cut a node off answers. Fences nobody.

They get their parameters through standard input, as from Pacemaker: a command line, with its
passwords, can be read by everybody.
"""

import re
from collections.abc import Container, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from cxm.cluster import basis, nodes
from cxm.cluster.basis import FenceDevice
from cxm.errors import CommandError
from cxm.run import Runner
from cxm.setup.nodecheck import Host
from cxm.setup.report import Check, failed, ok, warning

# What Pacemaker gives the monitor of a device (cluster/basis.py).
_LIMIT_S: Final = 60.0
_ON_OR_OFF: Final = (0, 2)  # how an agent ends when it is asked for a node's status
# Whatever else is asked for in their parameters: nothing but this is done.
_OF_ACTION: Final = ("action", "option")
_MONITOR: Final = re.compile(r"<action\b[^>]*\bname=[\"']monitor[\"']")


@dataclass(frozen=True, slots=True)
class Asked:
    """A device, and what its agent says is wrong: nothing when it answers."""

    name: str  # of its resource
    device: FenceDevice
    complaint: str


def ask(host: Host, fencing: Sequence[FenceDevice]) -> list[Asked]:
    """Ask the devices, all at once; one whose agent is not installed is left out."""
    asked = [each for each in basis.named(fencing) if host.which(each[1].agent) is not None]
    if not asked:
        return []
    with ThreadPoolExecutor(len(asked)) as pool:
        said = list(pool.map(lambda each: _complaint(host.runner, each[1]), asked))
    return [Asked(*each, words) for each, words in zip(asked, said, strict=True)]


def silent(asked: Sequence[Asked], known: Container[str]) -> frozenset[str]:
    """Which devices do not answer and need not: the cluster has them already, as they were given.

    Such a run may be to repair just that. What is new or another has to answer.
    """
    return frozenset(each.name for each in asked if each.complaint and each.name in known)


def checks(me: str, asked: Sequence[Asked], may_be_silent: Container[str]) -> list[Check]:
    """A row for each device that was asked."""
    return [_row(me, each, is_known=each.name in may_be_silent) for each in asked]


def _row(me: str, asked: Asked, *, is_known: bool) -> Check:
    name, device, complaint = asked.name, asked.device, asked.complaint
    what = f"fencing {device.node}"
    if not complaint:
        return ok(what, f"{name} ({device.agent}) answers")
    if device.node == me:
        # Pacemaker never has it run here: a node does not fence itself.
        advice = "others use it, not this node, and a BMC may share its port: is --fence right?"
        return warning(what, f"{name} does not answer here: {complaint}", advice)
    if is_known:
        advice = f"the cluster has it already, so this goes on; nobody fences {device.node} by it"
        return warning(what, f"{name} does not answer: {complaint}", advice)
    advice = f"--fence {device.node}={device.agent},...: are address, user and password right?"
    return failed(what, f"{name} does not answer: {complaint}", advice)


def _complaint(runner: Runner, device: FenceDevice) -> str:
    """What the agent says is wrong; empty when its device answers."""
    try:
        about = _run(runner, device.agent, {"action": "metadata"})
        if _MONITOR.search(about):
            _run(runner, device.agent, {"action": "monitor"} | _given(device))
        else:
            asked = {"action": "status"} | _target(device) | _given(device)
            _run(runner, device.agent, asked, ok=_ON_OR_OFF)
    except CommandError as error:
        return _masked(error.message, device)
    return ""


def _run(runner: Runner, agent: str, given: dict[str, str], *, ok: Sequence[int] = (0,)) -> str:
    lines = "".join(f"{name}={value}\n" for name, value in given.items())
    return runner.run([agent], stdin=lines.encode(), timeout_s=_LIMIT_S, ok=ok).stdout


def _given(device: FenceDevice) -> dict[str, str]:
    """Its parameters, without those that are for Pacemaker."""
    return {
        name: value
        for name, value in device.parameters.items()
        if not name.startswith("pcmk_") and name not in _OF_ACTION
    }


def _target(device: FenceDevice) -> dict[str, str]:
    """Whose status is asked for, as Pacemaker says whom to fence."""
    ports = re.findall(r"([^\s,;:]+):([^\s,;]+)", device.parameters.get("pcmk_host_map", ""))
    return {"nodename": device.node, "port": dict(ports).get(device.node, device.node)}


def _masked(words: str, device: FenceDevice) -> str:
    """An agent may repeat what it was given."""
    for name, value in device.parameters.items():
        if value and nodes.is_secret(name):
            words = words.replace(value, nodes.MASK)
    return words
