# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""What the benchmarks make of measured values, and that their instruments fit the programs."""

import json
import logging
import tarfile
from pathlib import Path

import pytest

from bench import clones, failover, figures, monitoring, monitors, notes, payload, probe
from bench.timed import instrumented
from cxm.errors import CxmError
from cxm.run import System

ROOT = Path(__file__).parents[2]


def test_a_series_is_its_median_and_its_ends() -> None:
    """An outlier shows in the ends and does not move the middle."""
    one = figures.series([3.0, 100.0, 1.0])
    assert (one.median, one.low, one.high) == (3.0, 1.0, 100.0)
    assert one.shown(1) == "3.0 (1.0-100.0)"
    assert one.to_json() == {"median": 3.0, "min": 1.0, "max": 100.0, "rounds": [3.0, 100.0, 1.0]}
    with pytest.raises(ValueError, match="nothing"):
        figures.series([])


def test_a_ratio_is_taken_round_by_round() -> None:
    """A round in which the machine was busy for both does not disturb it."""
    ours, other = figures.series([1.0, 10.0, 1.0]), figures.series([2.0, 20.0, 3.0])
    assert figures.ratio(other, ours).values == (2.0, 2.0, 3.0)
    with pytest.raises(ValueError, match="same rounds"):
        figures.ratio(other, figures.series([1.0]))


@pytest.mark.parametrize(
    ("spans", "length"),
    [
        ([], 0.0),
        ([(1.0, 2.0)], 1.0),
        ([(3.0, 4.0), (1.0, 2.0)], 2.0),
        ([(1.0, 4.0), (2.0, 3.0)], 3.0),
        ([(1.0, 3.0), (2.0, 4.0)], 3.0),
    ],
)
def test_what_runs_side_by_side_counts_once(
    spans: list[tuple[float, float]], length: float
) -> None:
    """Gzip and tar of one pipeline are one piece of work."""
    assert figures.covered(spans) == length


def test_bars_are_in_proportion() -> None:
    """The longest fills the width; what is there at all is visible."""
    assert figures.bar(10, 10, width=8) == "#" * 8
    assert figures.bar(5, 10, width=8) == "#" * 4
    assert figures.bar(0.01, 10, width=8) == "#"
    assert figures.bar(0, 10) == ""
    assert figures.chart([("ours", 1.0, "1 s"), ("theirs", 2.0, "22 s")]).splitlines() == [
        "ours     1 s  " + "#" * 20,
        "theirs  22 s  " + "#" * 40,
    ]


def test_a_table_aligns_words_left_and_figures_right() -> None:
    """Columns are as wide as their widest cell."""
    assert figures.table(("action", "ms"), [("ln", "5"), ("clone", "1234")]).splitlines() == [
        "action    ms",
        "------  ----",
        "ln         5",
        "clone   1234",
    ]


def _line(name: str, began: str, ended: float, **more: object) -> str:
    return json.dumps({"name": name, "began": began, "ended": ended} | more)


def test_overhead_is_what_no_other_program_did() -> None:
    """Work of the host counts by its own clock, work of the frontend up to the first ssh."""
    action = _line(
        "tm/cxm/context", "100.0", 102.0,
        started=[("genisoimage", 100.1), ("zstd", 100.5), ("ssh", 100.5)],
        spans=[("genisoimage", 100.1, 100.4), ("zstd", 100.5, 101.8), ("ssh", 100.5, 101.9)],
    )  # fmt: skip
    helper = _line(
        "disk-write", "", 901.0,
        started=[("lvm", 900.0), ("gzip", 900.3), ("tar", 900.3)],
        spans=[("lvm", 900.0, 900.2), ("gzip", 900.3, 900.8), ("tar", 900.3, 900.9)],
    )  # fmt: skip
    helpers = notes.parse(helper)
    found = notes.figures(notes.parse(action)[0], helpers)
    assert found.ssh == 1
    assert found.startup == pytest.approx(100)
    assert found.wall == pytest.approx(2000)
    assert found.overhead == pytest.approx(2000 - 300 - 200 - 600)


def test_an_action_that_started_nothing_is_no_measurement() -> None:
    """It has failed before its work, or does nothing."""
    idle = notes.parse(_line("tm/cxm/mv", "1.0", 2.0, started=[], spans=[]))[0]
    with pytest.raises(ValueError, match="no command"):
        notes.figures(idle, [])


@pytest.mark.parametrize("program", ["remotes/cxm/action", "packaging/bin/cxm-helper"])
def test_the_probe_fits_into_our_programs(program: str) -> None:
    """It comes when cxm can be imported and before anything of it is, and is valid there."""
    text = (ROOT / program).read_text(encoding="utf-8")
    changed = instrumented(text, Path(probe.__file__).read_text(encoding="utf-8"), "/tmp/here")
    compile(changed, program, "exec")
    assert changed.index("sys.path.insert") < changed.index("\ninstall()\n")
    assert changed.index("\ninstall()\n") < changed.index("from cxm.")
    assert "PATH = '/tmp/here'\n" in changed
    with pytest.raises(ValueError, match="where cxm is"):
        instrumented("#!/bin/sh\n", "", "")


def test_the_probe_understands_what_run_logs() -> None:
    """The texts of cxm.run's log lines are what the notes are made of."""
    took = probe.Notes()
    logger = logging.getLogger("cxm.run")
    level = logger.level
    logger.addHandler(took)
    logger.setLevel(logging.DEBUG)
    try:
        System().run(["/bin/true", "a b"])
    finally:
        logger.removeHandler(took)
        logger.setLevel(level)
    assert [name for name, _at in took.started] == ["true"]
    assert [(name, begin <= end) for name, begin, end in took.spans] == [("true", True)]


