# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Every verb about disks ends at every step and is run again: the same state, nothing left."""

import gzip
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cxm import interrupt
from cxm.errors import (
    CxmError,
)
from cxm.names import State
from cxm.wire import Item, Section, Zeros
from tests.fakes.call import Answer, ask
from tests.fakes.disks import (
    FILES,
    NOISE,
    assert_no_old_bytes,
    blank,
    deployed,
    directory,
    files,
    new_node,
    picture,
    read,
    section,
    tags_of,
    write,
)
from tests.fakes.filesteps import is_file_step, watched
from tests.fakes.machine import MIB, FakeNode, Fault, How, KilledError


@dataclass(frozen=True)
class Scenario:
    """A verb on a prepared node."""

    act: Callable[[FakeNode], Answer]
    prepare: Callable[[FakeNode], object] = lambda _node: None
    makes: bool = True  # a failure leaves what was there before
    shared: tuple[bool, ...] = (False,)


def _context(node: FakeNode) -> Answer:
    return write(node, section(b"new context"), disk=2, replace=True)


def _prepared_context(node: FakeNode) -> None:
    write(node, section(NOISE), disk=2)
    deployed(node, 42)


def _checkpoint(node: FakeNode) -> list[Item]:
    return [
        Section("deployment.0", {"mode": 0o640}),
        b"name = 'x'\n",
        Section("checkpoint", {"kind": "volume", "size_mib": 8}),
        NOISE,
        Zeros(MIB),
    ]


def _whole_vm(node: FakeNode) -> None:
    """A VM with two disks, a checkpoint, files, a record and a stored configuration."""
    write(node, section(NOISE))
    blank(node)
    _directory(node)
    deployed(node, 42)
    Path(node.path("cfg", "user-vm42.home.net")).write_text("VM_ID = 42\n")


def _directory(node: FakeNode) -> Answer:
    return ask(
        node.machine(),
        "dir-write",
        _checkpoint(node),
        vm=42,
        dir=directory(node, 42),
        name="user-vm42.home.net",
    )


SCENARIOS = {
    "write raw": Scenario(lambda node: write(node, section(NOISE)), shared=(False, True)),
    "write gzip": Scenario(lambda node: write(node, section(gzip.compress(NOISE)), content="gzip")),
    "write tar.gz": Scenario(
        lambda node: write(node, section(gzip.compress(FILES)), content="tar.gz", fstype="ext4")
    ),
    "write over a leftover": Scenario(
        lambda node: write(node, section(NOISE)),
        lambda node: node.add_lv("lv-one-42-0", 8, tags=tags_of(42, "0", State.FILLING)),
        makes=False,
    ),
    "write again": Scenario(
        lambda node: write(node, section(NOISE)), lambda node: write(node, section(NOISE))
    ),
    "replace": Scenario(_context, _prepared_context, makes=False, shared=(False, True)),
    "blank swap": Scenario(lambda node: blank(node, made_as="swap")),
    "blank raw": Scenario(blank, shared=(False, True)),
    "blank file system": Scenario(lambda node: blank(node, made_as="ext4")),
    "read raw": Scenario(
        lambda node: read(node, "raw")[1],
        lambda node: write(node, section(NOISE)),
        makes=False,
        shared=(False, True),
    ),
    "read gzip": Scenario(
        lambda node: read(node, "gzip")[1],
        lambda node: write(node, section(NOISE)),
        makes=False,
        shared=(False, True),
    ),
    "read tar.gz": Scenario(
        lambda node: read(node, "tar.gz")[1],
        lambda node: write(node, section(FILES), content="tar", fstype="ext4"),
        makes=False,
        shared=(False, True),
    ),
    "remove": Scenario(
        lambda node: ask(node.machine(), "disk-remove", vm=42, disk=0, dir=directory(node, 42)),
        lambda node: write(node, section(NOISE)),
        makes=False,
    ),
    "remove all": Scenario(
        lambda node: ask(node.machine(), "vm-remove", vm=42, dir=directory(node, 42)),
        _whole_vm,
        makes=False,
    ),
    "read directory": Scenario(
        lambda node: ask(node.machine(), "dir-read", vm=42, dir=directory(node, 42)),
        _whole_vm,
        makes=False,
        shared=(False, True),
    ),
    "write file": Scenario(
        lambda node: ask(
            node.machine(),
            "file-write",
            section(NOISE, name="kernel"),
            vm=42,
            dir=directory(node, 42),
            file="kernel",
        ),
    ),
    "directory": Scenario(_directory, makes=False),
}


# A step that fails is quick enough for every run where its undoing is of its own kind; the other
# ways take make test-all as long again.
_UNDONE = ("write tar.gz", "read gzip", "remove all")


def _cases() -> Iterator[object]:
    """On a shared group a step that fails is undone as one that is killed is made good."""
    for name, scenario in SCENARIOS.items():
        for shared in scenario.shared:
            for how in How:
                fails = how is How.FAIL and name in _UNDONE and not shared
                is_quick = how is How.KILL or fails
                marks = () if is_quick else pytest.mark.extensive
                case = f"{name}-{shared}-{how.value}"
                yield pytest.param(name, shared, how, marks=marks, id=case)


@pytest.mark.parametrize(("name", "shared", "how"), list(_cases()))
@pytest.mark.usefixtures("own_signals")
def test_fault_at_every_step(tmp_path: Path, name: str, how: How, *, shared: bool) -> None:
    """A verb that ends at any step and is run again does what it does undisturbed."""
    scenario = SCENARIOS[name]

    def prepared(path: Path) -> FakeNode:
        node = new_node(path)
        node.shared = shared
        scenario.prepare(node)
        node.ran.clear()
        return node

    undisturbed = prepared(tmp_path / "undisturbed")
    with watched(undisturbed):
        scenario.act(undisturbed)
    expected = picture(undisturbed)
    steps = len(undisturbed.ran)
    assert steps >= 1
    for step in range(steps):
        if how is How.KILL_AFTER and is_file_step(undisturbed.ran[step]):
            continue
        node = prepared(tmp_path / str(step))
        before = picture(node)
        node.fault = Fault(step, how)
        interrupt.install()
        with pytest.raises((KilledError, CxmError)), watched(node):
            scenario.act(node)
        node.revive()
        if how in (How.FAIL, How.TERM):
            assert node.state.mounts == {}
            assert files(node.path("tmp")) == {}
            if scenario.makes:
                after = picture(node)
                after["dirs"] = {
                    path: what for path, what in after["dirs"].items() if what != "directory"
                }
                before["dirs"] = {
                    path: what for path, what in before["dirs"].items() if what != "directory"
                }
                assert after == before, f"step {step} {undisturbed.ran[step]}"
        scenario.act(node)
        assert picture(node) == expected, f"step {step} {undisturbed.ran[step]}"
        assert_no_old_bytes(node)
