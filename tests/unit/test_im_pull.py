# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""What 3.6 to 5.10 hear of a host and of VMs, read as their oned reads it."""

import io
from collections.abc import Mapping
from pathlib import Path

import pytest

from cxm.errors import UsageError
from cxm.one.action import Call
from cxm.one.im import pull
from cxm.one.version import OneVersion
from cxm.one.vmm import poll
from tests.fakes import template
from tests.fakes.observations import context, guest

OLD, MIDDLE, NEW = OneVersion(3, 8), OneVersion(4, 6), OneVersion(5, 10, 5)


class NoInput(io.StringIO):
    """The ssh stream of 3.x to 4.14: to read it is to swallow the next command."""

    def read(self, size: int | None = -1, /) -> str:
        raise AssertionError("the input was read")


def call(action: str, *argv: str) -> Call:
    """A call whose input must not be read."""
    return Call("im", action, argv, NoInput())


def shell_38(text: str) -> str:
    """What run_probes of 3.8 makes of a probe's output, and oned of its commas."""
    return " ".join(text.split()).replace(",", "\n")


def test_host_of_38(tmp_path: Path) -> None:
    """All that the stock probe says, after the shell and oned's first rewriting."""
    ctx = context(str(tmp_path), OLD, guest(1), foreign=("other",))
    said = pull.run(ctx, call("cxm.d/probe", "cxm", "0", "solo1"))
    read = template.parse(shell_38(said), old=True)
    assert template.singles(read) == {
        "HYPERVISOR": "xen",
        "HOSTNAME": "solo1",
        "ARCH": "x86_64",
        "MODELNAME": "Intel(R) Core(TM) i7 2.80GHz",
        "CPUSPEED": "2800",
        "TOTALCPU": "800",
        "TOTALMEMORY": "8000000",
        "USEDMEMORY": "1000000",
        "FREEMEMORY": "7000000",
        "USEDCPU": "35",
        "FREECPU": "765",
        "NETRX": "1111",
        "NETTX": "2222",
    }
    assert len(read) == 13


@pytest.mark.parametrize("version", [MIDDLE, NEW])
def test_host_of_44_to_510(tmp_path: Path, version: OneVersion) -> None:
    """Host, space, VMs and foreign domains in one answer."""
    (tmp_path / "datastores/100/7").mkdir(parents=True)
    ctx = context(
        str(tmp_path),
        version,
        guest(7),
        guest(8, "poweroff"),
        foreign=('bad"name', "dom,x"),
    )
    argv = ("cxm-probes", str(tmp_path / "datastores"), "4124", "20", "3", "solo1")
    read = template.parse(pull.run(ctx, call("cxm-probes.d/probe", *argv)))
    singles = template.singles(read)
    assert singles["VM_POLL"] == "YES"
    assert singles["DS_LOCATION_FREE_MB"] == "60000"
    assert singles["VERSION"] == str(version)
    assert template.vectors(read, "DS") == [
        {"ID": "100", "USED_MB": "40000", "TOTAL_MB": "100000", "FREE_MB": "60000"}
    ]
    vms = template.vectors(read, "VM")
    assert [(vm["ID"], vm["DEPLOY_ID"]) for vm in vms] == [
        ("7", "one-7"),
        ("8", "one-8"),
        ("-1", "bad name"),
        ("-1", "dom,x"),
    ]
    assert vms[0]["POLL"].startswith("STATE=a ")
    assert vms[1]["POLL"].startswith("STATE=d ")
    assert "POLL" not in vms[2]


def tokens(said: str) -> Mapping[str, str]:
    """The words of a POLL, as oned up to 4.12 splits them."""
    return dict(word.split("=", 1) for word in said.split(" "))


def test_poll_up_to_412_has_old_names_and_whole_numbers() -> None:
    """3.x reads an int and would keep unknown names as attributes of the VM, with a warning."""
    assert tokens(pull.poll_values(guest(1), OLD)) == {
        "STATE": "a",
        "USEDCPU": "12",
        "USEDMEMORY": "524288",
        "NETRX": "1",
        "NETTX": "2",
    }


def test_poll_from_414_is_a_template() -> None:
    """Disk sizes come with it; oned reads it once more out of a quoted value."""
    read = template.parse(pull.poll_values(guest(1), NEW))
    assert template.singles(read) == {
        "STATE": "a",
        "CPU": "12.5",
        "MEMORY": "524288",
        "NETRX": "1",
        "NETTX": "2",
        "DISKRDBYTES": "3",
        "DISKWRBYTES": "4",
        "DISKRDIOPS": "5",
        "DISKWRIOPS": "6",
    }
    assert template.vectors(read, "DISK_SIZE") == [{"ID": "0", "SIZE": "1024"}]


@pytest.mark.parametrize(
    ("state", "old", "new"),
    [
        ("running", "a", "a"),
        ("paused", "-", "-"),
        ("poweroff", "d", "d"),
        ("failure", "d", "e"),
        ("vanished", "d", "e"),
        ("busy", "-", "-"),
    ],
)
def test_state_letters(state: str, old: str, new: str) -> None:
    """Nobody is suspended or given up for what may pass."""
    assert tokens(pull.poll_values(guest(1, state), OLD))["STATE"] == old
    assert tokens(pull.poll_values(guest(1, state, disks={}), NEW))["STATE"] == new


@pytest.mark.parametrize("argv", [("one-7", "solo1", "7", "solo1"), ("solo1", "7", "solo1")])
def test_poll_of_one_vm(tmp_path: Path, argv: tuple[str, ...]) -> None:
    """VM 7 beside VM 70, also when an empty deployment id has vanished; the input stays unread."""
    ctx = context(str(tmp_path), OLD, guest(70, "poweroff"), guest(7))
    said = poll.run(ctx, Call("vmm", "poll", argv, NoInput()))
    assert said.startswith("STATE=a ")
    assert "\n" not in said


def test_poll_of_a_vm_that_is_not_here(tmp_path: Path) -> None:
    """It is gone, not unknown to us."""
    ctx = context(str(tmp_path), OLD, guest(70))
    said = poll.run(ctx, Call("vmm", "poll", ("x", "h", "7", "h"), NoInput()))
    assert said == "STATE=d"


def test_poll_t_lists_all(tmp_path: Path) -> None:
    """``poll -t`` says what the probe of 4.4 to 5.10 says of VMs."""
    ctx = context(str(tmp_path), NEW, guest(7), guest(8))
    said = poll.run(ctx, Call("vmm", "poll", ("-t",), NoInput()))
    assert [vm["ID"] for vm in template.vectors(template.parse(said), "VM")] == ["7", "8"]


@pytest.mark.parametrize("argv", [(), ("x",), ("a", "b", "c", "d")])
def test_poll_refuses_what_names_no_vm(tmp_path: Path, argv: tuple[str, ...]) -> None:
    """A wrong call is an error, not another VM's state."""
    with pytest.raises(UsageError):
        poll.run(context(str(tmp_path), OLD), Call("vmm", "poll", argv, NoInput()))
