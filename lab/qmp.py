# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the conversation with a running QEMU over its machine protocol (QMP)."""

import json
import socket
import time
from collections.abc import Mapping
from typing import Any, Self

from cxm.errors import CommandError

_CONNECT_S = 10.0
_GONE = "QEMU does not answer on its control socket"


class Qmp:
    """One short conversation; QEMU serves one at a time, so others wait for their turn."""

    def __init__(self, path: str, *, timeout_s: float = 30.0) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(_CONNECT_S)
        try:
            self._socket.connect(path)
            self._socket.settimeout(timeout_s)
            self._lines = self._socket.makefile("rb")
            self._read()
            self.execute("qmp_capabilities")
        except OSError as error:
            self._socket.close()
            raise CommandError(f"{_GONE} {path}: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        self._socket.close()

    def _read(self) -> dict[str, Any]:
        line = self._lines.readline()
        if not line:
            raise CommandError(f"{_GONE} {self._path}: it has hung up")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def execute(self, command: str, arguments: Mapping[str, object] | None = None) -> Any:
        """Run one command and return its answer; events in between are dropped."""
        request: dict[str, object] = {"execute": command}
        if arguments:
            request["arguments"] = dict(arguments)
        try:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
            while True:
                answer = self._read()
                if "return" in answer:
                    return answer["return"]
                if "error" in answer:
                    raise CommandError(f"QEMU refused '{command}': {answer['error']['desc']}")
        except OSError as error:
            raise CommandError(f"{_GONE} {self._path}: {error}") from error

    def monitor(self, line: str) -> str:
        """What QEMU's monitor for people prints for a line."""
        return str(self.execute("human-monitor-command", {"command-line": line}))

    def status(self) -> str:
        """The state of the machine: running, paused, shutdown, inmigrate, ..."""
        return str(self.execute("query-status")["status"])

    def wait_status(self, *wanted: str, timeout_s: float) -> None:
        """Wait until the machine is in one of the states ``wanted``."""
        until = time.monotonic() + timeout_s
        while (now := self.status()) not in wanted:
            if now == "internal-error" or time.monotonic() > until:
                raise CommandError(f"the machine is '{now}', wanted was '{' or '.join(wanted)}'")
            time.sleep(0.05)

    def save_memory(self, path: str, *, timeout_s: float) -> None:
        """Write the stopped machine's memory and devices to a compressed file."""
        self.execute("migrate-set-parameters", {"max-bandwidth": 1 << 40})
        self.execute("migrate", {"uri": f"exec:zstd -q -1 -f -o {path}"})
        until = time.monotonic() + timeout_s
        while True:
            state = self.execute("query-migrate")
            if state["status"] == "completed":
                return
            if state["status"] in ("failed", "cancelled") or time.monotonic() > until:
                raise CommandError(
                    f"saving the memory to {path} ended as '{state['status']}': "
                    f"{state.get('error-desc', 'no reason given')}"
                )
            time.sleep(0.05)

    def load_memory(self, path: str) -> None:
        """Begin to fill a machine started for it; wait_status("paused") tells when it is done."""
        self.execute("migrate-incoming", {"uri": f"exec:zstd -q -d -c {path}"})
