# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the action mvds: the disk of a persistent image goes back into the image datastore.

The image is replaced in one step when its new content is safe on disk. The disk stays where it is
until oned deletes what is left of the VM, so that the action can be run again.
"""

import logging
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from cxm import image, sparse, wire
from cxm.config import Mode
from cxm.errors import NotFoundError
from cxm.one import args
from cxm.one.action import Call, Context
from cxm.one.args import SaveBack
from cxm.one.tm import stopped

_log = logging.getLogger(__name__)

_AS: Final[Mapping[Mode, str]] = {Mode.RAW: "raw", Mode.GZIP: "gzip", Mode.TGZ: "tar.gz"}
# OpenNebula's own tools make images readable to the group.
_MODE: Final = 0o660
_GZIP_WBITS: Final = 31
_ZEROS: Final = bytes(1 << 20)


def run(ctx: Context, call: Call) -> str:
    """Save the disk; nothing is printed."""
    request = args.save_back(call.argv)
    with sparse.replacing(request.image, mode=_MODE) as fd:
        if ctx.is_store(request.source.host):
            _from_store(ctx, request, fd)
        else:
            _from_node(ctx, request, fd)
    _log.info("VM %s disk %s is saved in %s", request.vm, request.source.disk, request.image)
    return ""


def _from_node(ctx: Context, request: SaveBack, fd: int) -> None:
    mode = ctx.config.mode
    ctx.node(request.source.host).download(
        "disk-read",
        {
            "vm": request.vm,
            "disk": request.source.disk,
            "as": _AS[mode],
            "level": ctx.config.compress_level,
        },
        lambda items: stopped.receive_disk(fd, items),
        pack=mode is Mode.RAW,
    )
    stopped.check_received(fd, request.source.host)


def _from_store(ctx: Context, request: SaveBack, fd: int) -> None:
    """Save a stopped VM's disk. Its file system cannot be read here, so TGZ becomes GZIP."""
    path = request.source.path
    if not stopped.holds(path):
        raise NotFoundError(
            f"VM {request.vm} is stopped, but its disk {request.source.disk} is not in {path}"
        )
    with image.opened_as_is(path) as opened:
        items = opened.items()
        if ctx.config.mode is Mode.RAW:
            stopped.receive_disk(fd, items)
        else:
            sparse.write(fd, _gzipped(items, ctx.config.compress_level))


def _gzipped(items: Iterable[wire.Item], level: int) -> Iterator[bytes]:
    packer = zlib.compressobj(level, zlib.DEFLATED, _GZIP_WBITS)
    for item in items:
        if isinstance(item, bytes):
            yield packer.compress(item)
        elif isinstance(item, wire.Zeros):
            for start in range(0, item.length, len(_ZEROS)):
                yield packer.compress(_ZEROS[: item.length - start])
    yield packer.flush()
