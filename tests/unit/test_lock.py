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


def _turn(directory: Path, patience_s: float = 60.0) -> AbstractContextManager[None]:
    return lock.turn(str(directory), 2, patience_s=patience_s, longest_s=60.0)


def test_a_place_that_is_left_is_the_next_ones(tmp_path: Path) -> None:
    """At no time are there more than places."""
    seen = _crowd(lambda: _turn(tmp_path), 3, stay_s=0.01)
    assert max(seen) <= 2


class _Clock:
    """Time as who waits has it; meanwhile a place may change hands, every so many seconds."""

    def __init__(self, place: Path, every_s: float) -> None:
        self.now = 0.0
        self._place, self._every_s, self._next = place, every_s, every_s

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        if self.now >= self._next:
            os.utime(self._place, ns=(0, int(self.now * 1e9)))
            self._next += self._every_s


@pytest.mark.parametrize(("every_s", "waited_s"), [(1000.0, 40.0), (30.0, 120.0)])
def test_who_has_waited_for_long_goes_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every_s: float, waited_s: float
) -> None:
    """For longer where places change hands, but not for ever; who has a place goes at once."""
    clock = _Clock(tmp_path / "0", every_s)
    monkeypatch.setattr(lock, "time", clock)

    def take() -> AbstractContextManager[None]:
        return lock.turn(str(tmp_path), 1, patience_s=40.0, longest_s=120.0)

    with take():
        assert clock.now == 0
        with take():
            assert clock.now == pytest.approx(waited_s, abs=1)


def test_a_turn_ends_with_its_holder(tmp_path: Path) -> None:
    """A child that is killed in its turn frees its place."""
    child = os.fork()
    if not child:
        with lock.turn(str(tmp_path), 1, patience_s=60.0, longest_s=60.0):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    began = time.monotonic()
    with lock.turn(str(tmp_path), 1, patience_s=60.0, longest_s=60.0):
        assert time.monotonic() - began < 30


def test_a_held_lock_is_seen_without_taking_it(tmp_path: Path) -> None:
    """Held while somebody holds it, and only then; to ask leaves no file behind."""
    assert not lock.is_held(str(tmp_path), "vm-1")
    assert not list(tmp_path.iterdir())
    with lock.hold(str(tmp_path), "vm-1", timeout_s=0):
        assert lock.is_held(str(tmp_path), "vm-1")
        assert not lock.is_held(str(tmp_path), "vm-10")
    assert not lock.is_held(str(tmp_path), "vm-1")
