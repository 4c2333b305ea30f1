# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what a node does when another node of its cluster asks: a fixed list of words.

``cxm-peer`` is a forced command of root's authorized_keys; what was asked is in
SSH_ORIGINAL_COMMAND. The answer is one JSON object, but for ``receive``, which becomes xl.
"""

import json
import logging
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from cxm import log, names, run
from cxm.cluster import agent, moving, request
from cxm.errors import CxmError, RefusedError, UsageError, explained
from cxm.node.life import Vm
from cxm.node.machine import Machine, settings, this_machine
from cxm.node.volumes import Owner

_log = logging.getLogger(__name__)

_WORDS: Final = 3


def _release(vm: Vm) -> dict[str, Any]:
    moving.withdraw(vm, agent.resource_of(vm))
    return {}


def _asked(word: str) -> Callable[[Vm], dict[str, Any]]:
    return lambda vm: {"running": request.ask(vm, word)}


_ANSWERS: Final[Mapping[str, Callable[[Vm], dict[str, Any]]]] = {
    "release": _release,
    **{word: _asked(word) for word in request.WORDS},
}


def _asked_for(machine: Machine, text: str) -> tuple[str, Vm]:
    words = text.split()
    if len(words) != _WORDS or words[0] not in (*_ANSWERS, "receive"):
        raise UsageError(f"'{text[:80]}' is not what a node of cxm asks")
    if not machine.in_cluster:
        raise RefusedError(f"{machine.hostname} is not a node of a cluster")
    owner = Owner(names.cloud_id(words[1]), names.vm_id(words[2]))
    return words[0], Vm(machine, owner)


def serve(machine: Machine, text: str, become: Callable[[list[str]], None]) -> dict[str, Any]:
    """Do what was asked and return the answer; ``receive`` becomes another program."""
    word, vm = _asked_for(machine, text)
    if word == "receive":
        become(moving.receive(vm, agent.resource_of(vm)))
    return _ANSWERS[word](vm)


def answered(
    machine: Callable[[], Machine], text: str, become: Callable[[list[str]], None]
) -> dict[str, Any]:
    """The same, but that a failure is an answer too."""
    try:
        return serve(machine(), text, become)
    except Exception as error:  # noqa: BLE001 - the boundary
        failure = explained(error, f"'{text[:80]}'", _log)
        _log.error("%s", failure.sentence())
        return {"error": failure.message, "hint": failure.hint}


def main(environ: Mapping[str, str]) -> int:
    """The entry point of ``cxm-peer``."""
    os.umask(0o022)
    log.to_syslog(ident="cxm-peer", debug=False)
    answer = answered(
        lambda: replace(this_machine(), config=settings()[0]),
        environ.get("SSH_ORIGINAL_COMMAND", ""),
        run.become,
    )
    sys.stdout.write(json.dumps(answer) + "\n")
    return CxmError.code if "error" in answer else 0
