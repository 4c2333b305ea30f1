# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""What a VM of a cluster boots is on every node, whoever brought it and whoever was away."""

import hashlib
import io
import json
import os
import re
from pathlib import Path

import pytest

from cxm.cluster import nodes
from cxm.errors import CxmError, RefusedError
from cxm.node import helper
from tests.fakes.machine import CLOUD, Outcome
from tests.fakes.pair import Pair
from tests.unit.test_kernel import PVH, elf

KERNEL, RAMDISK = elf(PVH), b"the ramdisk"
HASHES = {hashlib.sha256(content).hexdigest() for content in (KERNEL, RAMDISK)}
OLD_S = 7200


@pytest.fixture
def pair() -> Pair:
    """Two nodes; VM 7 comes from OpenNebula with a kernel and a ramdisk of FILE datastores."""
    return Pair()


def start(pair: Pair, node: str = "node1") -> None:
    """domain-start with both files in the VM's directory, which is gone afterwards."""
    directory = Path(pair.directory(node))
    directory.mkdir(parents=True, exist_ok=True)
    names = {"kernel": directory / "kernel", "ramdisk": directory / "initrd"}
    for path, content in zip(names.values(), (KERNEL, RAMDISK), strict=True):
        path.write_bytes(content)
    pair.start(node, **{key: str(path) for key, path in names.items()})
    for path in names.values():
        path.unlink()


def store(pair: Pair, node: str) -> Path:
    """Where a node keeps them."""
    return Path(pair.xens[node].node.path("state", "kernels"))


def kept(pair: Pair, node: str) -> set[str]:
    """What a node has, each checked."""
    if not store(pair, node).is_dir():
        return set()
    found = {name for name in os.listdir(store(pair, node)) if name != "facts.json"}
    for name in found:
        assert hashlib.sha256((store(pair, node) / name).read_bytes()).hexdigest() == name
    return found


def age(pair: Pair, node: str) -> None:
    """Two hours pass for a node's copies."""
    for path in store(pair, node).iterdir():
        then = path.stat().st_mtime - OLD_S
        os.utime(path, (then, then))


def gather(pair: Pair, node: str) -> int:
    """What the timer does; its exit code."""
    return helper.serve("gather", io.BytesIO(), io.BytesIO(), pair.xens[node].machine())


def test_every_node_has_them_before_the_vm_is_there(pair: Pair) -> None:
    """So it is started elsewhere when its node dies, frontend and datastores gone."""
    start(pair)
    assert kept(pair, "node1") == kept(pair, "node2") == HASHES
    known = pair.resource()
    assert known is not None
    assert set(re.findall("[0-9a-f]{64}", known.config)) == HASHES
    pair.fail("node1")
    assert pair.runs_on() == ["node2"]


@pytest.mark.extensive
def test_what_boots_from_the_host_is_kept_too(pair: Pair) -> None:
    """The image of grub, and a kernel in KERNEL_DIRS: another node may have another one there."""
    pair.start("node1")
    assert kept(pair, "node2") == {hashlib.sha256(b"grub").hexdigest()}
    path = Path(pair.xens["node1"].node.path("kernels", "vmlinuz"))
    path.write_bytes(KERNEL)
    pair.stop("node1")
    pair.start("node1", kernel=str(path))
    assert hashlib.sha256(KERNEL).hexdigest() in kept(pair, "node2")


@pytest.mark.extensive
def test_a_second_deploy_sends_nothing(pair: Pair) -> None:
    """The other node is asked once, what it has is not sent again."""
    start(pair)
    pair.stop("node1")
    pair.xens["node1"].node.ran.clear()
    start(pair)
    asked = [each for each in pair.xens["node1"].node.ran if each[0] == "ssh"]
    assert [each[each.index("--") + 1] for each in asked] == ["lacks"]


def test_refused_while_no_other_node_takes_them(pair: Pair) -> None:
    """Nothing is made: the VM would not survive."""
    pair.xens["node1"].node.model("ssh", lambda *_: Outcome(stderr="No route", code=255))
    with pytest.raises(RefusedError, match=r"could be started on no other node, none .*No route"):
        start(pair)
    assert pair.resource() is None
    assert pair.runs_on() == []


def test_node_that_was_away_gathers_them(pair: Pair) -> None:
    """Once it is back it needs nobody any more."""
    pair.fail("node2")
    start(pair)
    assert kept(pair, "node2") == set()
    pair.come_back("node2")
    assert gather(pair, "node2") == 0
    assert kept(pair, "node2") == HASHES
    pair.fail("node1")
    assert pair.runs_on() == ["node2"]


def test_the_timer_keeps_what_guests_use(pair: Pair) -> None:
    """Nobody needs to have asked for it before, and nothing else runs for it."""
    start(pair)
    assert gather(pair, "node1") == 0
    samples = json.loads(Path(pair.xens["node1"].machine().run_dir, "usage.json").read_text())
    ((_at, seconds),) = samples
    assert len(seconds) == 1


