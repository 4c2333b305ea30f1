# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the entry point of the resource agent's Python part: its log, its errors, its exit codes."""

import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from cxm import log, wholefile
from cxm.cluster import agent
from cxm.cluster.agent import Ocf
from cxm.config import NodeConfig
from cxm.errors import CxmError, UsageError, explained
from cxm.names import cloud_id, domain_uuid, vm_id
from cxm.node.life import Vm, end, running
from cxm.node.machine import Machine, this_machine
from cxm.node.machine import settings as own_settings
from cxm.node.volumes import Owner

_log = logging.getLogger(__name__)

_CLOUD: Final = "OCF_RESKEY_cloud"
_VM: Final = "OCF_RESKEY_vm"


def _remember_uuid(machine: Machine, env: Mapping[str, str]) -> None:
    """Leave the VM's UUID for the monitors that start no Python."""
    cloud, vm = cloud_id(env.get(_CLOUD, "")), vm_id(env.get(_VM, ""))
    path = os.path.join(machine.run_dir, "uuid", f"{cloud}-{vm}")
    if not os.path.exists(path):
        wholefile.write(path, f"{domain_uuid(cloud, vm)}\n", directory_mode=0o755)


def _say(text: str) -> None:
    """A sentence that Pacemaker shows beside the failed action."""
    sys.stderr.write(f"ocf-exit-reason:{text}\n")


def _configured(
    machine: Machine, action: str, environ: Mapping[str, str], settings: Callable[[], NodeConfig]
) -> Machine | Ocf:
    """The node with its settings; when they are broken, the answer if it needs none.

    A slip in a file must not get a node fenced, nor a guest started again that runs. The disks of
    a VM that is stopped like this stay the node's: where it is started next, they are asked for.
    """
    try:
        return replace(machine, config=settings())
    except CxmError as error:
        if action not in ("monitor", "stop"):
            raise
        _log.error("%s: %s", action, error.sentence())
        owner = Owner(cloud_id(environ.get(_CLOUD, "")), vm_id(environ.get(_VM, "")))
        vm = Vm(machine, owner)
        present = vm.present()
        if action == "stop":
            if present:
                end(vm)
            return Ocf.SUCCESS
        if running(present) is not None:
            return Ocf.SUCCESS
        if present:
            raise
        return Ocf.NOT_RUNNING


def perform(
    machine: Machine,
    action: str,
    environ: Mapping[str, str],
    settings: Callable[[], NodeConfig],
    say: Callable[[str], None] = _say,
) -> int:
    """Do the action and return the agent's exit code; ``say`` is told why it failed."""
    try:
        _remember_uuid(machine, environ)
        configured = _configured(machine, action, environ, settings)
        if isinstance(configured, Ocf):
            return configured
        if action == "validate-all":
            return Ocf.SUCCESS
        return agent.run(configured, action, environ)
    except UsageError as error:
        say(error.sentence())
        return Ocf.NOT_CONFIGURED
    except Exception as error:  # noqa: BLE001 - the boundary
        failure = explained(error, f"VM {environ.get(_VM, '')}: {action}", _log)
        _log.error("%s: %s", action, failure.sentence())
        say(failure.sentence())
        return Ocf.ERROR


def main(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """The entry point of ``cxm-agent``."""
    os.umask(0o022)
    log.to_syslog(ident="cxm", debug=False)
    action = argv[0] if len(argv) == 1 else ""
    return perform(this_machine(), action, environ, lambda: own_settings()[0])
