# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the subcommand ``fence``: resetting a node, proving that it works, and a human's word."""

from collections.abc import Mapping
from typing import Any, Final
from xml.etree.ElementTree import Element

from cxm.cli import evacuate
from cxm.cli.world import World
from cxm.cluster import corosync, nodes, pacemaker, peer
from cxm.cluster.alarms import lacks_majority
from cxm.cluster.amounts import count
from cxm.cluster.model import UP, Cluster, Member, NodeState
from cxm.cluster.peer import Peer
from cxm.errors import CommandError, CxmError, LockTimeoutError, RefusedError, UsageError

_FENCE_S: Final = 300.0
_QUORUM_S: Final = 60.0
_EVACUATE_S: Final = 3600.0
_LATE_S: Final = 90.0  # a device may say that it is done before the machine is off
_POLL_S: Final = 1.0


def fence(
    world: World,
    *,
    node: str | None,
    test: bool,
    confirmed: bool,
    off: bool,
    yes: bool,
    boot_s: float,
) -> int:
    """The subcommand."""
    cluster, cib = world.look()
    if test:
        return _test(world, cluster, node, yes=yes, boot_s=boot_s)
    if node is None:
        raise UsageError("which node?", hint="cxm fence NODE")
    if confirmed:
        _silent(world, cib, cluster.node(node))
        _confirmed(world, cluster, node, yes=yes)
    else:
        _now(world, cluster, cluster.node(node), off=off, yes=yes)
    return 0


def _facts(members: list[Member], done: str) -> dict[str, Any]:
    """What was done to which nodes, for programs."""
    return {"nodes": [member.name for member in members], "done": done}


def _able(world: World, cluster: Cluster, member: Member) -> None:
    """Raise RefusedError unless this node can have that one fenced."""
    if member.name == world.here():
        raise RefusedError(
            "a node does not fence itself",
            hint=f"run it on another node: ssh NODE cxm fence {member.name}",
        )
    if not cluster.fencing_enabled:
        raise RefusedError("fencing is switched off", hint="cxm-setup cluster sets it up")
    if not cluster.quorate:
        raise RefusedError("the cluster is not quorate, so it fences nobody")
    if not member.device:
        raise RefusedError(
            f"no fencing device is for {member.name}", hint="cxm-setup cluster sets it up"
        )


def _now(world: World, cluster: Cluster, member: Member, *, off: bool, yes: bool) -> None:
    _able(world, cluster, member)
    vms = [vm.name for vm in cluster.on(member.name)]
    vms += [each.label for each in cluster.damaged_on(member.name)]
    if not yes:
        what = "switched off" if off else "reset"
        names = f": {', '.join(vms)}" if vms else ""
        world.confirm(
            f"{member.name} will be {what} at once. It has {count(len(vms), 'VM')}{names}, "
            "which crash and are started elsewhere.",
            member.name,
        )
    pacemaker.fence(world.runner, member.name, how="off" if off else "reboot", timeout_s=_FENCE_S)
    done = "switched off" if off else "reset"
    world.end(f"{member.name} was fenced", _facts([member], done))


def _silent(world: World, cib: Element, member: Member) -> None:
    """Raise RefusedError for a node that is not off: nobody may say that it is.

    Without a working Pacemaker it may still have its guests.
    """
    if member.state in UP:
        raise RefusedError(
            f"{member.name} is {member.state}: it is alive",
            hint=f"'cxm fence {member.name}' resets it",
        )
    heard = corosync.running(world.runner).heard
    if member.is_online or nodes.corosync_number(cib, member.name) in heard:
        is_both = member.is_online and member.state is NodeState.UNCLEAN
        state = f"{member.state} (online)" if is_both else member.state
        raise RefusedError(
            f"{member.name} is {state}, and the Corosync of {world.here()} hears it: it is not off",
            hint=f"'cxm fence {member.name}' resets it; where that fails, switch it off by hand, "
            "wait until 'cxm infos' has missed it, and say this again",
        )


def _confirmed(world: World, cluster: Cluster, name: str, *, yes: bool) -> None:
    member = cluster.node(name)
    if not cluster.quorate and cluster.awaited != member.name:
        raise RefusedError(
            "the cluster is not quorate: that one node is off does not help it",
            hint=lacks_majority(cluster),
        )
    if not yes:
        world.confirm(
            f"Are you certain that {member.name} is OFF, and stays so until you switch it on? "
            "If it is not, its VMs will run twice and their disks will be destroyed.",
            member.name,
        )
        # Whoever was asked may have switched it on meanwhile.
        cluster, cib = world.look()
        member = cluster.node(name)
        _silent(world, cib, member)
    if not cluster.quorate:
        corosync.go_on_alone(world.runner)
        _await_quorum(world)
    pacemaker.confirm_fenced(world.runner, member.name)
    world.end(
        f"the cluster takes {member.name} for off; its VMs are started elsewhere",
        _facts([member], "confirmed"),
    )
    if any(each.target == member.name and each.status == "pending" for each in cluster.fencing):
        # Pacemaker does nothing else before its own try has failed (lab: 105 s).
        world.say(
            "but not before the try to fence it that is under way has failed: minutes at most"
        )


def _await_quorum(world: World) -> None:
    deadline = world.monotonic() + _QUORUM_S
    while not pacemaker.status(world.runner).quorate:
        if world.monotonic() >= deadline:
            raise LockTimeoutError(
                f"this node has no quorum after {_QUORUM_S:.0f} s",
                hint="'corosync-quorumtool -s' shows what it waits for",
            )
        world.sleep(_POLL_S)


