# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Fixtures for tests of verbs and of driver actions."""

import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cxm import interrupt
from cxm.one.version import OneVersion
from cxm.sync import claims
from tests.fakes.believing import Believing
from tests.fakes.domains import new_xen
from tests.fakes.hosts import FRONTEND, Cloud
from tests.fakes.machine import FakeNode
from tests.fakes.pair import Pair
from tests.fakes.transfers import new_cloud
from tests.fakes.xen import FakeXen


@pytest.fixture
def node(tmp_path: Path) -> FakeNode:
    """A node with an empty volume group of 1 GiB, full of an old tenant's bytes."""
    return FakeNode(str(tmp_path / "node1"))


@pytest.fixture
def xen(tmp_path: Path) -> FakeXen:
    """A standalone host with Xen, and the disk of VM 7."""
    return new_xen(tmp_path / "node1")


@pytest.fixture
def own_signals() -> Iterator[None]:
    """What a test makes of signals (the helper turns TERM into an exception) ends with it."""
    numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    yield
    interrupt.install()  # a signal that still waits to be raised would end a test that follows
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.fixture
def cloud_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a cloud is made; temporary files of the frontend lie in it, where a test sees them."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "cloud" / FRONTEND / "tmp"))
    return tmp_path / "cloud"


@pytest.fixture
def cloud(cloud_root: Path) -> Cloud:
    """A frontend and two standalone hosts; oned knows VM 42 and its images."""
    return new_cloud(cloud_root)


@pytest.fixture(params=[OneVersion(7, 4)], ids=str)
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Believing]:
    """VM 7 runs on node1, and an oned of the version that the test names, or the newest, knows."""
    pair = Pair()
    pair.start("node1")
    made = Believing(tmp_path, pair, request.param)
    yield made
    # No claim may stay that nobody ends.
    assert made.state == "MIGRATE" or not list(claims.all_of(str(made.here().place)))
