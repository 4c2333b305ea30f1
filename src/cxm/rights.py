# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns how root works with another account's rights, in directories that the account can write."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from cxm import interrupt


@contextmanager
def working_as(uid: int, gid: int) -> Iterator[None]:
    """Let root work with another account's rights: a link planted by that account gains nothing.

    Anybody but root has nothing to give up. Signals wait until the block has ended, for what they
    undo needs the rights from before; so the block is short, and starts no command.
    """
    if os.geteuid() != 0 or uid == 0:
        yield
        return
    group, groups = os.getegid(), os.getgroups()
    with interrupt.held_off():
        try:
            os.setgroups([gid])
            os.setegid(gid)
            os.seteuid(uid)
            yield
        finally:
            os.seteuid(0)
            os.setegid(group)
            os.setgroups(groups)
