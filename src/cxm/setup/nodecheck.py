# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what is looked at before a machine becomes a node of a cloud. Changes nothing."""

import os
import pwd
import re
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from cxm import lvm, run
from cxm.errors import CommandError, CxmError, NotFoundError
from cxm.node.client import HELPER
from cxm.setup.install import Account, find_program
from cxm.setup.report import Check, failed, ok, warning
from cxm.xen import xl

USER: Final = "oneadmin"
ONE_ID: Final = 9869  # OpenNebula's packages give oneadmin this id everywhere
_PYTHON: Final = (3, 11)
_GIB: Final = 1 << 30
_LITTLE: Final = 8 * _GIB  # one disk of the default size
_TIMEOUT_S: Final = 60.0  # a busy host must not look like a broken one
# Program -> the package that has it; what is only for some images is a warning.
_NEEDED: Final = {
    "xl": "xen-utils-common",
    "lvm": "lvm2",
    "zstd": "zstd",
    "gzip": "gzip",
    "tar": "tar",
    "rsync": "rsync",
    "mkfs.ext3": "e2fsprogs",
    "mkswap": "util-linux",
    "sudo": "sudo",
}
_USEFUL: Final = {"mkfs.xfs": "xfsprogs"}
_LACKS: Final = 3
_GRUB_PVH: Final = "/usr/lib/grub-xen"


def _account(name: str) -> Account | None:
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return None
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid, entry.pw_dir)


def _banner(port: int) -> str:
    """The first words of what listens on a port of this machine; raises OSError."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        return connection.recv(64).decode(errors="replace").strip()


def _resolves(name: str) -> bool:
    try:
        return bool(socket.getaddrinfo(name, None))
    except OSError:
        return False


@dataclass(frozen=True, slots=True)
class Host:
    """The machine that is looked at."""

    runner: run.Runner
    root: str = "/"  # where its files are
    uid: int = field(default_factory=os.geteuid)
    python: tuple[int, int] = field(default_factory=lambda: sys.version_info[:2])
    hostname: str = field(default_factory=socket.gethostname)
    account: Callable[[str], Account | None] = _account
    banner: Callable[[int], str] = _banner
    resolves: Callable[[str], bool] = _resolves
    which: Callable[[str], str | None] = find_program

    def path(self, name: str) -> str:
        """A file of the machine."""
        return os.path.join(self.root, name.lstrip("/"))


def _root(host: Host) -> Check:
    if host.uid != 0:
        return failed("root", f"you are user {host.uid}", "run this with sudo")
    return ok("root", "yes")


def _python_version(host: Host) -> Check:
    text = f"{host.python[0]}.{host.python[1]}"
    if host.python < _PYTHON:
        return failed("python", text, "Python 3.11 or later is needed (Debian 12 has it)")
    return ok("python", text)


def _programs(host: Host) -> list[Check]:
    missing = {name: package for name, package in _NEEDED.items() if host.which(name) is None}
    checks = [ok("programs", "all there")]
    if missing:
        packages = " ".join(sorted(set(missing.values())))
        checks = [failed("programs", f"missing: {' '.join(missing)}", f"apt install {packages}")]
    for name, package in _USEFUL.items():
        if host.which(name) is None:
            advice = f"for file systems of that kind: apt install {package}"
            checks.append(warning("programs", f"missing: {name}", advice))
    if not os.path.isdir(host.path(_GRUB_PVH)):
        advice = "for PVH guests that boot the kernel on their disk: apt install grub-xen-host"
        checks.append(warning("programs", f"missing: {_GRUB_PVH}", advice))
    return checks


def _xen(host: Host) -> Check:
    try:
        with open(host.path("/proc/xen/capabilities"), encoding="ascii") as file:
            controls = "control_d" in file.read()
    except OSError:
        controls = False
    if not controls:
        advice = "install xen-system-amd64, boot its entry of the boot menu, and run this again"
        return failed("Xen", "this system did not boot as Xen's dom0", advice)
    try:
        info = xl.info(host.runner)
    except CxmError as error:
        return failed("Xen", error.sentence(), "'xl info' must work")
    return ok("Xen", f"{info.version}, {info.free_mib} MiB of {info.total_mib} MiB free for guests")


def _volume_group(host: Host, vg: str) -> Check:
    name = f"volume group {vg}"
    try:
        group = lvm.group(host.runner, vg)
    except NotFoundError:
        have = _groups(host)
        advice = f"--vg NAME; there is {', '.join(have)}" if have else "make one with vgcreate"
        return failed(name, "does not exist", advice)
    except CxmError as error:
        return failed(name, error.sentence(), "'vgs' must work")
    found = f"{group.free / _GIB:.1f} GiB of {group.size / _GIB:.1f} GiB free"
    if group.free < group.extent:
        return failed(name, found, "it has no room for any disk: extend it with vgextend")
    if group.free < _LITTLE:
        return warning(name, found, "that is little room for disks of VMs")
    return ok(name, found)


def _groups(host: Host) -> list[str]:
    try:
        said = host.runner.run(["vgs", "--noheadings", "-o", "vg_name"], timeout_s=_TIMEOUT_S)
    except CommandError:
        return []
    return said.stdout.split()


def _user(host: Host) -> Check:
    account = host.account(USER)
    if account is None:
        return failed(USER, "there is no such account", "install the package cxm-node again")
    if account.uid != ONE_ID:
        advice = "only a system datastore shared over NFS or GFS2 needs equal ids everywhere"
        return warning(USER, f"uid {account.uid}, not {ONE_ID}", advice)
    return ok(USER, f"uid {account.uid}, home {account.home}")


def _sshd(host: Host) -> Check:
    connection = f"user={USER},host=frontend,addr=192.0.2.1"
    try:
        said = host.runner.run(["sshd", "-T", "-C", connection], timeout_s=_TIMEOUT_S).stdout
    except CommandError as error:
        return failed("sshd", run.tail(error.sentence()), "'sshd -t' must find nothing")
    words = [line.lower().partition(" ")[::2] for line in said.splitlines()]
    settings = dict(words)
    for key, value, advice in (
        ("pubkeyauthentication", "yes", "PubkeyAuthentication yes in sshd_config"),
        ("subsystem", "sftp", "Subsystem sftp in sshd_config: OpenNebula copies its scripts by it"),
        ("authorizedkeysfile", ".ssh/authorized_keys", "AuthorizedKeysFile in sshd_config"),
    ):
        if value not in settings.get(key, ""):
            return failed("sshd", f"{key} is '{settings.get(key, '')}'", advice)
    for key in ("allowusers", "allowgroups"):
        if key in settings and USER not in settings[key]:
            advice = f"add {USER} to it in sshd_config"
            return warning("sshd", f"{key} is '{settings[key]}'", advice)
    port = int(settings.get("port", "22"))
    try:
        banner = host.banner(port)
    except OSError as error:
        return failed("sshd", f"nothing listens on port {port}: {error}", "systemctl start ssh")
    if port != 22:  # noqa: PLR2004 - ssh's port
        advice = f"tell oneadmin's ssh on the frontend: Port {port}"
        return warning("sshd", f"{banner} on port {port}", advice)
    return ok("sshd", banner)


def _clock(host: Host) -> Check:
    argv = ["timedatectl", "show", "-p", "NTPSynchronized", "--value"]
    try:
        said = host.runner.run(argv, timeout_s=_TIMEOUT_S).stdout.strip()
    except CommandError:
        said = ""
    if said == "yes":
        return ok("clock", "synchronised")
    advice = "run chrony or systemd-timesyncd: OpenNebula compares times of hosts with its own"
    return warning("clock", "not synchronised", advice)


def _frontend(host: Host, name: str) -> Check:
    if host.resolves(name):
        return ok("frontend", f"{name} is known here")
    advice = "monitoring of OpenNebula 5.12 and later sends to the frontend's name: /etc/hosts?"
    return warning("frontend", f"{name} is not known here", advice)


def _bridges(host: Host) -> Check:
    net = host.path("/sys/class/net")
    names = os.listdir(net) if os.path.isdir(net) else []
    found = sorted(name for name in names if os.path.isdir(os.path.join(net, name, "bridge")))
    if found:
        return ok("bridges", " ".join(found))
    return warning("bridges", "none", "guests need one: see bridge-utils-interfaces(5)")


def ruby_lacks(host: Host, library: str) -> bool:
    """Whether Ruby does not find a library; raises CommandError when it cannot be asked."""
    argv = ["ruby", "-e", f"begin; require '{library}'; rescue LoadError; exit {_LACKS}; end"]
    return host.runner.run(argv, timeout_s=_TIMEOUT_S, ok=(0, _LACKS)).code == _LACKS


def _ruby(host: Host) -> Check:
    """Whether OpenNebula's network drivers, which are in Ruby, can run."""
    if host.which("ruby") is None:
        advice = "OpenNebula's network drivers other than 'dummy' need it: apt install ruby"
        return warning("ruby", "missing", advice)
    try:
        if ruby_lacks(host, "rexml/document"):
            return warning("ruby", "its library rexml is missing", "apt install ruby-rexml")
    except CommandError as error:
        return warning("ruby", error.message, "'ruby -e 1' must work")
    return ok("ruby", "there, with rexml")


