# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns ``cxm-setup frontend``: OpenNebula gets the drivers, their settings and its datastores.

The drivers and their settings are put in place; OpenNebula's own files are changed only with
``--apply``, and shown as a diff without. A second run changes nothing.
"""

import os
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from cxm import config, names
from cxm.config import Owner
from cxm.errors import CxmError, UsageError
from cxm.one import frontend as one_frontend
from cxm.one.api import XmlRpc
from cxm.rights import working_as
from cxm.run import Runner
from cxm.setup import cxmrc, datastores, files, install, keys, parts, remotes, report, services
from cxm.setup.datastores import Calls, Place
from cxm.setup.files import FileChange
from cxm.setup.install import Account, Installation
from cxm.setup.parts import Choices
from cxm.setup.report import Check

Say = Callable[[str], None]

_TIMER: Final = "cxm-sync.timer"
_USER: Final = "oneadmin"
RECORD: Final = "/var/lib/cxm-frontend/remotes"  # for the package's removal
_KEYS: Final = ("id_ed25519", "id_ecdsa", "id_rsa")
# Where it is there already it was appended once, and may have been edited since.
_SSH_MARK: Final = "# cxm-setup: a dead node must not hold up OpenNebula"
_SSH_CONFIG: Final = f"""
{_SSH_MARK}, and a new node's key is taken once.
Host *
  ConnectTimeout 5
  StrictHostKeyChecking accept-new
"""
_NEEDED: Final = {"ssh": "openssh-client", "zstd": "zstd", "qemu-img": "qemu-utils"}
_ISO: Final = ("genisoimage", "xorriso", "mkisofs")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line asks for."""

    one_location: str | None = None
    name: str | None = None
    vm_mad: str = ""  # as it is in oned.conf, if it is
    take_over: bool = False
    xen_only: bool = False
    apply: bool = False
    datastores: bool = False
    sans: Sequence[str] = ()
    settings: Sequence[str] = ()
    dry_run: bool = False


def _runs_systemd() -> bool:
    """Whether services can be enabled here, and by us."""
    return os.geteuid() == 0 and os.path.isdir("/run/systemd/system")


@dataclass(frozen=True, slots=True)
class World:
    """What this may use of the machine."""

    runner: Runner
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    tree: str = remotes.TREE
    record: str = RECORD
    which: Callable[[str], str | None] = install.find_program
    account: Callable[[str], Account] = install.account_of
    oned: Callable[[str, Mapping[str, str]], Calls] = XmlRpc
    units: str = "/etc/systemd/system"
    has_systemd: bool = field(default_factory=_runs_systemd)
    stamp: str = field(default_factory=lambda: time.strftime("%Y%m%d-%H%M%S"))


def _programs(world: World) -> list[Check]:
    missing = {name: package for name, package in _NEEDED.items() if world.which(name) is None}
    if not any(world.which(name) for name in _ISO):
        missing["genisoimage"] = "genisoimage"
    if not missing:
        return [report.ok("programs", "all there")]
    advice = f"apt install {' '.join(missing.values())}"
    return [report.failed("programs", f"missing: {' '.join(missing)}", advice)]


# --- what is to be done ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Plan:
    """Everything that is to be done, apart from the datastores."""

    drivers: remotes.Plan
    settings: cxmrc.Written
    cxmrc: FileChange
    own: tuple[FileChange, ...]  # OpenNebula's files
    changes: tuple[str, ...]  # in them, in words
    ssh: FileChange


def _conf(
    one: Installation, name: str, wanted: Sequence[parts.Part]
) -> tuple[FileChange, list[str]]:
    path = one.path(name)
    old = files.read(path)
    if old is None:
        raise CxmError(f"{path} does not exist", hint="take it from OpenNebula's own packages")
    text, changes = parts.apply(old, path, wanted)
    return files.plan(path, text, mode=0o640), [f"{name}: {each}" for each in changes]


def _vm_mad(one: Installation, options: Options) -> str:
    path = one.path("oned.conf")
    return options.vm_mad or parts.vm_mad(files.read(path) or "", path)


def _own_files(one: Installation, options: Options) -> tuple[list[FileChange], list[str]]:
    vm_mad = _vm_mad(one, options)
    choices = Choices(vm_mad=vm_mad, take_over=options.take_over, xen_only=options.xen_only)
    planned = [_conf(one, "oned.conf", parts.of_oned(one.version, choices))]
    if one.version >= parts.MONITORD:
        planned.append(_conf(one, "monitord.conf", parts.of_monitord(one.version)))
    changes = [each for _change, words in planned for each in words]
    found = [change for change, _words in planned]
    defaults = one.path("vmm_exec/vmm_exec_cxm.conf")
    if one.version < parts.XML_DOMAINS and files.read(defaults) is None:
        owner = (one.account.uid, one.account.gid)
        found.append(files.plan(defaults, parts.VMM_EXEC_DEFAULTS, mode=0o644, owner=owner))
        changes.append("vmm_exec/vmm_exec_cxm.conf: made")
    return found, changes


