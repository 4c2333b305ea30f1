# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""One holder at a time, and nothing left when the holder is gone."""

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from cxm import lock
from cxm.errors import LockTimeoutError


def test_second_holder_waits_in_vain_then_says_so(tmp_path: Path) -> None:
    """A held lock is refused in a sentence that names it."""
    with (
        lock.hold(str(tmp_path), "vm-1", timeout_s=1),
        pytest.raises(LockTimeoutError, match="'vm-1'"),
        lock.hold(str(tmp_path), "vm-1", timeout_s=0),
    ):
        pass


def test_released_lock_can_be_taken_again(tmp_path: Path) -> None:
    """Leaving the block, even by an error, frees the lock; other names never block."""
    with pytest.raises(ValueError, match="x"), lock.hold(str(tmp_path), "vm-1", timeout_s=0):
        raise ValueError("x")
    with lock.hold(str(tmp_path), "vm-1", timeout_s=0), lock.hold(str(tmp_path), "b", timeout_s=0):
        assert sorted(path.name for path in tmp_path.iterdir()) == ["b.lock", "vm-1.lock"]
    assert list(tmp_path.iterdir()) == []


def _crowd(
    take: Callable[[], AbstractContextManager[None]], rounds: int, stay_s: float = 0.0
) -> list[int]:
    """How many are inside, at each entry of four takers in a row."""
    inside: list[int] = []
    seen: list[int] = []

    def work(number: int) -> None:
        for _round in range(rounds):
            with take():
                inside.append(number)
                seen.append(len(inside))
                time.sleep(stay_s)
                inside.remove(number)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return seen


def test_one_holder_though_files_come_and_go(tmp_path: Path) -> None:
    """Many takers in a row never overlap, although each removes the lock's file."""
    assert set(_crowd(lambda: lock.hold(str(tmp_path), "vm-1", timeout_s=60), 50)) == {1}


def _places(directory: Path) -> list[str]:
    places = [directory / "cpu0", directory / "cpu1"]
    for place in places:
        place.mkdir()
    return [str(place) for place in places]


def test_as_many_as_there_are_places_and_then_whoever_has_waited_for_long(tmp_path: Path) -> None:
    """The third waits for its turn, but not for ever."""
    places = _places(tmp_path)
    with lock.turn(places, patience_s=60), lock.turn(places, patience_s=60):
        began = time.monotonic()
        with lock.turn(places, patience_s=0.3):
            assert time.monotonic() - began >= 0.3


def test_a_place_that_is_left_is_the_next_ones(tmp_path: Path) -> None:
    """At no time are there more than places."""
    places = _places(tmp_path)
    seen = _crowd(lambda: lock.turn(places, patience_s=60), 3, stay_s=0.01)
    assert max(seen) <= 2


def test_a_turn_leaves_nothing_when_its_holder_is_killed(tmp_path: Path) -> None:
    """A child that dies in its turn frees its place, and no file tells of it."""
    places = _places(tmp_path)[:1]
    child = os.fork()
    if not child:
        with lock.turn(places, patience_s=60):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    began = time.monotonic()
    with lock.turn(places, patience_s=60):
        assert time.monotonic() - began < 30
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["cpu0", "cpu1"]


def test_a_held_lock_is_seen_without_taking_it(tmp_path: Path) -> None:
    """Held while somebody holds it, and only then; to ask leaves no file behind."""
    assert not lock.is_held(str(tmp_path), "vm-1")
    assert not list(tmp_path.iterdir())
    with lock.hold(str(tmp_path), "vm-1", timeout_s=0):
        assert lock.is_held(str(tmp_path), "vm-1")
        assert not lock.is_held(str(tmp_path), "vm-10")
    assert not lock.is_held(str(tmp_path), "vm-1")
