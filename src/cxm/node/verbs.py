# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what a node's root helper can be asked: its verbs, and what their arguments may be.

How a verb is added: a row in :data:`VERBS` names the module below ``cxm.node``, the function and
the arguments; an argument is a row in :data:`ARGUMENTS` (its parameter's name and its check). A
``?`` after the argument's name lets it be null. The function is called with a :class:`Call` and
the checked arguments by keyword, and returns the ``result`` of the reply (a dictionary for JSON)::

    def start(call: Call, *, vm: VmId, directory: str, guest: dict[str, Any]) -> dict[str, Any]:

A caller of a verb with ``stays=True`` that asks the helper to ``stay`` gets a reply to each request
line that follows, until it closes the input. Only verbs that change nothing may stay.

A verb with ``request=False`` (for services) reads nothing, writes no reply and takes no lock; it
says what it did in the log.

What happens around the function is :mod:`cxm.node.helper`'s.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

from cxm import config, names, wire
from cxm.errors import UsageError
from cxm.names import CloudId
from cxm.node.machine import Machine

_MAX_SIZE_MIB: Final = 1 << 26  # 64 TiB


class Data(Enum):
    """Whether bulk data travels with a verb, and which way."""

    NONE = "none"
    UP = "up"
    DOWN = "down"


@dataclass(slots=True)
class Call:
    """One call of a verb."""

    machine: Machine
    cloud: CloudId
    block: int = 1 << 20  # bytes of one read or write of a disk
    items: Iterator[wire.Item] = field(default_factory=lambda: iter(()))
    send: Callable[[Iterable[wire.Item]], None] = lambda _items: None


# --- arguments ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Argument:
    """An argument of a request: the parameter that takes it, and its check."""

    parameter: str
    check: Callable[[Any], Any]


def _integer(low: int, high: int) -> Callable[[Any], int]:
    def check(value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise UsageError(f"{value!r} is not a whole number from {low} to {high}")
        return value

    return check


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise UsageError(f"{value!r} is neither true nor false")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise UsageError(f"{value!r} is not a text")
    return value


def _word(*words: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if value not in words:
            raise UsageError(f"{value!r} is none of {', '.join(words)}")
        return str(value)

    return check


def _directory(value: Any) -> str:
    text = _text(value)
    # normpath leaves two slashes at the front alone.
    if not re.match("/[^/]", text) or os.path.normpath(text) != text or "\0" in text:
        raise UsageError(f"{value!r} is not the absolute, normal path of a directory")
    return text


def _file_name(value: Any) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,200}", _text(value)):
        raise UsageError(f"{value!r} is not the plain name of a file")
    return str(value)


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UsageError(f"{value!r} is not a set of named values")
    return value


def _vm(value: Any) -> names.VmId:
    return names.VmId(_integer(0, 0xFFFFFFFF)(value))


def _vms(value: Any) -> list[names.VmId]:
    if not isinstance(value, list):
        raise UsageError(f"{value!r} is not a list of VMs")
    return [_vm(each) for each in value]


def _hosts(value: Any) -> dict[names.VmId, str]:
    return {names.vm_id(vm): names.host_name(_text(host)) for vm, host in _mapping(value).items()}


block_mib: Final = _integer(1, config.MAX_BLOCK_MIB)

ARGUMENTS: Final[Mapping[str, Argument]] = {
    "vm": Argument("vm", _vm),
    "vms": Argument("vms", _vms),
    "hosts": Argument("hosts", _hosts),
    "disk": Argument("disk", lambda value: names.volume_kind(str(_integer(0, 9999)(value)))),
    "dir": Argument("directory", _directory),
    "name": Argument("name", lambda value: names.domain_name(_text(value))),
    "size_mib": Argument("size_mib", _integer(1, _MAX_SIZE_MIB)),
    "content": Argument("content", _word("raw", "gzip", "zstd", "tar", "tar.gz", "tar.zst")),
    "fstype": Argument("fstype", lambda value: config.filesystem(_text(value))),
    "replace": Argument("replace", _boolean),
    "forced": Argument("forced", _boolean),
    "format": Argument("made_as", _word("raw", "swap", *config.FILESYSTEMS)),
    "as": Argument("content", _word("raw", "gzip", "tar.gz")),
    "level": Argument("level", _integer(1, 9)),
    "file": Argument("file", _file_name),
    "guest": Argument("guest", _mapping),
    "how": Argument("how", _word("shutdown", "destroy")),
    "timeout_s": Argument("timeout_s", _integer(1, 86400)),
    "node": Argument("node", lambda value: names.host_name(_text(value))),
    "detail": Argument("detail", _word("state", "usage", "host", "all")),
}


@dataclass(frozen=True, slots=True)
class Verb:
    """A row of the verb table."""

    module: str  # below cxm.node; only the module of the asked verb is imported
    function: str
    args: str = ""
    data: Data = Data.NONE
    request: bool = True
    stays: bool = False
    lock: bool = True  # False: the verb waits long, and takes the VM's lock itself when it acts
    cluster: str = ""  # what takes its place on a node of a cluster, below cxm.cluster

    def arguments(self) -> dict[str, tuple[Argument, bool]]:
        """Name in the request -> the argument, and whether it may be null."""
        return {
            word.rstrip("?"): (ARGUMENTS[word.rstrip("?")], word.endswith("?"))
            for word in self.args.split()
        }


VERBS: Final[Mapping[str, Verb]] = {
    "disk-write": Verb(
        "disks", "write", "vm disk dir name size_mib? content fstype? replace", Data.UP
    ),
    "disk-blank": Verb("disks", "blank", "vm disk dir name size_mib format"),
    "disk-read": Verb("disks", "read", "vm disk as fstype? level?", Data.DOWN),
    "disk-remove": Verb("disks", "remove", "vm disk dir?"),
    "vm-remove": Verb("disks", "remove_vm", "vm dir"),
    "vm-volumes": Verb("disks", "volumes", "vm"),
    "vg-usage": Verb("disks", "usage"),
    "dir-read": Verb("directory", "read", "vm dir", Data.DOWN),
    "dir-write": Verb("directory", "write", "vm dir name", Data.UP),
    "dir-adopt": Verb("directory", "adopt", "vm dir"),
    "dir-drop": Verb("directory", "drop", "vm dir"),
    "file-write": Verb("directory", "write_file", "vm dir file", Data.UP),
    "domain-start": Verb("domains", "start", "vm dir guest", cluster="orders.start"),
    "domain-stop": Verb("domains", "stop", "vm how timeout_s", lock=False, cluster="orders.stop"),
    "domain-reboot": Verb("domains", "reboot", "vm", cluster="orders.reboot"),
    "domain-reset": Verb("domains", "reset", "vm", cluster="orders.reset"),
    "domain-save": Verb("memory", "save", "vm", cluster="suspend.save"),
    "domain-restore": Verb("memory", "restore", "vm dir guest?", cluster="suspend.restore"),
    "domain-migrate": Verb("domains", "refuse_migration", "vm node", cluster="relocate.migrate"),
    "domain-claim": Verb(
        "presence", "no_claim", "vms timeout_s", lock=False, cluster="claims.claim"
    ),
    "domain-confirm": Verb("presence", "no_confirm", "vm", lock=False, cluster="claims.confirm"),
    "domain-told": Verb("presence", "no_note", "hosts", cluster="claims.told"),
    "whereabouts": Verb("presence", "whereabouts", cluster="whereabouts.whereabouts"),
    "nudge-key": Verb("presence", "no_key", cluster="nudge.key"),
    "requested": Verb("presence", "requested"),
    "vm-purge": Verb("purge", "purge", "vm forced"),
    "observe": Verb("observe", "observe", "detail", stays=True),
    "tend": Verb("tend", "tend", request=False),
    "gather": Verb("kernels", "tidy", request=False, cluster="bootfiles.gather"),
}


def check_arguments(verb: str, args: object) -> dict[str, Any]:
    """The arguments of a request by parameter name; raises UsageError naming what is wrong."""
    given = _mapping(args)
    rows = VERBS[verb].arguments()
    wrong = sorted(set(rows) ^ set(given))
    if wrong:
        what = "unknown" if wrong[0] in given else "missing"
        raise UsageError(f"{verb}: the argument '{wrong[0]}' is {what}")
    checked: dict[str, Any] = {}
    for name, (argument, may_be_null) in rows.items():
        value = given[name]
        try:
            checked[argument.parameter] = (
                None if value is None and may_be_null else argument.check(value)
            )
        except UsageError as error:
            raise UsageError(f"{verb}: {name}: {error.message}", hint=error.hint) from error
    directory, vm = checked.get("directory"), checked.get("vm")
    if directory is not None and os.path.basename(directory) != str(vm):
        raise UsageError(f"{verb}: dir: '{directory}' is not the directory of VM {vm}")
    return checked
