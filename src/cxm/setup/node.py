# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns ``cxm-setup node``: this machine becomes a Xen node that a frontend's cloud may use.

Everything is checked before anything is changed, and a second run changes nothing.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from cxm import API_VERSION, __version__, config, names, wire
from cxm.config import CLUSTER_MARKER, NodeConfig, Owner
from cxm.errors import CommandError, CxmError, NotFoundError, UsageError
from cxm.names import CloudId, cloud_id
from cxm.node.client import FAILURE_CODE, HELPER
from cxm.rights import working_as
from cxm.setup import cxmrc, files, hostname, keys, nodecheck, report
from cxm.setup.files import FileChange
from cxm.setup.hostname import HostName
from cxm.setup.install import Account
from cxm.setup.keys import PublicKey
from cxm.setup.nodecheck import USER, Host

SERVICE: Final = "cxm-tend.service"
_RUBY_STUB: Final = "/usr/local/lib/site_ruby/load_opennebula_paths.rb"
# OpenNebula 7's network drivers load a file of its packages, which a Xen node need not have.
_RUBY_TEXT: Final = """\
# Written by cxm-setup: OpenNebula's network drivers load a file of this name, which prepares the
# paths of its packages. Where they are installed, theirs is taken; elsewhere nothing is to be done.
theirs = $LOAD_PATH.map {|dir| File.join(dir, File.basename(__FILE__)) }
                   .find {|path| path != __FILE__ && File.file?(path) }
load theirs if theirs
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line asks for."""

    frontend: str
    cloud: str | None = None
    key: str | None = None
    key_file: str | None = None
    vg: str | None = None
    host: str | None = None
    settings: Sequence[str] = ()
    dry_run: bool = False


def _key(options: Options) -> PublicKey | None:
    if options.key and options.key_file:
        raise UsageError("--key and --key-file are both given", hint="one of them is enough")
    if options.key_file:
        text = files.read(options.key_file)
        if text is None:
            raise NotFoundError(f"the key file {options.key_file} does not exist")
        return keys.public_key(text)
    return keys.public_key(options.key) if options.key else None


def _settings(host: Host, options: Options) -> tuple[FileChange, NodeConfig]:
    """The node's cxmrc as it shall be, planned, and what it says."""
    given = cxmrc.assignments(list(options.settings), Owner.NODE)
    if options.vg is not None:
        given["VG_NAME"] = options.vg
    cloud = None if options.cloud is None else cloud_id(options.cloud)
    path = host.path(config.NODE_FILE)
    present, _ignored = config.node(files.read(path) or "", path)
    if not present.one_host:
        given.setdefault("ONE_HOST", options.frontend)
    text = cxmrc.for_node(files.read(path), path, given, cloud)
    settings, _warnings = config.node(text, path)
    if not settings.clouds:
        raise UsageError(
            "no cloud is given whose frontend may use this node",
            hint="'cxm-setup frontend' prints the whole line, with --cloud ID",
        )
    return files.plan(path, text, mode=0o644), settings


def _authorized(account: Account, frontend: str, key: PublicKey | None) -> FileChange:
    path = os.path.join(account.home, ".ssh", "authorized_keys")
    with working_as(account.uid, account.gid):
        old = files.read(path) or ""
        if key is None and not keys.lets_in(old, frontend):
            raise UsageError(
                f"no key is given that lets {frontend} in",
                hint="'cxm-setup frontend' prints the whole line, with --key '...'",
            )
        new = old if key is None else keys.merge(old, key, frontend)
        return files.plan(path, new, mode=0o600, owner=(account.uid, account.gid))


def _write_authorized(account: Account, change: FileChange) -> None:
    with working_as(account.uid, account.gid):
        directory = os.path.dirname(change.path)
        if not os.path.isdir(directory):
            os.mkdir(directory, 0o700)
        files.write(change)


def _needs_ruby_stub(host: Host) -> bool:
    try:
        return host.which("ruby") is not None and nodecheck.ruby_lacks(
            host, "load_opennebula_paths"
        )
    except CommandError:
        return False  # the check has said that Ruby does not work


def _directories(host: Host, settings: NodeConfig) -> list[str]:
    wanted = (settings.cfg_dir, settings.auto_dir)
    return [path for path in map(host.path, wanted) if not os.path.isdir(path)]


def _service_is_on(host: Host) -> bool:
    ask = ["systemctl", "is-enabled", "-q", SERVICE]
    return host.runner.run(ask, ok=(0, 1, 3, 4)).code == 0


