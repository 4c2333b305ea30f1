# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what a node does when another node of its cluster asks: a fixed list of words.

``cxm-peer`` is a forced command of root's authorized_keys; what was asked is in
SSH_ORIGINAL_COMMAND. The answer is one JSON object, but for ``receive``, which becomes xl, and
``fetch``, which becomes the content of a file.
"""

import hashlib
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, BinaryIO, Final

from cxm import log, names, run
from cxm.cluster import (
    agent,
    bootfiles,
    destination,
    journal,
    locks,
    moving,
    peer,
    request,
    survey,
)
from cxm.cluster import whereabouts as seats
from cxm.config import NodeConfig
from cxm.errors import CxmError, NotFoundError, RefusedError, UsageError, explained
from cxm.node import kernels, usage
from cxm.node.life import Vm, boot_id
from cxm.node.machine import Machine, settings, this_machine
from cxm.node.volumes import Owner

_log = logging.getLogger(__name__)

_VM_WORDS: Final = 3
_MOMENT: Final = re.compile(r"[0-9]{1,12}")
_MOST: Final = 16  # files in one question; a VM has two
_BOOT: Final = "boot"
# What is asked of a node, not of its VMs or volumes.
_PLAIN: Final = (_BOOT, "corosync", "domains", "journal", "lacks", "keep", "fetch", "usage")


def _release(vm: Vm) -> dict[str, Any]:
    moving.withdraw(vm)
    return {}


def _bridges(vm: Vm) -> dict[str, Any]:
    return {"missing": destination.missing_bridges(vm.machine, agent.resource_of(vm))}


def _ordered(vm: Vm) -> dict[str, Any]:
    return {"ordered": vm.machine.order_busy(vm.owner.cloud, vm.vm)}


def _asked(word: str) -> Callable[[Vm], dict[str, Any]]:
    return lambda vm: {"running": request.ask(vm, word)}


_ANSWERS: Final[Mapping[str, Callable[[Vm], dict[str, Any]]]] = {
    "bridges": _bridges,
    "release": _release,
    "ordered": _ordered,
    **{word: _asked(word) for word in request.WORDS},
}


def _receive(vm: Vm) -> list[str]:
    resource = agent.resource_of(vm)
    # This node may have joined a moment ago.
    locks.await_(vm.machine, locks.RECEIVE_S)
    # A guest that reboots later boots them here; that it moves does not need them.
    bootfiles.try_to_fetch(vm.machine, resource.config)
    return moving.receive(vm, resource)


# --- kernels and ramdisks -----------------------------------------------------------------------


def _digests(words: list[str], most: int = _MOST) -> list[str]:
    if not 0 < len(words) <= most or not all(map(kernels.DIGEST.fullmatch, words)):
        raise UsageError("this is not the hash of a kernel or ramdisk")
    return words


def _lacks(machine: Machine, words: list[str]) -> dict[str, Any]:
    return {"lacks": [word for word in _digests(words) if not kernels.has(machine, word)]}


def _keep(machine: Machine, words: list[str], data: BinaryIO) -> dict[str, Any]:
    (digest,) = _digests(words, most=1)
    kernels.keep(machine, digest, kernels.read_all(data))
    _log.info("keeps the kernel or ramdisk %s", digest)
    return {}


def _fetched(machine: Machine, words: list[str]) -> list[str]:
    (digest,) = _digests(words, most=1)
    if not kernels.has(machine, digest):
        raise NotFoundError(f"{machine.hostname} does not have the kernel or ramdisk {digest}")
    return ["cat", "--", kernels.path_of(machine, digest)]


# --- all of them --------------------------------------------------------------------------------


def _corosync(machine: Machine, _words: list[str]) -> dict[str, Any]:
    """Which corosync.conf this node has: all must have the same before one has it loaded."""
    with open(machine.corosync_conf, "rb") as file:
        return {"sha256": hashlib.sha256(file.read()).hexdigest()}


def _journal(machine: Machine, words: list[str]) -> dict[str, Any]:
    if len(words) != 1 or not _MOMENT.fullmatch(words[0]):
        raise UsageError("'journal' is asked since a moment, in seconds since 1970")
    return journal.told(machine.runner, float(words[0]))


def _domains(machine: Machine, words: list[str]) -> dict[str, Any]:
    """What Xen shows here of a cloud's VMs."""
    if len(words) != 1:
        raise UsageError("'domains' is asked about one cloud")
    return seats.domains(machine, names.cloud_id(words[0]))


