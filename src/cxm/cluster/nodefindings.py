# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what ``cxm check`` finds when it holds one node against the cluster. Pure."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from cxm import names
from cxm.cluster import capacity
from cxm.cluster.amounts import count, mib
from cxm.cluster.basis import SBD
from cxm.cluster.guestdisks import Needs, lacking, needs
from cxm.cluster.model import Cluster, Vm, VmState
from cxm.errors import DataError, UsageError
from cxm.lvm import Group, Volume
from cxm.names import CloudId, State, Tags, VmId
from cxm.node.kernels import mentioned
from cxm.node.room import Seen
from cxm.setup.report import Check, failed, ok, warning
from cxm.xen.xl import Domain

_MANY: Final = 12  # names in one sentence
_CLOCK_S: Final = 3.0

Key = tuple[CloudId, VmId]


@dataclass(frozen=True, slots=True)
class Told:
    """What another node says of itself."""

    versions: Mapping[str, str]  # of programs
    ahead_s: float  # its clock, of ours, at least; below zero it is behind
    findings: tuple[Check, ...]  # what is wrong with it, as it sees that


@dataclass(frozen=True, slots=True, kw_only=True)
class Here:
    """What this node looks like from inside."""

    node: str
    xen: Seen
    domains: Collection[Domain]  # but Domain-0
    vg: str
    group: Group | str  # why it cannot be seen
    bridges: frozenset[str]
    lacking: frozenset[str]  # kernels and ramdisks of VMs that are not here
    clouds: tuple[CloudId, ...]
    others: Mapping[str, Told | str] = field(default_factory=dict)  # or why it cannot be asked
    versions: Mapping[str, str] = field(default_factory=dict)  # of programs
    mixed: bool = False  # nodes run different versions of Pacemaker
    clock: str = "yes"  # what timedatectl says: yes, no, or nothing
    xendomains: str = "masked"  # what systemctl says
    tend: str = "disabled"
    sbd: str = ""  # what systemctl says of its running
    unread: str = ""  # the disk of SBD, where this node's sbd does not read it
    now: float = 0.0


def some(words: Iterable[str]) -> str:
    """A list in a sentence; a long one is cut short."""
    given = list(words)
    more = len(given) - _MANY
    return ", ".join(given[:_MANY]) + (f" and {more} more" if more > 0 else "")


def ahead(asked: float, began: float, ended: float, answered: float) -> float:
    """How far another clock is ahead of ours, at least.

    It was read at ``began`` and ``ended``, between ``asked`` and ``answered`` of ours.
    """
    return min(0.0, began - asked) or max(0.0, ended - answered)


def judge(cluster: Cluster, here: Here) -> list[Check]:
    """Everything that was looked at on this node, and what the others have told of themselves."""
    return [
        *own(cluster, here),
        *_common(cluster, here),
        *_connections(here),
        *_clocks(here),
        *_versions(here),
        *_told(here),
    ]


def own(cluster: Cluster, here: Here) -> list[Check]:
    """What is so on this node, and may be otherwise on another."""
    return [
        *_domains(cluster, here),
        *_memory(cluster, here),
        *_bridges(cluster, here),
        *_kernels(cluster, here),
        *_volumes(cluster, here),
        *_sbd(cluster, here),
        *_services(here),
    ]


def _common(cluster: Cluster, here: Here) -> Iterator[Check]:
    """What every node sees alike."""
    for _vm, need in _needed(cluster, here.vg):
        if isinstance(need, str):
            yield failed("configuration", need, "have OpenNebula deploy the VM again")
    if isinstance(here.group, str):
        return  # that this node cannot see it is its own
    if not here.group.shared:
        advice = "no other node can be kept from writing to its volumes: cxm-setup cluster"
        yield failed("volumes", f"the volume group {here.group.name} is not shared", advice)
    yield from _lost(cluster, here, here.group)
    yield from _left_over(cluster, here.group)


def _told(here: Here) -> Iterator[Check]:
    """What is wrong with the other nodes."""
    for node, told in here.others.items():
        for each in () if isinstance(told, str) else told.findings:
            yield replace(each, found=f"{node}: {each.found}", advice=f"on {node}: {each.advice}")


def _of_clouds(cluster: Cluster, here: Here) -> set[CloudId]:
    of_vms = {vm.resource.cloud for vm in cluster.vms}
    return {*here.clouds, *of_vms, *(each.cloud for each in cluster.damaged)}


