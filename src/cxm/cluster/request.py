# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what a guest on this node is asked for, whoever asks: the agent, an order, another node."""

import logging
from typing import Final

from cxm.errors import CommandError
from cxm.node.life import Vm, running
from cxm.xen import xl
from cxm.xen.xl import Domain

_log = logging.getLogger(__name__)

# How long a guest has to take a request; the agent's stop destroys it then.
LIMIT_S: Final = 20.0
WORDS: Final = ("state", "shutdown", "reboot")


def is_heard(vm: Vm, domain: Domain, word: str) -> bool:
    """Whether the guest of a domain takes the request to ``shutdown`` or ``reboot``."""
    try:
        if word == "shutdown":
            xl.ask_shutdown(vm.machine.runner, domain.domid, timeout_s=LIMIT_S)
        elif word == "reboot":
            xl.ask_reboot(vm.machine.runner, domain.domid, timeout_s=LIMIT_S)
    except CommandError as error:
        _log.debug("VM %d does not listen: %s", vm.vm, error.message)
        return False
    return True


def ask(vm: Vm, word: str) -> bool:
    """Ask the VM's guest for something, for its ``state`` nothing; False when it does not run here.

    One that does not listen runs on, and can be asked again.
    """
    domain = running(vm.present())
    if domain is None:
        return False
    is_heard(vm, domain, word)
    return True
