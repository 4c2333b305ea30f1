# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the subcommands that order something of VMs; what they do is :mod:`cxm.cluster.orders`."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from typing import Final

from cxm.cli.views import who_json
from cxm.cli.world import World, who
from cxm.cluster import balancing, orders, relocate
from cxm.cluster.amounts import count, mib
from cxm.cluster.model import Vm, find_vm
from cxm.errors import CommandError, CxmError, RefusedError
from cxm.node.guests import Life
from cxm.node.verbs import Call

# So many guests are asked at the same time; each asks Pacemaker every moment.
_AT_ONCE: Final = 4


def _called(world: World, text: str) -> tuple[Call, Vm]:
    """The call of a verb about the VM that is meant."""
    vm = find_vm(world.cluster(), text)
    machine = replace(world.machine(), hostname=world.here())
    return Call(machine, vm.resource.cloud), vm


def migrate(world: World, *, vm: str, node: str) -> int:
    """Move a VM while it runs; returns when it is there."""
    call, found = _called(world, vm)
    world.say(f"{found.label}: to {node} ...")
    done = relocate.migrate(call, vm=found.resource.vm, node=node, by_opennebula=False)
    said = "runs on" if done["moved"] else "is already on"
    facts = {**who_json(found), "node": done["node"], "moved": done["moved"]}
    world.end(f"{found.label} {said} {done['node']}", facts)
    return 0


def create(world: World, *, vm: str, node: str | None) -> int:
    """Start a VM that the cluster knows, on a node or where it was last."""
    call, found = _called(world, vm)
    if found.nodes:
        raise RefusedError(f"VM {found.label} is {found.state} on {found.node}")
    target = node or _best_start(world, found)
    world.say(f"{found.label}: on {target} ...")
    reason = f"{who(os.environ)} started it"
    done = orders.begin(call, vm=found.resource.vm, node=target, reason=reason)
    world.end(f"{found.label} runs on {done['node']}", {**who_json(found), "node": done["node"]})
    return 0


def _best_start(world: World, vm: Vm) -> str:
    """Where a VM goes that nobody has said a node for; raises RefusedError where none has room."""
    found = balancing.best_start(world.cluster(), vm, world.machine().config)
    if found is None:
        needs = f"{mib(vm.resource.memory_mib)} and {vm.resource.cpu}% of a CPU"
        raise RefusedError(
            f"no node has room for {vm.label}, which needs {needs}",
            hint="'cxm infos' shows what is free",
        )
    return found


def _stop(world: World, text: str, how: str, timeout_s: float) -> int:
    call, found = _called(world, text)
    where = f" on {found.node}" if found.nodes else ""
    world.say(f"{found.label}{where}: {how} ...")
    done = orders.stop(
        call,
        vm=found.resource.vm,
        how=how,
        timeout_s=max(1, int(timeout_s)),
        life=Life.OFF,
        reason=f"{who(os.environ)} ordered its {how}",
    )
    world.end(f"{found.label} is off", {**who_json(found), "was": done["was"]})
    return 0


def shutdown(world: World, *, vm: str, timeout_s: float) -> int:
    """Ask the guest to switch itself off; end it when it has not within the time."""
    return _stop(world, vm, "shutdown", timeout_s)


def destroy(world: World, *, vm: str) -> int:
    """End a VM at once."""
    return _stop(world, vm, "destroy", 1)


def reboot(world: World, *, vm: str) -> int:
    """Ask the guest to reboot."""
    call, found = _called(world, vm)
    orders.reboot(call, vm=found.resource.vm)
    world.end(f"{found.label} was asked to reboot", who_json(found))
    return 0


def shutdown_all(world: World, *, yes: bool, timeout_s: float) -> int:
    """Ask all guests of the cluster to switch themselves off, some at a time."""
    cluster = world.cluster()
    vms = [vm for vm in cluster.vms if vm.nodes or vm.resource.started]
    unread = [each for each in cluster.damaged if each.nodes]
    if not vms and not unread:
        world.end("no VM runs", {"vms": []})
        return 0
    if vms and not yes:
        names = ", ".join(vm.name for vm in vms)
        world.confirm(f"{count(len(vms), 'VM')} will be shut down: {names}", "all")
    told = _shut_down(world, vms, timeout_s)
    rows = [{**who_json(vm), "error": told[vm.resource.id]} for vm in vms]
    wrong = [vm.label for vm in vms if told[vm.resource.id]]
    for each in unread:
        said = each.error.sentence()
        world.say(f"{each.label}: {said}")
        rows.append({"cloud": each.cloud, "vm": each.vm, "name": each.name, "error": said})
        wrong.append(each.label)
    if world.as_json:
        world.show_json({"vms": rows})
    if wrong:
        raise CommandError(f"not shut down: {', '.join(wrong)}", hint="run it again")
    return 0


def _shut_down(world: World, vms: Sequence[Vm], timeout_s: float) -> dict[str, str | None]:
    """What went wrong with each, by its resource; None for nothing."""
    machine = replace(world.machine(), hostname=world.here())
    told: dict[str, str | None] = {}
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        work = {
            pool.submit(
                orders.stop,
                Call(machine, vm.resource.cloud),
                vm=vm.resource.vm,
                how="shutdown",
                timeout_s=max(1, int(timeout_s)),
                life=Life.OFF,
                reason=f"{who(os.environ)} shut all VMs down",
            ): vm
            for vm in vms
        }
        for each in as_completed(work):
            vm = work[each]
            try:
                each.result()
                told[vm.resource.id] = None
                world.say(f"{vm.label} is off")
            except CxmError as error:
                told[vm.resource.id] = error.sentence()
                world.say(f"{vm.label}: {error.sentence()}")
    return told