def test_the_original_opens_seven_connections() -> None:
    """As its description says; names with blanks do not break it."""
    script = clones.original("ssh -l root h", "/a b.tar.gz", "/var/lib/one/7", "lv-one-7-0", 64)
    assert script.count("ssh -l root h") == 7
    assert "'/a b.tar.gz'" in script
    assert clones.dump("ssh h", "/raw", "/d", "lv", 64).count("ssh h") == 3


def test_monitors_take_their_guest_from_the_list() -> None:
    """The last one: dom0 comes first."""
    row = "{:<40} {:4} 128 1 -b---- 1.0 {} - -\n"
    dom0, guest = "0" * 8 + "-0000" * 3 + "-" + "0" * 12, "6c616200-0000-4000-8000-000000000001"
    listed = "Name ID Mem VCPUs State Time(s) UUID\n" + row.format("Domain-0", 0, dom0)
    assert monitors.guest_of(listed) == ("Domain-0", dom0)
    assert monitors.guest_of(listed + row.format("vm1", 3, guest)) == ("vm1", guest)
    with pytest.raises(CxmError, match="no domain"):
        monitors.guest_of("Name\n")


def test_calls_are_spread_and_their_children_count() -> None:
    """A shell that only waits for its child costs what the child costs."""
    busy = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done"
    idle = monitoring.spread(["true"], 1, 0.0)
    found = monitoring.spread(["sh", "-c", f"sh -c '{busy}'; true"], 2, 0.1)
    assert found["cpu_s"] > idle["cpu_s"]
    assert found["took_s"] >= 0.05
    with pytest.raises(SystemExit, match="false ended with 1"):
        monitoring.spread(["false"], 1, 0.0)


def test_the_larger_image_is_always_the_same() -> None:
    """A third of each file cannot be packed."""
    assert payload.content(1) == payload.content(1)
    assert payload.content(1) != payload.content(2)
    assert len(payload.content(1)) == pytest.approx(48 << 10, rel=0.05)


def test_the_larger_image_holds_the_guest(tmp_path: Path) -> None:
    """It boots nothing, but a benchmark looks for the guest's init in what was made."""
    guest = tmp_path / "guest.tar.gz"
    (tmp_path / "init").write_bytes(b"#!")
    with tarfile.open(guest, "w:gz") as archive:
        archive.add(tmp_path / "init", "sbin/init")
    payload.write(str(guest), str(tmp_path / "larger"), files=3)
    with tarfile.open(tmp_path / "larger") as archive:
        assert archive.getnames()[0] == "sbin/init"
        assert len(archive.getnames()) == 4


def _kernel(at: float, text: str) -> dict[str, str]:
    return {"__REALTIME_TIMESTAMP": str(int(at * 1e6)), "MESSAGE": f"dlm: lvm_VG: {text}"}


def _event(at: float, node: str, what: str) -> dict[str, object]:
    return {"at": at, "node": node, "what": what}


_EVENTS = [
    _event(90.0, "node2", "was fenced by node1: rebooted"),
    _event(110.0, "node2", "left the cluster or died"),
    _event(112.0, "node2", "was fenced by node1: rebooted"),
    _event(160.0, "node2", "joined the cluster"),
]
_KERNEL = [
    _kernel(95.0, "dlm_recover 1 generation 1 done: 0 ms"),
    _kernel(112.5, "dlm_recover 3"),
    _kernel(113.0, "dlm_recover 3 generation 2 done: 296 ms"),
    _kernel(170.0, "dlm_recover 5 generation 3 done: 20 ms"),
]


def test_steps_of_a_failover_are_those_after_the_cut() -> None:
    """What was before it, and the dead node's return, are not its steps."""
    assert failover.moments(_EVENTS, _KERNEL, [118.0, 116.0], "node2", 100.0) == {
        "noticed": 110.0,
        "fenced": 112.0,
        "locks recovered": 113.0,
        "first 'xl create'": 116.0,
        "last 'xl create'": 118.0,
    }
    with pytest.raises(CxmError, match=r"death of node2 .*: first .xl create., last"):
        failover.moments(_EVENTS, _KERNEL, [], "node2", 100.0)


def test_failovers_are_told_beside_cold_starts_and_moves_beside_those_of_xl() -> None:
    """Each step with its target, and the ratios of the same rounds."""
    values = {
        "noticed": (8.0, 10.0),
        "fenced": (2.0, 3.0),
        "locks recovered": (1.0, 1.0),
        "first 'xl create'": (4.0, 6.0),
        "last 'xl create'": (6.0, 8.0),
        "first VM answers": (60.0, 80.0),
        "last VM answers": (62.0, 90.0),
        "cold start to answer": (20.0, 40.0),
        "cxm migrate": (30.0, 40.0),
        "xl migrate": (10.0, 20.0),
    }
    report = failover.Report({what: figures.series(each) for what, each in values.items()})
    shown = [line.split() for line in report.text().splitlines()]
    assert ["fenced", "since", "noticed", "2.5", "(2.0-3.0)", "3.0"] in shown
    assert ["failover", "/", "cold", "start", "2.50", "(2.00-3.00)", "x"] in shown
    assert ["cxm", "migrate", "/", "xl", "migrate", "2.50", "(2.00-3.00)", "x"] in shown
    # 2.2 tokens, 1 s, 3 s of fencing, and the 5 s from there.
    assert ["--token-ms", "1000", "11.2"] in shown
    told = report.to_json()
    assert told["targets"] == {"noticed": 14.2, "fenced": 3.0, "first 'xl create'": 8.0}
    assert told["steps"]["last VM answers"]["median"] == 76.0
