# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the entry point of the resource agent's Python part: its log, its errors, its exit codes."""

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from cxm import config, log, run
from cxm.cluster.agent import Ocf
from cxm.errors import CxmError, UsageError, system_error
from cxm.names import cloud_id, domain_uuid, vm_id
from cxm.node.machine import Caller, Machine
from cxm.xen import xl

_log = logging.getLogger(__name__)

_EXPECTED: Final = {"monitor": Ocf.ERROR, "migrate_to": Ocf.ERROR}


def _remember_uuid(machine: Machine, env: Mapping[str, str]) -> None:
    """Leave the VM's UUID for the monitors that start no Python."""
    cloud, vm = cloud_id(env.get("OCF_RESKEY_cloud", "")), vm_id(env.get("OCF_RESKEY_vm", ""))
    directory = os.path.join(machine.run_dir, "uuid")
    path = os.path.join(directory, f"{cloud}-{vm}")
    if os.path.exists(path):
        return
    os.makedirs(directory, mode=0o755, exist_ok=True)
    with open(f"{path}.{os.getpid()}", "w", encoding="ascii") as file:
        file.write(f"{domain_uuid(cloud, vm)}\n")
    os.replace(file.name, path)


def _say(text: str) -> None:
    """A sentence that Pacemaker shows beside the failed action."""
    sys.stderr.write(f"ocf-exit-reason:{text}\n")


def _machine(action: str, env: Mapping[str, str]) -> Machine:
    """This node; broken settings must not get it fenced for a VM that is not even here."""
    settings = config.NodeConfig()
    machine = Machine(settings, run.System(), Caller(0, 0), os.uname().nodename)
    try:
        settings, _warnings = config.node(config.read_trusted(config.NODE_FILE), config.NODE_FILE)
    except CxmError:
        uuid = domain_uuid(cloud_id(env["OCF_RESKEY_cloud"]), vm_id(env["OCF_RESKEY_vm"]))
        present = [domain for domain in xl.domains(machine.runner) if domain.uuid == uuid]
        if present or action not in ("monitor", "stop"):
            raise
    return replace(machine, config=settings)


def main(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Do the action and return the agent's exit code."""
    from cxm.cluster import agent  # noqa: PLC0415 - after the log is ready for what it says

    os.umask(0o022)
    log.to_syslog(ident="cxm", debug=False)
    action = argv[0] if len(argv) == 1 else ""
    try:
        machine = _machine(action, environ)
        _remember_uuid(machine, environ)
        if action == "validate-all":
            return Ocf.SUCCESS
        code = agent.run(machine, action, environ)
    except UsageError as error:
        _say(error.sentence())
        return Ocf.NOT_CONFIGURED
    except CxmError as error:
        _log.error("%s: %s", action, error.sentence())
        _say(error.sentence())
        return Ocf.ERROR
    except OSError as error:
        _log.error("%s: %s", action, system_error(error))
        _say(system_error(error))
        return Ocf.ERROR
    return code