def _ssh_config(account: Account) -> FileChange:
    path = os.path.join(account.home, ".ssh", "config")
    with working_as(account.uid, account.gid):
        old = files.read(path) or ""
        # At the end: ssh takes what is said first, and for all hosts of which nothing is said this.
        new = old if _SSH_MARK in old else f"{old.rstrip()}\n{_SSH_CONFIG}".lstrip()
        return files.plan(path, new, mode=0o600, owner=(account.uid, account.gid))


def _planned(world: World, one: Installation, options: Options) -> _Plan:
    drivers = remotes.plan(world.tree, one.remotes, one.version)
    path = os.path.join(one.remotes, "cxmrc")
    given = cxmrc.assignments(list(options.settings), Owner.FRONTEND)
    written = cxmrc.for_frontend(files.read(path), path, given)
    own, changes = _own_files(one, options)
    return _Plan(
        drivers,
        written,
        files.plan(path, written.text, mode=0o644, owner=one.owner),
        tuple(own),
        tuple(changes),
        _ssh_config(one.account),
    )


# --- doing it ----------------------------------------------------------------------------------


def _put_drivers(world: World, one: Installation, plan: remotes.Plan, say: Say) -> None:
    if plan.is_empty:
        say(f"drivers: in place in {one.remotes}")
        return
    backup = os.path.join(os.path.dirname(one.remotes), f"cxm-replaced-{world.stamp}")
    remotes.apply(plan, one.remotes, backup)
    say(f"drivers: {len(plan.add)} files put into {one.remotes}")
    if plan.move:
        say(f"drivers: {len(plan.move)} files that were not cxm's moved to {backup}")
    force = " --force" if one.version >= parts.PUSHED_PROBES else ""
    say(f"drivers: copy them to hosts that exist already: onehost sync{force}")


def _put_settings(world: World, plan: _Plan, say: Say) -> None:
    written, change = plan.settings, plan.cxmrc
    if written.converted:
        # Beside the remotes, not in them: everything in there is copied to every host.
        kept = os.path.join(os.path.dirname(os.path.dirname(change.path)), f"cxmrc-{world.stamp}")
        files.keep(change, kept)
        say(f"settings: an original cxmrc was converted; it is kept as {kept}")
    for key in written.dropped:
        say(f"settings: {key} of the original cxmrc has no meaning any more")
    for warning in config.frontend(written.text, change.path)[1]:
        say(f"settings: warning: {warning}")
    if change.changes:
        files.write(change)
        say(f"settings: written to {change.path}")
    else:
        say(f"settings: in place in {change.path}")


def _put_own(world: World, plan: _Plan, say: Say) -> None:
    for change in plan.own:
        if not change.changes:
            continue
        kept = f"{change.path}.cxm-{world.stamp}"
        if change.old is not None:
            files.keep(change, kept)
        files.write(change)
        say(f"written: {change.path}" + ("" if change.old is None else f", kept as {kept}"))
    for each in plan.changes:
        say(f"  {each}")


def _advise(one: Installation, plan: _Plan, say: Say) -> None:
    oned = plan.own[0]
    slow = parts.slow_monitoring(oned.new, oned.path, one.version)
    if slow:
        say(f"advice: {', '.join(slow)} in oned.conf; 60 shows the state of VMs within a minute")


def _put_ssh(account: Account, change: FileChange, say: Say) -> None:
    if not change.changes:
        return
    with working_as(account.uid, account.gid):
        directory = os.path.dirname(change.path)
        if not os.path.isdir(directory):
            os.mkdir(directory, 0o700)
        files.write(change)
    say(f"ssh: ConnectTimeout set in {change.path}")


def _dropin(world: World, one: Installation) -> FileChange | None:
    """Which OpenNebula the sync's service is for, where it is not the packaged one's."""
    if one.location is None and one.account.name == _USER:
        return None
    lines = [
        "# cxm-setup: the OpenNebula of this service.",
        "[Service]",
        f"User={one.account.name}",
    ]
    if one.location is not None:
        lines.append(f"Environment=ONE_LOCATION={one.location}")
    path = os.path.join(world.units, "cxm-sync.service.d", "cxm-setup.conf")
    return files.plan(path, "".join(f"{line}\n" for line in lines), mode=0o644)


def _put_sync(world: World, one: Installation, say: Say) -> None:
    """Have the sync run by its timer; where systemd is not at work, a sentence says what to do."""
    if not world.has_systemd:
        say("sync: have 'cxm-sync' run every 20 seconds as oned's account")
        return
    change = _dropin(world, one)
    if change is not None and change.changes:
        os.makedirs(os.path.dirname(change.path), exist_ok=True)
        files.write(change)
        world.runner.run(["systemctl", "daemon-reload"])
        say(f"sync: written {change.path}")
    wanted = services.unmet(world.runner, [services.Change(_TIMER, services.Wish.ON)])
    for each in wanted:
        services.apply(world.runner, each)
        say(f"sync: enabled {_TIMER}")