def _vm_of(domain: Domain, clouds: Iterable[CloudId]) -> Key | None:
    for cloud in clouds:
        number = names.vm_of_uuid(cloud, domain.uuid)
        if number is not None:
            return cloud, number
    return None


def present(cluster: Cluster, here: Here) -> dict[Key, list[Domain]]:
    """The domains of this node that are VMs of our clouds."""
    clouds = _of_clouds(cluster, here)
    found: dict[Key, list[Domain]] = defaultdict(list)
    for domain in here.domains:
        key = _vm_of(domain, clouds)
        if key is not None and not domain.dying:
            found[key].append(domain)
    return found


def _domains(cluster: Cluster, here: Here) -> Iterator[Check]:
    """Pacemaker against Xen."""
    found = present(cluster, here)
    known = {(vm.resource.cloud, vm.resource.vm): vm for vm in cluster.vms}
    unread = _unread(cluster)
    wrong = [
        *(
            check
            for key, domains in found.items()
            if key not in unread
            for check in _domain(key, domains, known, here)
        ),
        *_missing(cluster, here, found),
    ]
    yield from wrong
    if not wrong:
        running = sum(1 for domains in found.values() if any(each.alive for each in domains))
        yield ok("domains", f"{count(running, 'VM')} here, as the cluster says")
    clouds = _of_clouds(cluster, here)
    foreign = [domain.name for domain in here.domains if _vm_of(domain, clouds) is None]
    if foreign:
        advice = "they die with the node; their memory is not counted"
        yield warning("domains", f"not the cluster's: {some(foreign)}", advice)


def _unread(cluster: Cluster) -> set[Key]:
    """The VMs that the cluster has, and that cannot be judged: an alarm says so."""
    return {(each.cloud, each.vm) for each in cluster.damaged}


def _domain(
    key: Key, domains: list[Domain], known: Mapping[Key, Vm], here: Here
) -> Iterator[Check]:
    vm = known.get(key)
    alive = [domain for domain in domains if domain.alive]
    if vm is None:
        yield failed(
            "domains",
            f"{domains[0].name} (VM {key[1]}) is here, but the cluster does not know it",
            "nothing starts it elsewhere: have OpenNebula deploy it again, or destroy it",
        )
    elif here.node in vm.nodes or vm.state is VmState.MIGRATING:
        if len(alive) > 1:
            advice = "destroy the one that is not the VM: its disk is being damaged"
            yield failed("duplicates", f"VM {vm.label} has {len(alive)} domains here", advice)
    elif alive:
        where = " and ".join(vm.nodes) or "nowhere"
        yield failed(
            "duplicates",
            f"VM {vm.label} runs here, and the cluster says it is on {where}",
            f"see which one is the VM; 'crm_resource --refresh --resource {vm.resource.id}' has "
            "Pacemaker look again",
        )
    else:
        advice = "'xl list' shows it; it holds memory and volumes until it is destroyed"
        yield warning("domains", f"{domains[0].name} is a remainder of VM {vm.label}", advice)


def _missing(cluster: Cluster, here: Here, found: Mapping[Key, list[Domain]]) -> Iterator[Check]:
    for vm in cluster.on(here.node):
        key = (vm.resource.cloud, vm.resource.vm)
        if vm.state is VmState.RUNNING and not any(each.alive for each in found.get(key, [])):
            yield warning(
                "domains",
                f"VM {vm.label} should be running here and has no domain",
                "its guest may be rebooting; the next monitor starts it again if it is gone",
            )


def _memory(cluster: Cluster, here: Here) -> Iterator[Check]:
    """What Pacemaker plans with against what guests here have and could have."""
    said = next((each.memory for each in cluster.nodes if each.name == here.node), 0)
    if not said:
        return  # judged for each node from anywhere
    excess = capacity.excess(said, here.xen)
    if not excess:
        yield ok("memory", f"{mib(said)} for guests, as the cluster says")
        return
    has = mib(here.xen.room.total_mib)
    found = f"the cluster plans with {mib(said)}, and guests can have {has}"
    advice = "'cxm-setup cluster' here once more, as when it was made, corrects that: "
    if excess > 0:
        found = f"the cluster plans with {mib(said)}, but guests can have only {has}"
        yield failed("memory", found, f"{advice}until then a VM may be sent here that does not fit")
    else:
        yield warning("memory", found, f"{advice}until then the rest is not used")


