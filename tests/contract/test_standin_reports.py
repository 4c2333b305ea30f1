# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""What the stand-in makes of monitoring, by version (protocol section 5)."""

import base64
import time
import zlib

import pytest

from cxm.errors import DataError
from lab.oned import reports
from lab.oned.model import Datastore, History, Host, Vm
from lab.oned.profiles import profile
from lab.oned.reports import Message, Reports

_NOW = int(time.time())


class Told:
    """What a report made of VMs, and the model that it was taken into."""

    def __init__(self, version: str, *, quiet_s: float = 0.0) -> None:
        self.host = Host(0, "node1", "cxm", "vmm_cxm")
        self.states: list[tuple[int, str]] = []
        self.store = Datastore(101, "cxm_local", 1, "-", "cxm_local", [])
        self.vms = {number: self._vm(number) for number in (4, 42)}
        self.reports = Reports(
            profile(version),
            self.vms,
            {101: self.store},
            lambda vm, state: self.states.append((vm.id, state)),
            quiet_s=quiet_s,
        )

    def _vm(self, number: int) -> Vm:
        vm = Vm(number, f"vm{number}", [], [], state="RUNNING")
        vm.histories.append(History(0, self.host, self.store, _NOW))
        vm.state_since = 0.0
        return vm

    def send(self, kind: str, text: str, *, stamp: int = _NOW, ok: bool = True) -> None:
        """Take one message of the host's client."""
        self.reports.message(self.host, Message(kind, ok, 0, stamp, text))


def test_a_message_is_decoded() -> None:
    """Type, status, host, time and a payload that is compressed, then base64."""
    payload = base64.b64encode(zlib.compress(b"STATE")).decode()
    found = reports.decode(f"STATE_VM SUCCESS 3 1700000000 {payload}".encode())
    assert found == Message("STATE_VM", ok=True, host=3, stamp=1700000000, text="STATE")


@pytest.mark.parametrize(
    "line", [b"", b"STATE_VM SUCCESS 3 17 !!", b"NOISE SUCCESS 3 17 eA==", b"a b", b"\xff\xfe"]
)
def test_a_damaged_message_is_refused(line: bytes) -> None:
    """Nothing that is no message is taken for one."""
    with pytest.raises(DataError):
        reports.decode(line)


def test_states_of_vms_are_told_by_exact_number() -> None:
    """VM 4 and VM 42 are two VMs; a VM that is not ours is ignored."""
    told = Told("7.4")
    told.send(
        "STATE_VM", 'VM=[ID="42",DEPLOY_ID="x",STATE="POWEROFF"]\nVM=[ID="9",STATE="RUNNING"]'
    )
    assert told.states == [(42, "POWEROFF")]


def test_a_running_vm_keeps_the_name_that_its_host_says() -> None:
    """The deploy id of a VM that runs follows the probe."""
    told = Told("7.4")
    told.send("STATE_VM", 'VM=[ID="4",DEPLOY_ID="admin-web",STATE="RUNNING"]')
    assert told.vms[4].deploy_id == "admin-web"


@pytest.mark.parametrize(("said", "state"), [("UNKNOWN", "UNKNOWN"), ("POWEROFF", "POWEROFF")])
def test_a_missing_vm_becomes_what_the_probe_says(said: str, state: str) -> None:
    """Only a message that says it is complete makes VMs missing."""
    told = Told("7.4")
    told.send("STATE_VM", 'VM=[ID="4",STATE="RUNNING"]')
    assert told.states == [(4, "RUNNING")]
    told.send(
        "STATE_VM",
        f'SYNC_STATE=yes\nMISSING_STATE="{said}"\nVM=[ID="4",STATE="RUNNING"]',
        stamp=_NOW + 1,
    )
    assert told.states[1:] == [(4, "RUNNING"), (42, state)]


def test_an_older_message_is_ignored_by_7() -> None:
    """The time of the host orders messages of a kind; two of one second are one too many."""
    told = Told("7.4")
    told.send("STATE_VM", 'VM=[ID="4",STATE="POWEROFF"]')
    told.send("STATE_VM", 'VM=[ID="4",STATE="RUNNING"]')
    assert told.states == [(4, "POWEROFF")]


