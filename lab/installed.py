# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns how cxm gets into a lab: its Debian packages on the nodes and in the frontend's place.

Nodes are set up as an administrator does it: the packages by apt, then ``cxm-setup node`` with the
line that the frontend gives. The frontend's place is a namespace of this machine, so the packages
are unpacked beside its /usr and seen through an overlay there, never installed on this machine.
"""

import hashlib
import os
import secrets
import tempfile
from collections.abc import Iterator
from functools import partial

from cxm.names import CloudId, cloud_id
from cxm.run import System
from lab import keys
from lab.image import locked
from lab.lab import Lab
from lab.machine import Machine
from lab.parallel import in_parallel
from lab.places import Places
from lab.spec import FRONTEND_ADDRESS

ONEADMIN_KEY = "oneadmin"
_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_BUILD_S = 120.0
_INSTALL_S = 300.0  # measured 20 to 30 s on an emulated node
_NODE_PACKAGES = ("cxm-common", "cxm-node")
_FRONTEND_PACKAGES = ("cxm-common", "cxm-frontend")


def build_packages(places: Places) -> dict[str, str]:
    """Build the packages for one lab; their files by package name.

    In a directory of the lab's own: others build meanwhile. A lab that is up keeps its packages, so
    a change in the middle of a session of tests does not reach the second half of it.
    """
    out = places.of("packages", "deb")
    if not os.path.isdir(out):
        build = os.path.join(_ROOT, "packaging", "build")
        System().run([build, f"{out}.new"], timeout_s=_BUILD_S)
        os.rename(f"{out}.new", out)
    return {name.partition("_")[0]: os.path.join(out, name) for name in os.listdir(out)}


def cloud(places: Places) -> CloudId:
    """The identity of the lab's OpenNebula; made once, for snapshots hold nodes that know it."""
    path = places.cached("keys", "cloud")
    with locked(places.cached("keys", "lock")):
        if not os.path.exists(path):
            with open(path + ".new", "w", encoding="ascii") as file:
                file.write(secrets.token_hex(6))
            os.rename(path + ".new", path)
    with open(path, encoding="ascii") as file:
        return cloud_id(file.read())


def label(places: Places, packages: dict[str, str]) -> str:
    """A label that changes with all that :func:`on_nodes` puts on a node, but manuals."""
    digest = hashlib.sha256(keys.public_key(places, ONEADMIN_KEY).encode())
    digest.update(cloud(places).encode())
    for name in _NODE_PACKAGES:
        with tempfile.TemporaryDirectory(dir=os.path.dirname(packages[name])) as tree:
            System().run(["dpkg-deb", "-R", packages[name], tree])
            for path in sorted(_files(tree)):
                digest.update(os.path.relpath(path, tree).encode())
                if os.path.islink(path):
                    digest.update(os.readlink(path).encode())
                    continue
                with open(path, "rb") as file:
                    digest.update(file.read())
    return f"cxm-{digest.hexdigest()[:12]}"


def _files(tree: str) -> Iterator[str]:
    for directory, _names, files in os.walk(tree):
        if not directory.startswith(os.path.join(tree, "usr/share/doc")):
            yield from (os.path.join(directory, name) for name in files if name != "md5sums")


def install(lab: Lab, machine: Machine, packages: dict[str, str]) -> None:
    """Install the node's packages on a machine."""
    with lab.progress.step(f"{machine.name}: installing cxm-node", lab.places.log("lab")):
        for name in _NODE_PACKAGES:
            machine.push(packages[name], f"/root/{name}.deb")
        files = [f"/root/{name}.deb" for name in _NODE_PACKAGES]
        machine.run(["apt-get", "install", "-qq", "-y", *files], timeout_s=_INSTALL_S)
        machine.run(["rm", *files])


def enrol(lab: Lab, machine: Machine) -> None:
    """Let the lab's cloud use a machine that has the packages and the volume group."""
    machine.run(
        ["cxm-setup", "node", "--frontend", FRONTEND_ADDRESS,
         "--cloud", cloud(lab.places), "--vg", lab.spec.vg_name,
         "--key", keys.public_key(lab.places, ONEADMIN_KEY).strip()],
        timeout_s=_INSTALL_S,
    )  # fmt: skip


def on_nodes(lab: Lab, packages: dict[str, str]) -> None:
    """Install the packages on every machine of the lab and set those up that are alone."""

    def on_node(machine: Machine) -> None:
        install(lab, machine, packages)
        if machine.host.data_gib:
            enrol(lab, machine)

    in_parallel([partial(on_node, machine) for machine in lab.machines.values()])


def ready(lab: Lab) -> dict[str, str]:
    """Build the packages, and have them in the frontend's place; their files by package name."""
    packages = build_packages(lab.places)
    on_frontend(lab, packages)
    return packages


def bring_up(lab: Lab) -> str:
    """Bring the lab's machines up with cxm installed, from a snapshot where there is one.

    Returns the snapshot's name. The frontend's place has cxm too.
    """
    packages = ready(lab)
    return lab.prepared(label(lab.places, packages), lambda lab: on_nodes(lab, packages))


def on_frontend(lab: Lab, packages: dict[str, str]) -> None:
    """Let programs in the frontend's place see the packages as installed, and log in to nodes.

    They log in as oneadmin, whichever account they run in: this machine may have no oneadmin.
    The packages come once in the life of a lab: the kernel stacks overlays only two deep.
    """
    tree = lab.places.of("frontend", "usr")
    if not os.path.isdir(tree):
        _show_packages(lab, packages, tree)
    with open(
        lab.places.of("etc", "ssh", "ssh_config.d", "cxm-lab.conf"), "w", encoding="utf-8"
    ) as file:
        file.write(ssh_config(lab))


def _show_packages(lab: Lab, packages: dict[str, str], tree: str) -> None:
    for name in _FRONTEND_PACKAGES:
        System().run(["dpkg-deb", "-x", packages[name], os.path.dirname(tree)])
    # As the package does it when it is installed: a driver is a process per action.
    compiling = ["python3", "-m", "compileall", "-q", "-s", tree, "-p", "/usr"]
    System().run([*compiling, os.path.join(tree, "lib", "cxm", "python")])
    lab.frontend.run(["mount", "-t", "overlay", "overlay", "-o", f"lowerdir={tree}:/usr", "/usr"])


def ssh_config(lab: Lab) -> str:
    """How the frontend's oneadmin logs in to the nodes."""
    key = keys.key_path(lab.places, ONEADMIN_KEY)
    names = " ".join(lab.machines)
    return f"""Host {names}
    User oneadmin
    IdentityFile {key}
    ConnectTimeout 30
    KexAlgorithms curve25519-sha256
    LogLevel ERROR
"""
