# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the wire to monitord (5.12 to 7.4): the form of a message, its encryption, its delivery.

A message is one line ``TYPE STATUS HOST TIME PAYLOAD``; the payload is compressed, then base64.
With a public key it is encrypted first, in blocks of RSA with PKCS #1 v1.5 padding: that is all
that monitord can decrypt, and so little data needs no library.
"""

import base64
import binascii
import os
import re
import socket
import zlib
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from cxm.errors import ConfigError

_PEM: Final = re.compile(
    r"-+BEGIN RSA PUBLIC KEY-+([A-Za-z0-9+/=\s]+)-+END RSA PUBLIC KEY-+", re.DOTALL
)
_SEQUENCE, _INTEGER = 0x30, 0x02
_PADDING: Final = 11
# One datagram carries at most 65,507 bytes; monitord reads either way whatever comes.
_MAX_DATAGRAM: Final = 60_000
_TIMEOUT_S: Final = 5.0


class Kind(StrEnum):
    """What a message is about."""

    BEACON_HOST = "BEACON_HOST"
    SYSTEM_HOST = "SYSTEM_HOST"
    MONITOR_HOST = "MONITOR_HOST"
    STATE_VM = "STATE_VM"
    MONITOR_VM = "MONITOR_VM"


@dataclass(frozen=True, slots=True)
class PublicKey:
    """An RSA key as monitord hands it out."""

    modulus: int
    exponent: int

    def encrypt(self, data: bytes) -> bytes:
        """The data in as many blocks as it takes."""
        size = (self.modulus.bit_length() + 7) // 8
        step = size - _PADDING
        return b"".join(self._block(data[at : at + step], size) for at in range(0, len(data), step))

    def _block(self, part: bytes, size: int) -> bytes:
        need = size - 3 - len(part)
        padding = b""
        while len(padding) < need:
            padding += os.urandom(need - len(padding)).replace(b"\0", b"")
        block = b"\0\x02" + padding + b"\0" + part
        return pow(int.from_bytes(block, "big"), self.exponent, self.modulus).to_bytes(size, "big")


def _element(data: bytes, at: int, tag: int) -> tuple[int, int]:
    """Where the content of the ASN.1 element at ``at`` begins and ends."""
    length, start = data[at + 1], at + 2
    if length & 0x80:
        count = length & 0x7F
        length, start = int.from_bytes(data[start : start + count], "big"), start + count
    if data[at] != tag or start + length > len(data):
        raise ValueError
    return start, start + length


def public_key(pem: str) -> PublicKey | None:
    """The key in monitord's configuration, whose line breaks may have become blanks; '' is none."""
    if not pem.strip():
        return None
    wrong = ConfigError(
        "monitord's PUBKEY is not an RSA public key in PEM format",
        hint="make one with 'openssl rsa -in KEY -RSAPublicKey_out'",
    )
    match = _PEM.search(pem)
    if match is None:
        raise wrong
    try:
        data = base64.b64decode("".join(match[1].split()), validate=True)
        at, _end = _element(data, 0, _SEQUENCE)
        numbers = []
        for _number in range(2):
            start, at_next = _element(data, at, _INTEGER)
            numbers.append(int.from_bytes(data[start:at_next], "big"))
            at = at_next
    except (binascii.Error, ValueError, IndexError) as error:
        raise wrong from error
    return PublicKey(*numbers)


def message(
    kind: Kind, host_id: int, stamp: int, payload: str, *, ok: bool, key: PublicKey | None
) -> bytes:
    """One message as it goes over the wire."""
    data = payload.encode()
    if key is not None:
        data = key.encrypt(data)
    packed = base64.b64encode(zlib.compress(data, 9)).decode()
    return f"{kind} {'SUCCESS' if ok else 'FAILURE'} {host_id} {stamp} {packed}\n".encode()


def deliver(address: str, port: int, kind: Kind, line: bytes) -> None:
    """Send a message: VM states by TCP, so that none is lost unnoticed, the others by UDP.

    Raises OSError when it could not be sent; a datagram may be lost without that.
    """
    if kind is Kind.STATE_VM or len(line) > _MAX_DATAGRAM:
        with socket.create_connection((address, port), timeout=_TIMEOUT_S) as stream:
            stream.sendall(line)
        return
    family, _type, _protocol, _name, target = socket.getaddrinfo(
        address, port, type=socket.SOCK_DGRAM
    )[0]
    with socket.socket(family, socket.SOCK_DGRAM) as datagrams:
        datagrams.settimeout(_TIMEOUT_S)
        datagrams.sendto(line, target)
