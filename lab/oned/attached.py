# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns how an OpenNebula that is installed on this machine runs in a lab.

Its programs are used where they are. What it reads and writes (configuration, database, drivers,
datastores) are copies and new directories in the lab's state, laid over its own in the frontend's
place only: the installation and its database are never touched. cxm gets into it as the guide
says, by ``cxm-setup frontend``; oned runs as an account oneadmin that only this place knows.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from cxm.errors import CxmError, NotFoundError
from cxm.one.version import OneVersion
from cxm.run import System
from cxm.setup import install, oneconf
from cxm.setup.install import Account
from lab import installed, keys, process
from lab.lab import Lab
from lab.oned.real import Names, RealOned
from lab.spec import ONEADMIN_ID

_SESSION: Final = "oneadmin:opennebula"
_HOSTNAME: Final = "frontend"
_URL: Final = "http://127.0.0.1:2633/RPC2"
_START_S: Final = 120.0
_SETUP_S: Final = 300.0
# Directories that packages of OpenNebula make for what runs; they are covered where they exist.
_RUN: Final = ("/var/log/one", "/run/one", "/run/lock/one")
_HOST_NAMED: Final = (6, 0)
_OWN_SCHEDULER: Final = (6, 99)  # oned starts it; before, it is a program beside oned


@dataclass(frozen=True, slots=True)
class Installed:
    """An OpenNebula on this machine."""

    location: str  # ONE_LOCATION of a self-contained one; empty when it is system-wide

    @property
    def etc(self) -> str:
        return f"{self.location}/etc" if self.location else "/etc/one"

    @property
    def var(self) -> str:
        return f"{self.location}/var" if self.location else "/var/lib/one"

    @property
    def logs(self) -> str:
        """Where its daemons write what they do."""
        return self.var if self.location else "/var/log/one"

    @property
    def locks(self) -> list[str]:
        """Where oned says that it runs: up to 3.x, and later."""
        own = [f"{self.var}/.lock", f"{self.var}/lock/.lock"]
        return own if self.location else ["/var/lock/one/one"]

    def program(self, name: str) -> str:
        return f"{self.location}/bin/{name}" if self.location else f"/usr/bin/{name}"


def find(environ: Mapping[str, str] = os.environ) -> Installed | None:
    """The OpenNebula of this machine: at ``ONE_LOCATION``, or an ``oned`` on the path."""
    location = environ.get("ONE_LOCATION", "")
    found = Installed(os.path.abspath(location) if location else "")
    if location and not os.access(found.program("oned"), os.X_OK):
        raise NotFoundError(
            f"ONE_LOCATION is {location}, but there is no program {found.program('oned')}",
            hint="unset ONE_LOCATION, and the stand-in for oned is used",
        )
    return found if location or shutil.which("oned", path=environ.get("PATH")) else None


@contextmanager
def open_real(
    lab: Lab,
    one: Installed,
    *,
    settings: Mapping[str, str] | None = None,
    san: str | None = None,
) -> Iterator[RealOned]:
    """The OpenNebula ``one`` in a lab's frontend, new and with cxm set up; ends at the end.

    ``settings`` go to the frontend's cxmrc. With ``san`` its hosts share a volume group: they get
    the cluster and the system datastore of this name. The lab's nodes must have cxm
    (``lab/installed.py``).
    """
    covers: list[str] = []
    # Outside of the lab's state, which only root may enter; oned takes images from /var/tmp.
    inbox = tempfile.mkdtemp(prefix="cxm-lab-images-", dir="/var/tmp")
    os.chmod(inbox, 0o755)  # noqa: S103 - oned's account reads it
    try:
        _furnish(lab, one, covers)
        _set_up(lab, one, {"CLOUD_ID": installed.cloud(lab.places), **(settings or {})})
        _adapt(lab, one)
        _Daemon(lab, one).start()
        cloud = _client(lab, one, inbox, Names(cluster=san) if san else Names())
        _cxm_setup(lab, one, "--datastores", *(["--san", san] if san else []))
        for machine in lab.machines.values():
            # A self-contained OpenNebula uses this path on the hosts too (the guide says so).
            machine.run(["install", "-d", "-o", "oneadmin", f"{one.var}/datastores"])
        yield cloud
    finally:
        _end(lab)
        _keep_logs(lab, one)
        for path in reversed(covers):
            lab.frontend.run(["umount", "--lazy", path])
        shutil.rmtree(inbox, ignore_errors=True)


# --- the place ---------------------------------------------------------------------------------


def _state(lab: Lab, *parts: str) -> str:
    return lab.places.of("oned", "real", *parts)


def _cover(lab: Lab, covers: list[str], source: str, target: str) -> None:
    """Let the frontend's place see ``source`` as ``target``."""
    lab.frontend.run(["mount", "--bind", source, target])
    covers.append(target)


