# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the key pair by which the nodes of a cluster ask each other: made, and its public half."""

import os
import tempfile
from typing import Final

from cxm.run import Runner
from cxm.setup import keys
from cxm.setup.keys import PublicKey

PATH: Final = "/etc/cxm/peer_key"
_TIMEOUT_S: Final = 60.0


def make(runner: Runner) -> str:
    """A new private key."""
    with tempfile.TemporaryDirectory(prefix="cxm-setup-") as directory:
        path = os.path.join(directory, "key")
        argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "cxm-peer", "-f", path]
        runner.run(argv, timeout_s=_TIMEOUT_S)
        with open(path, encoding="ascii") as file:
            return file.read()


def public(runner: Runner, private: str) -> PublicKey:
    """The public half; raises CommandError for what is no key."""
    with tempfile.NamedTemporaryFile("w", encoding="ascii", prefix="cxm-setup-") as file:
        file.write(private)
        file.flush()
        argv = ["ssh-keygen", "-y", "-f", file.name]
        return keys.public_key(runner.run(argv, timeout_s=_TIMEOUT_S).stdout)
