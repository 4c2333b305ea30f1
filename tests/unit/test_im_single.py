# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""One monitoring client a host: the newer one wins, and nothing is left of the older."""

import os
import select
import signal
import socket
import time
import uuid
from collections.abc import Iterator

import pytest

from cxm.errors import RefusedError
from cxm.one.im import single

UID = os.getuid()


class Holder:
    """A process that has names, as a client has."""

    def __init__(self, names: list[str], *, starts_s: float = 0.0) -> None:
        self.kept: list[socket.socket] = []
        ready, tell = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            self.kept = single.claim(names, uid=UID)
            if starts_s:
                os.write(tell, b"x")
                time.sleep(starts_s)
            for door in self.kept:
                door.listen()
            os.write(tell, b"x")
            time.sleep(60)
            os._exit(0)
        assert select.select([ready], [], [], 10)[0]
        os.close(ready)
        os.close(tell)

    def ended_by(self) -> int:
        """The signal that ended it."""
        _pid, status = os.waitpid(self.pid, 0)
        return os.WTERMSIG(status)


@pytest.fixture
def names() -> Iterator[list[str]]:
    """Two names that nobody else has."""
    made = [f"cxm-test/{uuid.uuid4()}/{each}" for each in ("id", "name")]
    yield made
    single.release(made, uid=UID)


def test_newer_client_takes_the_names(names: list[str]) -> None:
    """The older one is asked to end, by either name."""
    older = Holder(names[1:])
    for door in single.claim(names, uid=UID):
        door.close()
    assert older.ended_by() == signal.SIGTERM


def test_names_are_free_when_their_holder_was_killed(names: list[str]) -> None:
    """No file, no process id to go stale."""
    older = Holder(names)
    os.kill(older.pid, signal.SIGKILL)
    older.ended_by()
    for door in single.claim(names, uid=UID):
        door.close()


def test_release_ends_the_holder_and_waits_for_it(names: list[str]) -> None:
    """After a stop the names are free; without a holder there is nothing to do."""
    older = Holder(names)
    single.release(names, uid=UID)
    assert older.ended_by() == signal.SIGTERM
    single.release(names, uid=UID)


def test_another_users_process_is_never_ended(names: list[str]) -> None:
    """Who squats on the name is named."""
    with socket.socket(socket.AF_UNIX) as squatter:
        squatter.bind(b"\0" + names[0].encode())
        squatter.listen()
        with pytest.raises(RefusedError, match=f"process {os.getpid()} of user {UID}"):
            single.claim(names, uid=UID + 1)


def test_release_ends_one_that_still_starts(names: list[str]) -> None:
    """It has its names and listens a moment later: a stop that misses it leaves it for ever."""
    older = Holder(names, starts_s=0.3)
    single.release(names, uid=UID)
    assert older.ended_by() == signal.SIGTERM
