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
from typing import Any, Final

from cxm import config, log, names, run
from cxm.cluster import agent, moving
from cxm.errors import CommandError, CxmError, RefusedError, UsageError
from cxm.node.life import Vm, running
from cxm.node.machine import Caller, Machine
from cxm.node.volumes import Owner
from cxm.xen import xl

_log = logging.getLogger(__name__)

_WORDS: Final = 3


def _release(vm: Vm) -> dict[str, Any]:
    moving.withdraw(vm, agent.resource_of(vm))
    return {}


def _lacks(vm: Vm) -> dict[str, Any]:
    return {"bridges": moving.lacks(vm, agent.resource_of(vm))}


def _ordered(vm: Vm) -> dict[str, Any]:
    return {"ordered": vm.machine.order_busy(vm.owner.cloud, vm.vm)}


def _state(vm: Vm) -> dict[str, Any]:
    present = vm.present()
    return {"running": running(present) is not None, "domains": len(present)}


def _shutdown(vm: Vm) -> dict[str, Any]:
    return _asked(vm, lambda domid: xl.ask_shutdown(vm.machine.runner, domid, timeout_s=60.0))


def _reboot(vm: Vm) -> dict[str, Any]:
    return _asked(vm, lambda domid: xl.ask_reboot(vm.machine.runner, domid))


def _asked(vm: Vm, how: Callable[[int], None]) -> dict[str, Any]:
    domain = running(vm.present())
    if domain is None:
        return {"running": False, "heard": False}
    try:
        how(domain.domid)
    except CommandError as error:
        _log.debug("VM %d does not listen: %s", vm.vm, error.message)
        return {"running": True, "heard": False}
    return {"running": True, "heard": True}


_ANSWERS: Final[Mapping[str, Callable[[Vm], dict[str, Any]]]] = {
    "lacks": _lacks,
    "release": _release,
    "ordered": _ordered,
    "state": _state,
    "shutdown": _shutdown,
    "reboot": _reboot,
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


def main(environ: Mapping[str, str]) -> int:
    """The entry point of ``cxm-peer``."""
    os.umask(0o022)
    log.to_syslog(ident="cxm-peer", debug=False)
    try:
        settings, _warnings = config.node(config.read_trusted(config.NODE_FILE), config.NODE_FILE)
        machine = Machine(settings, run.System(), Caller(0, 0), os.uname().nodename)
        answer = serve(machine, environ.get("SSH_ORIGINAL_COMMAND", ""), run.become)
    except CxmError as error:
        _log.error("%s", error.sentence())
        answer = {"error": error.message, "hint": error.hint}
    except OSError as error:
        _log.error("%s", error)
        answer = {"error": str(error)}
    sys.stdout.write(json.dumps(answer) + "\n")
    return CxmError.code if "error" in answer else 0
