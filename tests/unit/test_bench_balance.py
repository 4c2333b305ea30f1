# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""The comparison of planners: always the same clusters, told to each in its own words."""

import json
from dataclasses import replace
from pathlib import Path

from bench import balance, clusters, rivals, stability
from bench.rivals import Found
from cxm.balance.model import Balance, Settings, Snapshot


def test_clusters_are_always_the_same() -> None:
    """So that two runs, and two planners, compare."""
    assert clusters.cluster(3, 12, 1) == clusters.cluster(3, 12, 1)
    assert clusters.cluster(3, 12, 1) != clusters.cluster(3, 12, 2)
    assert clusters.small(4) == clusters.small(4)
    assert stability.made_up(1) == stability.made_up(1)
    assert len(stability.made_up(1)) == 288


def test_hbal_is_told_the_cluster(tmp_path: Path) -> None:
    """Its moves are those that it prints; where it fails, that is told."""
    snapshot = clusters.cluster(2, 4, 1)
    program = tmp_path / "hbal"
    program.write_text(
        "#!/bin/sh\ngrep -q '^node000|36' $2 && grep -q 'vm0000 0' $4 || exit 3\n"
        "echo '    1. vm0002 node000      => node001       0.5 a=fa:node001'\n"
    )
    program.chmod(0o755)
    told = snapshot.nodes[0].memory
    assert f"node000|{told}|0|" in rivals.text_data(snapshot)
    assert rivals.utilisation(snapshot).count("\n") == 4
    program.write_text(program.read_text().replace("node000|36", f"node000|{told}"))
    assert rivals.hbal(str(program), snapshot, 60).moves == [("vm0002", "node001")]
    program.write_text("#!/bin/sh\nexit 1\n")
    failed = rivals.hbal(str(program), snapshot, 60)
    assert failed.moves is None
    assert failed.why


def test_the_original_ends_with_the_first_length_that_gains() -> None:
    """Usually one move; it gives up when its time is over."""
    snapshot = clusters.cluster(3, 12, 1)
    found = rivals.original(snapshot, 10)
    assert found.moves is not None
    assert len(found.moves) <= 3
    assert rivals.original(snapshot, 0).moves is None


def test_moves_are_judged_by_where_they_lead() -> None:
    """And by what is copied for them."""
    snapshot = clusters.cluster(3, 12, 1)
    ours = balance.ours(snapshot, Settings())
    assert ours.moves
    assert ours.after is not None
    still = balance.judged(snapshot, Found([], 1.0))
    assert still.after is not None
    assert ours.after.imbalance < still.after.imbalance
    assert (still.moves, still.copied_gib, still.cpu_s) == (0, 0, 1.0)


def test_a_report_of_planners() -> None:
    """Who gave up says so; the growth is a power of the number of VMs."""
    outcomes = {
        "cxm": balance.Outcome(0.5, 3, 2.0, Balance(1.0, 2.0)),
        "hbal": balance.Outcome(300.0, why="its time was over"),
    }
    day = stability.Report("made up", {stability.FREE: stability.Day(1.0, 2.0, 2.0)})
    row = balance.Row(2, 4, Balance(3.0, 4.0), outcomes)
    report = balance.Report([row], [(2, 10, 1.0), (4, 100, 10.0)], day, None)
    assert "gave up" in report.text()
    assert "growing as VMs^1.00" in report.text()
    assert "hbal is not there" in report.text()
    assert "not known  no more uneven than after hbal's plan" in report.text()
    told = json.loads(json.dumps(report.to_json()))
    assert told["clusters"][0]["planners"]["hbal"]["gave_up"] == "its time was over"


def _report(ours: balance.Outcome, *, seconds: float = 0.1, moves: float = 0.1) -> balance.Report:
    outcomes = {"hbal": balance.Outcome(1.0, 3, 2.0, Balance(1.0, 2.0)), balance.SAME: ours}
    free = stability.Day(9.0, 2.0, 2.0)
    day = {stability.FREE: free, stability.OURS: stability.Day(moves, 2.1, 2.1)}
    growth = [(10, 200, 0.1), (16, 1000, seconds), (100, 5000, 5 * seconds)]
    row = balance.Row(2, 4, Balance(3.0, 4.0), outcomes)
    return balance.Report([row], growth, stability.Report("made up", day), "hbal")


def test_each_target_has_its_verdict() -> None:
    """Of time, growth, quality beside hbal, and a day: reached or missed."""
    good = _report(balance.Outcome(0.5, 3, 2.0, Balance(1.0, 1.9)))
    assert [each.is_met for each in good.targets()] == [True] * 6
    assert "reached    16 x 1000 in 0.2 s of one core: 0.100 s" in good.text()
    assert "VMs^1.00 from 1000 VMs on" in good.text()
    for worse in ((4, Balance(1.0, 1.0)), (3, Balance(1.1, 2.0))):
        bad = _report(balance.Outcome(0.5, worse[0], 2.0, worse[1]), seconds=0.3, moves=0.5)
        assert [each.is_met for each in bad.targets()] == [False, False, True, False, False, True]
        assert "MISSED" in bad.text()
        assert bad.to_json()["targets"][3]["found"] == "not with 2 x 4"


def test_a_day_counts_moves_and_imbalance() -> None:
    """Each decision is judged by the sample after it."""
    values = [stability.made_up(seed) for seed in range(32)]
    begin = stability.cluster(32)
    day = stability.day(values[:32], _few(begin), stability.never)
    assert day.moves == 0
    assert day.imbalance >= day.cpu > 0


def _few(snapshot: Snapshot) -> Snapshot:
    return replace(snapshot, settings=Settings(min_gain=0.0))
