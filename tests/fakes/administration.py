# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the model of what cxm-setup asks of the world: oned's administration, and a node's tools."""

import base64
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from cxm import wire
from cxm.errors import CxmError
from cxm.one.api import Value
from cxm.one.version import OneVersion
from cxm.setup import oneconf
from cxm.setup.install import Account
from cxm.setup.nodecheck import Host
from tests.fakes.machine import FakeNode, Outcome

XL_INFO = """\
nr_cpus                : 4
cpu_mhz                : 2400.000
total_memory           : 8192
free_memory            : 6000
xen_version            : 4.17.3
xen_commandline        : placeholder dom0_mem=512M
"""
SSHD = """\
port 22
pubkeyauthentication yes
authorizedkeysfile .ssh/authorized_keys .ssh/authorized_keys2
subsystem sftp /usr/lib/openssh/sftp-server
"""
_RAW = (11).to_bytes(4, "big") + b"ssh-ed25519" + (32).to_bytes(4, "big") + b"k" * 32
KEY = f"ssh-ed25519 {base64.b64encode(_RAW).decode()}"


@dataclass(slots=True)
class FakeOned:
    """Datastores and clusters of an oned, by its API, as a version has them."""

    version: OneVersion
    datastores: dict[int, dict[str, str]] = field(default_factory=dict)
    clusters: dict[int, dict[str, str]] = field(default_factory=dict)
    members: dict[int, set[int]] = field(default_factory=dict)
    known_tm: bool = True

    def call(self, method: str, *arguments: Value) -> Value:
        """One call; anything that is not modelled fails the test."""
        name = method.removeprefix("one.").replace(".", "_")
        result: Value = getattr(self, f"_{name}")(*arguments)
        return result

    def named(self, name: str) -> dict[str, str]:
        """A datastore by its name."""
        return next(each for each in self.datastores.values() if each["NAME"] == name)

    def cluster_of(self, name: str) -> set[str]:
        """The names of the datastores of a cluster."""
        number = next(n for n, each in self.clusters.items() if each["NAME"] == name)
        return {self.datastores[each]["NAME"] for each in self.members[number]}

    def _datastorepool_info(self) -> str:
        return f"<DATASTORE_POOL>{''.join(map(self._datastore, self.datastores))}</DATASTORE_POOL>"

    def _datastore_info(self, number: int) -> str:
        return self._datastore(number)

    def _datastore(self, number: int) -> str:
        have = self.datastores[number]
        kind = {"SYSTEM_DS": 1, "FILE_DS": 2}.get(have.get("TYPE", ""), 0)
        typed = f"<TYPE>{kind}</TYPE>" if self.version >= (4, 0) else ""
        return (
            f"<DATASTORE><ID>{number}</ID><NAME>{have['NAME']}</NAME>"
            f"<TM_MAD>{have['TM_MAD']}</TM_MAD>{typed}{_template_xml(have)}</DATASTORE>"
        )

    def _clusterpool_info(self) -> str:
        return f"<CLUSTER_POOL>{''.join(map(self._cluster, self.clusters))}</CLUSTER_POOL>"

    def _cluster_info(self, number: int) -> str:
        return self._cluster(number)

    def _cluster(self, number: int) -> str:
        ids = "".join(f"<ID>{each}</ID>" for each in sorted(self.members[number]))
        have = self.clusters[number]
        return (
            f"<CLUSTER><ID>{number}</ID><NAME>{have['NAME']}</NAME>"
            f"<DATASTORES>{ids}</DATASTORES>{_template_xml(have)}</CLUSTER>"
        )

    def _datastore_allocate(self, text: str, cluster: int) -> int:
        if not self.known_tm:
            raise CxmError('oned refused it: TM_MAD named "cxm" is not defined in oned.conf')
        number = 100 + len(self.datastores)
        self.datastores[number] = _pairs(text)
        if cluster >= 0:
            self.members[cluster].add(number)
        return number

    def _cluster_allocate(self, name: str) -> int:
        number = 100 + len(self.clusters)
        self.clusters[number] = {"NAME": name}
        self.members[number] = set()
        return number

    def _cluster_adddatastore(self, cluster: int, datastore: int) -> int:
        if self.version < (5, 0) and any(datastore in each for each in self.members.values()):
            raise CxmError("oned refused it: it is in a cluster already")
        self.members[cluster].add(datastore)
        return cluster

    def _datastore_update(self, number: int, text: str, *merge: int) -> int:
        self._update(self.datastores[number], text, merge)
        return number

    def _cluster_update(self, number: int, text: str, *merge: int) -> int:
        self._update(self.clusters[number], text, merge)
        return number

    def _update(self, have: dict[str, str], text: str, merge: tuple[int, ...]) -> None:
        assert (merge == (1,)) == (self.version >= (4, 4)), "older versions know no merging"
        name = have["NAME"]
        if not merge:
            have.clear()
        have.update(_pairs(text) | {"NAME": name})


