# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what OpenNebula's configuration must say for cxm, by version, and how a file gets it. Pure.

A part that is there already is left as it stands, an administrator's own choices included; so a
second run changes nothing.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from cxm.errors import ConfigError
from cxm.one import frontend
from cxm.one.version import OneVersion
from cxm.setup import oneconf
from cxm.setup.oneconf import Entry

IM_MAD: Final = "cxm"
VM_MAD: Final = "vmm_cxm"
TM_SHARED: Final = "cxm"
TM_LOCAL: Final = "cxm_local"
_COMMENT: Final = "cxm (written by cxm-setup)"

# From these versions on OpenNebula has what the name says.
PUSHED_PROBES: Final = (4, 4)  # probes apart, with a pushing client; onehost sync --force
_TM_CONF: Final = (4, 4)  # TM_MAD_CONF, INHERIT_IMAGE_ATTR
_SHARED_MONITOR: Final = (5, 0)  # space of a shared system datastore by the transfer driver
XML_DOMAINS: Final = (5, 0)  # the VM's XML on every action's input, so no deployment file is needed
MONITORD: Final = (5, 12)
_NETWORK_STEPS: Final = ("pre", "post", "clean")
# What asks a host for one verb, and needs nothing that oned would put on it.
_ANYWHERE: Final = ("migrate", "shutdown", "cancel", "save", "reboot", "reset")


class Part(Protocol):
    """Something that a configuration file must say."""

    def apply(self, text: str, source: str) -> tuple[str, str | None]:
        """The file's text with the part in it, and what was changed in one clause, or None."""


def _vectors(text: str, source: str, name: str) -> list[Entry]:
    return [entry for entry in oneconf.parse(text, source) if entry.name == name]


@dataclass(frozen=True, slots=True)
class Driver:
    """A named vector (``VM_MAD``, ``TM_MAD_CONF``, ...) with its pairs.

    Where one of this name exists, the pairs in ``required`` are set and the others left alone. One
    whose ARGUMENTS name other scripts belongs to another driver: replaced whole with
    ``take_over``, an error without.
    """

    name: str
    pairs: Mapping[str, str]
    required: Sequence[str]
    take_over: bool = False

    def apply(self, text: str, source: str) -> tuple[str, str | None]:
        """See :class:`Part`."""
        own = self.pairs["NAME"]
        found = [each for each in _vectors(text, source, self.name) if each.get("NAME") == own]
        if not found:
            block = oneconf.vector(self.name, self.pairs)
            return oneconf.append(text, block, _COMMENT), f"{self.name} '{own}' added"
        entry = found[-1]
        if self._is_foreign(entry):
            if not self.take_over:
                raise ConfigError(
                    f"{source} has a {self.name} named '{own}' for other drivers "
                    f'(ARGUMENTS "{entry.get("ARGUMENTS")}")',
                    hint="choose another --vm-mad, or add --take-over to replace that driver",
                )
            block = oneconf.vector(self.name, self.pairs).rstrip("\n")
            return (
                text[: entry.start] + block + text[entry.end :],
                f"{self.name} '{own}' taken over from other drivers",
            )
        return self._adapt(text, source)

    def _is_foreign(self, entry: Entry) -> bool:
        if "ARGUMENTS" not in self.pairs:
            return False
        ours = self.pairs["ARGUMENTS"].split()[-1]
        theirs = (entry.get("ARGUMENTS") or "").split()
        return ours not in theirs

    def _adapt(self, text: str, source: str) -> tuple[str, str | None]:
        own, changed = self.pairs["NAME"], []
        for key in self.required:
            entry = [each for each in _vectors(text, source, self.name) if each.get("NAME") == own][
                -1
            ]
            pair = entry.find(key)
            if pair is None:
                text = oneconf.add_pair(text, entry, key, self.pairs[key])
            elif pair.value.text.upper() != self.pairs[key].upper():
                text = oneconf.replace_value(text, pair.value, self.pairs[key])
            else:
                continue
            changed.append(key)
        return text, f"{self.name} '{own}': {', '.join(changed)} set" if changed else None


@dataclass(frozen=True, slots=True)
class ListOption:
    """Words that an option's comma-separated list in a driver's ARGUMENTS must hold.

    Without the option OpenNebula takes all directories it finds: then there is nothing to add,
    unless ``needed``.
    """

    name: str
    executable: str
    option: str
    words: Sequence[str]
    needed: bool = False

    def apply(self, text: str, source: str) -> tuple[str, str | None]:
        """See :class:`Part`."""
        found = [
            each
            for each in _vectors(text, source, self.name)
            if (each.get("EXECUTABLE") or "").split("/")[-1] == self.executable
        ]
        if not found:
            raise ConfigError(
                f'{source} has no {self.name} with EXECUTABLE "{self.executable}"',
                hint="take it from OpenNebula's own oned.conf",
            )
        arguments = found[-1].find("ARGUMENTS")
        value = "" if arguments is None else arguments.value.text
        new = self._extended(value)
        if new == value:
            return text, None
        if arguments is None:
            text = oneconf.add_pair(text, found[-1], "ARGUMENTS", new)
        else:
            text = oneconf.replace_value(text, arguments.value, new)
        return text, f"{self.name}: {', '.join(self.words)} in the list {self.option}"

    def _extended(self, value: str) -> str:
        match = re.search(rf"(?:^|\s){re.escape(self.option)}\s*([^\s-]\S*)", value)
        if match is None:
            listed = ",".join(self.words)
            return f"{value} {self.option} {listed}".strip() if self.needed else value
        have = match[1].split(",")
        lacking = [word for word in self.words if word not in have]
        if not lacking:
            return value
        return value[: match.end()] + "," + ",".join(lacking) + value[match.end() :]


