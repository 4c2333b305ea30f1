# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""The lab as fixtures: one lab a session, every test from a snapshot.

The labs are named after CXM_LAB_NAME (default "test"), with a number beside another session. With
CXM_LAB_KEEP=1 they stay up after the session, and a failed test is followed by how to log in.
"""

import fcntl
import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager

import pytest

from lab import cluster, guest_image, lab
from lab import town as towns
from lab.guest_image import GuestImage
from lab.lab import Lab
from lab.machine import Machine
from lab.places import places
from lab.progress import Progress
from lab.spec import make_spec
from lab.town import Town
from tests.lab.sites import Site, Sites

_NAME = os.environ.get("CXM_LAB_NAME", "test")
_KEEP = bool(os.environ.get("CXM_LAB_KEEP"))

_SUBJECTS = {
    "test_cluster_sync.py": "OpenNebula's record",
    "test_cluster_balance.py": "balancing",
    "test_demo.py": "the demo",
    "test_lab.py": "the lab itself",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything below this directory needs the lab."""
    here = os.path.dirname(__file__)
    for item in items:
        if str(item.path).startswith(here):
            item.add_marker(pytest.mark.lab)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Say where to look after a failure."""
    report = yield
    if report.failed and isinstance(item, pytest.Function):
        for found in item.funcargs.values():
            if isinstance(found, Lab):
                login = f"cxm-lab --name {found.places.name} ssh {next(iter(found.machines))}"
                report.sections.append(("the lab", f"{login}\nlogs: {found.places.logs}"))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what the lab's cases took, of each file and of what they are about."""
    seconds: dict[str, float] = {}
    about: dict[str, float] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport) and "lab" in report.keywords:
                part = os.path.basename(report.fspath)
                seconds[part] = seconds.get(part, 0.0) + report.duration
                subject = _subject(part)
                about[subject] = about.get(subject, 0.0) + report.duration
    for found in (seconds, about):
        for part, taken in sorted(found.items(), key=lambda row: -row[1]):
            terminalreporter.write_line(f"{taken:7.0f} s in the lab: {part}")


def _subject(part: str) -> str:
    """What the cases of a file are about."""
    if part in _SUBJECTS:
        return _SUBJECTS[part]
    return "the cluster" if part.startswith("test_cluster") else "a lone host"


@contextmanager
def free_name(name: str) -> Iterator[str]:
    """``name``, or with a number when another session on this machine uses it just now."""
    for number in range(1, 10):
        chosen = name if number == 1 else f"{name}{number}"
        with open(places(chosen).cached("locks", f"session-{chosen}"), "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            yield chosen
            return
    raise RuntimeError(f"nine sessions use labs called {name}")


def bring_up(name: str, *hosts: str) -> Iterator[Lab]:
    """A lab of its own for a session, booted once ever, ended afterwards."""
    with free_name(name) as chosen:
        lab.down(chosen)
        running = lab.up(make_spec(hosts), name=chosen, progress=Progress())
        try:
            yield running
        finally:
            if not _KEEP:
                running.down()


@pytest.fixture(scope="session")
def solo_session() -> Iterator[Lab]:
    """The session's lab with the standalone host solo1."""
    yield from bring_up(f"{_NAME}-solo", "solo1")


@pytest.fixture
def solo_lab(solo_session: Lab) -> Lab:
    """The lab with solo1, freshly booted."""
    solo_session.booted()
    return solo_session


@pytest.fixture
def solo(solo_lab: Lab) -> Machine:
    """The standalone host, freshly booted."""
    return solo_lab.machine("solo1")


@pytest.fixture(scope="session")
def pair_session() -> Iterator[Lab]:
    """The session's lab with the two nodes that share a SAN disk."""
    yield from bring_up(f"{_NAME}-pair", "node1", "node2")


@pytest.fixture
def pair_lab(pair_session: Lab) -> Lab:
    """The lab with node1 and node2, freshly booted."""
    pair_session.booted()
    return pair_session


@pytest.fixture
def cluster_lab(pair_session: Lab) -> Lab:
    """The lab with node1 and node2, just formed into a cluster that the lab's cloud may use."""
    cluster.bring_up(pair_session)
    return pair_session


@pytest.fixture
def town(pair_session: Lab, guest: GuestImage) -> Town:
    """A cluster with a VM on each node."""
    return towns.bring_up(pair_session, guest)


@pytest.fixture(scope="session")
def guest() -> GuestImage:
    """The image of a small real guest."""
    return guest_image.ready(places(_NAME), Progress())


@pytest.fixture
def guest_lab(solo_session: Lab, guest: GuestImage) -> Lab:
    """The lab with solo1, the guest's kernel, initrd and tree in its /root."""

    def prepare(running: Lab) -> None:
        for path in (guest.tgz, guest.fast_kernel, guest.initrd):
            running.machine("solo1").push(path, "/root/")

    solo_session.prepared(f"guest-{guest.key}", prepare)
    return solo_session


@pytest.fixture(scope="module")
def sites(solo_session: Lab, guest: GuestImage) -> Iterator[Sites]:
    """OpenNebulas with solo1 attached, for the tests of a module."""
    made = Sites(solo_session, guest)
    yield made
    made.close()


@pytest.fixture
def version() -> str:
    """The version of OpenNebula that a test is for, unless it is given by a parameter."""
    return "7.4"


@pytest.fixture
def site(version: str, sites: Sites) -> Site:
    """An OpenNebula of that version, solo1 attached to it; a new one after a failure."""
    return sites.get(version)
