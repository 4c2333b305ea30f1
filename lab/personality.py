# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what makes one node out of the common image: a tar archive on a small disk of its own.

A unit of the image unpacks it at every boot before the network and ssh start.
"""

import hashlib
import io
import tarfile

from lab import keys
from lab.places import Places
from lab.spec import BMC, BRIDGE, CLUSTER, FRONTEND_ADDRESS, LAN, PREFIX_BITS, HostSpec, LabSpec

_SECRET = 0o600
_SECTOR = 512
_NETWORKD = "etc/systemd/network"


def hosts_file(spec: LabSpec, own_name: str) -> str:
    """An /etc/hosts that knows the frontend and every node."""
    lines = ["127.0.0.1 localhost", f"{FRONTEND_ADDRESS} frontend"]
    lines += [f"{host.address} {host.name}" for host in spec.hosts]
    lines += [f"{host.cluster_address} {host.name}-cluster" for host in spec.hosts]
    if own_name not in {host.name for host in spec.hosts} | {"frontend", "localhost"}:
        lines.append(f"127.0.1.1 {own_name}")
    return "\n".join(lines) + "\n"


def _network_unit(card: str, address: str, mac: str) -> str:
    return (
        f"[Match]\nName={card}\n\n[Link]\nMACAddress={mac}\n\n"
        f"[Network]\nAddress={address}/{PREFIX_BITS}\n"
        "LinkLocalAddressing=no\nIPv6AcceptRA=no\nConfigureWithoutCarrier=yes\n"
    )


def machine_id(host: HostSpec) -> str:
    """What systemd calls this machine, the same in every lab."""
    return hashlib.sha256(f"cxm-lab {host.name}".encode()).hexdigest()[:32]


def files(places: Places, spec: LabSpec, host: HostSpec) -> dict[str, tuple[str, int]]:
    """Path to content and mode of everything that only this host has."""
    name = keys.host_key_name(host.name)
    with open(keys.key_path(places, name), encoding="utf-8") as file:
        private = file.read()
    number = host.number
    return {
        "etc/hostname": (f"{host.name}\n", 0o644),
        "etc/hosts": (hosts_file(spec, host.name), 0o644),
        f"{_NETWORKD}/30-{BRIDGE}.network": (
            _network_unit(BRIDGE, host.address, LAN.mac(number)),
            0o644,
        ),
        f"{_NETWORKD}/30-{CLUSTER.card}.network": (
            _network_unit(CLUSTER.card, host.cluster_address, CLUSTER.mac(number)),
            0o644,
        ),
        f"{_NETWORKD}/30-{BMC.card}.network": (
            _network_unit(BMC.card, BMC.address(number), BMC.mac(number)),
            0o644,
        ),
        "etc/ssh/ssh_host_ed25519_key": (private, _SECRET),
        "etc/ssh/ssh_host_ed25519_key.pub": (keys.public_key(places, name), 0o644),
        "etc/ssh/ssh_known_hosts": (keys.known_hosts(places, spec), 0o644),
        # Not authorized_keys: this is written at each boot, and what cxm-setup adds must stay.
        "root/.ssh/authorized_keys2": (keys.public_key(places, keys.ROOT_KEY), _SECRET),
    }


def write_disk(path: str, content: dict[str, tuple[str, int]]) -> None:
    """Write the archive; its size is a whole number of sectors."""
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        folder = tarfile.TarInfo("root/.ssh")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o700
        archive.addfile(folder)
        for name, (text, mode) in sorted(content.items()):
            data = text.encode()
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), mode
            archive.addfile(member, io.BytesIO(data))
    with open(path, "ab") as file:
        file.truncate(-(-file.tell() // _SECTOR) * _SECTOR)