@dataclass(frozen=True, slots=True)
class LocalActions:
    """Actions that a VM driver runs on the frontend: words of the list ``-l`` in its ARGUMENTS."""

    own: str  # NAME of the VM_MAD
    words: Sequence[str]

    def apply(self, text: str, source: str) -> tuple[str, str | None]:
        """See :class:`Part`."""
        found = [each for each in _vectors(text, source, "VM_MAD") if each.get("NAME") == self.own]
        arguments = found[-1].find("ARGUMENTS") if found else None
        if arguments is None:
            return text, None
        new = self._extended(arguments.value.text)
        if new == arguments.value.text:
            return text, None
        text = oneconf.replace_value(text, arguments.value, new)
        return text, f"VM_MAD '{self.own}': {', '.join(self.words)} on the frontend (-l)"

    def _extended(self, value: str) -> str:
        match = frontend.LOCAL.search(value)
        if match is None:
            # The last word is the directory of the scripts.
            before, _blank, last = value.rpartition(" ")
            return f"{before} -l {','.join(self.words)} {last}".strip()
        # A word may have the name of another script: save=mine. What an older version had made of
        # the network's steps would leave a newer one's hosts without their networks.
        had = [(word, word.partition("=")[0]) for word in match[1].split(",")]
        kept = [word for word, name in had if name in self.words or name not in _NETWORK_STEPS]
        lacking = [word for word in self.words if word not in {name for _word, name in had}]
        return value[: match.start(1)] + ",".join([*kept, *lacking]) + value[match.end(1) :]


def local_actions(version: OneVersion) -> list[str]:
    """What runs on the frontend, so that a dead host keeps nothing from being recorded or told.

    On a host that cannot be reached oned's own driver (5.10 to 7.4) may die of an action, and the
    VM stays in the midst of it. Up to 4.2 each VM is polled by itself, for half the cost from here.
    Before 4.0 a failing clean-up of the source's network fails a migration; before 3.8 a local
    action leaves no connection for the network steps. Both are right for ``dummy`` networks.
    """
    found = [*_ANYWHERE, "poll"] if version < PUSHED_PROBES else list(_ANYWHERE)
    if version < (3, 8):
        return [*found, *_NETWORK_STEPS]
    return [*found, "clean"] if version < (4, 0) else found


@dataclass(frozen=True, slots=True)
class Listed:
    """An attribute that is given once for each of its values (``INHERIT_IMAGE_ATTR``)."""

    name: str
    value: str

    def apply(self, text: str, source: str) -> tuple[str, str | None]:
        """See :class:`Part`."""
        for entry in oneconf.parse(text, source):
            if entry.name == self.name and entry.single and entry.single.text == self.value:
                return text, None
        block = f"{self.name} = {oneconf.quote(self.value)}\n"
        return oneconf.append(text, block, _COMMENT), f"{self.name} = {self.value} added"


