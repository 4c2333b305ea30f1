# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""What OpenNebula is to be told of a VM: every state, version and doubt."""

import itertools
from dataclasses import replace
from typing import Final

import pytest

from cxm.errors import DataError
from cxm.names import VmId
from cxm.one.version import OneVersion
from cxm.sync import decide as decisions
from cxm.sync import views
from cxm.sync.decide import Call, Decision, Kind, decide
from cxm.sync.views import Answer, Host, Record, Sighting, World
from lab.oned import states

V38, V40, V412, V414, V50, V74 = (
    OneVersion(3, 8), OneVersion(4, 0), OneVersion(4, 12), OneVersion(4, 14), OneVersion(5, 0),
    OneVersion(7, 4),
)  # fmt: skip
HOSTS: Final = {
    name: Host(number, name, offline=False, ours=True, monitored=True)
    for number, name in enumerate(("a", "b"))
}
STATES: Final = (
    "PENDING", "HOLD", "PROLOG", "BOOT", "RUNNING", "MIGRATE", "UNKNOWN", "POWEROFF", "SUSPENDED",
    "STOPPED", "UNDEPLOYED", "FAILED", "DONE", "LCM 10", "LCM 60", "BOOT_FAILURE",
    "BOOT_MIGRATE_FAILURE", "PROLOG_FAILURE", "PROLOG_MIGRATE_FAILURE",
    "PROLOG_MIGRATE_POWEROFF_FAILURE", "PROLOG_MIGRATE_SUSPEND_FAILURE",
    "PROLOG_MIGRATE_UNKNOWN_FAILURE",
)  # fmt: skip
ALL: Final = list(itertools.product(STATES, (V38, V40, V414, V74)))
RECORD: Final = Record(VmId(7), "web", "RUNNING", "a")
SEEN: Final = Sighting(VmId(7), "b")


def judged(
    state: str = "RUNNING",
    version: OneVersion = V74,
    *,
    seen: Sighting = SEEN,
    host: str = "a",
    unchanged_s: float = 0.0,
) -> Decision:
    """The decision about VM 7, which OpenNebula believes on host a."""
    record = replace(RECORD, state=state, host=host)
    return decide(record, seen, HOSTS, version, unchanged_s=unchanged_s)


@pytest.mark.parametrize(
    ("state", "version", "way"),
    [
        ("RUNNING", V38, (Call.LIVE,)),
        ("RUNNING", V74, (Call.LIVE,)),
        ("UNKNOWN", V38, None),
        ("UNKNOWN", V40, (Call.RECOVER, Call.LIVE)),
        ("UNKNOWN", V74, (Call.RECOVER, Call.LIVE)),
        ("POWEROFF", V412, None),
        ("POWEROFF", V414, (Call.MOVE,)),
        ("SUSPENDED", V74, (Call.MOVE,)),
        ("BOOT_FAILURE", V412, None),
        ("BOOT_FAILURE", V414, (Call.RECOVER, Call.LIVE)),
        ("BOOT_FAILURE", V50, (Call.RECOVER, Call.LIVE)),
    ],
)
def test_a_vm_on_another_host(
    state: str, version: OneVersion, way: tuple[Call, ...] | None
) -> None:
    """By the calls that its version has; without any it is left, and said."""
    found = judged(state, version)
    assert found.kind is (Kind.LEFT if way is None else Kind.ACT)
    assert found.calls == (way or ())
    assert found.host == "b"
    assert found.sentence.startswith(f"VM 7 (web): OpenNebula says {state} on a, but it runs on b")


@pytest.mark.parametrize(
    ("state", "kind", "way"),
    [
        ("RUNNING", Kind.AGREED, ()),
        ("UNKNOWN", Kind.LEFT, ()),
        ("POWEROFF", Kind.LEFT, ()),
        ("BOOT_FAILURE", Kind.ACT, (Call.RECOVER,)),
    ],
)
def test_a_vm_on_its_host(state: str, kind: Kind, way: tuple[Call, ...]) -> None:
    """What its probes tell needs no call; a failed boot nobody but us puts right."""
    found = judged(state, host="b")
    assert (found.kind, found.calls) == (kind, way)


