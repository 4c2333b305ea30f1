# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""LVM's report, as recorded, and what is asked of its commands."""

import dataclasses
import json
from pathlib import Path

import pytest

from cxm import lvm
from cxm.errors import CommandError, DataError, NotFoundError, RefusedError
from cxm.names import LvName
from tests.fakes.machine import EXTENT, MIB, FakeNode, Outcome

REPORT = (Path(__file__).parents[1] / "data" / "lvm-2.03.16-fullreport.json").read_text()


@pytest.fixture
def node(tmp_path: Path) -> FakeNode:
    """A node with an empty volume group of 1 GiB."""
    return FakeNode(str(tmp_path / "node"))


def test_report_is_read() -> None:
    """Group and volumes come out of one report of the real tool."""
    group = lvm.parse_report(REPORT)
    assert group is not None
    assert (group.name, group.shared, group.extent) == ("LVM_XEN", False, 4 * MIB)
    assert (group.size, group.free) == (42945478656, 42387636224)
    assert group.uuid == "ANfFeW-sObg-yHCt-wKsF-oxrZ-Ihzq-uhd2U9"
    assert [(each.name, each.size_mib, each.active, each.in_use) for each in group.volumes] == [
        ("foreign", 12, True, False),
        ("idle", 8, False, False),
        ("lv-one-42-0", 256, True, False),
        ("lv-one-42-1", 256, True, True),
    ]
    assert group.volumes[0].tags == ()
    assert "cxm.name=u-vm42.net" in group.volumes[2].tags


def test_name_is_exact() -> None:
    """A name that begins like another one is another name."""
    group = lvm.parse_report(REPORT)
    assert group is not None
    assert group.find(LvName("lv-one-42-")) is None
    assert group.find(LvName("lv-one-42-1")) is group.volumes[3]


def test_shared_group() -> None:
    """A group under lvmlockd says so."""
    group = lvm.parse_report(REPORT.replace('"vg_shared":""', '"vg_shared":"shared"'))
    assert group is not None
    assert group.shared


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"report": [{"vg": [{"vg_name": "x"}]}]}', "7"])
def test_other_text_is_an_error(text: str) -> None:
    """What is no report is never taken for an empty one."""
    with pytest.raises(DataError, match="LVM's report cannot be read"):
        lvm.parse_report(text)


def test_empty_report_names_no_group() -> None:
    """LVM 2.03.16 prints this beside its failure for a missing group."""
    assert lvm.parse_report('{"report": [ ] }') is None


def test_missing_group(node: FakeNode) -> None:
    """A group that is not there is named, with the setting to look at."""
    with pytest.raises(NotFoundError, match="volume group nothing does not exist"):
        lvm.group(node, "nothing")


def test_other_failure_is_not_a_missing_group(node: FakeNode) -> None:
    """A lock that cannot be had is no missing group."""
    node.model("lvm", lambda _argv, _input: Outcome(stderr="VG lock failed", code=5))
    with pytest.raises(CommandError, match="VG lock failed"):
        lvm.group(node, "LVM_XEN")


def test_size_is_whole_extents(node: FakeNode) -> None:
    """A volume takes whole extents, and only what is free."""
    group = lvm.group(node, "LVM_XEN")
    assert group.rounded(1) == EXTENT
    assert group.rounded(4) == EXTENT
    assert group.rounded(5) == 2 * EXTENT


def test_last_extent_can_be_had_and_no_more(node: FakeNode) -> None:
    """A group may be filled to its last extent; one MiB more is refused before LVM is asked."""
    lvm.create(node, lvm.group(node, "LVM_XEN"), LvName("all"), 1024, [])
    group = lvm.group(node, "LVM_XEN")
    lvm.remove(node, group, LvName("all"))
    ran = len(node.ran)
    with pytest.raises(RefusedError, match="1024 MiB free, but all needs 1028 MiB"):
        lvm.create(node, dataclasses.replace(group, free=1 << 30), LvName("all"), 1025, [])
    assert len(node.ran) == ran


def test_tags_change_in_one_step(node: FakeNode) -> None:
    """Old tags go and new ones come at once; tags of others stay."""
    node.add_lv("v", 4, tags=["mine=1", "theirs"])
    group = lvm.group(node, "LVM_XEN")
    lvm.retag(node, group, LvName("v"), old=["mine=1"], new=["mine=2"])
    assert node.state.lvs["v"].tags == ("mine=2", "theirs")
    assert node.ran[-1] == (
        "lvchange", "--deltag", "mine=1", "--addtag", "mine=2", "LVM_XEN/v",
    )  # fmt: skip


def test_same_tags_need_no_command(node: FakeNode) -> None:
    """Nothing is run where nothing changes."""
    node.add_lv("v", 4, tags=["a"])
    group = lvm.group(node, "LVM_XEN")
    ran = len(node.ran)
    lvm.retag(node, group, LvName("v"), old=["a"], new=["a"])
    assert len(node.ran) == ran


@pytest.mark.parametrize("shared", [False, True])
def test_activation(node: FakeNode, *, shared: bool) -> None:
    """On a shared group a volume is activated for this node alone."""
    node.shared = shared
    node.add_lv("v", 4)
    group = lvm.group(node, "LVM_XEN")
    lvm.deactivate(node, group, LvName("v"))
    assert not node.state.lvs["v"].active
    lvm.activate(node, group, LvName("v"))
    assert node.state.lvs["v"].active
    assert ("ey" in node.ran[-1]) == shared


def test_report_asks_for_what_it_reads() -> None:
    """Every field that is read is asked for."""
    asked = ",".join(lvm._REPORT)
    for row in json.loads(REPORT)["report"][0]["vg"] + json.loads(REPORT)["report"][0]["lv"]:
        assert all(key in asked for key in row)
