# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Signals become exceptions, once, and not in the middle of undoing."""

import signal
from collections.abc import Iterator

import pytest

from cxm import interrupt

NUMBERS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


@pytest.fixture(autouse=True)
def _installed() -> Iterator[None]:
    """Signals are exceptions during the test."""
    before = [signal.getsignal(number) for number in NUMBERS]
    interrupt.install()
    yield
    interrupt.install()  # a signal that still waits to be raised would end a test that follows
    for number, handler in zip(NUMBERS, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("number", NUMBERS)
def test_signal_is_an_exception_that_nobody_swallows(number: signal.Signals) -> None:
    """It passes by a handler for all ordinary errors, and names the signal."""

    def work() -> None:
        try:
            signal.raise_signal(number)
        except Exception:  # noqa: BLE001 - what must not catch it
            pytest.fail("an interruption is no ordinary error")

    with pytest.raises(interrupt.InterruptedBySignalError, match=number.name):
        work()


def test_undoing_is_not_disturbed() -> None:
    """The second signal does nothing, and one that comes while it is held off waits."""
    done = []

    def work() -> None:
        with interrupt.held_off():
            signal.raise_signal(signal.SIGTERM)
            done.append("made")
        done.append("never")

    with pytest.raises(interrupt.InterruptedBySignalError):
        work()
    signal.raise_signal(signal.SIGTERM)
    with interrupt.held_off():
        signal.raise_signal(signal.SIGHUP)
        done.append("undone")
    assert done == ["made", "undone"]


def test_held_off_nests() -> None:
    """The outermost block decides."""
    done = []

    def work() -> None:
        with interrupt.held_off():
            with interrupt.held_off():
                signal.raise_signal(signal.SIGINT)
            done.append("inner ended")

    with pytest.raises(interrupt.InterruptedBySignalError):
        work()
    assert done == ["inner ended"]


def test_failure_of_the_block_is_not_hidden() -> None:
    """What fails inside is what is raised; the signal has had its effect by then."""

    def work() -> None:
        with interrupt.held_off():
            signal.raise_signal(signal.SIGTERM)
            raise ValueError("cause")

    with pytest.raises(ValueError, match="cause"):
        work()
