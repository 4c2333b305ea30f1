# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns a person's sitting at a node's serial console."""

import os
import selectors
import socket
import sys
import termios
import tty

from cxm.errors import CxmError

_LEAVE = b"\x1d"  # Ctrl-]
_HISTORY = 2000


def attach(path: str, log: str) -> None:
    """Connect the terminal with a console until Ctrl-] (or the end of the input)."""
    line = socket.socket(socket.AF_UNIX)
    try:
        line.connect(path)
    except OSError as error:
        raise CxmError(f"cannot open the console {path}: {error.strerror}") from error
    with open(log, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _HISTORY))
        sys.stdout.buffer.write(file.read())
    print("\r\n[Ctrl-] leaves; Ctrl-a three times switches between dom0 and Xen]\r", flush=True)
    terminal = sys.stdin.isatty()
    before = termios.tcgetattr(sys.stdin) if terminal else None
    try:
        if terminal:
            tty.setraw(sys.stdin)
        _copy(line)
    finally:
        if before is not None:
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
        line.close()


def _copy(line: socket.socket) -> None:
    with selectors.DefaultSelector() as waiting:
        waiting.register(line, selectors.EVENT_READ)
        waiting.register(sys.stdin.fileno(), selectors.EVENT_READ)
        while True:
            for key, _ in waiting.select():
                if key.fileobj is line:
                    data = line.recv(4096)
                    if not data:
                        return
                    os.write(sys.stdout.fileno(), data)
                else:
                    typed = os.read(sys.stdin.fileno(), 1024)
                    if not typed or _LEAVE in typed:
                        return
                    line.sendall(typed)