@pytest.mark.parametrize("state", ["RUNNING", "UNKNOWN", "POWEROFF", "BOOT_FAILURE"])
def test_a_driver_that_could_move_it(state: str) -> None:
    """Nothing that migrates is called; a recover on its own host asks no driver."""
    hosts = {name: replace(host, confirms=False, vm_mad="xen") for name, host in HOSTS.items()}
    found = decide(replace(RECORD, state=state), SEEN, hosts, V74)
    assert (found.kind, found.calls) == (Kind.STUCK, ())
    assert "oned.conf does not have VM_MAD 'xen' run migrate on the frontend" in found.sentence
    found = decide(replace(RECORD, state="BOOT_FAILURE", host="b"), SEEN, hosts, V74)
    assert found.calls == (Call.RECOVER,)


@pytest.mark.parametrize("state", ["PROLOG", "HOTPLUG", "MIGRATE", "LCM 10", "LCM 60"])
def test_opennebulas_own_operation_is_left_alone(state: str) -> None:
    """Whatever the cluster says meanwhile."""
    found = judged(state)
    assert (found.kind, found.calls) == (Kind.LEFT, ())
    assert f"OpenNebula is at work on it ({state})" in found.sentence


@pytest.mark.parametrize(
    ("state", "word"),
    [
        ("BOOT", "success"),
        ("BOOT_STOPPED", "success"),
        ("SHUTDOWN", "failure"),
        ("CANCEL", "failure"),
        ("SAVE_SUSPEND", "failure"),
        ("CLEANUP", "success"),
        ("CLEANUP_DELETE", "success"),
    ],
)
def test_the_way_out_of_an_operation_on_a_dead_host(state: str, word: str) -> None:
    """OpenNebula's own driver may never answer; a human is told what ends it, after a while."""
    way = f"on a, and it runs on b: that does not end by itself, 'onevm recover --{word} 7' ends it"
    found = judged(state, unchanged_s=301)
    assert (found.kind, found.calls) == (Kind.STUCK, ())
    assert found.sentence.endswith(way)
    at_home = judged(state, host="b", unchanged_s=301)
    doubted = judged(state, seen=replace(SEEN, doubt="node2 waits to be fenced"), unchanged_s=301)
    for other in (judged(state), judged(state, V38, unchanged_s=301), at_home, doubted):
        assert other.kind is Kind.LEFT
        assert "recover" not in other.sentence


def test_a_large_memory_is_saved_to_be_moved() -> None:
    """For hours, where it comes from: whoever ends that has the guest end without its memory."""
    found = judged("SAVE_MIGRATE", unchanged_s=7200)
    assert found.kind is Kind.LEFT
    assert "recover" not in found.sentence


def test_a_users_own_migration_is_not_ended() -> None:
    """OpenNebula's driver has died of the old host: there is no claim, and nothing changes."""
    found = judged("MIGRATE", host="b", unchanged_s=301)
    assert (found.kind, found.calls) == (Kind.ACT, (Call.RECOVER,))
    # On its way for long, or just there.
    assert judged("MIGRATE", host="a", unchanged_s=7200).kind is Kind.LEFT
    assert judged("MIGRATE", host="b", unchanged_s=299).kind is Kind.LEFT
    # One of ours has times of its own.
    record = replace(RECORD, state="MIGRATE", host="b")
    ours = decide(record, SEEN, HOSTS, V74, claimed_s=310, unchanged_s=301)
    assert ours.kind is Kind.LEFT


def test_a_confirmed_move_is_doubted() -> None:
    """Another node has died meanwhile: that passes, and needs nobody."""
    record, seen = replace(RECORD, state="MIGRATE", host="b"), replace(SEEN, doubt="no quorum")
    found = decide(record, seen, HOSTS, V74, claimed_s=20, is_owed=True)
    assert (found.kind, found.calls) == (Kind.WAIT, ())


@pytest.mark.parametrize("state", [state for state in STATES if state != "DONE"])
def test_nothing_is_done_in_doubt(state: str) -> None:
    """A minority's opinion, a pending fencing, a domain that nobody has seen."""
    found = judged(state, seen=replace(SEEN, doubt="node2 waits to be fenced"))
    assert found.calls == ()
    assert found.kind is not Kind.ACT