def _needed(cluster: Cluster, vg: str) -> Iterator[tuple[Vm, Needs | str]]:
    for vm in cluster.vms:
        try:
            yield vm, needs(vm.resource, vg)
        except UsageError as error:
            yield vm, error.message


def _bridges(cluster: Cluster, here: Here) -> Iterator[Check]:
    wanting: dict[str, list[str]] = defaultdict(list)
    for vm, need in _needed(cluster, here.vg):
        for bridge in () if isinstance(need, str) else lacking(need.bridges, here.bridges):
            wanting[bridge].append(vm.name)
    for bridge, vms in sorted(wanting.items()):
        advice = "make it here, or those VMs cannot be started here when their node dies"
        yield failed("bridges", f"{bridge} is missing here; {some(vms)} need it", advice)
    if not wanting:
        yield ok("bridges", some(sorted(here.bridges)) or "none, and no VM needs one")


def _kernels(cluster: Cluster, here: Here) -> Iterator[Check]:
    """What the VMs boot: each must be startable here."""
    wanting: dict[str, list[str]] = defaultdict(list)
    for vm, need in _needed(cluster, here.vg):
        for path in () if isinstance(need, str) else sorted(need.files & here.lacking):
            wanting[path].append(vm.name)
    for path, vms in sorted(wanting.items()):
        advice = (
            "'systemctl start cxm-gather' gets it from another node"
            if mentioned(path)
            else "OpenNebula's next deploy has every node keep a copy; until then put it here"
        )
        yield failed("kernels", f"{path} is missing here; {some(vms)} boot it", advice)
    if not wanting:
        yield ok("kernels", "what the VMs boot is here")


def _decoded(group: Group) -> Iterator[tuple[Volume, Tags | str]]:
    for volume in group.volumes:
        try:
            tags = names.decode_tags(list(volume.tags))
        except DataError as error:
            yield volume, error.message
            continue
        if tags is not None:
            yield volume, tags


def _volumes(cluster: Cluster, here: Here) -> Iterator[Check]:
    """The disks: that each is active where its VM runs, and not here when it does not."""
    group = here.group
    if isinstance(group, str):
        advice = "locks of the storage? 'cxm infos', 'lvmlockctl --info' and 'dlm_tool ls' say more"
        yield failed("volumes", group, advice)
        return
    wrong = [*_asleep(cluster, here, group), *_active(cluster, here, group)]
    yield from wrong
    if not wrong:
        yield ok("volumes", f"{len(group.volumes)} in {group.name}, active where they should be")


def _lost(cluster: Cluster, here: Here, group: Group) -> Iterator[Check]:
    there = {volume.name for volume in group.volumes}
    for vm, need in _needed(cluster, here.vg):
        lost = [] if isinstance(need, str) else sorted(need.volumes - there)
        if lost:
            advice = "the VM cannot be started again: was it removed by hand?"
            yield failed("volumes", f"VM {vm.label} has lost {some(lost)}", advice)


def _asleep(cluster: Cluster, here: Here, group: Group) -> Iterator[Check]:
    idle = {volume.name for volume in group.volumes if not volume.active}
    for vm, need in _needed(cluster, here.vg):
        asleep = [] if isinstance(need, str) else sorted(need.volumes & idle)
        if asleep and vm.state is VmState.RUNNING and vm.nodes == (here.node,):
            advice = "its domain has it open, but the lock is not held: migrate or restart the VM"
            yield failed("volumes", f"VM {vm.label} runs here without {some(asleep)}", advice)


def _active(cluster: Cluster, here: Here, group: Group) -> Iterator[Check]:
    running = present(cluster, here)
    homes = {(vm.resource.cloud, vm.resource.vm): vm.nodes for vm in cluster.vms}
    homes |= {(each.cloud, each.vm): each.nodes for each in cluster.damaged}
    left = []
    for volume, tags in _decoded(group):
        if isinstance(tags, str):
            continue
        if volume.active and group.shared and tags.state is not State.FILLING:
            key = (tags.cloud, tags.vm)
            if not running.get(key) and here.node not in homes.get(key, ()):
                left.append(volume.name)
    if left:
        advice = "no other node can use it: 'cxm deactivate VM', unless an action is at work on it"
        yield warning("volumes", f"active here without their VM: {some(left)}", advice)


