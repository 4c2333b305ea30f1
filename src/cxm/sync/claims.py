# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the claims on the frontend: a VM whose record is being brought in line, and where it runs.

A driver that oned calls for a claimed VM may only confirm what is so already (docs/design/0011). A
claim is a small file beside oned's ``config``. It stays until OpenNebula has ended what it was made
for, and a day at most: a sync that dies leaves one that the next sync ends.
"""

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Final

from cxm import wholefile
from cxm.errors import RefusedError, UsageError
from cxm.names import VmId, vm_id

LONGEST_S: Final = 86400.0  # nobody works on a migration that was begun so long ago
# How long OpenNebula's driver may take for what it owes once the migrate driver has confirmed a
# move: network steps on both hosts. Where the old host is dead that is one ssh's ConnectTimeout.
_OWES_S: Final = 30.0
_OWES_LOST_S: Final = 10.0
_NAME: Final = "claim-"


@dataclass(frozen=True, slots=True)
class Claim:
    """A VM, the host where it runs, and when that was claimed (seconds since 1970)."""

    vm: VmId
    host: str
    made_at: float
    lost: bool = False  # the host that it was on is dead: nobody need try to reach it
    confirmed_at: float = 0.0  # when our driver said that it is there; 0 for not yet

    def is_owed(self, now: float) -> bool:
        """Whether OpenNebula's driver should have ended by now: it may have died in between.

        It does where it cannot reach the old host: it writes to an ssh that has ended, nothing
        catches the error, and oned is never answered (5.10 to 7.4, ``ssh_stream.rb``; seen with
        a real 7.4.0).
        """
        longest_s = _OWES_LOST_S if self.lost else _OWES_S
        return self.confirmed_at > 0 and now - self.confirmed_at > longest_s


def directory(remotes: str) -> str:
    """Where the sync keeps what it must not forget; oned's account owns it."""
    return os.path.join(os.path.dirname(remotes), "cxm-sync")


def make(place: str, claim: Claim) -> None:
    """Claim a VM; an older claim on it goes."""
    path = os.path.join(place, f"{_NAME}{claim.vm}")
    raw = asdict(claim)
    wholefile.write(path, json.dumps(raw), directory_mode=0o700, fresh=f"{path}.new", sync=True)


def confirm(place: str, claim: Claim, now: float) -> None:
    """Our driver has confirmed the VM; nothing where the claim is another one meanwhile."""
    path = os.path.join(place, f"{_NAME}{claim.vm}")
    with suppress(OSError, ValueError, KeyError, TypeError):
        if _read(path, claim.vm) == claim:
            make(place, replace(claim, confirmed_at=now))


def end(place: str, vm: VmId) -> None:
    """The claim on a VM is over."""
    with suppress(FileNotFoundError):
        os.unlink(os.path.join(place, f"{_NAME}{vm}"))


def _read(path: str, vm: VmId) -> Claim:
    with open(path, encoding="utf-8") as file:
        raw = json.load(file)
    confirmed_at = float(raw.get("confirmed_at", 0.0))
    return Claim(vm, str(raw["host"]), float(raw["made_at"]), raw["lost"] is True, confirmed_at)


def find(place: str, vm: VmId, now: float) -> Claim | None:
    """The claim on a VM; raises RefusedError for one that cannot be read: nothing may be done."""
    path = os.path.join(place, f"{_NAME}{vm}")
    try:
        claim = _read(path, vm)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RefusedError(
            f"VM {vm} is claimed by cxm-sync, and the claim cannot be read: {error}",
            hint=f"if no cxm-sync runs, remove {path}",
        ) from error
    # One from the future is one: a clock that was set back must not set drivers free.
    return claim if now - claim.made_at < LONGEST_S else None


def all_of(place: str) -> Iterator[Claim]:
    """All claims, however old; of one that cannot be read only VM and age are known."""
    try:
        names = sorted(os.listdir(place))
    except FileNotFoundError:
        return
    for name in names:
        if not name.startswith(_NAME) or name.endswith(".new"):
            continue
        path = os.path.join(place, name)
        with suppress(UsageError, FileNotFoundError):
            vm = vm_id(name.removeprefix(_NAME))
            made_at = os.stat(path).st_mtime
            try:
                yield _read(path, vm)
            except (OSError, ValueError, KeyError, TypeError):
                yield Claim(vm, "", made_at)