@pytest.mark.parametrize(
    ("state", "version"), list(itertools.product(STATES, (V38, V40, V414, V74)))
)
def test_nothing_is_done_about_a_vm_that_runs_nowhere(state: str, version: OneVersion) -> None:
    """Never is one started, and probes say what it is."""
    found = judged(state, version, seen=Sighting(VmId(7), ""))
    assert found.calls == ()


@pytest.mark.parametrize(
    ("state", "version"), list(itertools.product(STATES, (V38, V40, V414, V74)))
)
def test_only_calls_that_start_nothing(state: str, version: OneVersion) -> None:
    """A plain migrate of what runs saves it, one of UNKNOWN deploys it: neither is ever chosen."""
    for host in HOSTS:
        found = judged(state, version, host=host)
        if Call.MOVE in found.calls:
            assert state in ("POWEROFF", "SUSPENDED")
        assert bool(found.calls) is (found.kind is Kind.ACT)


@pytest.mark.parametrize(
    ("record", "hosts", "why"),
    [
        (replace(RECORD, locked=True), HOSTS, "it is locked in OpenNebula: 'onevm unlock 7'"),
        (RECORD, HOSTS | {"b": replace(HOSTS["b"], offline=True)}, "b is OFFLINE in OpenNebula"),
        (RECORD, {"a": HOSTS["a"]}, "b, which is no host of OpenNebula"),
    ],
)
def test_what_oned_would_refuse_is_named(record: Record, hosts: dict[str, Host], why: str) -> None:
    """With what to do about it, and it is not tried."""
    found = decide(record, SEEN, hosts, V74)
    assert (found.kind, found.calls) == (Kind.STUCK, ())
    assert why in found.sentence


@pytest.mark.parametrize(
    ("version", "host", "seen", "way"),
    [
        (V74, "b", SEEN, (Call.RECOVER,)),
        (V74, "b", Sighting(VmId(7), "a"), (Call.FAIL,)),
        (V74, "b", Sighting(VmId(7), "", doubt="x"), ()),
        (V38, "b", SEEN, ()),
    ],
)
def test_our_own_migration_that_does_not_end(
    version: OneVersion, host: str, seen: Sighting, way: tuple[Call, ...]
) -> None:
    """Oned was restarted in the middle of it: it is told what came of it."""
    record = replace(RECORD, state="MIGRATE", host=host)
    assert decide(record, seen, HOSTS, version, claimed_s=60).kind is Kind.LEFT
    late = decide(record, seen, HOSTS, version, claimed_s=decisions.STUCK_S + 1)
    assert late.calls == way
    assert late.kind is (Kind.ACT if way else Kind.STUCK)


_OFF: Final = "PROLOG_MIGRATE_POWEROFF_FAILURE"
_LOST: Final = "PROLOG_MIGRATE_UNKNOWN_FAILURE"
_THERE: Final = Sighting(VmId(7), "a")
_NOWHERE: Final = Sighting(VmId(7), "")


@pytest.mark.parametrize("state", [_OFF, "PROLOG_MIGRATE_SUSPEND_FAILURE"])
def test_our_own_move_of_files_that_failed(state: str) -> None:
    """Oned takes it back to where it was, by which it calls no driver (5.2 and later)."""
    record = replace(RECORD, state=state, host="b")
    for seen in (SEEN, _THERE):
        found = decide(record, seen, HOSTS, V74, claimed_s=20)
        assert (found.kind, found.calls) == (Kind.ACT, (Call.FAIL,))
    found = decide(replace(record, locked=True), SEEN, HOSTS, V74, claimed_s=20)
    assert (found.kind, found.calls) == (Kind.STUCK, ())
    assert "'onevm unlock 7'" in found.sentence