def _furnish(lab: Lab, one: Installed, covers: list[str]) -> None:
    """Copies of its configuration and drivers, and empty directories for all that it writes."""
    top = os.path.dirname(_state(lab, "x"))
    shutil.rmtree(top, ignore_errors=True)
    shutil.copytree(one.etc, _state(lab, "etc"), symlinks=True)
    shutil.copytree(f"{one.var}/remotes", _state(lab, "var", "remotes"), symlinks=True)
    for name in ("vms", "datastores", ".ssh", ".one", "lock", "run", *map(_flat, _RUN)):
        os.makedirs(_state(lab, "var", name), exist_ok=True)
    os.chmod(_state(lab, "var"), 0o755)  # noqa: S103 - as OpenNebula's package makes it
    _write(_state(lab, "var", ".one", "one_auth"), f"{_SESSION}\n", mode=0o600)
    key = keys.key_path(lab.places, installed.ONEADMIN_KEY)
    for suffix, mode in (("", 0o600), (".pub", 0o644)):
        with open(f"{key}{suffix}", encoding="utf-8") as file:
            _write(_state(lab, "var", ".ssh", f"id_ed25519{suffix}"), file.read(), mode=mode)
    # First, so that it wins: cxm-setup's own is too short for an emulated host.
    _write(_state(lab, "var", ".ssh", "config"), "ConnectTimeout 30\n")
    os.chmod(_state(lab, "var", ".ssh"), 0o700)
    # ssh in the frontend's place takes the key of whoever runs it, here oneadmin's own.
    _write(lab.places.of("etc", "ssh", "ssh_config.d", "cxm-lab.conf"), _ssh_config(lab))
    lab.frontend.run(["chown", "-R", f"{ONEADMIN_ID}:{ONEADMIN_ID}", top])
    _cover(
        lab,
        covers,
        _with_account(lab, "passwd", f":{ONEADMIN_ID}::{one.var}:/bin/sh"),
        "/etc/passwd",
    )
    _cover(lab, covers, _with_account(lab, "group", ":"), "/etc/group")
    _cover(lab, covers, _state(lab, "etc"), one.etc)
    _cover(lab, covers, _state(lab, "var"), one.var)
    if not one.location:
        for path in filter(os.path.isdir, _RUN):
            _cover(lab, covers, _state(lab, "var", _flat(path)), path)


def _flat(path: str) -> str:
    return f"of{path.replace('/', '-')}"


def _write(path: str, text: str, *, mode: int = 0o644) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w") as file:
        file.write(text)


def _ssh_config(lab: Lab) -> str:
    key = keys.key_path(lab.places, installed.ONEADMIN_KEY)
    return installed.ssh_config(lab).replace(key, "~/.ssh/id_ed25519")


def _with_account(lab: Lab, name: str, rest: str) -> str:
    """This machine's /etc/passwd or /etc/group with our oneadmin for its own, as a file."""
    with open(f"/etc/{name}", encoding="utf-8") as file:
        others = [line for line in file if not line.startswith("oneadmin:")]
    path = _state(lab, name)
    _write(path, "".join([*others, f"oneadmin:x:{ONEADMIN_ID}{rest}\n"]))
    return path


# --- what it says ------------------------------------------------------------------------------


def edit(path: str, wanted: Mapping[str, str]) -> None:
    """Set attributes of a configuration file of ours, in OpenNebula's own syntax."""
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except FileNotFoundError as error:
        raise CxmError(
            f"{path} does not exist; is this a whole installation of OpenNebula?"
        ) from error
    for name, value in wanted.items():
        for entry in [each for each in oneconf.parse(text, path) if each.name == name][:1]:
            text = text[: entry.start] + text[entry.end :]
        text = oneconf.append(text, f"{name} = {value}\n", "the lab")
    with open(path, "w", encoding="utf-8") as file:  # whose it is, it stays
        file.write(text)


def _adapt(lab: Lab, one: Installed) -> None:
    """A database of its own, a name that the nodes know, short intervals."""
    version = version_of(one)
    wanted = {"DB": '[ BACKEND = "sqlite" ]'}
    if version >= _HOST_NAMED:
        wanted["HOSTNAME"] = oneconf.quote(_HOSTNAME)
    if version < (4, 0):
        wanted |= {
            "MANAGER_TIMER": "15",
            "HOST_MONITORING_INTERVAL": "30",
            # Each VM is asked for by itself, on a node that takes seconds for an answer.
            "VM_POLLING_INTERVAL": "60",
        }
    elif version < (5, 12):
        wanted["MONITORING_INTERVAL" if version < (5, 10) else "MONITORING_INTERVAL_HOST"] = "20"
    edit(_state(lab, "etc", "oned.conf"), wanted)
    if version < _OWN_SCHEDULER:
        edit(_state(lab, "etc", "sched.conf"), {"SCHED_INTERVAL": "5"})


