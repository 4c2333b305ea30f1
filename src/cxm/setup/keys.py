# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the ssh keys that let a frontend or a peer in: their check, and authorized_keys. Pure.

A line that cxm-setup wrote ends in ``cxm-setup:frontend=NAME`` (oneadmin's) or
``cxm-setup:cluster=NAME`` (root's); only such lines are changed or removed.
"""

import base64
import binascii
from dataclasses import dataclass
from typing import Final

from cxm.errors import UsageError

# OpenNebula runs 'bash -s', sftp, scp and rsync over this connection, and people debug with it; it
# forwards nothing.
RESTRICTIONS: Final = "restrict,pty"
_TYPES: Final = (
    "ssh-ed25519",
    "ssh-rsa",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
)
_MARK: Final = "cxm-setup:frontend="
PEER_COMMAND: Final = "/usr/lib/cxm/cxm-peer"
_PEER_RESTRICTIONS: Final = f'command="{PEER_COMMAND}",restrict'
_PEER_MARK: Final = "cxm-setup:cluster="


@dataclass(frozen=True, slots=True)
class PublicKey:
    """An ssh public key without its comment."""

    kind: str
    blob: str

    def __str__(self) -> str:
        return f"{self.kind} {self.blob}"


def public_key(text: str) -> PublicKey:
    """The public key of a line ``TYPE BASE64 [comment]``; raises UsageError for anything else."""
    if "PRIVATE KEY" in text:
        raise UsageError(
            "this is a private key, which must not leave its machine",
            hint="give the public one, from a file that ends in .pub",
        )
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if len(lines) != 1:
        raise UsageError(f"{len(lines)} ssh keys were given where one belongs")
    words = lines[0].split()
    try:
        kind, blob = words[0], words[1]
        raw = base64.b64decode(blob, validate=True)
        size = int.from_bytes(raw[:4], "big")
        matches = kind in _TYPES and raw[4 : 4 + size] == kind.encode() and len(raw) > size + 8
    except (IndexError, binascii.Error):
        matches = False
    if not matches:
        raise UsageError(
            f"'{' '.join(words[:2])[:60]}' is not an ssh public key",
            hint="it looks like 'ssh-ed25519 AAAA...'; quote it",
        )
    return PublicKey(kind, blob)


def _own_line(key: PublicKey, frontend: str) -> str:
    return f"{RESTRICTIONS} {key} {_MARK}{frontend}"


def lets_in(text: str, frontend: str) -> bool:
    """Whether a line of ours lets this frontend in already."""
    return any(line.endswith(f" {_MARK}{frontend}") for line in text.splitlines())


def merge(text: str, key: PublicKey, frontend: str) -> str:
    """authorized_keys that lets the frontend in with exactly this key.

    A former key of the same frontend goes. A line with this key that somebody else wrote stays as
    it is, and no second one is made: sshd would take the first that fits.
    """
    return _merge(text, key, f"{_MARK}{frontend}", _own_line(key, frontend))


def merge_peer(text: str, key: PublicKey, cluster: str) -> str:
    """authorized_keys of root that lets the cluster's other nodes ask for what peers may."""
    mark = f"{_PEER_MARK}{cluster}"
    return _merge(text, key, mark, f"{_PEER_RESTRICTIONS} {key} {mark}")


def _merge(text: str, key: PublicKey, mark: str, own: str) -> str:
    kept: list[str] = []
    present = False
    for line in text.splitlines():
        words = line.split()
        if line.endswith(f" {mark}"):
            if key.blob in words and not present:
                kept.append(own)
                present = True
        else:
            kept.append(line)
            present = present or (key.blob in words and not line.lstrip().startswith("#"))
    if not present:
        kept.append(own)
    return "\n".join(kept) + "\n"