def _sudo(host: Host) -> Check:
    """Whether oneadmin may use the helper, and may not everything."""
    argv = ["sudo", "-n", "-l", "-U", USER, HELPER, "observe"]
    try:
        host.runner.run(argv, timeout_s=_TIMEOUT_S)
    except CommandError:
        advice = "is /etc/sudoers.d/cxm there, and does /etc/sudoers include that directory?"
        return failed("sudo", f"{USER} may not run {HELPER}", advice)
    said = host.runner.run(["sudo", "-n", "-l", "-U", USER], timeout_s=_TIMEOUT_S).stdout
    if re.search(r"NOPASSWD:\s*ALL\b", said):
        advice = "cxm does not need it any more: remove it when nothing else does"
        return warning("sudo", f"{USER} may do everything as root", advice)
    return ok("sudo", f"{USER} may run cxm's helper")


def basics(host: Host) -> list[Check]:
    """What any node of cxm needs: Python, Xen, the right time."""
    return [_python_version(host), _xen(host), _clock(host)]


def checks(host: Host, frontend: str, vg: str) -> Sequence[Check]:
    """All that is looked at; without root, only that."""
    first = _root(host)
    if host.uid != 0:
        return [first]
    return [
        first,
        _python_version(host),
        *_programs(host),
        _xen(host),
        _volume_group(host, vg),
        _bridges(host),
        _user(host),
        _sshd(host),
        _sudo(host),
        _clock(host),
        _frontend(host, frontend),
        _ruby(host),
    ]
