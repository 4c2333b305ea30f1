# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the action monitor: the space of a shared system datastore, which is that of its VG.

Any host of the VG can tell, so they are asked one after another until one answers.
"""

import base64
import binascii
import logging
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final

from cxm.errors import CxmError, DataError, NotFoundError
from cxm.one import args, xml
from cxm.one.action import Call, Context
from cxm.one.xml import Datastore, Host, HostState

_log = logging.getLogger(__name__)

# oned asks again in some minutes: better no answer than a driver that is busy with dead hosts.
_TIMEOUT_S: Final = 60.0
_MAX_HOSTS: Final = 5


def run(ctx: Context, call: Call) -> str:
    """The datastore's size, used and free space in MB, as oned reads them."""
    request = args.monitor(call.argv)
    text = call.read_input() if request.description is None else _decode(request.description)
    datastore = xml.datastore_of(text)
    usage = _ask(ctx, datastore, islice(_hosts(ctx, datastore), _MAX_HOSTS))
    return "\n".join(
        f"{name}_MB={usage[f'{key}_mib']}"
        for name, key in (("USED", "used"), ("FREE", "free"), ("TOTAL", "total"))
    )


def _decode(text: str) -> str:
    try:
        return base64.b64decode("".join(text.split()), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError) as error:
        raise DataError(f"monitor's first argument is not XML in base64: {error}") from error


def _hosts(ctx: Context, datastore: Datastore) -> Iterator[str]:
    """The hosts to ask: those of BRIDGE_LIST, else those of the datastore's clusters."""
    if datastore.bridges:
        yield from datastore.bridges
        return
    hosts = [host for host in xml.hosts_of(ctx.oned().hosts_info()) if _serves(host, datastore)]
    # Those that oned monitors first; the others may be well all the same.
    for host in sorted(hosts, key=lambda host: host.state != HostState.MONITORED):
        yield host.name


def _serves(host: Host, datastore: Datastore) -> bool:
    return "cxm" in host.vm_mad and (
        not datastore.clusters or host.cluster is None or host.cluster in datastore.clusters
    )


def _ask(ctx: Context, datastore: Datastore, hosts: Iterable[str]) -> dict[str, int]:
    failures = []
    for host in hosts:
        try:
            result = ctx.node(host).call("vg-usage", {}, timeout_s=_TIMEOUT_S)
        except CxmError as error:
            failures.append(error.sentence())
            _log.debug("%s", error.sentence())
        else:
            return {key: int(value) for key, value in result.items() if key.endswith("_mib")}
    if failures:
        raise CxmError(
            f"no host could tell the space of datastore {datastore.datastore_id}: "
            + "; ".join(failures)
        )
    raise NotFoundError(
        f"datastore {datastore.datastore_id} ('{datastore.name}') has no host to ask for its space",
        hint="add hosts to its OpenNebula cluster, or set its BRIDGE_LIST",
    )
