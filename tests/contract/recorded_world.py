# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""A stand-in for oned on this machine, without privileges, whose drivers only write down calls."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from cxm.run import System
from lab.oned.place import Place
from lab.oned.profiles import profile
from lab.oned.standin import Setup, StandIn
from lab.oned.watch import Periods
from tests.contract import recorder
from tests.contract.recorder import Names, Notes

_SIZE = 3 << 20


@dataclass(frozen=True, slots=True)
class World:
    """The stand-in, and what its drivers write."""

    cloud: StandIn
    notes: Notes
    names: Names
    image: str  # a file to register as an image


@contextmanager
def standin(top: str, version: str, *, is_local: bool = False) -> Iterator[World]:
    """A stand-in of a version below the directory ``top``; ``is_local`` as cxm-setup sets it up."""
    notes = Notes(os.path.join(top, "notes"))
    notes.prepare()
    remote = os.path.join(top, "remote")
    place = Place(
        files=os.path.join(top, "one", "var"),
        var=os.path.join(top, "one", "var"),
        location=os.path.join(top, "one"),
        hostname=recorder.FRONTEND,
        remote_dir=remote,
        path=f"{recorder.tools(os.path.join(top, 'bin'))}:/usr/bin:/bin",
        xmlrpc_port=0,
        monitor_port=0,
        extra={"CXM_RECORD": notes.directory, "HOME": top},
    )
    facts = profile(version)
    image = os.path.join(top, "root.img")
    with open(image, "wb") as file:
        file.truncate(_SIZE)
    setup = Setup(
        system="cxm_system", system_tm="cxm", vn_mad=recorder.NETWORK_DRIVER, is_local=is_local
    )
    # Nothing is looked at twice, so that the test alone makes calls.
    periods = Periods(hosts=3600, stores=3600, silence=3600)
    with StandIn(System(), place, facts, setup=setup, periods=periods) as cloud:
        probes = "im/cxm.d/probe" if facts.polls_vms else "im/cxm-probes.d/probe"
        client = "im/cxm.d/monitord-client.sh"
        recorder.install(place.remotes, im=(client if facts.monitord else probes,))
        yield World(cloud, notes, Names(place.var, remote, "100", "101"), image)
