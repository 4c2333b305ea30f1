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
from cxm.errors import CxmError, NotFoundError
from cxm.one import args, sizes, subject, xml
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
    form, coming = _form(ctx, request)
    saved = ctx.node(request.source.host).download(
        "disk-read",
        {
            "vm": request.vm,
            "disk": request.source.disk,
            "as": form,
            "fstype": coming,
            "level": ctx.config.compress_level,
        },
        lambda items: stopped.receive_disk(fd, items),
        pack=ctx.config.mode is Mode.RAW,
    )
    stopped.check_received(fd, request.source.host)
    if saved["content"] != form and saved["fstype"]:
        _log.warning(
            "VM %s disk %s is saved whole, not as files: it holds %s, and files of its image would "
            "become %s; set FSTYPE=%s at the image to save files only",
            request.vm,
            request.source.disk,
            saved["fstype"],
            coming,
            saved["fstype"],
        )


def _form(ctx: Context, request: SaveBack) -> tuple[str, str | None]:
    """How the disk is to be saved, and the file system that files of its image would become."""
    form = _AS[ctx.config.mode]
    if ctx.config.mode is not Mode.TGZ:
        return form, None
    try:
        return form, _next_filesystem(ctx, request)
    except CxmError as error:
        # Whole, a disk comes back as it was, whatever there is to know about its image.
        _log.warning(
            "VM %s disk %s is saved whole, not as files: %s",
            request.vm,
            request.source.disk,
            error.sentence(),
        )
        return _AS[Mode.GZIP], None


def _next_filesystem(ctx: Context, request: SaveBack) -> str:
    """The file system that the next disk made of the image gets, whatever VM that is for."""
    disk = xml.vm_of(ctx.oned().vm_info(request.vm)).disk(request.source.disk)
    # 3.x and 4.x save a disk as a new image, too.
    record = subject.image(ctx, disk.number("SAVE_AS") or disk.image_id)
    return sizes.filesystem_of_image(xml.Disk(disk.disk_id, {}), record, ctx.config.default_fstype)


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
