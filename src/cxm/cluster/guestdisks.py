# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what a VM's configuration says it needs of a node: volumes, bridges, files. Pure."""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final

from cxm.cluster.cib import Resource
from cxm.names import LvName
from cxm.xen import cfgtext

_DEVICE: Final = re.compile(r"(?:^|[,=:])/dev/(?P<vg>[^/,]+)/(?P<lv>[^/,]+)")
_BRIDGE: Final = re.compile(r"(?:^|,)\s*bridge\s*=\s*(?P<bridge>[^,\s]+)")


@dataclass(frozen=True, slots=True)
class Needs:
    """What must be on a node for a VM to run there."""

    volumes: frozenset[LvName]
    bridges: frozenset[str]
    files: frozenset[str]  # paths of its kernel and ramdisk


def _list(config: cfgtext.Config, key: str) -> tuple[str, ...]:
    value = config.get(key)
    return value if isinstance(value, tuple) else ()


def needs(resource: Resource, vg: str) -> Needs:
    """What a VM needs, volumes of the group ``vg``; raises UsageError for what is unreadable."""
    config = cfgtext.parse(resource.config, f"the configuration of {resource.name}")
    devices = (_DEVICE.search(disk) for disk in _list(config, "disk"))
    bridges = (_BRIDGE.search(nic) for nic in _list(config, "vif"))
    files = (config.get("kernel"), config.get("ramdisk"))
    return Needs(
        frozenset(LvName(each["lv"]) for each in devices if each and each["vg"] == vg),
        frozenset(each["bridge"] for each in bridges if each),
        frozenset(path for path in files if isinstance(path, str) and path),
    )


def lacking(bridges: Iterable[str], known: Collection[str]) -> list[str]:
    """Which of the bridges that guests name are not among the network interfaces of a node."""
    # Open vSwitch takes bridge.vlan and bridge:trunks for a bridge.
    return [name for name in sorted(bridges) if not {name, re.split("[.:]", name)[0]} & set(known)]
