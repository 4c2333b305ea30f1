# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns how cxm-setup writes a cxmrc: a new one, a change to ours, and an original one. Pure."""

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from cxm import config
from cxm.config import FrontendConfig, NodeConfig, Owner
from cxm.errors import UsageError
from cxm.names import CloudId

# What is easily mistaken when read aloud is left out.
_LETTERS: Final = "abcdefghijkmnpqrstuvwxyz23456789"
_ID_LENGTH: Final = 12
NO_CLOUD: Final = "unconfigured"


def new_cloud_id() -> CloudId:
    """A cloud id that no other cloud has."""
    return CloudId("".join(secrets.choice(_LETTERS) for _ in range(_ID_LENGTH)))


def assignments(words: list[str], owner: Owner) -> dict[str, str]:
    """The settings of ``--set KEY=VALUE`` options; raises UsageError for another owner's key."""
    given: dict[str, str] = {}
    for word in words:
        key, found, value = word.partition("=")
        if not found:
            raise UsageError(f"'--set {word}' is not of the form KEY=VALUE")
        if config.owner_of(key) is not owner:
            belongs = config.owner_of(key)
            hint = f"it belongs into {belongs}" if belongs else None
            raise UsageError(f"'{key}' is not a setting of {owner}", hint=hint)
        given[key] = value
    return given


def set_values(text: str, values: Mapping[str, str]) -> str:
    """A cxmrc with these settings; the line of a setting, commented out or not, is replaced."""
    lines = text.splitlines()
    for key, value in values.items():
        new = f'{key}="{value}"'
        active = [n for n, line in enumerate(lines) if re.match(rf"\s*{key}=", line)]
        asleep = [n for n, line in enumerate(lines) if re.match(rf"\s*#\s*{key}=", line)]
        if active:
            lines[active[-1]] = new
        elif asleep:
            lines[asleep[0]] = new
        else:
            lines.append(new)
    return "\n".join(lines) + "\n"


@dataclass(frozen=True, slots=True)
class Written:
    """A cxmrc as it shall be, and what the administrator must know about it."""

    text: str
    converted: bool = False  # from an original cxmrc: the old file is kept beside it
    moved: Mapping[str, str] = field(default_factory=dict)  # settings that belong on the nodes now
    dropped: tuple[str, ...] = ()


def _new(cls: type[Any], source: str, values: Mapping[str, str]) -> str:
    text = config.sample(cls, values)
    _check(cls, text, source)
    return text


def _check(cls: type[Any], text: str, source: str) -> None:
    reader = config.frontend if cls is FrontendConfig else config.node
    reader(text, source)


def for_frontend(old: str | None, source: str, given: Mapping[str, str]) -> Written:
    """The frontend's cxmrc; ``old`` is the present one, None when there is none.

    The settings of an original cxmrc, which held those of both sides and shell functions, are kept.
    Raises ConfigError for a value that cannot be.
    """
    if old is None:
        values = {"CLOUD_ID": str(new_cloud_id())} | dict(given)
        return Written(_new(FrontendConfig, source, values))
    parsed = config.parse(old, source)
    found = {key: each.value for key, each in parsed.values.items()}
    owners = {key: config.owner_of(key) for key in found}
    if parsed.warnings or Owner.NODE in owners.values():
        kept = {key: value for key, value in found.items() if owners[key] is Owner.FRONTEND}
        values = {"CLOUD_ID": str(new_cloud_id())} | kept | dict(given)
        return Written(
            _new(FrontendConfig, source, values),
            converted=True,
            moved={key: found[key] for key in found if owners[key] is Owner.NODE},
            dropped=tuple(key for key in found if owners[key] is None),
        )
    values = dict(given)
    if found.get("CLOUD_ID", NO_CLOUD) == NO_CLOUD:
        values = {"CLOUD_ID": str(new_cloud_id())} | values
    text = set_values(old, values) if values else old
    _check(FrontendConfig, text, source)
    return Written(text)


def for_node(old: str | None, source: str, given: Mapping[str, str], cloud: str | None) -> str:
    """A node's cxmrc that serves ``cloud`` besides those it serves already."""
    if old is None:
        values = ({"CLOUDS": cloud} if cloud else {}) | dict(given)
        return _new(NodeConfig, source, values)
    settings, _warnings = config.node(old, source)
    values = dict(given)
    if cloud is not None and cloud not in settings.clouds:
        values["CLOUDS"] = " ".join([*settings.clouds, cloud])
    text = set_values(old, values) if values else old
    _check(NodeConfig, text, source)
    return text


def cloud_of(text: str, source: str) -> str:
    """The cloud id that a frontend's cxmrc holds."""
    settings, _warnings = config.frontend(text, source)
    return str(settings.cloud_id)
