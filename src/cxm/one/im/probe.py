# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""The probes of 5.12 to 7.4, for OpenNebula's own client: one observation each.

Our client (:mod:`cxm.one.im.control`) does not run them. Their input is the configuration that
monitord gives its client.
"""

import os
import time
from contextlib import suppress
from typing import Final
from xml.etree import ElementTree as ET

from cxm import wholefile
from cxm.one import version as one_version
from cxm.one.action import Call, Context
from cxm.one.im import datastores, messages, settings, status
from cxm.one.im.observation import take

# Made by the node's package; without it nothing is remembered and each report is complete.
MEMORY: Final = "/run/cxm/im"


def _configuration(call: Call) -> ET.Element:
    try:
        return ET.fromstring(call.read_input())  # noqa: S314 - from our own frontend, over ssh
    except ET.ParseError:
        return ET.Element("MONITOR_CONFIGURATION")


def _system(ctx: Context, call: Call) -> str:
    seen = take(ctx.node(None), "all")
    ours = {guest.vm for guest in seen.guests} | set(seen.held)
    location = settings.datastore_location(_configuration(call))
    stores = datastores.found(location, ours, seen.space())
    return messages.system_host(seen, stores, one_version.text_of_remotes(ctx.remotes))


def _monitor(ctx: Context, _call: Call) -> str:
    return messages.monitor_host(take(ctx.node(None), "host"))


def _beacon(_ctx: Context, _call: Call) -> str:
    return str(int(time.time()))


def _vm_monitor(ctx: Context, _call: Call) -> str:
    return messages.monitor_vm(take(ctx.node(None), "all").guests)


def vm_status(ctx: Context, host_id: str, *, sync_every_s: float, directory: str) -> str:
    """Changes of VMs since the last call, everything now and then."""
    path = os.path.join(directory, f"said-{ctx.config.cloud_id}-{host_id}.json")
    said = status.Said()
    with suppress(OSError), open(path, encoding="utf-8") as file:
        said = status.load(file.read())
    guests = take(ctx.node(None), "state").guests
    report = status.report(said, guests, now=time.monotonic(), sync_every_s=sync_every_s)
    with suppress(OSError):
        wholefile.write(path, status.dump(report.then))
    return report.text


def _vm_status(ctx: Context, call: Call) -> str:
    host_id = call.argv[1] if len(call.argv) > 1 and call.argv[1].isdecimal() else "0"
    sync_every_s = settings.sync_period(_configuration(call))
    return vm_status(ctx, host_id, sync_every_s=sync_every_s, directory=MEMORY)


_PROBES: Final = {
    "cxm-probes.d/host/system/probe": _system,
    "cxm-probes.d/host/monitor/probe": _monitor,
    "cxm-probes.d/host/beacon/probe": _beacon,
    "cxm-probes.d/vm/monitor/probe": _vm_monitor,
    "cxm-probes.d/vm/status/probe": _vm_status,
}


def run(ctx: Context, call: Call) -> str:
    """The probe that the stub is."""
    return _PROBES[call.action](ctx, call).rstrip()