# --- the proof ------------------------------------------------------------------------------------


def _test(world: World, cluster: Cluster, node: str | None, *, yes: bool, boot_s: float) -> int:
    here = world.here()
    chosen = [cluster.node(node)] if node else [each for each in cluster.nodes if each.name != here]
    for member in cluster.nodes:
        if member.state not in UP:
            raise RefusedError(
                f"{member.name} is {member.state}: fencing is tried while all nodes are well"
            )
    for member in chosen:
        _able(world, cluster, member)
        evacuate.check(world, member.name, restart=False)
        # Who cannot say its boot is not emptied for nothing.
        peer.find(world.bare(), world.look()[1], member.name).boot_id()
    if not chosen:
        raise RefusedError("there is no other node whose fencing could be tried")
    names = ", ".join(member.name for member in chosen)
    if not yes:
        world.confirm(
            f"To prove fencing, each of these is emptied, reset through its fencing device, and "
            f"awaited, one after the other: {names}",
            chosen[0].name if len(chosen) == 1 else "all",
        )
    for member in chosen:
        _prove(world, member, boot_s)
    world.end(f"fencing is proven: {names}", _facts(chosen, "proven"))
    if node is None:
        world.say(f"{here} itself can be tried from another node: cxm fence --test {here}")
    return 0


def _prove(world: World, member: Member, boot_s: float) -> None:
    """Empty a node, have it reset, wait until it is back from another boot, and note the time."""
    name = member.name
    ours = nodes.attributes(world.look()[1], name).get(nodes.STANDBY) != "on"
    try:
        evacuate.evacuate(world, name, restart=False, timeout_s=_EVACUATE_S)
        cib = world.look()[1]
        told = peer.find(world.bare(), cib, name)
        before = told.boot_id()
        means = nodes.means(cib).get(name)
        world.say(f"{name}: being reset by {member.tried} ...")
        pacemaker.fence(world.runner, name, how="reboot", timeout_s=_FENCE_S)
        world.say(f"{name}: was fenced; waiting until it is back ...")
        _await_return(world, told, before, boot_s)

        def note(cib: Element) -> None:
            if nodes.means(cib).get(name) != means:
                raise RefusedError(
                    f"the fence devices of {name} were changed while it was fenced: "
                    "those that it has now are not proven",
                    hint=f"cxm fence --test {name}",
                )
            nodes.set_attribute(cib, name, nodes.FENCING, f"{world.now():.0f}")

        pacemaker.change(world.runner, note, what=f"fencing of {name} was proven")
        only = f"; not tried: {member.untried}" if member.untried else ""
        world.say(f"{name}: was reset, and is back{only}")
        if not ours:
            world.say(f"{name}: it took no VMs before, by another order: 'cxm eject --back {name}'")
    finally:
        if ours:
            evacuate.back(world, name)


def _await_return(world: World, told: Peer, before: str, boot_s: float) -> None:
    """Wait until a node is a healthy member again, in another boot, and no other one was hit.

    That it falls silent proves less: a fast one may be back before its device says that it is done
    (SBD), and a network may fail. Raises CommandError for one that goes on as if nothing were: a
    device that is wired to another machine reports success, too.
    """
    name, begun, was_reset = told.node, world.monotonic(), False
    while True:
        now = "" if was_reset else _boot(told)
        was_reset = was_reset or now not in ("", before)
        states = _states(world)
        if was_reset and states.get(name) in UP:
            return
        _spare(world, name, states)
        waited = world.monotonic() - begun
        if now == before and waited >= _LATE_S:
            _disprove(world, name)
            raise CommandError(
                f"the fencing of {name} was reported as done, but {waited:.0f} s later it is in "
                "the same boot: IT WAS NOT RESET",
                hint="is its device's address that of another machine? Until that is repaired, "
                "a failover may damage disks; no VM is started before its fencing is proven",
            )
        if waited >= boot_s:
            raise LockTimeoutError(
                f"{name} was fenced, but is not back after {boot_s:.0f} s",
                hint="does its Pacemaker start when it boots? --boot-time waits longer",
            )
        world.sleep(_POLL_S)


def _boot(told: Peer) -> str:
    """Which boot a node is in; empty while it does not answer."""
    try:
        return told.boot_id()
    except CxmError:
        return ""


def _states(world: World) -> dict[str, NodeState]:
    """The nodes; none while they agree anew on who decides."""
    try:
        return {member.name: member.state for member in world.cluster().nodes}
    except CxmError:
        return {}


def _disprove(world: World, *names: str) -> None:
    """What was proven of the fencing of these nodes is not true any more."""

    def forget(cib: Element) -> None:
        for name in names:
            nodes.set_attribute(cib, name, nodes.FENCING, None)

    which = " and ".join(names)
    try:
        pacemaker.change(world.runner, forget, what=f"fencing of {which} is not proven")
    except CxmError as error:  # perhaps for want of the node that was hit: what was found is worse
        world.say(f"that fencing of {which} is not proven cannot be noted: {error.sentence()}")


def _spare(world: World, name: str, states: Mapping[str, NodeState]) -> None:
    """Raise CommandError where another node than the fenced one was hit."""
    for other, state in states.items():
        if other != name and state in (NodeState.OFFLINE, NodeState.UNCLEAN):
            _disprove(world, name, other)
            raise CommandError(
                f"while {name} was fenced, {other} became {state}",
                hint="are the fencing devices wired to the right machines?",
            )