def _remember(world: World, one: Installation) -> None:
    """Note for the package's removal where stubs were put, and whose that is; only for root."""
    if os.geteuid() != 0:
        return
    old = files.read(world.record) or ""
    uid, gid = one.owner
    line = f"{uid} {gid} {one.remotes}\n"
    if line not in old.splitlines(keepends=True):
        os.makedirs(os.path.dirname(world.record), exist_ok=True)
        files.write(files.plan(world.record, f"{old}{line}", mode=0o644))


def _public_key(world: World, account: Account) -> keys.PublicKey:
    """The account's key for its hosts, made when there is none."""
    directory = os.path.join(account.home, ".ssh")
    for name in _KEYS:
        with working_as(account.uid, account.gid):
            text = files.read(os.path.join(directory, f"{name}.pub"))
        if text is not None:
            return keys.public_key(text)
    path = os.path.join(directory, _KEYS[0])
    make = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", account.name, "-f", path]
    if os.geteuid() == 0:
        make = ["runuser", "-u", account.name, "--", *make]
    with working_as(account.uid, account.gid):
        if not os.path.isdir(directory):
            os.mkdir(directory, 0o700)
    world.runner.run(make)
    with working_as(account.uid, account.gid):
        return keys.public_key(files.read(f"{path}.pub") or "")


# --- what to do next ---------------------------------------------------------------------------


def enrolment(name: str, plan_cloud: str, moved: Mapping[str, str], key: keys.PublicKey) -> str:
    """The command that lets this frontend use a node, to be run there as root."""
    words = ["cxm-setup", "node", "--frontend", name, "--cloud", plan_cloud]
    words += ["--vg", moved.get("VG_NAME", "LVM_XEN")]
    for key_name, value in moved.items():
        if key_name != "VG_NAME":
            words += ["--set", f"{key_name}={value}"]
    return shlex.join([*words, "--key", str(key)])


def _next_steps(one: Installation, options: Options, *, to_apply: bool, line: str) -> str:
    net = " --net dummy" if one.version < (5, 0) else ""
    restart = "restart oned, so that it reads its configuration"
    steps = ["cxm-setup frontend --apply, or make these changes yourself"] if to_apply else []
    if not options.datastores:
        steps += [restart, "cxm-setup frontend --datastores"]
    cluster = datastores.LOCAL.name
    create = f"onehost create HOST --im {parts.IM_MAD} --vm {_vm_mad(one, options)}{net}"
    install_node = "apt install ./cxm-common_*.deb ./cxm-node_*.deb"
    steps += [
        f"on each Xen host, as root: {install_node}\n     {line}",
        f"{create} --cluster {cluster}",
        f"onecluster addvnet {cluster} NETWORK, for each network that VMs there use",
    ]
    numbered = [f"  {number}. {step}" for number, step in enumerate(steps, start=1)]
    return "Next:\n" + "\n".join(numbered)


def _datastores(world: World, one: Installation, options: Options, say: Say) -> None:
    places: list[Place] = [datastores.LOCAL, *map(datastores.san, options.sans)]
    environ = dict(world.environ)
    if os.geteuid() == 0:
        environ["HOME"] = one.account.home
    try:
        changes = datastores.ensure(world.oned(one.remotes, environ), one.version, places)
    except CxmError as error:
        if error.hint is None:
            error.hint = "has oned been restarted since 'cxm-setup frontend --apply'?"
        raise
    for change in changes:
        say(f"datastores: {change}")
    if not changes:
        say("datastores: up to date")


def run(world: World, options: Options, say: Say) -> None:
    """Set up the frontend, or show what that would change."""
    if options.sans and not options.datastores:
        raise UsageError("--san makes datastores", hint="add --datastores")
    name = options.name
    one = install.find(options.one_location, world.environ, world.runner, world.account)
    found = [report.ok("OpenNebula", one.described), *_programs(world)]
    say(report.table(found))
    report.require(found, "cxm-setup frontend")
    plan = _planned(world, one, options)
    if name is None:
        name = one_frontend.setting(one.remotes, "HOSTNAME") or os.uname().nodename
    names.host_name(name)
    to_apply = not options.apply and any(each.changes for each in (*plan.own, plan.ssh))
    if options.dry_run or to_apply:
        for change in (*plan.own, plan.ssh):
            say(change.diff())
    if options.dry_run:
        say(plan.cxmrc.diff())
        say(f"This would be changed, and {len(plan.drivers.add)} files put into {one.remotes}.")
        return
    # With its owner's rights: a link that oned's account plants there must not lead root elsewhere.
    with working_as(*one.owner):
        _put_drivers(world, one, plan.drivers, say)
        _put_settings(world, plan, say)
    if options.apply:
        _put_own(world, plan, say)
        _put_ssh(one.account, plan.ssh, say)
        _put_sync(world, one, say)
    _advise(one, plan, say)
    _remember(world, one)
    if options.datastores:
        _datastores(world, one, options, say)
    cloud = cxmrc.cloud_of(plan.settings.text, plan.cxmrc.path)
    key = _public_key(world, one.account)
    line = enrolment(name, cloud, plan.settings.moved, key)
    say(_next_steps(one, options, to_apply=to_apply, line=line))