def version_of(one: Installed) -> OneVersion:
    """The version of an OpenNebula, from its files."""
    account = Account("oneadmin", ONEADMIN_ID, ONEADMIN_ID, one.var)
    found = install.find(one.location or None, {}, System(), lambda _remotes: account)
    return found.version


# --- its programs ------------------------------------------------------------------------------


def _as_oneadmin(lab: Lab, one: Installed, argv: Sequence[str]) -> list[str]:
    """The command line that runs ``argv`` in the frontend's place as OpenNebula's account."""
    ruby = [f"{one.location}/lib/ruby"] if one.location else []
    handed = [os.environ[name] for name in ("RUBYLIB",) if os.environ.get(name)]
    environment = {
        "PATH": os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin",
        "HOME": one.var,
        "LANG": "C.UTF-8",
        "RUBYLIB": ":".join([*handed, *ruby]),
        "ONE_LOCATION": one.location,
        "ONE_XMLRPC": _URL,
        "ONE_AUTH": f"{one.var}/.one/one_auth",
        process.ID_VARIABLE: lab.lab_id,
    }
    given = [f"{name}={value}" for name, value in environment.items() if value]
    account = [f"--reuid={ONEADMIN_ID}", f"--regid={ONEADMIN_ID}", "--clear-groups"]
    return [*lab.frontend.prefix(), "setpriv", *account, "env", "-i", "-C", one.var, *given, *argv]


def _cxm_setup(lab: Lab, one: Installed, *words: str) -> None:
    where = ["--one-location", one.location] if one.location else []
    argv = ["cxm-setup", "frontend", "--name", _HOSTNAME, *where, *words]
    System().run(_as_oneadmin(lab, one, argv), timeout_s=_SETUP_S)


def _set_up(lab: Lab, one: Installed, settings: Mapping[str, str]) -> None:
    """Cxm gets into the new frontend as the guide says."""
    given = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    _cxm_setup(lab, one, "--apply", *given)


def _start(lab: Lab, one: Installed, program: str, *words: str) -> int:
    log = lab.places.log(f"real-{program}-output")
    argv = _as_oneadmin(lab, one, [one.program(program), *words])
    return process.start(argv, log=log, lab_id=lab.lab_id)


@dataclass(frozen=True, slots=True)
class _Daemon:
    """Its oned, and the scheduler where that is a program of its own."""

    lab: Lab
    one: Installed

    def start(self) -> None:
        """Start them; oned answers then."""
        pid = _start(self.lab, self.one, "oned", "-f")
        log = self.lab.places.log("real-oned-output")
        process.wait_until(
            self._answers, timeout_s=_START_S, what="oned", pause_s=0.5, pid=pid, log=log
        )
        if version_of(self.one) < _OWN_SCHEDULER:
            _start(self.lab, self.one, "mm_sched")

    def _answers(self) -> bool:
        try:
            _client(self.lab, self.one)
        except CxmError:
            return False
        return True

    def stop(self) -> None:
        """End them, and all that they have started: it can start again."""
        _end(self.lab)
        # One that took too long to end has left it, and would not start.
        self.lab.frontend.run(["rm", "-f", *self.one.locks])


def _client(lab: Lab, one: Installed, inbox: str = "", names: Names | None = None) -> RealOned:
    """Whoever drives its oned, which answers."""
    return RealOned(
        System(),
        prefix=lab.frontend.prefix(),
        url=_URL,
        session=_SESSION,
        var=one.var,
        inbox=inbox,
        names=names,
        daemon=_Daemon(lab, one),
        as_account=lambda argv: _as_oneadmin(lab, one, argv),
    )


def _end(lab: Lab) -> None:
    """End oned and all that it has started."""
    inside = process.find(lab.lab_id, [lab.frontend.network_id()])
    process.end(pid for pid in inside if _is_oneadmin(pid))


def _is_oneadmin(pid: int) -> bool:
    try:
        return os.stat(f"/proc/{pid}").st_uid == ONEADMIN_ID
    except OSError:
        return False


def _keep_logs(lab: Lab, one: Installed) -> None:
    """Leave its logs with those of the lab."""
    top = _state(lab, "var") if one.location else _state(lab, "var", _flat("/var/log/one"))
    for directory, _names, found in os.walk(top):
        for name in found:
            if name.endswith(".log"):
                path = os.path.join(directory, name)
                flat = os.path.relpath(path, top).replace("/", "-").removesuffix(".log")
                shutil.copyfile(path, lab.places.log(f"real-{flat}"))
