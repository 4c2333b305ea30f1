# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""What a guest does, judged over time; CPU use over a span that means something."""

from pathlib import Path

import pytest

from cxm.node import sight
from cxm.node.guests import Life
from cxm.node.sight import Memory, Off, Sample, Seen
from cxm.xen.xl import Domain

UUID = "0b5ff1b9-a6ba-8c44-9a44-00000000002a"


def domain(state: str = "-b----", reason: int | None = None, name: str = "one-42") -> Domain:
    """A domain in a state."""
    return Domain(name, 3, 104, 1, state, 1.5, UUID, reason)


def judge(
    found: Domain | None,
    life: Life | None = None,
    seen: Seen | None = None,
    *,
    busy: bool = False,
    now: float = 0.0,
) -> str | None:
    """The state as a word."""
    state = sight.judge(found, life, Seen() if seen is None else seen, busy=busy, now=now)
    return None if state is None else state.value


@pytest.mark.parametrize(
    ("found", "life", "expected"),
    [
        (domain("r-----"), None, "running"),
        (domain("------"), Life.OFF, "running"),
        (domain("---s--", 0), Life.RUNNING, "poweroff"),
        (domain("---s--", 3), Life.RUNNING, "failure"),
        (domain("---s--", 4), None, "failure"),
        (domain("---s--", 1), Life.RUNNING, "running"),
        (domain("---s-d", 1), None, "running"),
        (domain("-----d"), Life.STOPPED, None),
        (domain("---s--", 0), Life.STOPPED, None),
        (domain("-b----"), Life.STOPPED, "running"),
        (domain("-----d"), Life.CRASHED, "failure"),
        (None, Life.RUNNING, "running"),
        (None, Life.CRASHED, "failure"),
        (None, Life.OFF, "poweroff"),
        (None, Life.STOPPED, None),
        (None, None, None),
    ],
)
def test_first_sight(found: Domain | None, life: Life | None, expected: str | None) -> None:
    """What the domain shows, else what the record says."""
    assert judge(found, life) == expected


@pytest.mark.parametrize("found", [None, domain("r-----"), domain("---s--", 0), domain("--p---")])
def test_an_action_at_work_leaves_nothing_to_say(found: Domain | None) -> None:
    """While the VM's lock is held, whatever is seen may be only in passing."""
    assert judge(found, Life.RUNNING, busy=True) == "busy"


def test_an_action_has_ended_for_a_while_before_anything_is_said() -> None:
    """Its driver has not answered yet, and oned would take the report for the answer."""
    seen = Seen()
    assert judge(domain("--p---"), None, seen, busy=True, now=10) == "busy"
    assert judge(domain(), None, seen, busy=True, now=15) == "busy"
    assert judge(domain(), None, seen, now=44) == "busy"
    assert judge(None, Life.CRASHED, seen, now=45) == "failure"
    assert judge(None, Life.CRASHED, seen, now=46) == "failure"
    assert judge(domain(), None, Seen("busy", 500.0), now=3.0) == "running"


def test_a_pause_counts_only_when_it_lasts() -> None:
    """A minute of it, without a break, is a suspension; not a second less."""
    seen = Seen()
    paused = domain("--p---")
    assert judge(paused, Life.RUNNING, seen, now=10) == "running"
    assert judge(paused, Life.RUNNING, seen, now=69) == "running"
    assert judge(domain(), Life.RUNNING, seen, now=70) == "running"
    assert judge(paused, Life.RUNNING, seen, now=71) == "running"
    assert judge(paused, Life.RUNNING, seen, now=131) == "paused"
    assert judge(domain(), Life.RUNNING, seen, now=132) == "running"


def test_a_gap_counts_only_when_it_lasts() -> None:
    """A guest that reboots runs on; one that does not come back has vanished."""
    seen = Seen()
    assert judge(domain("---s--", 1), Life.RUNNING, seen, now=10) == "running"
    assert judge(None, Life.RUNNING, seen, now=69) == "running"
    assert judge(None, Life.RUNNING, seen, now=70) == "vanished"
    assert judge(domain(), Life.RUNNING, seen, now=71) == "running"
    assert judge(None, Life.RUNNING, seen, now=72) == "running"


def test_cpu_is_measured_over_a_span() -> None:
    """One CPU for half of the time is 50, also when somebody looked a second ago."""
    memory = Memory(samples=[Sample(100.0, {"a": 10.0}), Sample(129.0, {"a": 24.9})])
    current = Sample(130.0, {"a": 25.0, "new": 3.0, "idle": 0.0, "adopted": 5000.0})
    found = sight.percentages(memory, current)
    assert found == {"a": 50.0, "new": 10.0, "idle": 0.0, "adopted": 0.0}


def test_cpu_is_zero_at_first_sight() -> None:
    """Nothing to compare with."""
    assert sight.percentages(Memory(), Sample(5.0, {"a": 3.0})) == {"a": 0.0}


def test_samples_are_few() -> None:
    """Looks every five seconds for an hour leave two minutes of samples, ten seconds apart."""
    memory = Memory()
    for at in range(0, 3600, 5):
        sight.remember(memory, Sample(float(at), {}))
    assert len(memory.samples) <= 13
    assert memory.samples[-1].at - memory.samples[0].at <= 120


def test_memory_survives_between_processes(tmp_path: Path) -> None:
    """What one observer noted, the next one knows."""
    path = str(tmp_path / "observe/cloud.json")
    off = Off({7: "web"}, changing=True, mark="1-2", asked_at=3.5)
    memory = Memory({42: Seen("paused", 7.5)}, [Sample(1.0, {"a": 2.0})], off)
    sight.store(path, memory)
    assert sight.load(path) == memory
    assert [each.name for each in (tmp_path / "observe").iterdir()] == ["cloud.json"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"guests": {"x": 1}, "samples": []}'])
def test_damaged_memory_is_no_memory(tmp_path: Path, text: str) -> None:
    """Waiting begins anew; nothing fails."""
    path = tmp_path / "cloud.json"
    path.write_text(text)
    assert sight.load(str(path)) == Memory()
