# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns MONITOR_CONFIGURATION, what monitord (5.12 to 7.4) gives a client: where, when and how."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from xml.etree import ElementTree as ET

from cxm.errors import ConfigError
from cxm.one.im import datastores
from cxm.one.im.channel import Kind, PublicKey, public_key

# Seconds, as in monitord.conf of every version; for what a version does not send.
_PERIODS: Final = {
    Kind.BEACON_HOST: 30.0,
    Kind.SYSTEM_HOST: 600.0,
    Kind.MONITOR_HOST: 120.0,
    Kind.STATE_VM: 5.0,
    Kind.MONITOR_VM: 30.0,
}
_SYNC_S: Final = 180.0


@dataclass(frozen=True, slots=True)
class Settings:
    """What a client needs to know."""

    address: str
    port: int
    key: PublicKey | None
    host_id: int
    host_name: str
    periods: Mapping[Kind, float]  # seconds
    sync_every_s: float
    datastores: str  # where the host has its datastores


def _seconds(text: str, default: float) -> float:
    return float(text) if text.isascii() and text.isdecimal() and int(text) > 0 else default


def _say(root: ET.Element, path: str) -> str:
    return " ".join((root.findtext(path) or "").split())


def parse(xml: str, host_name: str, environ: Mapping[str, str]) -> Settings:
    """Read the configuration; ``auto`` for the address means where the ssh connection came from.

    Raises ConfigError for what cannot be used.
    """
    try:
        root = ET.fromstring(xml)  # noqa: S314 - from our own frontend, over ssh
    except ET.ParseError as error:
        raise ConfigError(f"monitord's configuration is not XML: {error}") from error

    def say(path: str) -> str:
        return _say(root, path)

    address = say("NETWORK/MONITOR_ADDRESS")
    if address == "auto":
        address = next(iter(environ.get("SSH_CLIENT", "").split()), "")
    if not address:
        raise ConfigError(
            "monitord's address is 'auto', but there is no ssh connection to take it from",
            hint="set NETWORK/MONITOR_ADDRESS in monitord.conf",
        )
    port, host_id = say("NETWORK/PORT"), say("HOST_ID")
    if not (port.isdecimal() and host_id.isdecimal()):
        raise ConfigError(f"monitord's port '{port}' or the host's id '{host_id}' is no number")
    return Settings(
        address=address,
        port=int(port),
        key=public_key(say("NETWORK/PUBKEY")),
        host_id=int(host_id),
        host_name=host_name,
        periods={
            kind: _seconds(say(f"PROBES_PERIOD/{kind}"), default)
            for kind, default in _PERIODS.items()
        },
        sync_every_s=sync_period(root),
        datastores=datastore_location(root),
    )


def sync_period(root: ET.Element) -> float:
    """After how many seconds the states of all VMs are said again."""
    return _seconds(_say(root, "PROBES_PERIOD/SYNC_STATE_VM"), _SYNC_S)


def datastore_location(root: ET.Element) -> str:
    """Where the host has its datastores; versions that do not say have the usual place."""
    said = _say(root, "DATASTORE_LOCATION")
    return said if said.startswith("/") else datastores.LOCATION
