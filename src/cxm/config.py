# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the settings: what each means, which file owns it, and how a cxmrc is read.

A cxmrc is a strict subset of shell syntax (``KEY=word``, ``KEY='text'``, ``KEY="text"``, comments)
that this module parses and nobody executes. The frontend's ``remotes/cxmrc`` owns what shapes a
request; a node's root-owned ``/etc/cxm/cxmrc`` owns what root trusts. Each key has one owner.
"""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any, Final, TypeVar

from cxm.errors import ConfigError, UsageError
from cxm.names import CloudId, cloud_id, host_name, lv_prefix

NODE_FILE: Final = "/etc/cxm/cxmrc"
CLUSTER_MARKER: Final = "/etc/cxm/cluster"  # by cxm-setup: this machine is a node of a cluster
MAX_BLOCK_MIB: Final = 64
FILESYSTEMS: Final = ("ext2", "ext3", "ext4", "xfs", "btrfs", "vfat")

# Keys of the original that have nothing left to say, and why.
OBSOLETE: Final = {
    "XPATH": "XML is read without it",
}

_ASSIGNMENT: Final = re.compile(
    r"""[ \t]*(?P<key>[A-Za-z_][A-Za-z0-9_]*)=
    (?: "(?P<double>[^"$`\\]*)" | '(?P<single>[^']*)' | (?P<word>[A-Za-z0-9_%+,./:@=-]*) )
    (?:[ \t]+\#.*)?[ \t]*""",
    re.VERBOSE,
)
_BLANK: Final = re.compile(r"[ \t]*(?:\#.*)?")
_FUNCTION: Final = re.compile(r"\s*(?:function\s+\w+|\w+\s*\(\s*\))")


class Owner(StrEnum):
    """The file that a setting lives in."""

    FRONTEND = "the frontend's remotes/cxmrc"
    NODE = f"the node's {NODE_FILE}"


class Mode(StrEnum):
    """How an image is stored in the image datastore when a disk is saved back to it."""

    RAW = "RAW"
    GZIP = "GZIP"
    TGZ = "TGZ"


class GuestType(StrEnum):
    """How Xen runs a guest."""

    AUTO = "auto"
    PV = "pv"
    PVH = "pvh"
    HVM = "hvm"


def size_mib(text: str) -> int:
    """An LVM size in MiB, rounded up: '8G', '512m', '10240' (MiB); raises UsageError."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([bskmgtBSKMGT]?)(?:i?[bB])?", text.strip())
    if not match:
        message = f"'{text}' is not a size such as 8G, 512M or 10240 (MiB)"
        raise UsageError(message)
    unit = match.group(2).lower() or "m"
    factor = {"b": 1, "s": 512, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}[unit]
    size = -(-int(float(match.group(1)) * factor) // (1 << 20))
    if size < 1:
        message = f"'{text}' is no size for a disk"
        raise UsageError(message)
    return size


def _block_size(text: str) -> int:
    size = size_mib(text)
    if size > MAX_BLOCK_MIB:
        message = f"'{text}' is more than {MAX_BLOCK_MIB}M, which a host's memory may not have"
        raise UsageError(message)
    return size


def filesystem(text: str) -> str:
    """A file system that a disk can be made with; raises UsageError."""
    if text not in FILESYSTEMS:
        message = f"'{text}' is not a file system that cxm makes ({', '.join(FILESYSTEMS)})"
        raise UsageError(message)
    return text


def _bool(text: str) -> bool:
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in words:
        message = f"'{text}' is neither yes nor no"
        raise UsageError(message)
    return words[text.lower()]


def _number(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", text) or not low <= int(text) <= high:
            message = f"'{text}' is not a number from {low} to {high}"
            raise UsageError(message)
        return int(text)

    return parse


def _choice(enum: type[StrEnum], *, upper: bool) -> Callable[[str], Any]:
    def parse(text: str) -> StrEnum:
        try:
            return enum(text.upper() if upper else text.lower())
        except ValueError:
            message = f"'{text}' is none of {', '.join(enum)}"
            raise UsageError(message) from None

    return parse


def _directory(text: str) -> str:
    if not re.fullmatch(r"(/[A-Za-z0-9_.+-]+)+/?", text) or "/../" in f"{text}/":
        message = f"'{text}' is not the absolute path of a directory"
        raise UsageError(message)
    return text.rstrip("/")


def _directories(text: str) -> tuple[str, ...]:
    return tuple(_directory(word) for word in text.split())


def _vg(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_+.][A-Za-z0-9_+.-]{0,126}", text) or text in (".", ".."):
        message = f"'{text}' is not the name of a volume group"
        raise UsageError(message)
    return text


def _template(text: str) -> str:
    if not re.fullmatch(r"(?:[A-Za-z0-9._-]|%[UVI])+", text) or not re.search("%[VI]", text):
        message = f"'{text}' is not a name made of %U, %V, %I, letters, digits, '.', '_' and '-'"
        raise UsageError(message, hint="it needs at least %V or %I")
    return text


def _clouds(text: str) -> tuple[CloudId, ...]:
    return tuple(cloud_id(word) for word in text.split())


def _frontends(text: str) -> tuple[str, ...]:
    for word in text.split():
        user, at, host = word.rpartition("@")
        if at and not re.fullmatch(r"[a-z_][a-z0-9_-]{0,31}", user):
            message = f"'{user}' is not the name of an account"
            raise UsageError(message)
        host_name(host)
    return tuple(text.split())


def _program(text: str) -> str:
    return _directory(text) if text else ""


def _setting(default: str, parse: Callable[[str], Any], help_: str) -> Any:
    """A row of the settings table: default and meaning, checked by ``parse``."""
    return field(
        default_factory=lambda: parse(default),
        metadata={"default": default, "parse": parse, "help": help_},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontendConfig:
    """The settings that shape a request; they travel inside it."""

    cloud_id: CloudId = _setting(
        "unconfigured", cloud_id, "This cloud's identity on its disks; made once by cxm-setup."
    )
    debug: bool = _setting("no", _bool, "Log every command that is run.")
    default_lv_size: int = _setting(
        "8G", size_mib, "Size of a disk whose template gives none (LVM syntax; MiB without unit)."
    )
    mode: Mode = _setting(
        "TGZ", _choice(Mode, upper=True), "How disks are saved back to images: RAW, GZIP or TGZ."
    )
    compress_level: int = _setting(
        "1", _number(1, 9), "gzip's level when a disk is saved back in mode GZIP or TGZ."
    )
    block_size: int = _setting(
        "1M", _block_size, "Size of one read or write of a disk (MiB, at most 64)."
    )
    default_fstype: str = _setting(
        "ext3", filesystem, "File system of a disk filled from a tar image that gives none."
    )
    default_guest_type: GuestType = _setting(
        "auto",
        _choice(GuestType, upper=False),
        "How guests run: pv, pvh, hvm; auto takes pvh where the kernel can.",
    )
    vm_fqdn_template: str = _setting(
        "%U-%V.vm.home.net", _template, "Name of a VM's domain: %U owner, %V name, %I id."
    )
    shutdown_timeout: int = _setting(
        "300", _number(1, 86400), "Seconds a guest gets to shut down before it is destroyed."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeConfig:
    """The settings that root trusts on a node."""

    vg_name: str = _setting("LVM_XEN", _vg, "Volume group that holds the disks of VMs.")
    lv_prefix: str = _setting("lv-one", lv_prefix, "How the names of the VMs' volumes begin.")
    clouds: tuple[CloudId, ...] = _setting(
        "", _clouds, "Ids of the clouds whose requests this node takes; written by cxm-setup node."
    )
    tmp_root: str = _setting(
        "/var/tmp",  # noqa: S108 - the original's default; only private directories are made there
        _directory,
        "Where temporary directories are made.",
    )
    cfg_dir: str = _setting(
        "/etc/xen/vm", _directory, "Where the domains' configurations are kept."
    )
    auto_dir: str = _setting(
        "/etc/xen/auto", _directory, "Links to the domains that xendomains starts at boot."
    )
    kernel_dirs: tuple[str, ...] = _setting(
        "/boot /usr/lib/grub-xen",
        _directories,
        "Where a VM's KERNEL and INITRD may lie on this node, separated by blanks.",
    )
    one_host: tuple[str, ...] = _setting(
        "",
        _frontends,
        "Frontends that a node of a cluster nudges when a VM has come to it, separated by blanks; "
        "HOST or USER@HOST. Written by cxm-setup node.",
    )
    post_migration_hook: str = _setting(
        "",
        _program,
        "A program of yours that a node of a cluster runs when a VM has moved to it: "
        "PROGRAM VM SOURCE TARGET.",
    )
    pygrub: bool = _setting(
        "no", _bool, "Whether a VM may ask for pygrub, with which root reads the VM's file system."
    )
    lb_max_vm_per_node: int = _setting(
        "0", _number(0, 9999), "VMs on a node to which cxm loadbalance moves some; 0: no limit."
    )
    lb_max_migration: int = _setting(
        "0", _number(0, 9999), "Moves of one cxm loadbalance; 0: all that are worth it."
    )
    lb_min_gain: int = _setting(
        "5", _number(0, 100), "Percent of the imbalance that a cxm loadbalance must take away."
    )


_Settings = TypeVar("_Settings", "FrontendConfig", "NodeConfig")

_OWNERS: Final[tuple[tuple[type[Any], Owner], ...]] = (
    (FrontendConfig, Owner.FRONTEND),
    (NodeConfig, Owner.NODE),
)


def owner_of(key: str) -> Owner | None:
    """The file that owns a key, None for an unknown key."""
    for cls, owner in _OWNERS:
        if key.lower() in {row.name for row in fields(cls)} and key == key.upper():
            return owner
    return None


def known_keys() -> list[str]:
    """All keys, in the order of their files."""
    return [row.name.upper() for cls, _owner in _OWNERS for row in fields(cls)]


@dataclass(frozen=True, slots=True)
class Assignment:
    """A key's value and where it was given."""

    value: str
    line: int


@dataclass(frozen=True, slots=True)
class Parsed:
    """A cxmrc as text: its assignments, and what was ignored and why."""

    values: Mapping[str, Assignment]
    warnings: tuple[str, ...]


def parse(text: str, source: str) -> Parsed:
    """Read a cxmrc's assignments; ``source`` names it in messages.

    An original cxmrc (it holds shell functions) is read up to its first line of code; the rest is
    named in a warning. Anything else that is no assignment is an error with file and line; all
    errors are reported at once.
    """
    lines = text.split("\n")  # as a shell does; str.splitlines() knows ten more line ends
    original = any(_FUNCTION.match(line) for line in lines)
    values: dict[str, Assignment] = {}
    errors: list[str] = []
    warnings: list[str] = []
    for number, line in enumerate(lines, start=1):
        if _BLANK.fullmatch(line):
            continue
        match = _ASSIGNMENT.fullmatch(line)
        if match:
            found = (match["double"], match["single"], match["word"])
            value = next(part for part in found if part is not None)
            values[match["key"]] = Assignment(value, number)
        elif original:
            warnings.append(
                f"{source}:{number}: the shell code from here to the end is ignored; "
                "only settings are read"
            )
            break
        else:
            errors.append(f"{source}:{number}: not a setting of the form KEY=\"value\": '{line}'")
    if errors:
        raise ConfigError("; ".join(errors), hint="a cxmrc holds settings only, no shell code")
    return Parsed(values, tuple(warnings))


def _nearest(key: str) -> str:
    import difflib  # noqa: PLC0415 - only a mistake needs it, and every driver would load it

    close = difflib.get_close_matches(key.upper(), known_keys(), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def _build(cls: type[_Settings], parsed: Parsed, source: str) -> tuple[_Settings, list[str]]:
    owner = next(owner for known, owner in _OWNERS if known is cls)
    rows = {row.name.upper(): row for row in fields(cls)}
    given: dict[str, Any] = {}
    errors: list[str] = []
    warnings = list(parsed.warnings)
    for key, assignment in parsed.values.items():
        where = f"{source}:{assignment.line}"
        other = owner_of(key)
        if key in rows:
            try:
                given[key.lower()] = rows[key].metadata["parse"](assignment.value)
            except UsageError as error:
                errors.append(f"{where}: {key}: {error.sentence()}")
        elif key in OBSOLETE:
            warnings.append(f"{where}: {key} is obsolete and ignored: {OBSOLETE[key]}")
        elif other is None:
            errors.append(f"{where}: unknown setting {key}{_nearest(key)}")
        elif parsed.warnings:  # an original cxmrc held the settings of both sides
            warnings.append(f"{where}: {key} is ignored here; it belongs into {other}")
        else:
            errors.append(f"{where}: {key} belongs into {other}, not into {owner}")
    if errors:
        raise ConfigError("; ".join(errors))
    return cls(**given), warnings


def frontend(text: str, source: str) -> tuple[FrontendConfig, list[str]]:
    """The frontend's settings from the text of its cxmrc, and warnings; raises ConfigError."""
    return _build(FrontendConfig, parse(text, source), source)


def node(text: str, source: str) -> tuple[NodeConfig, list[str]]:
    """A node's settings from the text of its cxmrc, and warnings; raises ConfigError."""
    return _build(NodeConfig, parse(text, source), source)


def read(path: str) -> str:
    """The text of a cxmrc; raises ConfigError when it cannot be read."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        message = f"the settings in {path} cannot be read: {error}"
        raise ConfigError(message, hint="cxm-setup writes this file") from error


def read_trusted(path: str) -> str:
    """The text of a cxmrc that root trusts; raises ConfigError unless only root can write it."""
    text = read(path)
    status = os.stat(path)
    if status.st_uid != 0 or status.st_mode & 0o022:
        message = f"the settings in {path} are not trusted: others than root can change them"
        raise ConfigError(message, hint=f"chown root:root {path}; chmod 644 {path}")
    return text


def sample(cls: type[Any], given: Mapping[str, str]) -> str:
    """A commented cxmrc with every setting of one owner; ``given`` overrides defaults."""
    owner = next(owner for known, owner in _OWNERS if known is cls)
    lines = [
        f"# cxm settings: {owner}.",
        '# One setting a line, KEY="value"; a strict subset of shell syntax, never executed.',
    ]
    for row in fields(cls):
        key = row.name.upper()
        lines += ["", f"# {row.metadata['help']}"]
        if key in given:
            lines.append(f'{key}="{given[key]}"')
        else:
            lines.append(f'#{key}="{row.metadata["default"]}"')
    return "\n".join(lines) + "\n"
