# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""How a demonstration tells its steps, those too that go on beside others."""

import json
import threading
from pathlib import Path

import pytest

from cxm.errors import CxmError
from lab.story import Row, Story


def test_steps_beside_others_are_told_when_the_story_comes_to_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Those that are over at once, the one under way and those after it as they happen."""
    story = Story()
    is_second, go_on = threading.Event(), threading.Event()

    def work(own: Story) -> str:
        with own.step("early") as row:
            row.happened, row.shown = "it went", ["a table"]
        with own.step("under way") as row:
            is_second.set()
            assert go_on.wait(60)
            row.happened = "it goes"
        with own.step("late") as row:
            row.happened = "it will go"
        return "result"

    aside = story.beside(work)
    with story.step("mine") as row:
        assert is_second.wait(60)
        row.happened = "seen"
    told = capsys.readouterr().err
    assert "[1] mine" in told
    assert "early" not in told
    threading.Timer(0.2, go_on.set).start()
    assert aside.join() == "result"
    told = capsys.readouterr().err
    places = [told.index(part) for part in ("[2] early (meanwhile", "    a table", "ok it went")]
    places += [told.index(part) for part in ("[3] under way (begun", "ok it goes", "[4] late\n")]
    assert places == sorted(places)
    assert [row.step for row in story.rows] == ["mine", "early", "under way", "late"]
    early, under_way, late = story.rows[1:]
    assert (early.waited, late.waited) == (0.0, None)
    assert under_way.waited is not None
    assert under_way.waited <= under_way.seconds


@pytest.mark.parametrize("error", [CxmError("no"), AssertionError("never")])
def test_what_fails_beside_a_story_fails_where_it_joins(error: Exception) -> None:
    """Whatever it is; the story has the rows that were begun."""

    def work(own: Story) -> None:
        with own.step("doomed"):
            raise error

    story = Story(aloud=False)
    aside = story.beside(work)
    with pytest.raises(type(error)):
        aside.join()
    assert [row.ok for row in story.rows] == [False]


def test_the_table_and_the_file_say_the_same(tmp_path: Path) -> None:
    """What others did meanwhile is in brackets, and counts only as far as it was waited for."""
    rows = [
        Row("alone", "done", 10.0, ok=True),
        Row("over", "done", 30.0, ok=True, waited=0.0),
        Row("awaited", "done", 20.0, ok=True, waited=5.0),
    ]
    story = Story(rows)
    table = story.table()
    assert "(30.0)" in table
    assert "all together" in table
    assert table.splitlines()[-2].split()[-2] == "15.0"
    story.write(str(tmp_path / "build/rows.json"))
    read = json.loads((tmp_path / "build/rows.json").read_text(encoding="utf-8"))
    assert [Row(**row) for row in read] == rows