@pytest.mark.parametrize(
    ("state", "version", "seen", "claimed_s", "why"),
    [
        (_OFF, V74, SEEN, None, "runs on b: 'onevm recover --retry 7' moves its files again"),
        (_OFF, V74, _THERE, None, "runs on a: 'onevm recover --failure 7' ends it"),
        (_OFF, V50, _THERE, 20, "runs on a: 'onevm recover --success 7' ends it"),
        (_OFF, V50, SEEN, 20, "runs on b: 'onevm recover --retry 7'"),
        (_OFF, V74, _NOWHERE, 20, "runs nowhere: 'onevm recover --retry 7'"),
        # These two would deploy or restore it.
        (_LOST, V74, SEEN, 20, "runs on b: 'onevm recover --retry 7'"),
        (_LOST, V74, _THERE, 20, "runs on a: 'onevm recover --failure 7'"),
        ("PROLOG_MIGRATE_FAILURE", V74, _THERE, 20, "runs on a: 'onevm recover --failure 7'"),
    ],
)
def test_a_move_of_files_that_failed_is_for_a_human(
    state: str, version: OneVersion, seen: Sighting, claimed_s: float | None, why: str
) -> None:
    """OpenNebula works on it no more, and what comes next depends on where the VM runs."""
    record = replace(RECORD, state=state, host="b")
    found = decide(record, seen, HOSTS, version, claimed_s=claimed_s)
    assert (found.kind, found.calls) == (Kind.STUCK, ())
    assert found.sentence.startswith(f"VM 7 (web): OpenNebula says {state} on b, and it {why}")


@pytest.mark.parametrize(
    ("seen", "kind", "why"),
    [
        (SEEN, Kind.STUCK, "has given it up (DONE), and it runs on b: nothing of it is removed"),
        (Sighting(VmId(7), ""), Kind.STUCK, "the cluster keeps it"),
        (Sighting(VmId(7), "", wanted=False), Kind.STUCK, "'cxm-sync --remove 7'"),
        (Sighting(VmId(7), "", "x", wanted=False), Kind.STUCK, "the cluster keeps it: x"),
        (Sighting(VmId(7), "b", "x"), Kind.STUCK, "the cluster keeps it: x"),
    ],
)
def test_a_vm_that_opennebula_has_given_up(seen: Sighting, kind: Kind, why: str) -> None:
    """The host_error hook deletes what the cluster has rescued: a human is told."""
    found = judged("DONE", seen=seen)
    assert (found.kind, found.calls) == (kind, ())
    assert why in found.sentence


@pytest.mark.parametrize("state", ["PENDING", "STOPPED", "PROLOG_FAILURE"])
def test_a_vm_that_runs_and_should_not(state: str) -> None:
    """Nothing that OpenNebula could be told makes it right."""
    found = judged(state)
    assert (found.kind, found.calls) == (Kind.STUCK, ())
    assert judged(state, seen=Sighting(VmId(7), "")).kind is Kind.AGREED


@pytest.mark.parametrize("state", ["PENDING", "FAILED", "PROLOG_FAILURE"])
@pytest.mark.parametrize("host", ["", "b"])
def test_whether_a_vm_runs_that_should_not_is_not_certain(state: str, host: str) -> None:
    """Then neither is said, and no human is sent to end it."""
    found = judged(state, seen=Sighting(VmId(7), host, doubt="node2 waits to be fenced"))
    assert found.kind is Kind.WAIT
    assert "whether it runs is not certain: node2 waits to be fenced" in found.sentence
    assert "cxm shutdown" not in found.sentence


def test_a_failed_vm_that_runs() -> None:
    """Up to 4.12 that is every failed boot; since, nothing becomes FAILED."""
    assert "OpenNebula 4.12.0 has no way back to RUNNING" in judged("FAILED", V412).sentence


def test_table_is_made_of_the_calls() -> None:
    """One row a state, one column an age."""
    lines = decisions.table().splitlines()
    ages = "3.6, 3.8 | 4.0 to 4.8 | 4.10, 4.12 | 4.14 to 5.10 | 5.12 to 7.4"
    assert lines[0] == f"| OpenNebula says | {ages} |"
    live, both = Call.LIVE, f"{Call.RECOVER}; {Call.LIVE}"
    assert f"| RUNNING on another host | {' | '.join([live] * 5)} |" in lines
    assert f"| UNKNOWN on another host | none | {' | '.join([both] * 4)} |" in lines
    failed = " | ".join(["it is FAILED there"] * 3)
    assert f"| BOOT_FAILURE on another host | {failed} | {both} | {both} |" in lines


