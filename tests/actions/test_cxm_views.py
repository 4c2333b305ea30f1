# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""What ``cxm`` shows, as a whole: pictures that somebody has looked at."""

import io
import json
from pathlib import Path

import pytest

from cxm.cli import main
from cxm.cli.text import Cell, Style, Tint
from cxm.cluster.amounts import ago, count, mib
from cxm.errors import RefusedError
from tests.fakes.crm import NOW, FakeCluster, Place, two_nodes

CALM = """\
Cluster  2 nodes, quorate, node1 decides
Fencing  node1 proven 3 days ago, node2 proven 5 h ago
N+1      every VM still fits if any one node dies
VMs      2 running, 1 stopped

NODE   STATE   VMS  MEMORY                USED        OF  CPU       USED    OF
node1  online    1  ####............  1024 MiB  4096 MiB  ##......  100%  400%
node2  online    1  ########........  2048 MiB  4096 MiB  ##......  100%  400%

VM  NAME          STATE    NODE     MEMORY   CPU  PREFERS  WHY
 4  old.home.net  stopped  -       512 MiB  100%  -        its guest switched itself off
 7  web.home.net  running  node1  1024 MiB  100%  node1
42  db.home.net   running  node2  2048 MiB  100%  node2
"""
TROUBLE = [
    "FENCING IN PROGRESS: node2 (reboot, by node1)",
    "  -> nothing of it is started elsewhere until that is done",
    "NODE node2 IS UNCLEAN: nobody knows what it does",
    "  -> it must be fenced before its VMs are started elsewhere",
    "VM web.home.net (VM 7) IS BLOCKED on node1",
    "  -> see what it does, then 'crm_resource --cleanup --resource cxm-cloudone1-7'",
]


@pytest.fixture
def crm(tmp_path: Path) -> FakeCluster:
    """node1 and node2, a VM on each, one that is off."""
    return two_nodes(str(tmp_path / "n"))


def test_infos_of_a_calm_cluster(crm: FakeCluster) -> None:
    """The whole picture; no box."""
    assert main.main(["infos"], crm.world()) == 0
    assert crm.text == CALM


def test_infos_in_trouble_begins_with_a_box(crm: FakeCluster) -> None:
    """What is wrong, and what to do, in a frame."""
    crm.fence_events = [
        {"target": "node2", "action": "reboot", "status": "pending", "origin": "node1"}
    ]
    crm.members["node2"].unclean = True
    crm.members["node2"].online = False
    crm.places["cxm-cloudone1-7"].blocked = True
    assert main.main(["infos"], crm.world(style=Style(unicode=True))) == 0
    box = crm.text.splitlines()[:8]
    assert [line.strip("║").strip(" ") for line in box[1:7]] == [line.strip() for line in TROUBLE]
    assert (box[0][0], box[7][-1]) == ("╔", "╝")
    assert len({len(line) for line in box}) == 1
    assert "42  db.home.net   UNKNOWN  node2" in crm.text


def test_colours_do_not_move_columns() -> None:
    """They are painted after the words were measured."""
    rows = [(Cell("a", Tint.BAD), Cell("1", right=True)), (Cell("bbb"), Cell("22", right=True))]
    plain, painted = Style().table(("X", "N"), rows), Style(color=True).table(("X", "N"), rows)
    assert plain == "X     N\na     1\nbbb  22\n"
    for code in ("\x1b[1m", "\x1b[1;31m", "\x1b[0m"):
        painted = painted.replace(code, "")
    assert painted == plain


def test_bars() -> None:
    """A little is seen, full is red, nothing known is empty."""
    style = Style()
    assert style.bar(1, 1000, 4).text == "#..."
    assert style.bar(95, 100, 4) == Cell("####", Tint.BAD)
    assert style.bar(5, 0, 4).text == "#..."
    assert style.bar(0, 0, 4).text == "...."


def test_amounts() -> None:
    """As people say them."""
    assert [mib(512), mib(20480)] == ["512 MiB", "20.0 GiB"]
    assert [ago(NOW - back, NOW) for back in (5, 300, 9000, 400000)] == [
        "5 s ago", "5 min ago", "2 h ago", "5 days ago",
    ]  # fmt: skip
    assert [count(1, "VM"), count(2, "VM")] == ["1 VM", "2 VMs"]


