# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""The timeline: records of Pacemaker and of the log become sentences."""

import json
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from cxm.cli.timeline import since
from cxm.cluster import history
from cxm.cluster.history import Event, Kind
from cxm.cluster.pacemaker import Fencing, parse_fencing
from cxm.errors import UsageError

DATA = Path(__file__).parents[1] / "data/pacemaker"
NAMES = {"cxm-labcloud0-1": "vm1 (VM 1)"}


def _operations(name: str) -> list[Event]:
    root = ET.fromstring((DATA / name).read_text())
    return sorted(history.of_operations(root, NAMES), key=lambda each: each.at)


def test_recorded_move_is_a_start_a_departure_and_an_arrival() -> None:
    """The stop at its end, where it came from, is a part of it and not told."""
    told = [(each.node, each.what) for each in _operations("cib-2.1.5-moving.xml")
            if each.kind is Kind.VM]  # fmt: skip
    assert told == [
        ("node1", "vm1 (VM 1) was sent to node2"),
        ("node2", "vm1 (VM 1) came, running, from node1"),
    ]


def test_recorded_failure_of_a_service() -> None:
    """What works is not told; that lvmlockd vanished is, and the unexpected find of a probe not."""
    (event,) = _operations("cib-2.1.5-locks.xml")
    assert event == Event(
        1795651148.0,
        "node1",
        "cxm-lvmlockd was found not working",
        "it did not run",
        Kind.RESOURCE,
        bad=True,
    )


def _operation(task: str, **changes: str) -> Event | None:
    given = {
        "operation": task,
        "rc-code": "0",
        "op-status": "0",
        "interval": "0",
        "last-rc-change": "1000",
        "exec-time": "2500",
        "transition-key": "40:24:0:uuid",
    } | {key.replace("_", "-"): value for key, value in changes.items()}
    root = ET.fromstring(
        '<cib><status><node_state uname="node1"><lrm><lrm_resources>'
        '<lrm_resource id="cxm-labcloud0-1"/></lrm_resources></lrm></node_state></status></cib>'
    )
    for resource in root.iter("lrm_resource"):
        ET.SubElement(resource, "lrm_rsc_op", given)
    return next(history.of_operations(root, NAMES), None)


@pytest.mark.parametrize(
    ("task", "changes", "what", "why"),
    [
        ("start", {}, "vm1 (VM 1) was started", ""),
        ("stop", {}, "vm1 (VM 1) was stopped", ""),
        ("start", {"rc_code": "1", "exit_reason": "no memory"},
         "vm1 (VM 1) could not be started", "no memory"),
        ("stop", {"rc_code": "1", "op_status": "2"},
         "vm1 (VM 1) could not be stopped", "it took too long"),
        ("monitor", {"rc_code": "7", "interval": "10000"},
         "vm1 (VM 1) was found not working", "it did not run"),
        ("migrate_to", {"rc_code": "99"},
         "vm1 (VM 1) could not be sent to another node", "exit code 99"),
    ],
)  # fmt: skip
def test_operations_in_plain_words(task: str, changes: dict[str, str], what: str, why: str) -> None:
    """With the agent's own reason, where it gave one."""
    event = _operation(task, **changes)
    assert event is not None
    assert (event.what, event.why) == (what, why)
    assert event.at == (1000.0 if event.bad else 1002.5)


@pytest.mark.parametrize(
    ("task", "changes"),
    [
        ("monitor", {"rc_code": "7", "transition_key": "1:2:7:uuid"}),  # a probe, as expected
        ("monitor", {"rc_code": "0", "transition_key": "1:2:7:uuid"}),  # a probe found it running
        ("monitor", {"interval": "10000"}),
        ("stop", {"rc_code": "193", "op_status": "-1"}),  # under way
        ("start", {"last_rc_change": ""}),
    ],
)
def test_what_tells_nothing_is_not_told(task: str, changes: dict[str, str]) -> None:
    """Nobody wants to read of what went as always."""
    assert _operation(task, **changes) is None


def test_fencing_says_who_wanted_it() -> None:
    """By hand, by Pacemaker, by the DLM; what is under way is of now."""
    events = parse_fencing(
        """<r><list>
        <fence_event target="node2" action="reboot" status="success" delegate="node1"
          origin="node1" client="pacemaker-controld.77" completed="2026-11-25 23:00:00.123456Z"/>
        <fence_event target="node3" action="off" status="failed" exit-reason="No route"
          origin="node1" client="stonith_admin.12" completed="2026-11-26 00:00:00 +01:00"/>
        <fence_event target="node4" action="reboot" status="pending" client="dlm_stonith.1"/>
        </list></r>"""
    )
    told = sorted(history.of_fencing(events, now=5e9), key=lambda each: each.node)
    assert [each.what for each in told] == [
        "was fenced by node1: rebooted",
        "could NOT be fenced (off)",
        "is being fenced (reboot)",
    ]
    assert told[0].why.startswith("Pacemaker decided so")
    assert told[1].why == "No route; asked for by hand on node1"
    assert "held locks" in told[2].why
    assert [int(each.at) for each in told] == [1795647600, 1795647600, 5000000000]
    assert [each.bad for each in told] == [False, True, True]


def test_fencing_without_a_time_is_left_out() -> None:
    """It could be put nowhere."""
    assert not list(history.of_fencing([Fencing("n", "off", "success", "", "")], 0))


def _line(message: object, ident: str = "cxm", priority: str = "5") -> str:
    return json.dumps(
        {
            "MESSAGE": message,
            "SYSLOG_IDENTIFIER": ident,
            "_HOSTNAME": "node1",
            "PRIORITY": priority,
            "__REALTIME_TIMESTAMP": "1795650675819295",
        }
    )


def test_log_tells_orders_and_who_came_and_went() -> None:
    """Of Pacemaker's own many lines only those."""
    text = "\n".join(
        [
            _line("alice (as root): cxm eject node2"),
            _line("VM 1: its guest crashed", priority="4"),
            _line("  notice: Node node2 state is now lost", history.CONTROLLER),
            _line("  notice: State transition S_IDLE -> S_POLICY_ENGINE", history.CONTROLLER),
            _line([66, 255]),
            '{"MESSAGE": "cut o',
        ]
    )
    told = [(each.node, each.what, each.bad) for each in history.of_journal(text)]
    assert told == [
        ("node1", "alice (as root): cxm eject node2", False),
        ("node1", "VM 1: its guest crashed", True),
        ("node2", "left the cluster or died", True),
    ]


def test_a_start_after_a_fencing_says_so() -> None:
    """Why the VM runs there now; the newest is last, old ones and twins are left out."""
    fenced = Event(100.0, "node2", "was fenced by node1: rebooted", "", Kind.FENCING)
    started = Event(112.0, "node1", "vm1 (VM 1) was started", "", Kind.VM)
    later = Event(900.0, "node1", "vm9 (VM 9) was started", "", Kind.VM)
    old = Event(1.0, "node1", "long ago")
    told = history.timeline([later, started, started, fenced, old], since=50.0)
    assert [each.why for each in told] == ["", "node2 had been fenced 12 s before", ""]


@pytest.mark.parametrize(("text", "at"), [("2h", 2800.0), ("90min", 4600.0), ("1d", -76400.0)])
def test_times_as_people_say_them(text: str, at: float) -> None:
    """Before now."""
    assert since(text, 10000.0) == at


def test_dates_are_times_too() -> None:
    """And what is neither is said."""
    assert since("2026-11-25 23:00:00Z", 0.0) == 1795647600.0
    with pytest.raises(UsageError, match="'soon' is no time"):
        since("soon", 0.0)
