# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the fence agents as programs: whether what can cut a node off answers. Fences nobody.

They get their parameters through standard input, as from Pacemaker: a command line, with its
passwords, can be read by everybody.
"""

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
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


def checks(host: Host, me: str, fencing: Sequence[FenceDevice]) -> list[Check]:
    """A row for each device, all asked at once; an agent that is not installed is left out."""
    asked = [each for each in basis.named(fencing) if host.which(each[1].agent) is not None]
    if not asked:
        return []
    with ThreadPoolExecutor(len(asked)) as pool:
        said = list(pool.map(lambda each: _complaint(host.runner, each[1]), asked))
    return [_row(me, *each, words) for each, words in zip(asked, said, strict=True)]


def _row(me: str, name: str, device: FenceDevice, complaint: str) -> Check:
    what = f"fencing {device.node}"
    if not complaint:
        return ok(what, f"{name} ({device.agent}) answers")
    if device.node == me:
        # Pacemaker never has it run here: a node does not fence itself.
        advice = "others use it, not this node, and a BMC may share its port: is --fence right?"
        return warning(what, f"{name} does not answer here: {complaint}", advice)
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
