# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the line that makes a machine a node: the cluster and its secrets, packed. Pure."""

import base64
import binascii
import json
import zlib
from dataclasses import asdict, dataclass, fields
from typing import Final

from cxm.errors import UsageError
from cxm.setup.clusterargs import Cluster

_START: Final = "cxm1-"


@dataclass(frozen=True, slots=True)
class Membership:
    """A cluster and what lets a node into it."""

    cluster: Cluster
    authkey: str
    peer_key: str

    def __repr__(self) -> str:
        return f"Membership({self.cluster.name})"


def pack(membership: Membership) -> str:
    """One word; whoever has it can be a node."""
    text = json.dumps(asdict(membership), separators=(",", ":"))
    return _START + base64.urlsafe_b64encode(zlib.compress(text.encode(), 9)).decode()


def unpack(token: str) -> Membership:
    """What a token holds; raises UsageError for one that was not copied whole."""
    # A terminal wraps a long line, and what is copied from there has blanks.
    word = "".join(token.split())
    try:
        start, packed_text = word[: len(_START)], word[len(_START) :]
        packed = base64.b64decode(packed_text, altchars=b"-_", validate=True)
        found = json.loads(zlib.decompress(packed))
        names = [each.name for each in fields(Cluster)] if start == _START else [""]
        cluster = Cluster(**{name: found["cluster"][name] for name in names})
        return Membership(cluster, found["authkey"], found["peer_key"])
    except (ValueError, binascii.Error, zlib.error, KeyError, TypeError):
        raise UsageError(
            "this is not a join token, or not the whole one",
            hint="'cxm-setup cluster' on the first node prints it as one line",
        ) from None
