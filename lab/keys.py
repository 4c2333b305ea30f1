# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the lab's ssh keys: one for root's login from the lab, one for each host to prove itself.

They are made once and kept in the cache, because snapshots hold machines that know them.
"""

import hashlib
import os

from cxm.run import System
from lab.image import locked
from lab.places import Places
from lab.spec import LabSpec

ROOT_KEY = "root"


def key_path(places: Places, name: str) -> str:
    """The private key called ``name``, made when it is absent; the public one has .pub added."""
    path = places.cached("keys", name)
    os.chmod(os.path.dirname(path), 0o700)
    with locked(places.cached("keys", "lock")):
        if not os.path.exists(path + ".pub"):
            for left in (path, path + ".pub"):
                if os.path.exists(left):
                    os.unlink(left)
            System().run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", path])
    return path


def public_key(places: Places, name: str) -> str:
    """The public half of the key called ``name``, one line."""
    with open(key_path(places, name) + ".pub", encoding="utf-8") as file:
        return file.read()


def host_key_name(host: str) -> str:
    """The name of the key by which a host proves itself."""
    return f"host-{host}"


def known_hosts(places: Places, spec: LabSpec) -> str:
    """What a program must know to trust the hosts."""
    lines = []
    for host in spec.hosts:
        kind, key = public_key(places, host_key_name(host.name)).split()[:2]
        lines.append(f"{host.name},{host.address} {kind} {key}\n")
    return "".join(lines)


def fingerprint(places: Places, spec: LabSpec) -> str:
    """Changes when a snapshot's machines would not know, or not have, today's keys."""
    text = known_hosts(places, spec) + public_key(places, ROOT_KEY)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
