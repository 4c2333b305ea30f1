# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the lab's networks: three bridges, the nodes' taps on them, the frontend's link.

The frontend reaches the nodes' network only. The cluster network and the BMC network join nothing
but the nodes (and the BMCs). The lab itself looks at nodes and guests from where the bridges are,
so it sees them also while the frontend does not.
"""

from lab.namespaces import Namespace
from lab.spec import (
    BMC,
    FRONTEND_ADDRESS,
    FRONTEND_NUMBER,
    LAN,
    NETWORKS,
    OUTSIDE_ADDRESS,
    OUTSIDE_NUMBER,
    PREFIX_BITS,
    HostSpec,
    LabSpec,
    Network,
)

_FRONTEND = "frontend"  # its end of the cable, on the bridge


def _bridge(network: Network) -> str:
    return f"br-{network.name}"


def _ip(namespace: Namespace, *lines: str) -> None:
    namespace.run(["ip", "-batch", "-"], stdin="".join(f"{line}\n" for line in lines).encode())


def build(core: Namespace, frontend: Namespace, spec: LabSpec) -> None:
    """Make the bridges, connect the frontend and prepare a tap for every card of every host."""
    lines = ["link set lo up"]
    for network in NETWORKS:
        bridge = _bridge(network)
        # Always the same, for who is restored in another lab remembers whose address is whose.
        named = f"{bridge} address {network.mac(OUTSIDE_NUMBER)}"
        lines.append(f"link add {named} type bridge stp_state 0 forward_delay 0 mcast_snooping 0")
        lines.append(f"link set {bridge} up")
    # The bridge's own address carries the route; a BMC's /32 comes and goes beside it.
    lines.append(f"address add {BMC.address(1)}/{PREFIX_BITS} dev {_bridge(BMC)}")
    lines.append(f"address add {OUTSIDE_ADDRESS}/{PREFIX_BITS} dev {_bridge(LAN)}")
    mac = LAN.mac(FRONTEND_NUMBER)
    lines.append(
        f"link add {_FRONTEND} type veth peer name eth0 address {mac} netns {frontend.pid}"
    )
    lines.append(f"link set {_FRONTEND} master {_bridge(LAN)} up")
    for host in spec.hosts:
        lines += _host_lines(host)
    _ip(core, *lines)
    _ip(
        frontend,
        "link set lo up",
        f"address add {FRONTEND_ADDRESS}/{PREFIX_BITS} dev eth0",
        "link set eth0 up",
    )


def _host_lines(host: HostSpec) -> list[str]:
    lines = []
    for network in NETWORKS:
        tap = host.tap(network)
        lines.append(f"tuntap add dev {tap} mode tap")
        lines.append(f"link set {tap} master {_bridge(network)} up")
    lines.append(f"address add {host.bmc_address}/32 dev {_bridge(BMC)}")
    return lines


def cut_card(core: Namespace, host: HostSpec, network: Network) -> None:
    """Pull a host's cable: its packets vanish, its card notices nothing."""
    _ip(core, f"link set {host.tap(network)} nomaster")


def join_card(core: Namespace, host: HostSpec, network: Network) -> None:
    """Plug a host's cable in again."""
    _ip(core, f"link set {host.tap(network)} master {_bridge(network)}")


def cut_frontend(core: Namespace) -> None:
    """Pull the frontend's cable: it reaches nobody, and nobody it; no packet is refused."""
    _ip(core, f"link set {_FRONTEND} nomaster")


def join_frontend(core: Namespace) -> None:
    """Plug the frontend's cable in again."""
    _ip(core, f"link set {_FRONTEND} master {_bridge(LAN)}")


def cut_bmc(core: Namespace, host: HostSpec) -> None:
    """Take a BMC off its network: nobody answers at its address."""
    core.run(["ip", "address", "flush", "to", host.bmc_address, "dev", _bridge(BMC)])


def join_bmc(core: Namespace, host: HostSpec) -> None:
    """Give a BMC its address on its network again."""
    cut_bmc(core, host)
    _ip(core, f"address add {host.bmc_address}/32 dev {_bridge(BMC)}")