@pytest.mark.parametrize(
    ("state", "version", "host", "kind", "says"),
    [
        ("SUSPENDED", V74, "b", Kind.LEFT, "next report tells it"),
        ("SUSPENDED", OneVersion(5, 10), "b", Kind.STUCK, ": 'onevm resume 7' adopts it"),
        ("SUSPENDED", V412, "a", Kind.STUCK, "'cxm migrate 7 a' on a node, then 'onevm resume 7'"),
        ("POWEROFF", V412, "b", Kind.LEFT, "next report tells it"),
        ("POWEROFF", V412, "a", Kind.LEFT, "a vouches for it"),
        ("POWEROFF", OneVersion(4, 8), "b", Kind.STUCK, ": 'onevm resume 7' adopts it"),
        ("POWEROFF", V38, "b", Kind.STUCK, ": 'onevm restart 7' adopts it"),
    ],
)
def test_what_no_report_ends_is_for_a_human(
    state: str, version: OneVersion, host: str, kind: Kind, says: str
) -> None:
    """Whether oned takes a host's word that such a VM runs depends on its version."""
    found = judged(state, version, host=host)
    assert (found.kind, found.calls) == (kind, ())
    assert says in found.sentence


class TestViews:
    """The two views as they come."""

    def test_records_of_a_pool(self) -> None:
        """Host and state of the last record, and a lock."""
        pool = (
            "<VM_POOL><VM><ID>7</ID><NAME>web</NAME><STATE>3</STATE><LCM_STATE>16</LCM_STATE>"
            "<LOCK><LOCKED>1</LOCKED></LOCK><HISTORY_RECORDS><HISTORY><HOSTNAME>a</HOSTNAME>"
            "<ETIME>0</ETIME></HISTORY></HISTORY_RECORDS></VM>"
            "<VM><ID>8</ID><NAME>db</NAME><STATE>1</STATE><LCM_STATE>0</LCM_STATE>"
            "<HISTORY_RECORDS/></VM></VM_POOL>"
        )
        assert views.records(pool) == [
            Record(VmId(7), "web", "UNKNOWN", "a", locked=True),
            Record(VmId(8), "db", "PENDING", ""),
        ]

    @pytest.mark.parametrize("name", STATES)
    def test_states_are_named_as_opennebula_numbers_them(self, name: str) -> None:
        """The stand-in has its own list."""
        if not name.startswith("LCM "):
            assert views.state_name(*states.vm_state_numbers(name)) == name

    def test_hosts_of_a_pool(self) -> None:
        """Those with our drivers, and those that an administrator took out."""
        pool = (
            "<HOST_POOL><HOST><ID>0</ID><NAME>a</NAME><STATE>2</STATE><IM_MAD>cxm</IM_MAD></HOST>"
            "<HOST><ID>1</ID><NAME>k</NAME><STATE>8</STATE><IM_MAD>kvm</IM_MAD></HOST></HOST_POOL>"
        )
        assert views.hosts(pool) == [
            Host(0, "a", offline=False, ours=True, monitored=True),
            Host(1, "k", offline=True, ours=False, monitored=False),
        ]

    def test_answer(self) -> None:
        """Of a node in a cluster, and of a host in none."""
        row = {"vm": 7, "name": "x", "host": "b", "doubt": "", "wanted": True, "told": ""}
        said = {"clustered": True, "doubt": "", "hosts": ["a", "b"], "unclear": [], "away": []}
        said["vms"] = [row]
        assert views.answer("a", said).vms == (SEEN,)
        assert views.answer("s", {"clustered": False}).counts
        with pytest.raises(DataError, match="a does not say where VMs are as it should"):
            views.answer("a", {"clustered": True})

    def test_vm_of_two_clusters_is_in_doubt(self) -> None:
        """A node that was taken out of one, and its disks were not."""
        twice = [Answer(name, clustered=True, hosts=(name,), vms=(SEEN,)) for name in ("a", "b")]
        assert World(tuple(twice[:1])).sightings == {7: SEEN}
        assert World(tuple(twice)).sightings[VmId(7)].doubt == "two clusters know it"
