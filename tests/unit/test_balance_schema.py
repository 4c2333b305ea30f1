# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""A cluster in a file: what may be said of it, what is refused, and how a plan for it looks."""

import io
import json
from pathlib import Path

import pytest

from cxm.balance import schema
from cxm.balance.model import Role, Settings
from cxm.cli import main
from cxm.cli.text import Style
from cxm.cli.world import World
from cxm.errors import DataError, UsageError

NODES = [{"name": name, "memory_mib": 8192, "cpu": 400} for name in ("node1", "node2")]
VMS = [
    {"name": "web", "node": "node1", "memory_mib": 2048, "cpu": 100, "cpu_used": 90},
    {"name": "db", "node": "node1", "memory_mib": 2048, "cpu": 100, "cpu_used": 80},
    {"name": "pv", "node": "node1", "memory_mib": 512, "cpu": 50, "live_migration": False},
]
SHOWN = """\
NODE   STATE   CPU           NOW  ->            THEN  MEMORY        NOW  ->            THEN  VMS  ->
node1  online  ######......  53%  ####........   31%  #######.....  56%  ####........   31%    3   2
node2  online  ............   0%  ###.........   22%  ............   0%  ###.........   25%    0   1

1 move of 2048 MiB: 87 % of the imbalance goes (CPU 26.6 and memory 28.1 points become CPU 4.1 and \
memory 3.1 points)

STEP  VM   FROM   TO       MEMORY  CPU
   1  web  node1  node2  2048 MiB  90%
"""


def _text(**more: object) -> str:
    return json.dumps({"nodes": NODES, "vms": VMS} | more)


def _run(tmp_path: Path, text: str, *words: str) -> tuple[int, str]:
    """The command on a machine that is in no cluster."""
    path = tmp_path / "cluster.json"
    path.write_text(text)
    out = io.StringIO()
    world = World(root=str(tmp_path), out=out, style=Style(), uid=1000)
    return main.main(["loadbalance", "--from", str(path), *words], world), out.getvalue()


def test_a_plan_for_a_file_needs_no_cluster(tmp_path: Path) -> None:
    """Bars before and after, why, and the moves in order."""
    assert _run(tmp_path, _text()) == (0, SHOWN)


def test_a_plan_for_programs(tmp_path: Path) -> None:
    """The same as a document."""
    code, text = _run(tmp_path, _text(), "--json")
    told = json.loads(text)
    assert code == 0
    assert told["steps"] == [
        [
            {
                "name": "web",
                "source": "node1",
                "target": "node2",
                "memory_mib": 2048,
                "cpu_used": 90.0,
                "live": True,
                "detour": False,
            }
        ]
    ]
    assert told["copied_mib"] == 2048
    assert told["before"]["imbalance"] > told["after"]["imbalance"]
    assert told["stuck"] == []


def test_what_cannot_be_put_right_is_told(tmp_path: Path) -> None:
    """A sentence, and an exit code that a script sees."""
    nodes = [NODES[0] | {"state": "leaving"}, NODES[1] | {"memory_mib": 1024}]
    code, text = _run(tmp_path, _text(nodes=nodes))
    assert code == 1
    assert "web (2048 MiB) must leave node1, but no other node has room for it" in text
    assert "pv (512 MiB) must leave node1, but pv cannot move while it runs" in text


@pytest.mark.parametrize("state", ["standby", "maintenance"])
def test_a_node_that_rests_is_left_alone(tmp_path: Path, state: str) -> None:
    """As in the cluster: Pacemaker empties the one, and looks away from the other."""
    code, text = _run(tmp_path, _text(nodes=[NODES[0] | {"state": state}, NODES[1]]))
    assert code == 0
    assert "no move is worth" in text


def test_settings_bound_a_plan(tmp_path: Path) -> None:
    """Why it does less is in its reason."""
    _code, text = _run(tmp_path, _text(settings={"min_gain_percent": 90}))
    assert "1 move would take away 86.8 % of the imbalance, which is less than LB_MIN_GAIN" in text
    _code, text = _run(tmp_path, _text(settings={"worth_points": 100}))
    assert "no move is worth what it costs" in text
    vms = [{"name": f"vm{at}", "node": "node1", "memory_mib": 1024, "cpu": 50} for at in range(6)]
    _code, text = _run(tmp_path, _text(vms=vms, settings={"max_migrations": 1}))
    assert "LB_MAX_MIGRATION (1) ends it there" in text


def test_all_that_can_be_said_is_read() -> None:
    """The keys of the guide."""
    vm = VMS[0] | {
        "state": "running",
        "movable": False,
        "apart": "web",
        "together": ["app"],
        "only_on": ["node1"],
        "prefers": "node1",
    }
    off = VMS[1] | {"name": "off", "state": "stopped"}
    settings = {"max_vms_per_node": 9, "max_migrations": 2, "parallel": 1, "restart": True}
    found = schema.parse(_text(vms=[vm, off], settings=settings), "it")
    (web,) = found.vms
    assert (web.movable, web.apart, web.together) == (False, ("web",), ("app",))
    assert (web.nodes, web.prefers, web.used) == (("node1",), ("node1",), 90.0)
    assert found.settings == Settings(max_vms=9, max_moves=2, parallel=1, restart=True)
    assert found.nodes[0].role is Role.BOTH


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"nodes": []}, "it has no nodes"),
        ({"nodes": [{"name": "a", "cpu": 1}]}, "node a has no memory_mib"),
        ({"nodes": [NODES[0] | {"state": "odd"}]}, "node node1: 'odd' is none of"),
        ({"vms": [VMS[0] | {"ram_mib": 1}]}, "VM web: nobody knows what 'ram_mib' says"),
        ({"vms": [VMS[0] | {"cpu_used": True}]}, "VM web: cpu_used is true, which is no int"),
        ({"vms": [VMS[0] | {"memory_mib": -1}]}, "VM web: memory_mib is negative"),
        ({"vms": [{"node": "node1"}]}, "VM 1 has no name"),
        ({"vms": [VMS[0] | {"apart": [1]}]}, "VM web: apart is no list of names"),
        ({"vms": ["web"]}, "VM 1 is no JSON object"),
        ({"settings": {"parallel": -1}}, "settings: parallel is negative"),
        ({"options": {}}, "it: nobody knows what 'options' says"),
    ],
)
def test_mistakes_in_a_file_are_named(change: dict[str, object], said: str) -> None:
    """Where, and what."""
    with pytest.raises(DataError) as error:
        schema.parse(_text(**change), "it")
    assert said in error.value.message


@pytest.mark.parametrize(
    ("vms", "said"),
    [
        ([VMS[0], VMS[0]], "there are two VMs called 'web'"),
        ([VMS[0] | {"node": "nowhere"}], "VM web names 'nowhere', which is no node"),
        (
            [each | {"apart": "a", "together": "b"} for each in VMS[:2]],
            "web and db must be together, and apart for 'a'",
        ),
    ],
)
def test_contradictions_are_refused(
    tmp_path: Path, vms: list[object], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With what contradicts what."""
    assert _run(tmp_path, _text(vms=vms))[0] == DataError.code
    assert said in capsys.readouterr().err


def test_a_file_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One sentence."""
    world = World(root=str(tmp_path), out=io.StringIO(), style=Style(), uid=1000)
    assert main.main(["loadbalance", "--from", str(tmp_path / "no")], world) == UsageError.code
    assert "cannot be read" in capsys.readouterr().err
    with pytest.raises(DataError, match="is no JSON document"):
        schema.parse("{", "it")
