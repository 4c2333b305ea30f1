# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns how a stand-in for oned comes into a lab: installed system-wide in the frontend's place.

Its files lie in the lab's state and are seen as /var/lib/one in the frontend's place only.
"""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from cxm import config
from cxm.run import System
from cxm.setup import parts, remotes
from lab import installed
from lab.lab import Lab
from lab.oned.place import SYSTEM_WIDE, Place
from lab.oned.profiles import Profile, profile
from lab.oned.standin import Setup, StandIn
from lab.oned.watch import Periods

_TREE = "usr/share/cxm/remotes"
_HOST_NAMED = (6, 0)  # HOSTNAME is a setting of oned

# Hosts with a volume group each, and nodes that share one, as ``cxm-setup frontend`` sets them up.
STANDALONE = Setup(defaults=parts.VMM_EXEC_DEFAULTS)
SAN = Setup(system="san", system_tm="cxm", defaults=parts.VMM_EXEC_DEFAULTS)


@contextmanager
def open_standin(
    lab: Lab,
    version: str,
    *,
    setup: Setup | None = None,
    settings: Mapping[str, str] | None = None,
    periods: Periods | None = None,
) -> Iterator[StandIn]:
    """A stand-in of one version in a lab's frontend, with cxm's drivers set up; ends at the end.

    ``settings`` go to the frontend's cxmrc. The lab's nodes must have cxm (``lab/installed.py``).
    """
    facts = profile(version)
    files = lab.places.of("oned", version, "var")
    shutil.rmtree(files, ignore_errors=True)
    os.makedirs(files)
    os.chmod(files, 0o755)  # noqa: S103 - as OpenNebula's package makes it
    _mount(lab, files)
    try:
        place = Place(
            files=files,
            hostname="frontend" if facts.version >= _HOST_NAMED else os.uname().nodename,
            prefix=tuple(lab.frontend.prefix()),
        )
        place.prepare()
        _put_drivers(lab, place, facts, settings or {})
        as_set_up = setup or STANDALONE
        with StandIn(System(), place, facts, setup=as_set_up, periods=periods) as standin:
            yield standin
    finally:
        lab.frontend.run(["umount", "--lazy", SYSTEM_WIDE])


def _mount(lab: Lab, files: str) -> None:
    """Let the frontend's place see ``files`` as /var/lib/one, which this machine may not have."""
    parent, name = os.path.split(SYSTEM_WIDE)
    # Once in the life of a lab: the kernel stacks overlays only two deep.
    if lab.frontend.run(["test", "-d", SYSTEM_WIDE], ok=(0, 1)).code:
        lower = lab.places.of("oned", "lib")
        os.makedirs(os.path.join(lower, name), exist_ok=True)
        options = f"lowerdir={lower}:{parent}"
        lab.frontend.run(["mount", "-t", "overlay", "overlay", "-o", options, parent])
    lab.frontend.run(["mount", "--bind", files, SYSTEM_WIDE])


def _put_drivers(lab: Lab, place: Place, facts: Profile, settings: Mapping[str, str]) -> None:
    """Drivers and settings, as ``cxm-setup frontend`` leaves them."""
    tree = os.path.join(lab.places.of("frontend"), _TREE)
    target = place.here(place.remotes)
    plan = remotes.plan(tree, target, facts.version)
    remotes.apply(plan, target, place.here(place.scratch))
    given = {"CLOUD_ID": installed.cloud(lab.places), **settings}
    with open(os.path.join(target, "cxmrc"), "w", encoding="utf-8") as file:
        file.write(config.sample(config.FrontendConfig, given))