def _left_over(cluster: Cluster, group: Group) -> Iterator[Check]:
    known = {(vm.resource.cloud, vm.resource.vm) for vm in cluster.vms} | _unread(cluster)
    filling, doomed, orphans = [], [], []
    for volume, tags in _decoded(group):
        if isinstance(tags, str):
            yield failed("volumes", f"{volume.name}: {tags}", "see 'lvs -o +tags'")
        elif tags.state is State.DELETE_REQUESTED:
            doomed.append(volume.name)
        elif tags.state is State.FILLING:
            filling.append(volume.name)
        elif (tags.cloud, tags.vm) not in known:
            orphans.append(volume.name)
    if doomed:
        advice = "cxm-sync removes it when OpenNebula says DONE; 'cxm-sync --dry-run' says why not"
        yield warning("volumes", f"to be deleted: {some(doomed)}", advice)
    if filling:
        advice = "being made, or left by an action that was killed: a retry makes it anew"
        yield warning("volumes", f"incomplete: {some(filling)}", advice)
    if orphans:
        advice = "VMs that are off or about to start in OpenNebula; remove what is neither"
        yield warning("volumes", f"of VMs that the cluster does not know: {some(orphans)}", advice)


def _connections(here: Here) -> Iterator[Check]:
    for node, told in here.others.items():
        if isinstance(told, str):
            advice = f"no VM moves to or from {node} alive: 'cxm-setup cluster' there once more"
            yield failed("connections", told, advice)
    fine = [node for node, told in here.others.items() if not isinstance(told, str)]
    if fine:
        yield ok("connections", f"{some(fine)} answer{'s' if len(fine) == 1 else ''}")


def _sbd(cluster: Cluster, here: Here) -> Iterator[Check]:
    if not any(SBD in member.devices for member in cluster.nodes):
        return
    if here.sbd != "active":
        wrong, first = (
            f"{here.sbd or 'unknown'}: nobody reads its disk here",
            "systemctl enable sbd",
        )
    elif here.unread:
        wrong = f"it does not read {here.unread}, which messages are written to"
        first = "grep SBD_DEVICE /etc/default/sbd"
    else:
        yield ok("sbd", here.sbd)
        return
    advice = (
        f"'cxm eject {here.node}', then '{first}' and 'systemctl restart corosync pacemaker': "
        "until then the cluster takes this node for dead while it lives"
    )
    yield failed("sbd", wrong, advice)


def _services(here: Here) -> Iterator[Check]:
    if here.clock == "yes":
        yield ok("clock", "synchronised")
    else:
        advice = "run chrony or systemd-timesyncd: logs and deadlines of nodes are compared"
        yield warning("clock", "not synchronised", advice)
    if here.xendomains in ("masked", "not-found", "disabled"):
        yield ok("xendomains", here.xendomains)
    else:
        advice = "'systemctl mask --now xendomains': it starts and saves VMs behind the cluster"
        yield failed("xendomains", here.xendomains or "unknown", advice)
    if here.tend == "enabled":
        advice = "'systemctl disable --now cxm-tend': here Pacemaker looks after the guests"
        yield failed("cxm-tend", here.tend, advice)
    else:
        yield ok("cxm-tend", f"{here.tend or 'not there'}: Pacemaker looks after the guests")


def _clocks(here: Here) -> Iterator[Check]:
    for node, told in here.others.items():
        if not isinstance(told, str) and abs(told.ahead_s) > _CLOCK_S:
            how = "ahead of" if told.ahead_s > 0 else "behind"
            yield warning(
                "clock",
                f"the clock of {node} is {abs(told.ahead_s):.0f} s {how} that of {here.node}",
                "run chrony or systemd-timesyncd on both: deadlines and logs are compared",
            )


def _versions(here: Here) -> Iterator[Check]:
    text = ", ".join(f"{name} {version}" for name, version in here.versions.items())
    advice = "upgrade the nodes that are behind, one after the other"
    if here.mixed:
        yield warning("versions", f"nodes run different Pacemakers; here: {text}", advice)
    different = [name for name in here.versions if len(_by_version(here, name)) > 1]
    for name in different:
        found = (
            f"{version or 'none'} on {' and '.join(nodes)}"
            for version, nodes in _by_version(here, name).items()
        )
        yield warning("versions", f"{name} is {', '.join(found)}", advice)
    if not here.mixed and not different:
        yield ok("versions", text)


def _by_version(here: Here, program: str) -> dict[str, list[str]]:
    """Which nodes have which version of a program."""
    found: dict[str, list[str]] = defaultdict(list)
    found[here.versions[program]].append(here.node)
    for node, told in here.others.items():
        if not isinstance(told, str):
            found[told.versions.get(program, "")].append(node)
    return found
