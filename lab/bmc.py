# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the BMC of one node: an IPMI 2.0 service in front of the node's QEMU.

It is a process of its own, so it answers while its node is off, hung or crashed. It is started by
lab.py with the address to listen on, the node's control socket, the file that marks "power off"
and the file of the node's faults.
"""

import errno
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from pyghmi.ipmi import bmc

from cxm.errors import CommandError
from lab import faults
from lab.machine import Power, power_of, switch_off, switch_on
from lab.qmp import Qmp
from lab.spec import BMC_PASSWORD, BMC_USER

_PORT = 623
_LATE_ANSWER_S = 0.5  # a slow BMC's answers; ipmitool asks again after one second
_CUT_POLL_S = 0.2
_NODE_BUSY = 0xC0  # IPMI's completion code


class NodeBmc(bmc.Bmc):  # type: ignore[misc]  # pyghmi has no types
    """Carries out chassis commands on the node's QEMU."""

    def __init__(self, address: str, control: str, marker: str, faults_file: str) -> None:
        super().__init__({BMC_USER: BMC_PASSWORD}, port=_PORT, address=f"::ffff:{address}")
        self._control = control
        self._marker = marker
        self._faults_file = faults_file

    def get_power_state(self) -> str:
        if os.path.exists(self._marker):
            return "off"
        with Qmp(self._control) as qmp:
            return "off" if power_of(qmp.status()) is Power.OFF else "on"

    def power_off(self) -> None:
        self._act("power off", self._switch_off)

    def power_on(self) -> None:
        self._act("power on", self._switch_on)

    def power_reset(self) -> None:
        self._act("reset", self._reset)

    def power_cycle(self) -> None:
        self._act("power cycle", self._switch_off, self._switch_on)

    def power_shutdown(self) -> None:
        self._act("soft shutdown", self._press)

    def _switch_off(self) -> None:
        switch_off(self._control, self._marker)

    def _switch_on(self) -> None:
        switch_on(self._control, self._marker)

    def _reset(self) -> None:
        if os.path.exists(self._marker):
            return
        with Qmp(self._control) as qmp:
            qmp.execute("system_reset")
            qmp.execute("cont")

    def _press(self) -> None:
        with Qmp(self._control) as qmp:
            qmp.execute("system_powerdown")

    def _act(self, text: str, *steps: Callable[[], None]) -> None:
        """Do it now, or later when the BMC is slow: it has said yes by then."""

        def work() -> None:
            _say(text)
            for step in steps:
                step()

        delay_s = self._delay_s()
        if delay_s:
            _say(f"{text}, in {delay_s:g} s")
            threading.Timer(delay_s, work).start()
        else:
            work()

    def _delay_s(self) -> float:
        return faults.read_file(self._faults_file).bmc_slow_s

    def sessionless_data(self, data: bytes, sockaddr: Any) -> None:
        """A new conversation; without power there is nobody to have it."""
        if self._has_power():
            super().sessionless_data(data, sockaddr)

    def handle_raw_request(self, request: Any, session: Any) -> None:
        """A command inside of a conversation."""
        if not self._has_power():
            return
        if delay_s := self._delay_s():
            time.sleep(min(delay_s, _LATE_ANSWER_S))
        try:
            super().handle_raw_request(request, session)
        except CommandError as error:
            _say(error.message)
            session.send_ipmi_response(code=_NODE_BUSY)

    def _has_power(self) -> bool:
        linked = faults.read_file(self._faults_file).bmc_linked
        return not (linked and os.path.exists(self._marker))


def _say(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, flush=True)


def _bound() -> NodeBmc:
    """The BMC at its address, which a lab that heals takes away for a moment."""
    while True:
        try:
            return NodeBmc(*sys.argv[1:5])
        except OSError as error:
            if error.errno != errno.EADDRNOTAVAIL:
                raise
            time.sleep(_CUT_POLL_S)


if __name__ == "__main__":
    service = _bound()
    _say(f"listening on {sys.argv[1]}")
    while True:
        try:
            service.listen()
        except OSError as error:  # its address is taken away while it talks: it is cut off
            _say(f"not reachable: {error}")
            time.sleep(_CUT_POLL_S)