def test_states_right_after_a_change_of_oneds_own_are_ignored_by_7() -> None:
    """A probe may have looked before the driver's action."""
    told = Told("7.4", quiet_s=30)
    told.vms[4].state_since = time.monotonic()
    told.send("STATE_VM", 'VM=[ID="4",STATE="POWEROFF"]\nVM=[ID="42",STATE="POWEROFF"]')
    assert told.states == [(42, "POWEROFF")]


def test_values_of_vms_are_kept() -> None:
    """They come as a template in base64."""
    told = Told("6.10")
    inner = base64.b64encode(b'CPU="7.5"\nMEMORY="131072"').decode()
    told.send("MONITOR_VM", f'VM=[ID="4",MONITOR="{inner}"]')
    assert told.vms[4].monitoring == {"CPU": "7.5", "MEMORY": "131072"}


def test_a_failed_beacon_is_the_hosts_error() -> None:
    """A client that cannot look says so."""
    told = Told("7.4")
    told.send("MONITOR_HOST", "xl is not there", ok=False)
    assert (told.host.state, told.host.reason) == ("ERROR", "xl is not there")


def test_a_host_that_cannot_be_monitored_makes_its_vms_unknown_but_not_in_3_8() -> None:
    """3.8 leaves VMs as they are."""
    new, old = Told("7.4"), Told("3.8")
    for told in (new, old):
        told.reports.lost(told.host, "no route")
    assert new.states == [(4, "UNKNOWN"), (42, "UNKNOWN")]
    assert old.states == []


def test_5_x_misses_a_vm_after_two_reports() -> None:
    """Then it is powered off; with VM_POLL=NO nothing is missed."""
    told = Told("5.10")
    text = 'TOTALCPU=100\nVM_POLL=YES\nVM=[ID=4,DEPLOY_ID="a",POLL="STATE=a CPU=1.5 MEMORY=9"]\n'
    told.reports.probed(told.host, text)
    assert told.states == [(4, "RUNNING")]
    told.reports.probed(told.host, text)
    assert told.states[1:] == [(4, "RUNNING"), (42, "POWEROFF")]
    assert told.vms[4].monitoring == {"CPU": "1.5", "MEMORY": "9"}


def test_3_8_reads_words_and_its_own_names() -> None:
    """USEDCPU is CPU, and a VM that is gone becomes UNKNOWN."""
    told = Told("3.8")
    told.reports.probed(told.host, "HYPERVISOR=xen TOTALMEMORY=1024")
    assert told.host.number("TOTALMEMORY") == 1024
    told.reports.polled(told.vms[4], "STATE=a USEDCPU=3 USEDMEMORY=64 NETRX=1 NETTX=2")
    told.reports.polled(told.vms[42], "STATE=d")
    assert told.vms[4].monitoring == {"CPU": "3", "MEMORY": "64", "NETRX": "1", "NETTX": "2"}
    assert told.states == [(4, "RUNNING"), (42, "UNKNOWN")]


def test_space_of_a_local_datastore_comes_from_the_host() -> None:
    """By its id, else what is free where the host keeps its datastores."""
    told = Told("7.4")
    told.send("SYSTEM_HOST", "DS=[ID=101,FREE_MB=700]\nDS_LOCATION_FREE_MB=5")
    assert reports.space_of(told.host, told.store) == 700
    other = Datastore(7, "x", 1, "-", "cxm_local", [])
    assert reports.space_of(told.host, other) == 5


def test_space_of_a_shared_datastore_comes_from_its_driver() -> None:
    """As the TM action ``monitor`` prints it."""
    told = Told("7.4")
    reports.store_space(told.store, "USED_MB=1\nFREE_MB=20\nTOTAL_MB=21\n")
    assert (told.store.used_mib, told.store.free_mib, told.store.total_mib) == (1, 20, 21)
