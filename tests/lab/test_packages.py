# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""The Debian packages, installed and purged by apt on a real host."""

# Requirements: the lab with solo1.

from typing import Final

from lab import installed, keys
from lab.lab import Lab
from lab.machine import Machine
from lab.spec import FRONTEND_ADDRESS

_APT_S: Final = 300.0
# What a package may leave: the account, its files, the volume group's content.
_OURS: Final = "find / -xdev -name '*cxm*' -not -path '/proc/*' -not -path '/var/log/*' | sort"
_PLANTED: Final = "/root/planted"


def files(machine: Machine) -> list[str]:
    """Everything on the host that is named after cxm."""
    return machine.run(["sh", "-c", _OURS], timeout_s=120).stdout.splitlines()


def test_the_packages_come_and_go(solo_lab: Lab) -> None:
    """After a purge the host is as before, but for the account, its home and the volumes.

    A purge runs as root in directories that oneadmin may fill: it follows no link of his.
    """
    machine = solo_lab.machine("solo1")
    before = files(machine)
    debs = installed.build_packages(solo_lab.places)
    for name, path in debs.items():
        machine.push(path, f"/root/{name}.deb")
    node = [f"/root/{name}.deb" for name in ("cxm-common", "cxm-node")]
    machine.run(["apt-get", "-qq", "-y", "install", *node], timeout_s=_APT_S)
    # A node has no way to the packages that the frontend's drivers need, and needs none here.
    machine.run(["dpkg", "--force-depends", "-i", "/root/cxm-frontend.deb"], timeout_s=_APT_S)
    without = machine.run(["cxm-setup", "frontend"], ok=range(256))
    assert (without.code, "there is no OpenNebula here" in without.stderr) == (7, True), (
        without.stderr
    )
    machine.run(["visudo", "-c"])
    key = keys.public_key(solo_lab.places, installed.ONEADMIN_KEY).strip()
    cloud = installed.cloud(solo_lab.places)
    setup = ["cxm-setup", "node", "--frontend", FRONTEND_ADDRESS, "--cloud", cloud, "--vg"]
    machine.run([*setup, solo_lab.spec.vg_name, "--key", key], timeout_s=_APT_S)
    machine.run(["systemctl", "is-active", "cxm-tend"])
    machine.run(["lvcreate", "-qq", "-y", "-L", "8m", "-n", "lv-one-1-0", solo_lab.spec.vg_name])
    plant = f"""
        install -d {_PLANTED}/cxm && touch {_PLANTED}/cxm/kept
        install -d -o oneadmin -m 755 /var/tmp/one
        runuser -u oneadmin -- ln -s {_PLANTED} /var/tmp/one/tm
        chmod 755 /root
    """
    machine.run(["sh", "-ec", plant])

    machine.run(["dpkg", "--purge", *debs], timeout_s=_APT_S)
    assert machine.run(["systemctl", "is-active", "cxm-tend"], ok=range(256)).code != 0
    assert machine.run(["id", "-u", "oneadmin"]).stdout.strip() == "9869"
    assert key not in machine.run(["cat", "/var/lib/one/.ssh/authorized_keys"]).stdout
    assert "lv-one-1-0" in machine.run(["lvs", "--noheadings", "-o", "lv_name"]).stdout
    machine.run(["test", "-e", f"{_PLANTED}/cxm/kept"])
    machine.run(["rm", "-r", _PLANTED, *(f"/root/{name}.deb" for name in debs)])
    assert files(machine) == before