def test_json_is_for_programs(crm: FakeCluster) -> None:
    """The same facts, and every alarm."""
    crm.quorate = False
    assert main.main(["infos", "--json"], crm.world()) == 0
    told = json.loads(crm.text)
    assert told["quorate"] is False
    assert told["alarms"][0]["text"].startswith("NOT QUORATE")
    assert told["vms"][1] == {
        "cloud": "cloudone1",
        "vm": 7,
        "name": "web.home.net",
        "state": "running",
        "node": "node1",
        "nodes": ["node1"],
        "wanted": True,
        "reason": "",
        "memory_mib": 1024,
        "cpu": 100,
        "live_migration": True,
        "preferred": "node1",
        "resource": "cxm-cloudone1-7",
    }
    assert told["nodes"][0]["fencing_device"] == "fence-node1"


def test_search_fails_as_grep_does(crm: FakeCluster) -> None:
    """A part of a name, or the number."""
    assert main.main(["search", "WEB"], crm.world()) == 0
    assert "web.home.net" in crm.text
    assert "db.home.net" not in crm.text
    assert main.main(["sea", "nothing", "--json"], crm.world()) == 1
    assert crm.text.endswith("[]\n")


def test_list_of_two_clouds_tells_them_apart(crm: FakeCluster) -> None:
    """Their numbers may be the same."""
    crm.add_vm(7, "node2", cloud="cloudtwo2", name="other")
    assert main.main(["list"], crm.world()) == 0
    assert "cloudone1/7  web.home.net" in crm.text
    assert "cloudtwo2/7  other" in crm.text


class Terminal(io.StringIO):
    """An output that somebody watches."""

    def isatty(self) -> bool:
        return True


def test_top_redraws_in_place(crm: FakeCluster) -> None:
    """The cursor goes home; what a VM of this node uses is measured between two pictures."""
    world = crm.world(out=Terminal())
    rows = crm.xen.rows

    def burn() -> None:
        rows[1] = rows[1].replace("   1.0 ", "  13.0 ").replace("  11.0 ", "  13.0 ")

    crm.node.later = burn
    assert main.main(["top", "-n", "2", "-d", "20"], world) == 0
    text = world.out.getvalue()  # type: ignore[attr-defined]  # it is our own Terminal
    assert text.count("\x1b[H") == 2
    assert text.endswith("\x1b[?25h")
    assert " 60%  node1" in text


def test_top_shows_a_cluster_that_does_not_answer(crm: FakeCluster) -> None:
    """That is when somebody watches; and without a terminal there is one picture."""
    crm.dead = True
    assert main.main(["top"], crm.world()) == 0
    assert "whose Pacemaker does not run here" in crm.text
    assert "\x1b" not in crm.text


@pytest.mark.parametrize("what", ["list", "infos", "check", "timeline", "eject", "console 7"])
def test_no_cluster_is_one_sentence(
    crm: FakeCluster, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a standalone host, by anybody but root, and where Pacemaker does not run."""
    Path(crm.node.path("etc/cxm/cluster")).unlink()
    assert main.main(what.split(), crm.world()) == RefusedError.code
    first = capsys.readouterr().err
    assert first.startswith("cxm: this machine is not a node of a cxm cluster")
    Path(crm.node.path("etc/cxm/cluster")).touch()
    assert main.main(what.split(), crm.world(uid=1000)) == RefusedError.code
    assert "only root may ask the cluster" in capsys.readouterr().err
    crm.dead = True
    assert main.main(what.split(), crm.world()) == RefusedError.code
    last = capsys.readouterr().err
    assert "whose Pacemaker does not run here" in last
    assert first.count("\n") == last.count("\n") == 1


def test_subcommands_may_be_short(crm: FakeCluster, capsys: pytest.CaptureFixture[str]) -> None:
    """As long as one alone begins so."""
    assert main.main(["inf", "--json"], crm.world()) == 0
    assert main.main(["check-c"], crm.world()) == 1
    assert main.main(["in"], crm.world()) == 2
    assert "'in' may be infos or init" in capsys.readouterr().err
    assert main.main(["init"], crm.world()) == 2
    assert "cxm-setup cluster" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main.main(["help"], crm.world())
    assert "timeline" in capsys.readouterr().out


def test_unexpected_failure_is_one_sentence_too(
    crm: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    """It asks for a report."""

    def broken() -> float:
        raise ZeroDivisionError

    assert main.main(["infos"], crm.world(now=broken)) == 1
    assert "this is a defect of cxm" in capsys.readouterr().err


def test_vm_that_moves_is_on_two_nodes(crm: FakeCluster) -> None:
    """From, to."""
    crm.places["cxm-cloudone1-7"] = Place(("node1", "node2"), "Migrating")
    main.main(["list"], crm.world())
    assert " 7  web.home.net  migrating  node1 > node2  1024 MiB" in crm.text
