# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""OpenNebula's driver dies in a move that ours has confirmed: ``cxm-sync`` ends the move."""

import pytest

from cxm.errors import UnreachableError
from cxm.names import VmId
from cxm.sync import claims
from cxm.sync.decide import Kind
from tests.actions.test_sync import V38, V74, V412, V510, fail_over, moved, quietly
from tests.fakes.believing import Believing


@pytest.mark.parametrize("world", [V412, V510, V74], indirect=True, ids=str)
def test_opennebulas_driver_dies(world: Believing) -> None:
    """It cannot reach the old host, and never answers oned: the move is ended at once."""
    fail_over(world)
    world.driver_dies, began = True, world.now
    # Two cards of a bridge are one driver's business.
    bridge, vlan = (f"<NIC><VN_MAD>{name}</VN_MAD></NIC>" for name in ("bridge", "802.1Q"))
    world.cards = f"{bridge}{vlan}{bridge}"
    assert quietly(world).decisions[0].kind is Kind.AGREED
    assert world.told == ["migrate node2 live", "recover success"]
    assert world.belief() == ("RUNNING", "node2")
    assert 10 < world.now - began < 15
    if world.one < (5, 10):
        assert world.network == []
        return
    steps = [(host, command) for host, command, _text in world.network]
    assert steps == [
        ("node2", "/var/tmp/one/vnm/bridge/post web node2"),
        ("node2", "/var/tmp/one/vnm/802.1Q/post web node2"),
    ]
    assert b"<VN_MAD>bridge</VN_MAD>" in world.network[0][2]


def test_its_network_step_cannot_be_done(world: Believing) -> None:
    """The record is right all the same; the rest is in the log."""
    fail_over(world)
    world.driver_dies, world.is_network_cut = True, True
    world.cards = "<NIC><VN_MAD>bridge</VN_MAD></NIC>"
    assert quietly(world).decisions[0].kind is Kind.AGREED
    assert world.belief() == ("RUNNING", "node2")


def test_a_network_driver_of_a_strange_name(world: Believing) -> None:
    """It would be a command on a node."""
    fail_over(world)
    world.driver_dies, world.cards = True, "<NIC><VN_MAD>x;reboot</VN_MAD></NIC>"
    quietly(world)
    assert world.network == []


def test_opennebulas_driver_dies_and_so_does_the_sync(world: Believing) -> None:
    """The next one ends the move, where the old host lives after half a minute."""
    moved(world)
    claim = claims.Claim(VmId(7), "node2", world.now, confirmed_at=world.now)
    claims.make(world.here().place, claim)
    world.state, world.host, world.driver_dies = "MIGRATE", "node2", True
    assert quietly(world).decisions[0].kind is Kind.LEFT
    world.now += 31
    world.cards = "<NIC><VN_MAD>bridge</VN_MAD></NIC>"
    assert quietly(world).decisions[0].kind is Kind.AGREED
    assert world.told == ["recover success"]
    assert [step[0] for step in world.network] == ["node2"]


def test_opennebulas_driver_dies_and_the_vm_goes_on(world: Believing) -> None:
    """What it was confirmed for is not true any more: that is no business of moments."""
    claim = claims.Claim(VmId(7), "node2", world.now, confirmed_at=world.now)
    claims.make(world.here().place, claim)
    world.state, world.host = "MIGRATE", "node2"
    world.now += 61
    assert quietly(world).decisions[0].kind is Kind.LEFT
    assert world.told == []


def test_it_dies_and_oned_refuses_once(world: Believing) -> None:
    """Seconds later it is asked again: what is due does not wait for a quarter of an hour."""
    fail_over(world)
    world.driver_dies, began = True, world.now

    def busy(call: str) -> None:
        world.refuses = "try again" if world.told.count(call + " success") == 1 else ""

    world.before_call = busy
    kind = quietly(world).decisions[0].kind
    while kind is Kind.WAIT:
        kind = quietly(world).decisions[0].kind
    assert kind is Kind.AGREED
    assert world.told == ["migrate node2 live", "recover success", "recover success"]
    assert world.now - began < 30


def test_it_dies_and_so_does_the_sync_and_oned_refuses_once(world: Believing) -> None:
    """The claim stays as it is: the next turn finds that the end of the move is due."""
    moved(world)
    claim = claims.Claim(VmId(7), "node2", world.now, confirmed_at=world.now)
    claims.make(world.here().place, claim)
    world.state, world.host, world.driver_dies = "MIGRATE", "node2", True
    world.now += 31
    world.refuses = "try again"
    assert quietly(world).decisions[0].kind is Kind.STUCK
    world.refuses = ""
    world.now += 11
    assert quietly(world).decisions[0].kind is Kind.AGREED
    assert world.belief() == ("RUNNING", "node2")


def test_its_network_step_is_done_though_oned_is_away_then(world: Believing) -> None:
    """Nobody would know of it later."""
    fail_over(world)
    world.driver_dies = True
    world.cards = "<NIC><VN_MAD>bridge</VN_MAD></NIC>"
    recover = world.recover

    def recover_and_fall(vm: VmId, *, success: bool) -> None:
        recover(vm, success=success)
        world.is_up = False

    world.recover = recover_and_fall  # type: ignore[method-assign]  # oned dies right after it
    with pytest.raises(UnreachableError):
        quietly(world)
    assert [step[0] for step in world.network] == ["node2"]
    world.is_up = True
    world.now += 31
    assert quietly(world).decisions[0].kind is Kind.AGREED


def test_a_users_own_migration_is_ended(world: Believing) -> None:
    """There is no claim on it; five minutes are enough for whoever may be at work on it."""
    moved(world)
    world.state, world.host = "MIGRATE", "node2"
    world.cards = "<NIC><VN_MAD>bridge</VN_MAD></NIC>"
    assert quietly(world).decisions[0].kind is Kind.LEFT
    world.now += 299
    assert quietly(world).decisions[0].kind is Kind.LEFT
    world.now += 10
    assert quietly(world).decisions[0].kind is Kind.AGREED
    assert world.told == ["recover success"]
    assert [step[0] for step in world.network] == ["node2"]


@pytest.mark.parametrize("world", [V38], indirect=True, ids=str)
def test_3_8_ends_its_moves_itself(world: Believing) -> None:
    """It has no recover, and its network step is done on the frontend."""
    fail_over(world)
    world.driver_dies = True
    assert quietly(world).decisions[0].kind is Kind.WAIT
    assert world.told == ["migrate node2 live"]
