# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns packages that few tests need: Debian's, put onto a node that has no way to fetch them.

This machine's apt downloads what the node lacks, by the node's own list of what it has; it needs
the same release of Debian here as there.
"""

import os
import tempfile
from typing import Final

from cxm.run import System
from lab.machine import Machine

_DOWNLOAD_S: Final = 600.0
_INSTALL_S: Final = 900.0
_STATUS: Final = "/var/lib/dpkg/status"
_THERE: Final = "/root/extras"


def install(machine: Machine, *packages: str) -> None:
    """Install packages, and whatever they depend on, on a node."""
    with tempfile.TemporaryDirectory() as here:
        status = os.path.join(here, "status")
        with open(status, "w", encoding="utf-8") as file:
            file.write(machine.run(["cat", _STATUS]).stdout)
        os.makedirs(os.path.join(here, "archives", "partial"))
        options = {
            "Dir::State::status": status,
            "Dir::Cache::archives": os.path.join(here, "archives"),
            "APT::Sandbox::User": "root",
            "Debug::NoLocking": "1",
        }
        settings = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
        words = ["install", "-q", "-y", "--no-install-recommends", "--download-only"]
        System().run(["apt-get", *settings, *words, *packages], timeout_s=_DOWNLOAD_S)
        os.rmdir(os.path.join(here, "archives", "partial"))
        machine.push(os.path.join(here, "archives"), _THERE)
    unpack = f"dpkg -i {_THERE}/*.deb && rm -r {_THERE}"
    machine.run(["sh", "-c", unpack], timeout_s=_INSTALL_S)
