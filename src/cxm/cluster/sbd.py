# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what is asked of a running sbd; its disk and its settings are :mod:`cxm.setup.sbd`'s."""

import os
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from cxm.run import Runner

SERVICE: Final = "sbd.service"
_TIMEOUT_S: Final = 60.0
_CODES: Final = range(5)  # systemctl's answers


def reads(runner: Runner, device: str, root: str = "/") -> bool:
    """Whether sbd runs here and reads its messages from this disk; only root can see that.

    It goes on with the disk that its settings named when it started. Its environment does not tell:
    sbd writes its title over that. But each disk is read by a child of it that has it open.
    """
    argv = ["systemctl", "show", "--property=MainPID", "--value", SERVICE]
    main = runner.run(argv, timeout_s=_TIMEOUT_S, ok=_CODES).stdout.strip()
    wanted = os.path.realpath(os.path.join(root, device.lstrip("/")))
    return wanted in _open_in_children(os.path.join(root, "proc"), main)


def _open_in_children(proc: str, main: str) -> Iterator[str]:
    """The files that are open in the children of a process; none where it is not."""
    try:
        with open(os.path.join(proc, main, "task", main, "children"), encoding="ascii") as file:
            children = file.read().split()
    except OSError:
        return
    for child in children:
        # It may have ended meanwhile.
        with suppress(OSError):
            directory = os.path.join(proc, child, "fd")
            yield from (
                os.path.realpath(os.path.join(directory, fd)) for fd in os.listdir(directory)
            )
