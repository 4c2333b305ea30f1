# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""What ``cxm`` shows, as a whole: pictures that somebody has looked at."""

import io
import json
from pathlib import Path

import pytest

from cxm.cli import ctl, main
from cxm.cli.text import Cell, Style, Tint
from cxm.cli.verbs import VERBS, _json
from cxm.cluster.amounts import ago, count, mib
from cxm.errors import CommandError, NotFoundError, RefusedError, UsageError
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
        "only_on": None,
        "prefers": [],
        "apart": [],
        "together": [],
        "stays": None,
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


# --- for programs ---------------------------------------------------------------------------------

DB = {"cloud": "cloudone1", "vm": 42, "name": "db.home.net"}
OLD = {"cloud": "cloudone1", "vm": 4, "name": "old.home.net"}
WEB = {"cloud": "cloudone1", "vm": 7, "name": "web.home.net"}


def test_all_but_the_console_speak_json() -> None:
    """So that a script need not read sentences."""
    without = {verb.name for verb in VERBS if _json not in verb.arguments}
    assert without == {"console", "init"}


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("migrate 42 node1", {**DB, "node": "node1", "moved": True}),
        ("migrate 42 node2", {**DB, "node": "node2", "moved": False}),
        ("create 4 node2", {**OLD, "node": "node2"}),
        ("shutdown 42", {**DB, "was": "running"}),
        ("destroy 4", {**OLD, "was": "absent"}),
        ("reboot 42", DB),
        ("shutdown-all --yes", {"vms": [{**WEB, "error": None}, {**DB, "error": None}]}),
        ("eject node2", {"node": "node2", "takes_vms": False, "changed": True}),
        ("eject node2 --back", {"node": "node2", "takes_vms": True, "changed": False}),
        ("fence node2 --yes", {"nodes": ["node2"], "done": "reset"}),
        ("fence node2 --off --yes", {"nodes": ["node2"], "done": "switched off"}),
        ("fence --test --yes", {"nodes": ["node2"], "done": "proven"}),
        ("deactivate 4", {"cloud": "cloudone1", "vm": 4, "volumes": []}),
    ],
)
def test_an_order_is_one_document(crm: FakeCluster, line: str, told: object) -> None:
    """How it ended; how it goes on is told on the error output."""
    assert main.main([*line.split(), "--json"], crm.world()) == 0
    assert json.loads(crm.text) == told


def test_devices_are_told(crm: FakeCluster) -> None:
    """A program wants to open them."""
    assert main.main(["activate", "4", "--json"], crm.world()) == 0
    device = crm.node.path("dev/LVM_XEN/lv-one-4-0")
    assert json.loads(crm.text) == {"cloud": "cloudone1", "vm": 4, "devices": [device]}


def test_progress_is_not_in_the_document(
    crm: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is on the error output, for a person who looks on."""
    assert main.main(["eject", "node2", "--json"], crm.world()) == 0
    assert "db.home.net (VM 42): migrating on node2 to node1" in capsys.readouterr().err


def test_a_confirmed_node_is_one_document(
    crm: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a person is told besides is on the error output."""
    crm.members["node2"].online, crm.members["node2"].unclean = False, True
    crm.fence_events = [{"target": "node2", "action": "reboot", "status": "pending"}]
    assert main.main(["fence", "--confirmed", "node2", "--yes", "--json"], crm.world()) == 0
    assert json.loads(crm.text) == {"nodes": ["node2"], "done": "confirmed"}
    assert "under way" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "code", "sentence"),
    [
        ("migrate 4 node1", RefusedError.code, "VM 4 does not run"),
        ("create nobody", NotFoundError.code, "the cluster has no VM 'nobody'"),
        ("fence node2", UsageError.code, "with --json nobody is asked"),
        ("shutdown-all", UsageError.code, "with --json nobody is asked"),
    ],
)
def test_a_failure_has_no_document(
    crm: FakeCluster, line: str, code: int, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its exit code and its sentence are those that a person gets."""
    assert main.main([*line.split(), "--json"], crm.world()) == code
    assert crm.text == ""
    assert sentence in capsys.readouterr().err


def test_vms_that_did_not_end_are_in_the_document(
    crm: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    """The others were shut down all the same."""
    crm.stuck, crm.deaf = {"cxm-cloudone1-42"}, {42}
    line = "shutdown-all --yes --timeout 2 --json"
    assert main.main(line.split(), crm.world()) == CommandError.code
    ended, stuck = json.loads(crm.text)["vms"]
    assert ended == {**WEB, "error": None}
    assert "VM 42 is not as ordered" in stuck["error"]
    assert "not shut down: db.home.net" in capsys.readouterr().err


def test_top_as_json_is_one_picture(crm: FakeCluster) -> None:
    """What a VM of this node uses is measured meanwhile."""
    rows = crm.xen.rows

    def burn() -> None:
        rows[1] = rows[1].replace("  11.0 ", "  12.0 ").replace("   1.0 ", "  12.0 ")

    crm.node.later = burn
    assert main.main(["top", "-d", "20", "--json"], crm.world()) == 0
    told = json.loads(crm.text)
    assert told["quorate"] is True
    assert [vm["cpu_now"] for vm in told["vms"]] == [None, 55.0, None]
    crm.dead = True
    assert main.main(["top", "--json"], crm.world()) == RefusedError.code


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("--ping", {"works": True}),
        ("--list-nodes", ["node1", "node2"]),
        (
            "--status",
            {"node": "node1", "state": "online", "role": "active", "cluster": "normal"},
        ),
    ],
)
def test_the_originals_tool_speaks_json(crm: FakeCluster, option: str, told: object) -> None:
    """Its exit code is the same."""
    assert ctl.main([option, "--json"], crm.world()) == 0
    assert json.loads(crm.text) == told
