# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what is looked at before a machine becomes a node of a cluster. Changes nothing."""

import json
import os
from collections.abc import Sequence
from typing import Final

from cxm import run
from cxm.cluster.datastore import Kind
from cxm.config import CLUSTER_MARKER
from cxm.errors import CommandError, CxmError, UsageError
from cxm.setup import corosync, files, nodecheck, sbd, shareddisk, sharedfs
from cxm.setup.clusterargs import Cluster
from cxm.setup.corosync import Present
from cxm.setup.nodecheck import Host
from cxm.setup.report import Check, failed, ok, warning
from cxm.xen import xl

CIB_DIR: Final = "/var/lib/pacemaker/cib"
HOST_KEY: Final = "/etc/ssh/ssh_host_ed25519_key.pub"
_TIMEOUT_S: Final = 60.0
# Corosync with encryption and DLM take 300 MiB; a dom0 of 416 MiB died of it.
_LITTLE_DOM0_MIB: Final = 700
# Program -> the package that has it.
NEEDED: Final = {
    "corosync": "corosync",
    "pacemakerd": "pacemaker",
    "crm_mon": "pacemaker-cli-utils",
    "cibadmin": "pacemaker-cli-utils",
    "crm_diff": "pacemaker-cli-utils",
    "dlm_controld": "dlm-controld",
    "lvmlockd": "lvm2-lockd",
    # Without it the agent of DLM fails to start and to stop, and the nodes fence each other.
    "killall": "psmisc",
    "ssh-keygen": "openssh-client",
}
AGENTS: Final = {
    "/usr/lib/ocf/resource.d/heartbeat/lvmlockd": "resource-agents",
    "/usr/lib/ocf/resource.d/pacemaker/controld": "pacemaker-resource-agents",
    "/usr/lib/ocf/resource.d/cxm/lockspace": "cxm-node",
    "/usr/lib/ocf/resource.d/cxm/watch": "cxm-node",
    "/usr/lib/ocf/resource.d/cxm/balance": "cxm-node",
}
# What only some clusters need.
SBD: Final = {"sbd": "sbd"}
DATASTORE: Final = {
    Kind.GFS2: {"mkfs.gfs2": "gfs2-utils"},
    Kind.NFS: {"mount.nfs": "nfs-common"},
}
DATASTORE_AGENTS: Final = {
    f"/usr/lib/ocf/resource.d/heartbeat/{name}": "resource-agents"
    for name in ("Filesystem", "LVM-activate")
}


def own_name(host: Host, cluster: Cluster) -> str:
    """Which of the cluster's nodes this machine is; raises UsageError."""
    # To the letter: drivers, agent and peers take what 'hostname' shows for the node's name.
    if host.hostname in cluster.nodes:
        return host.hostname
    raise UsageError(
        f"this machine, {host.hostname}, is none of the nodes {', '.join(cluster.nodes)}",
        hint="--node NAME=ADDRESS takes the names that 'hostname' shows",
    )


def _root(host: Host) -> Check:
    if host.uid != 0:
        return failed("root", f"you are user {host.uid}", "run this with sudo")
    return ok("root", "yes")


def _programs(host: Host, cluster: Cluster) -> Check:
    needed, agents = dict(NEEDED), dict(AGENTS)
    if cluster.sbd:
        needed |= SBD
    if cluster.datastore:
        needed |= DATASTORE[Kind(cluster.datastore)]
        agents |= DATASTORE_AGENTS
    missing = {name: package for name, package in needed.items() if host.which(name) is None}
    missing |= {
        path: package for path, package in agents.items() if not os.path.exists(host.path(path))
    }
    for agent in cluster.agents:
        if host.which(agent) is None:
            missing[agent] = "fence-agents"
    if missing:
        packages = " ".join(sorted(set(missing.values())))
        names = " ".join(os.path.basename(each) for each in missing)
        advice = f"apt install --no-install-recommends {packages}"
        return failed("programs", f"missing: {names}", advice)
    return ok("programs", f"all there, with {' '.join(cluster.agents)}")


def _address(host: Host, me: str, cluster: Cluster) -> Check:
    address = cluster.nodes[me]
    try:
        said = host.runner.run(["ip", "-json", "address", "show"], timeout_s=_TIMEOUT_S)
        have = [entry["local"] for card in json.loads(said.stdout) for entry in card["addr_info"]]
    except (CommandError, ValueError, KeyError) as error:
        return failed("address", f"cannot be asked for: {error}", "'ip address show' must work")
    if address not in have:
        advice = f"--node {me}=ADDRESS; this machine has {', '.join(have) or 'none'}"
        return failed("address", f"{address} is not this machine's", advice)
    return ok("address", f"{address} is {me}'s")