@dataclass(frozen=True, slots=True)
class Setting:
    """An attribute with one value."""

    name: str
    value: str

    def apply(self, text: str, source: str) -> tuple[str, str | None]:
        """See :class:`Part`."""
        found = [each for each in oneconf.parse(text, source) if each.name == self.name]
        if found and found[-1].single is not None:
            if found[-1].single.text == self.value:
                return text, None
            text = oneconf.replace_value(text, found[-1].single, self.value)
        else:
            block = f"{self.name} = {oneconf.quote(self.value)}\n"
            text = oneconf.append(text, block, _COMMENT)
        return text, f"{self.name} = {self.value}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """What the administrator decides."""

    vm_mad: str = VM_MAD
    take_over: bool = False
    xen_only: bool = False


def _tm_conf(version: OneVersion) -> list[Part]:
    common = {"LN_TARGET": "SYSTEM", "CLONE_TARGET": "SYSTEM"}
    kind = {"DRIVER": "raw"}
    moves = {"DS_MIGRATE": "NO", "DS_LIVE_MIGRATE": "NO", "DS_MIGRATE_SNAP": "NO"}
    # Since 5.8 an image datastore must name the other system datastores that its disks may go to.
    other = {
        "TM_MAD_SYSTEM": TM_LOCAL,
        f"LN_TARGET_{TM_LOCAL.upper()}": "SYSTEM",
        f"CLONE_TARGET_{TM_LOCAL.upper()}": "SYSTEM",
        f"DISK_TYPE_{TM_LOCAL.upper()}": "FILE",
    }
    rows = [(TM_SHARED, "YES", other if version >= (5, 6) else {}), (TM_LOCAL, "NO", {})]
    parts: list[Part] = []
    for name, shared, more in rows:
        pairs = {"NAME": name} | common | {"SHARED": shared} | kind | more | moves
        parts.append(Driver("TM_MAD_CONF", pairs, required=[*pairs][1:]))
    return parts


def _vm_mad(version: OneVersion, choices: Choices) -> Driver:
    pairs = {"NAME": choices.vm_mad}
    required = ["EXECUTABLE", "TYPE"]
    if version >= (5, 0):
        pairs |= {"SUNSTONE_NAME": "Xen (cxm)"}
    # -p (4.14): a guest that takes minutes to shut down must not hold up the others of its host.
    together = "-p " if version >= (4, 14) else ""
    pairs |= {"EXECUTABLE": "one_vmm_exec", "ARGUMENTS": f"-t 15 -r 0 {together}cxm"}
    if version >= XML_DOMAINS:
        pairs |= {"TYPE": "xml"}
    else:
        pairs |= {"DEFAULT": "vmm_exec/vmm_exec_cxm.conf", "TYPE": "xen"}
        required.append("DEFAULT")
    if version >= (5, 0):
        pairs |= {"KEEP_SNAPSHOTS": "no"}
    return Driver("VM_MAD", pairs, required, take_over=choices.take_over)


def _im_arguments(version: OneVersion) -> str:
    """See docs/design/0006: which directory a version runs, and which options it knows."""
    if version < PUSHED_PROBES:
        return "-r 0 -t 15 cxm"
    if version < MONITORD:
        waits = " -w 90" if version >= (5, 4) else ""
        return f"-r 3 -t 15{waits} cxm-probes"
    return "-r 3 -t 15 -w 90 cxm"


def _im_mad(version: OneVersion) -> Driver:
    pairs = {"NAME": IM_MAD}
    if version >= (5, 0):
        pairs |= {"SUNSTONE_NAME": "Xen (cxm)"}
    pairs |= {"EXECUTABLE": "one_im_ssh", "ARGUMENTS": _im_arguments(version)}
    if version >= MONITORD:
        pairs |= {"THREADS": "0"}
    return Driver("IM_MAD", pairs, ["EXECUTABLE"])


def vm_mad(text: str, source: str) -> str:
    """The name that cxm's VM driver has in oned.conf, or the one that it gets."""
    names = [
        entry.get("NAME") or ""
        for entry in _vectors(text, source, "VM_MAD")
        if (entry.get("ARGUMENTS") or "").split()[-1:] == ["cxm"]
    ]
    return VM_MAD if VM_MAD in names or not names else names[-1]


def of_oned(version: OneVersion, choices: Choices) -> list[Part]:
    """What oned.conf must say."""
    drivers = [TM_SHARED, TM_LOCAL]
    parts: list[Part] = [ListOption("TM_MAD", "one_tm", "-d", drivers)]
    if version >= _SHARED_MONITOR:
        parts.append(ListOption("DATASTORE_MAD", "one_datastore", "-s", [TM_SHARED], needed=True))
    if version < MONITORD:
        parts.append(_im_mad(version))
    parts.append(_vm_mad(version, choices))
    parts.append(LocalActions(choices.vm_mad, local_actions(version)))
    if version >= _TM_CONF:
        parts += _tm_conf(version)
        parts += [Listed("INHERIT_IMAGE_ATTR", name) for name in ("FSTYPE", "LV_SIZE")]
    if choices.xen_only:
        parts.append(Setting("DEFAULT_DEVICE_PREFIX", "xvd"))
    return parts


def of_monitord(version: OneVersion) -> list[Part]:
    """What monitord.conf must say (5.12 and later)."""
    return [_im_mad(version)]


_INTERVALS: Final = (
    "HOST_MONITORING_INTERVAL",
    "VM_POLLING_INTERVAL",
    "MONITORING_INTERVAL",
    "MONITORING_INTERVAL_HOST",
)
_GOOD_INTERVAL_S: Final = 60


def slow_monitoring(text: str, source: str, version: OneVersion) -> list[str]:
    """The settings by which oned asks hosts too seldom; before monitord it has to ask."""
    if version >= MONITORD:
        return []
    found = {entry.name: entry.single.text for entry in oneconf.parse(text, source) if entry.single}
    return [
        f"{name} = {found[name]}"
        for name in _INTERVALS
        if found.get(name, "").isdecimal() and int(found[name]) > _GOOD_INTERVAL_S
    ]


VMM_EXEC_DEFAULTS: Final = f"""\
# {_COMMENT}: defaults of VMs on Xen, for OpenNebula before 5.0.
CREDIT = 256
DISK   = [ DRIVER = "phy:" ]
# Up to 4.2 oned refuses a VM with neither kernel nor boot loader. This one means: its own disk.
OS     = [ BOOTLOADER = "grub" ]
"""


def apply(text: str, source: str, parts: Iterable[Part]) -> tuple[str, list[str]]:
    """A file's text with all parts in it, and what was changed."""
    changes: list[str] = []
    for part in parts:
        text, change = part.apply(text, source)
        if change is not None:
            changes.append(change)
    return text, changes