def _check(machine: Machine, _words: list[str]) -> dict[str, Any]:
    return survey.told(machine)


def _boot(machine: Machine, _words: list[str]) -> dict[str, Any]:
    """Which boot it is in: that is how a test of fencing knows that it was reset."""
    return {"id": boot_id(machine)}


def _usage(machine: Machine, _words: list[str]) -> dict[str, Any]:
    return {"used": usage.measure(machine)}


_OF_NODE: Final[Mapping[str, Callable[[Machine, list[str]], dict[str, Any]]]] = {
    "lacks": _lacks,
    "corosync": _corosync,
    "journal": _journal,
    "domains": _domains,
    _BOOT: _boot,
    "check": _check,
    "usage": _usage,
}


def serve(
    machine: Machine, text: str, become: Callable[[list[str]], None], data: BinaryIO
) -> dict[str, Any]:
    """Do what was asked and return the answer; some words become another program.

    ``data`` is the standard input, which only ``keep`` reads.
    """
    word, *rest = text.split() or [""]
    about_vm = word in (*_ANSWERS, "receive")
    if not about_vm and word not in (*_OF_NODE, "keep", "fetch"):
        raise UsageError(f"'{text[:80]}' is not what a node of cxm asks")
    if not machine.in_cluster:
        raise RefusedError(f"{machine.hostname} is not a node of a cluster")
    if about_vm:
        return _about_vm(machine, word, rest, become)
    if word == "fetch":
        become(_fetched(machine, rest))
    if word == "keep":
        return _keep(machine, rest, data)
    return _OF_NODE[word](machine, rest)


def _about_vm(
    machine: Machine, word: str, rest: list[str], become: Callable[[list[str]], None]
) -> dict[str, Any]:
    if len(rest) != _VM_WORDS - 1:
        raise UsageError(f"'{word}' is asked about one VM of one cloud")
    vm = Vm(machine, Owner(names.cloud_id(rest[0]), names.vm_id(rest[1])))
    if word == "receive":
        become(_receive(vm))
    return _ANSWERS[word](vm)


def answered(
    machine: Callable[[], Machine], text: str, become: Callable[[list[str]], None], data: BinaryIO
) -> dict[str, Any]:
    """The same, but that a failure is an answer too."""
    try:
        return serve(machine(), text, become, data)
    except Exception as error:  # noqa: BLE001 - the boundary
        failure = explained(error, f"'{text[:80]}'", _log)
        _log.error("%s", failure.sentence())
        return {"error": failure.message, "hint": failure.hint}


def machine_for(text: str, read: Callable[[], NodeConfig]) -> Machine:
    """This node for what is asked; raises where that needs settings that cannot be read.

    A cluster is formed, and its fencing proven, before cxm-setup node gives a node any.
    """
    plain = this_machine()
    word, *_rest = text.split() or [""]
    return plain if word in _PLAIN else replace(plain, config=read())


def main(environ: Mapping[str, str]) -> int:
    """The entry point of ``cxm-peer``."""
    os.umask(0o022)
    log.to_syslog(ident="cxm-peer", debug=False)
    text = environ.get("SSH_ORIGINAL_COMMAND", "")
    answer = answered(
        lambda: machine_for(text, lambda: settings()[0]), text, run.become, sys.stdin.buffer
    )
    sys.stdout.write(json.dumps(answer) + "\n")
    if "error" in answer:
        # Whoever asked to receive is xl, which reads no answer and hands this on.
        sys.stderr.write(peer.refused(answer))
    return CxmError.code if "error" in answer else 0