@pytest.mark.extensive
def test_start_fetches_what_is_missing(pair: Pair) -> None:
    """A node that has not gathered yet; where nobody has it, the sentence says what is missing."""
    start(pair)
    pair.stop("node1")
    for name in HASHES:
        (store(pair, "node2") / name).unlink()
    assert pair.agent("node2", "start") == 0
    assert kept(pair, "node2") == HASHES
    assert pair.runs_on() == ["node2"]
    assert pair.agent("node2", "stop") == 0
    for node in ("node1", "node2"):
        for name in HASHES:
            (store(pair, node) / name).unlink()
    assert pair.agent("node2", "start") == 1
    assert "is not on node2, nor to be had: node1" in pair.said[-1]
    assert pair.runs_on() == []


@pytest.mark.extensive
def test_guest_that_moves_finds_them_when_it_reboots(pair: Pair) -> None:
    """It is sent without them; that it moves does not need them, so it moves all the same."""
    start(pair)
    for name in HASHES:
        (store(pair, "node2") / name).unlink()
    pair.move("node1", "node2")
    assert kept(pair, "node2") == HASHES
    for node in ("node1", "node2"):
        for name in HASHES:
            (store(pair, node) / name).unlink()
    pair.move("node2", "node1")
    assert pair.runs_on() == ["node1"]


@pytest.mark.extensive
def test_kept_while_a_vm_is_known_and_removed_after(pair: Pair) -> None:
    """Also on the node where it never ran; what was just asked for stays for an hour."""
    start(pair)
    pair.stop("node1")
    for node in ("node1", "node2"):
        age(pair, node)
        assert gather(pair, node) == 0
        assert kept(pair, node) == HASHES
    pair.ask("node1", "vm-remove", vm=7, dir=pair.directory("node1"))
    assert gather(pair, "node2") == 0
    assert kept(pair, "node2") == HASHES
    for node in ("node1", "node2"):
        age(pair, node)
        assert gather(pair, node) == 0
        assert kept(pair, node) == set()


def test_damaged_vm_does_not_keep_the_others_from_what_they_boot(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    """It is named, and what it may boot is not removed."""
    pair.fail("node2")
    start(pair)
    pair.come_back("node2")
    pair.damage(5, 6)
    old = store(pair, "node2") / ("a" * 64)
    old.parent.mkdir(exist_ok=True)
    old.write_bytes(b"")
    age(pair, "node2")
    assert gather(pair, "node2") != 0
    assert set(os.listdir(old.parent)) > HASHES
    assert old.exists()
    for vm in (5, 6):
        said = f"the resource cxm-{CLOUD}-{vm} in the CIB is damaged: its configuration cannot"
        assert said in caplog.text


@pytest.mark.extensive
def test_nothing_is_removed_while_the_cluster_cannot_be_asked(pair: Pair) -> None:
    """Which VMs there are is not known then."""
    start(pair)
    age(pair, "node1")
    pair.pacemaker.runs = False
    assert gather(pair, "node1") != 0
    assert kept(pair, "node1") == HASHES


@pytest.mark.parametrize(
    ("words", "data", "message"),
    [
        ("keep {good}", b"something else", "it has another hash"),
        ("keep ../../etc/passwd", b"x", "not the hash of"),
        ("keep {good} {good}", b"x", "not the hash of"),
        ("fetch {good}", b"", "node2 does not have the kernel or ramdisk"),
        ("fetch /etc/shadow", b"", "not the hash of"),
        ("lacks", b"", "not the hash of"),
        ("cat {good}", b"", "is not what a node of cxm asks"),
    ],
)
def test_what_a_node_does_not_do_for_another(
    pair: Pair, words: str, data: bytes, message: str
) -> None:
    """No path, no file but these, nothing under a wrong hash."""
    good = hashlib.sha256(b"x").hexdigest()
    answer = pair._serve(pair.xens["node2"], words.format(good=good), data)
    assert message in answer["error"]
    assert kept(pair, "node2") == set()


@pytest.mark.extensive
def test_hosts_of_opennebula_may_have_other_names(pair: Pair) -> None:
    """The record and an order to move use its names; one that may mean two nodes is refused."""
    pair.pacemaker.edit(lambda root: nodes.set_attribute(root, "node2", "cxm-host", "xen2.lan"))
    pair.start("node2")
    known = pair.resource()
    assert known is not None
    assert (known.host, known.preferred) == ("xen2.lan", "node2")
    assert pair.move("node2", "node1").result == {"node": "node1", "moved": True}
    moved = pair.resource()
    assert moved is not None
    assert moved.host == "node1"
    assert pair.move("node1", "xen2.lan").result == {"node": "node2", "moved": True}
    with pytest.raises(CxmError, match="no node of this cluster is called 'xen3'"):
        pair.move("node2", "xen3")
    pair.pacemaker.edit(lambda root: nodes.set_attribute(root, "node1", "cxm-host", "xen2.lan"))
    with pytest.raises(RefusedError, match=r"'xen2\.lan' is the name of .* both node1 and node2"):
        pair.move("node2", "xen2.lan")
    assert pair.runs_on() == ["node2"]