def _pairs(text: str) -> dict[str, str]:
    return {each.name: each.single.text for each in oneconf.parse(text, "call") if each.single}


def _template_xml(have: Mapping[str, str]) -> str:
    body = "".join(f"<{key}>{value}</{key}>" for key, value in have.items() if key != "NAME")
    return f"<TEMPLATE>{body}</TEMPLATE>"


@dataclass(slots=True)
class FakeXenHost:
    """A Xen host before and after cxm-setup; what is changed on it is a field."""

    node: FakeNode
    sudo: bool = True
    everything: bool = False  # oneadmin may do all as root
    synchronised: bool = True
    sshd: str = SSHD
    service: bool = False
    ruby_paths: bool = True
    programs: set[str] | None = None  # None: all are installed
    helper_answers: bool = True

    def __post_init__(self) -> None:
        for name in ("proc/xen", "usr/lib/grub-xen", "sys/class/net/xenbr0/bridge", "home"):
            os.makedirs(self.node.path(name))
        with open(self.node.path("proc/xen/capabilities"), "w", encoding="ascii") as file:
            file.write("control_d\n")
        answers = {
            "xl": lambda _argv, _in: Outcome(XL_INFO),
            "vgs": lambda _argv, _in: Outcome("  vg0\n  LVM_XEN\n"),
            "sshd": lambda _argv, _in: Outcome(self.sshd),
            "sudo": self._sudo,
            "timedatectl": lambda _argv, _in: Outcome("yes\n" if self.synchronised else "no\n"),
            "systemctl": self._systemctl,
            "runuser": self._runuser,
            "ruby": self._ruby,
        }
        for name, handler in answers.items():
            self.node.model(name, handler)

    def host(self) -> Host:
        """What cxm-setup sees."""
        return Host(
            self.node,
            root=self.node.root,
            uid=0,
            python=(3, 11),
            account=lambda name: Account(name, os.geteuid(), os.getegid(), self.node.path("home")),
            banner=lambda _port: "SSH-2.0-OpenSSH_9.2p1",
            resolves=lambda _name: True,
            which=self._which,
        )

    def text(self, path: str) -> str:
        """A file of the host; empty where there is none."""
        try:
            with open(self.node.path(path), encoding="utf-8") as file:
                return file.read()
        except FileNotFoundError:
            return ""

    def _which(self, name: str) -> str | None:
        if self.programs is None or name in self.programs:
            return f"/usr/bin/{name}"
        return None

    def _sudo(self, argv: tuple[str, ...], _in: bytes) -> Outcome:
        if len(argv) > 5 and not self.sudo:
            return Outcome(code=1)
        return Outcome("    (root) NOPASSWD: ALL\n" if self.everything else "")

    def _systemctl(self, argv: tuple[str, ...], _in: bytes) -> Outcome:
        if argv[1] == "is-enabled":
            return Outcome(code=0 if self.service else 1)
        assert argv[1:] == ("enable", "--now", "cxm-tend.service")
        self.service = True
        return Outcome()

    def _runuser(self, argv: tuple[str, ...], _in: bytes) -> Outcome:
        assert argv[-2:] == ("/usr/lib/cxm/cxm-helper", "vg-usage")
        if not self.helper_answers:
            return Outcome(stderr="sudo: a password is required", code=1)
        return Outcome(wire.encode_json(wire.success({}, [])).decode())

    def _ruby(self, argv: tuple[str, ...], _in: bytes) -> Outcome:
        missing = re.search("load_opennebula_paths", argv[-1]) and not self.ruby_paths
        return Outcome(code=3 if missing else 0)


class Said:
    """What a command printed."""

    def __init__(self) -> None:
        self.text = ""

    def __call__(self, text: str) -> None:
        self.text += f"{text}\n"


def files_of(top: str) -> dict[str, bytes]:
    """The files below a directory, with what is in them."""
    found = {}
    for directory, _names, files in os.walk(top):
        for name in files:
            path = os.path.join(directory, name)
            with open(path, "rb") as file:
                found[path] = file.read()
    return found