def _dom0(host: Host) -> Check:
    try:
        memory, guests = xl.dom0_mib(host.runner), len(xl.domains(host.runner))
    except CxmError as error:
        return failed("dom0", error.sentence(), "'xl list' must work")
    if memory < _LITTLE_DOM0_MIB:
        advice = "Corosync and DLM need 300 MiB besides the rest: dom0_mem=1024M for Xen"
        return warning("dom0", f"{memory} MiB", advice)
    if guests:
        advice = "the cluster does not know them: move or end them, or they are never safe"
        return warning("dom0", f"{memory} MiB; {guests} guests run here", advice)
    return ok("dom0", f"{memory} MiB")


def _corosync(host: Host, cluster: Cluster) -> Check:
    text = files.read(host.path(corosync.CONF))
    present = corosync.present(text, cluster)
    if present is Present.OTHER:
        found = f"configured for the cluster '{corosync.name_of(text or '')}'"
        advice = f"if that is over: stop pacemaker and corosync, remove {corosync.CONF}"
        return failed("corosync", found, advice)
    if present is Present.OURS:
        if text != corosync.conf(cluster):
            advice = "give the same options as at first; docs/cluster.md: changing a cluster"
            return failed("corosync", "its settings are not the ones asked for", advice)
        return ok("corosync", f"configured for {cluster.name}")
    if present is Present.CHANGED and text is not None:
        return _members(text, cluster)
    if has_resources(host):
        advice = f"if they are not needed any more, remove what is in {CIB_DIR}"
        return failed("corosync", "Pacemaker has resources of a former cluster", advice)
    return ok("corosync", "not configured yet")


def _members(text: str, cluster: Cluster) -> Check:
    """A node more or less; any other difference, or two at once, is refused."""
    before, after = set(corosync.members(text)), set(cluster.nodes)
    joining, leaving = sorted(after - before), sorted(before - after)
    if not corosync.like(text, cluster):
        advice = "give the same options as at first; docs/cluster.md: changing a cluster"
        return failed("corosync", "its settings are not the ones asked for", advice)
    if cluster.version <= corosync.version(text):
        advice = "take the line that 'cxm-setup cluster' printed last"
        return failed("corosync", "this node knows newer members than the token", advice)
    if len(joining) + len(leaving) > 1:
        found = f"{', '.join(joining + leaving)} would change at once"
        return failed("corosync", found, "one node after the other: each must be taken up first")
    what = f"{joining[0]} joins" if joining else f"{leaving[0]} is taken out"
    return ok("corosync", f"configured for {cluster.name}: {what}")


def has_resources(host: Host) -> bool:
    """Whether Pacemaker's last configuration on this machine was used for anything."""
    text = files.read(host.path(f"{CIB_DIR}/cib.xml")) or ""
    return any(f"<{word} " in text for word in ("primitive", "template", "bundle"))


def _marker(host: Host, cluster: Cluster) -> Check:
    text = files.read(host.path(CLUSTER_MARKER))
    if text is not None and f'CLUSTER="{cluster.name}"\n' not in text:
        return failed(
            "membership", f"{CLUSTER_MARKER} is of another cluster", f"look at {CLUSTER_MARKER}"
        )
    return ok("membership", "none yet" if text is None else f"node of {cluster.name}")


def _sshd(host: Host) -> Check:
    """Whether other nodes may ask as root, by the forced command."""
    try:
        said = host.runner.run(["sshd", "-T"], timeout_s=_TIMEOUT_S).stdout
    except CommandError as error:
        return failed("sshd", run.tail(error.sentence()), "'sshd -t' must find nothing")
    pairs = [line.lower().partition(" ")[::2] for line in said.splitlines()]
    login = dict(pairs).get("permitrootlogin", "prohibit-password")
    if login == "no":
        advice = "PermitRootLogin forced-commands-only in sshd_config is enough"
        return failed("sshd", "root may not log in, so nodes cannot move a guest", advice)
    if not os.path.exists(host.path(HOST_KEY)):
        return failed("sshd", f"{HOST_KEY} is missing", "ssh-keygen -A")
    return ok("sshd", "other nodes can ask by a forced command")


def checks(
    host: Host,
    me: str,
    cluster: Cluster,
    fencing: Sequence[Check],
    disk: sbd.Disk | None,
) -> Sequence[Check]:
    """All that is looked at, with what was found on SBD's disk and of the fence devices.

    Without root, only that.
    """
    first = _root(host)
    if host.uid != 0:
        return [first]
    return [
        first,
        *nodecheck.basics(host),
        _programs(host, cluster),
        _address(host, me, cluster),
        _dom0(host),
        _sshd(host),
        shareddisk.check(host, cluster.device, cluster.vg),
        *(sbd.checks(host, disk) if disk else []),
        *([sharedfs.check(host, cluster.directory)] if cluster.datastore else []),
        _corosync(host, cluster),
        _marker(host, cluster),
        *fencing,
    ]
