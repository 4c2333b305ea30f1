# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Each verb about domains, failed and killed at each of its steps and called again."""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from cxm import interrupt
from cxm.errors import CxmError, RefusedError
from cxm.names import VmId, domain_uuid
from tests.fakes.call import ask
from tests.fakes.domains import (
    NAME,
    checkpoint,
    guest,
    new_xen,
    picture,
    restore,
    save,
    start,
    stop,
)
from tests.fakes.filesteps import is_file_step, watched
from tests.fakes.machine import CLOUD, Fault, How, KilledError
from tests.fakes.xen import FakeXen

Act = Callable[[FakeXen], Any]


def _nothing(_xen: FakeXen) -> None:
    pass


def _started(xen: FakeXen) -> None:
    start(xen)


def _saved(xen: FakeXen) -> None:
    start(xen)
    save(xen)


def _stopped(xen: FakeXen) -> None:
    start(xen)
    stop(xen)


def _saved_elsewhere(xen: FakeXen) -> None:
    _saved(xen)
    os.unlink(xen.node.path("cfg", NAME))


CASES: dict[str, tuple[Act, Act]] = {
    "start": (_nothing, start),
    "start over a checkpoint": (_saved, start),
    "start again": (_stopped, start),
    "shutdown": (_started, stop),
    "destroy": (_started, lambda xen: stop(xen, "destroy")),
    "reboot": (_started, lambda xen: ask(xen.machine(), "domain-reboot", vm=7)),
    "reset": (_started, lambda xen: ask(xen.machine(), "domain-reset", vm=7)),
    "restore": (_saved, restore),
    "restore elsewhere": (_saved_elsewhere, lambda xen: restore(xen, guest())),
}


_DEAR = ("restore", "restore elsewhere", "start over a checkpoint")


def _cuts() -> Iterator[Any]:
    """Every case in every way; the dearest in one way, and in the others in make test-all."""
    for case in CASES:
        for how in How:
            dear = case in _DEAR and (how is not How.KILL or case == "restore elsewhere")
            marks = [pytest.mark.extensive] if dear else []
            yield pytest.param(case, how, marks=marks, id=f"{case}-{how.value}")


@pytest.mark.parametrize(("case", "how"), list(_cuts()))
@pytest.mark.usefixtures("own_signals")
def test_cut_at_any_step_and_run_again_ends_the_same(tmp_path: Path, case: str, how: How) -> None:
    """A verb that fails or is killed at any of its commands is finished by calling it again."""
    prepare, act = CASES[case]
    whole = _world(tmp_path / "whole", prepare)
    with watched(whole.node):
        act(whole)
    expected = picture(whole)
    steps = len(whole.node.ran)
    assert steps > 2
    for step in range(steps):
        if how is How.KILL_AFTER and is_file_step(whole.node.ran[step]):
            continue
        xen = _world(tmp_path / f"{step}", prepare)
        xen.node.fault = Fault(step, how)
        interrupt.install()
        with suppress(CxmError, KilledError), watched(xen.node):
            act(xen)
        xen.node.revive()
        xen.sleep(30)
        act(xen)
        assert _same(picture(xen), expected, tmp_path, step), step
        assert len([each for each in xen.state.domains if each.uuid == _uuid()]) <= 1


@pytest.mark.parametrize(
    "how",
    [pytest.param(each, marks=[] if each is How.KILL else [pytest.mark.extensive]) for each in How],
)
@pytest.mark.usefixtures("own_signals")
def test_save_cut_at_any_step_ends_whole_or_says_that_the_memory_is_lost(
    tmp_path: Path, how: How
) -> None:
    """Between the end of xl and the mark 'ready' nobody can tell whether all of it was written."""
    whole = _world(tmp_path / "whole", _started)
    with watched(whole.node):
        save(whole)
    expected = picture(whole)
    lost = 0
    for step, words in enumerate(whole.node.ran):
        if how is How.KILL_AFTER and is_file_step(words):
            continue
        xen = _world(tmp_path / f"{step}", _started)
        xen.node.fault = Fault(step, how)
        interrupt.install()
        with suppress(CxmError, KilledError), watched(xen.node):
            save(xen)
        xen.node.revive()
        xen.sleep(30)
        if xen.of_vm(7) is not None or checkpoint(xen) == "ready":
            save(xen)
            assert _same(picture(xen), expected, tmp_path, step), step
            continue
        lost += 1
        with pytest.raises(RefusedError, match="its saved memory is incomplete or used up"):
            save(xen)
        start(xen)
        assert checkpoint(xen) is None
    assert lost == 0 or how is not How.TERM  # a signal waits


def _world(path: Path, prepare: Act) -> FakeXen:
    xen = new_xen(path)
    os.makedirs(xen.node.path("datastores", "0", "7"), exist_ok=True)
    prepare(xen)
    xen.node.ran.clear()
    return xen


def _uuid() -> str:
    return domain_uuid(CLOUD, VmId(7))


def _same(found: dict[str, Any], expected: dict[str, Any], root: Path, step: int) -> bool:
    text = repr(found).replace(f"{root}/{step}/", "/")
    return text == repr(expected).replace(f"{root}/whole/", "/")
