# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what 3.6 to 5.10 hear when they ask: the probe of a host, and the words for VMs.

Up to 4.2 VMs are asked for one by one (:mod:`cxm.one.vmm.poll`), from 4.4 on they come with the
host.
"""

from typing import Final

from cxm.node.sight import GuestState
from cxm.one import version as one_version
from cxm.one.action import Call, Context
from cxm.one.im import datastores, host
from cxm.one.im.observation import Guest, Observation, take
from cxm.one.im.words import Value, lines, text
from cxm.one.version import OneVersion

_FROM_HOST: Final = OneVersion(4, 4)
_TEMPLATE: Final = OneVersion(4, 14)

# Never p: no version before 5.12 finds its way back from SUSPENDED when the guest runs again.
_WORDS: Final = {
    GuestState.RUNNING: "a",
    GuestState.PAUSED: "-",
    GuestState.POWEROFF: "d",
    GuestState.FAILURE: "e",
    GuestState.VANISHED: "e",
    # The last host vouches for it until the sync has told OpenNebula where it is.
    GuestState.ELSEWHERE: "a",
    GuestState.BUSY: "-",
}
# Up to 4.2 'e' gives a VM up for good and has its disks deleted; 'd' makes it UNKNOWN.
_WORDS_OLD: Final = _WORDS | {GuestState.FAILURE: "d", GuestState.VANISHED: "d"}
_GONE: Final = "d"


def poll_values(guest: Guest | None, version: OneVersion) -> str:
    """What is said of one VM, ``STATE=a ...``; None is a VM that is neither here nor expected."""
    if guest is None:
        return f"STATE={_GONE}"
    words = _WORDS if version >= _FROM_HOST else _WORDS_OLD
    if guest.state is GuestState.ELSEWHERE:
        return f"STATE={words[guest.state]}"
    usage = guest.usage
    values: dict[str, Value] = {}
    if version < _TEMPLATE:
        values |= {"USEDCPU": int(usage.cpu), "USEDMEMORY": usage.memory_kib}
    else:
        values |= {"CPU": usage.cpu, "MEMORY": usage.memory_kib}
    values |= {"NETRX": usage.net_rx, "NETTX": usage.net_tx}
    if version >= _TEMPLATE:
        values |= {
            "DISKRDBYTES": usage.read_bytes,
            "DISKWRBYTES": usage.write_bytes,
            "DISKRDIOPS": usage.reads,
            "DISKWRIOPS": usage.writes,
        }
    said = [f"STATE={words[guest.state]}", *(f"{name}={value}" for name, value in values.items())]
    if version >= _TEMPLATE:
        said += [f"DISK_SIZE=[ID={disk},SIZE={size}]" for disk, size in guest.disks.items()]
    return " ".join(said)


def vms(seen: Observation, version: OneVersion) -> str:
    """All VMs of a host as 4.4 to 5.10 read them, and the domains that are none of theirs."""
    said = "".join(
        f'VM=[ID={guest.vm},DEPLOY_ID="{text(guest.name) or "-"}",'
        f'VM_NAME="{text(guest.name) or "-"}",POLL="{poll_values(guest, version)}"]\n'
        for guest in seen.guests
    )
    return "VM_POLL=YES\n" + said + host.wild(seen)


def all_of_host(ctx: Context, seen: Observation, location: str) -> str:
    """All that 4.4 to 5.10 hear of a host at once."""
    ours = {guest.vm for guest in seen.guests} | set(seen.held)
    version_text = one_version.text_of_remotes(ctx.remotes)
    return (
        lines(host.fixed(seen) | host.moving(seen) | host.extras(seen, version_text))
        + host.space(seen, datastores.found(location, ours, seen.space()))
        + vms(seen, ctx.version)
    )


def run(ctx: Context, call: Call) -> str:
    """The probe: its arguments begin with the directory's name and the datastores' location."""
    if ctx.version < _FROM_HOST:
        return host.pulled_old(take(ctx.node(None), "host")).rstrip()
    location = call.argv[1] if len(call.argv) > 1 else ""
    seen = take(ctx.node(None), "all")
    return all_of_host(
        ctx, seen, location if location.startswith("/") else datastores.LOCATION
    ).rstrip()
