# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns listening sockets inside the frontend's place.

A socket belongs to the network namespace in which it was made. A program started in there makes
them and hands them over, so the stand-in itself need not enter it.
"""

import os
import socket
import sys
import tempfile
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from cxm.run import Runner

_KINDS: Final = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
_BACKLOG: Final = 64


def listen(words: Sequence[str]) -> list[socket.socket]:
    """Listening sockets in this namespace; each word is ``tcp:ADDRESS:PORT`` or ``udp:...``."""
    made = []
    for word in words:
        kind, address, port = word.split(":")
        one = socket.socket(socket.AF_INET, _KINDS[kind])
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.bind((address, int(port)))
        if kind == "tcp":
            one.listen(_BACKLOG)
        made.append(one)
    return made


def inside(runner: "Runner", prefix: Sequence[str], words: Sequence[str]) -> list[socket.socket]:
    """The same in the namespace that the words ``prefix`` lead a command into."""
    if not prefix:
        return listen(words)
    with tempfile.TemporaryDirectory(prefix="cxm-oned-") as directory:
        path = os.path.join(directory, "hand")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
            door.bind(path)
            door.listen(1)
            runner.run([*prefix, sys.executable, "-IS", os.path.abspath(__file__), path, *words])
            hand, _address = door.accept()
            with hand:
                _data, numbers, _flags, _from = socket.recv_fds(hand, 16, len(words))
    return [socket.socket(fileno=number) for number in numbers]


def main(path: str, words: Sequence[str]) -> None:
    """Make the sockets and hand them over through the socket ``path``."""
    made = listen(words)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as hand:
        hand.connect(path)
        socket.send_fds(hand, [b"sockets"], [one.fileno() for one in made])


if __name__ == "__main__":
    # cxm is not imported here: the frontend's place may see another one.
    main(sys.argv[1], sys.argv[2:])
