# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the frontend's place: what a program finds there, and how to attach from outside.

Programs see this machine as it is, but for the network, /etc/hosts and /etc/ssh: they know the
nodes by name and know the nodes' host keys. So ``ssh solo1`` works for any user whose key the node
accepts.
"""

import os
import shlex
import shutil

from lab import keys, personality
from lab.namespaces import Namespace
from lab.places import Places
from lab.spec import (
    BMC_PASSWORD,
    BMC_USER,
    BRIDGE,
    FRONTEND_ADDRESS,
    GUEST_ADDRESSES,
    PREFIX_BITS,
    LabSpec,
)


def furnish(places: Places, namespace: Namespace, spec: LabSpec) -> None:
    """Lay our /etc/hosts and /etc/ssh over those of this machine, inside the namespace only."""
    hosts = places.of("etc", "hosts")
    own_name = os.uname().nodename
    with open(hosts, "w", encoding="utf-8") as file:
        file.write(personality.hosts_file(spec, own_name))
    ssh = os.path.join(places.state, "etc", "ssh")
    _copy_ssh("/etc/ssh", ssh)
    with open(_known_hosts(places), "w", encoding="utf-8") as file:
        file.write(keys.known_hosts(places, spec))
    namespace.run(["mount", "--bind", hosts, "/etc/hosts"])
    namespace.run(["mount", "--bind", ssh, "/etc/ssh"])
    with open(places.of("ssh_config"), "w", encoding="utf-8") as file:
        file.write(ssh_config(places, spec))


def _known_hosts(places: Places) -> str:
    return os.path.join(places.state, "etc", "ssh", "ssh_known_hosts")


def _copy_ssh(source: str, target: str) -> None:
    """Copy what clients read; the machine's own host keys stay where they are."""
    os.makedirs(os.path.join(target, "ssh_config.d"), exist_ok=True)
    for name in ("ssh_config", "ssh_config.d"):
        path = os.path.join(source, name)
        if os.path.isdir(path):
            shutil.copytree(path, os.path.join(target, name), dirs_exist_ok=True)
        elif os.path.exists(path):
            shutil.copyfile(path, os.path.join(target, name))


def ssh_config(places: Places, spec: LabSpec) -> str:
    """Root's login from the lab: one shared connection a host, quick key exchange.

    It serves wherever the nodes' network is reached, whether their names are known there or not.
    """
    named = "".join(f"Host {host.name}\n    HostName {host.address}\n" for host in spec.hosts)
    return f"""{named}Host {" ".join(host.name for host in spec.hosts)}
    GlobalKnownHostsFile {_known_hosts(places)}
    User root
    IdentityFile {keys.key_path(places, keys.ROOT_KEY)}
    IdentitiesOnly yes
    BatchMode yes
    ConnectTimeout 10
    ServerAliveInterval 5
    ServerAliveCountMax 3
    KexAlgorithms curve25519-sha256
    ControlMaster auto
    ControlPath {places.of("ssh-%n")}
    ControlPersist 600
    LogLevel ERROR
"""


def environment(places: Places, namespace: Namespace, spec: LabSpec) -> dict[str, str]:
    """All that an OpenNebula outside of the lab needs to use its hosts."""
    values = {
        "CXM_LAB_NAME": places.name,
        "CXM_LAB_EXEC": shlex.join(namespace.prefix()),
        "CXM_LAB_NETNS": f"/proc/{namespace.pid}/ns/net",
        "CXM_LAB_FRONTEND": FRONTEND_ADDRESS,
        "CXM_LAB_HOSTS": " ".join(host.name for host in spec.hosts),
        "CXM_LAB_SSH_USER": "root",
        "CXM_LAB_SSH_KEY": keys.key_path(places, keys.ROOT_KEY),
        "CXM_LAB_SSH_CONFIG": places.of("ssh_config"),
        "CXM_LAB_KNOWN_HOSTS": _known_hosts(places),
        "CXM_LAB_ETC_HOSTS": places.of("etc", "hosts"),
        "CXM_LAB_BRIDGE": BRIDGE,
        "CXM_LAB_VG": spec.vg_name,
        "CXM_LAB_GUEST_ADDRESSES": GUEST_ADDRESSES,
        "CXM_LAB_GUEST_PREFIX": str(PREFIX_BITS),
        "CXM_LAB_BMC_USER": BMC_USER,
        "CXM_LAB_BMC_PASSWORD": BMC_PASSWORD,
    }
    for host in spec.hosts:
        values[f"CXM_LAB_ADDRESS_{host.name}"] = host.address
        values[f"CXM_LAB_BMC_{host.name}"] = host.bmc_address
    return values


def assignments(values: dict[str, str]) -> str:
    """The same as lines for a shell's eval."""
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in values.items())