@dataclass(frozen=True, slots=True)
class _Plan:
    """Everything that is to be done."""

    files: tuple[FileChange, ...]
    authorized: FileChange
    directories: tuple[str, ...]
    service: bool
    cloud: CloudId
    name: HostName | None  # None: this machine is in no cluster

    @property
    def is_empty(self) -> bool:
        changes = any(each.changes for each in (*self.files, self.authorized))
        is_named = self.name is None or not self.name.changes
        return is_named and not (changes or self.directories or self.service)

    def shown(self) -> str:
        """What would be done, as text."""
        lines = [each.diff() for each in (*self.files, self.authorized) if each.changes]
        lines += [f"make the directory {path}\n" for path in self.directories]
        lines += [f"systemctl enable --now {SERVICE}\n"] if self.service else []
        if self.name is not None and self.name.changes:
            lines.append(f"tell the cluster that OpenNebula calls this node {self.name.new}\n")
        return "".join(lines)


def _planned(host: Host, account: Account, options: Options, key: PublicKey | None) -> _Plan:
    change, settings = _settings(host, options)
    changes = [change]
    if _needs_ruby_stub(host):
        changes.append(files.plan(host.path(_RUBY_STUB), _RUBY_TEXT, mode=0o644))
    return _Plan(
        tuple(changes),
        _authorized(account, options.frontend, key),
        tuple(_directories(host, settings)),
        # In a cluster, Pacemaker looks after the guests.
        not os.path.exists(host.path(CLUSTER_MARKER)) and not _service_is_on(host),
        settings.clouds[-1],
        _name(host, options),
    )


def _name(host: Host, options: Options) -> HostName | None:
    if os.path.exists(host.path(CLUSTER_MARKER)):
        return hostname.planned(host.runner, options.host)
    if options.host is not None:
        raise UsageError(
            "--host is for a node of a cluster: OpenNebula may call this machine as it likes",
            hint="'cxm-setup cluster' first, if it shall become one",
        )
    return None


def _do(host: Host, account: Account, plan: _Plan, say: Callable[[str], None]) -> None:
    for path in plan.directories:
        os.makedirs(path, mode=0o755)
        say(f"made: {path}")
    for change in plan.files:
        if change.changes:
            os.makedirs(os.path.dirname(change.path), mode=0o755, exist_ok=True)
            files.write(change)
            say(f"written: {change.path}")
    if plan.authorized.changes:
        _write_authorized(account, plan.authorized)
        say(f"written: {plan.authorized.path}")
    if plan.service:
        host.runner.run(["systemctl", "enable", "--now", SERVICE])
        say(f"enabled: {SERVICE}")
    if plan.name is not None and plan.name.changes:
        hostname.write(host.runner, plan.name)
        say(f"the cluster knows: OpenNebula calls {plan.name.node} '{plan.name.new}'")


def _try_helper(host: Host, cloud: CloudId) -> None:
    """Ask for the volume group as a driver does: oneadmin, sudo, helper, its settings."""
    request = {"api": API_VERSION, "version": __version__, "cloud": cloud}
    argv = ["runuser", "-u", USER, "--", "sudo", "-n", HELPER, "vg-usage"]
    try:
        sent = wire.encode_json({**request, "pack": False, "args": {}})
        wire.parse_reply(host.runner.run(argv, stdin=sent, ok=(0, FAILURE_CODE)).stdout.encode())
    except CxmError as error:
        raise CxmError(
            f"everything is in place, but the helper does not answer {USER}: {error.message}",
            hint=error.hint or f"as {USER}: sudo -n {HELPER} vg-usage",
        ) from error


def run(host: Host, options: Options, say: Callable[[str], None]) -> None:
    """Check, then set up; raises RefusedError, and changes nothing, when a check fails."""
    names.host_name(options.frontend)
    key = _key(options)
    old = files.read(host.path(config.NODE_FILE)) if host.uid == 0 else None
    present, ignored = config.node(old or "", config.NODE_FILE)
    for each in ignored:
        say(f"warning: {each}")
    found = nodecheck.checks(host, options.frontend, options.vg or present.vg_name)
    say(report.table(found))
    report.require(found, "cxm-setup node")
    account = host.account(USER)
    if account is None:
        raise NotFoundError(f"there is no account {USER}", hint="install the package cxm-node")
    plan = _planned(host, account, options, key)
    if plan.is_empty:
        say("Nothing to change: this node is set up.")
    elif options.dry_run:
        say(f"This would be done:\n{plan.shown()}")
        return
    else:
        _do(host, account, plan, say)
    if not options.dry_run:
        _try_helper(host, plan.cloud)
        say(f"This node is ready for {options.frontend}. On the frontend: onehost create ...")
