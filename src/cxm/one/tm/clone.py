# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the actions clone and ln: an image of the datastore becomes a VM's disk.

Persistent images are copied as well (ln) and written back by mvds: a disk is always a volume of
the VM's own. A kernel or ramdisk of a FILE datastore becomes a file in the VM's directory.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from cxm import image
from cxm.errors import DataError
from cxm.image import Source
from cxm.names import VmId
from cxm.one import args, sizes, subject
from cxm.one.action import Call, Context
from cxm.one.args import DiskPlace, FilePlace
from cxm.one.sizes import Size
from cxm.one.xml import Disk, Image

_log = logging.getLogger(__name__)


def run(ctx: Context, call: Call) -> str:
    """Copy the image; nothing is printed."""
    request = args.clone(call.argv)
    if isinstance(request.target, FilePlace):
        _copy_file(ctx, request.source, request.target, request.vm)
    else:
        _copy_disk(ctx, request.source, request.target, request.vm)
    return ""


def _copy_file(ctx: Context, source: str, target: FilePlace, vm: VmId) -> None:
    with image.opened_as_is(source) as opened:
        ctx.node(target.host).upload(
            "file-write",
            {"vm": vm, "dir": target.directory, "file": target.file},
            opened.items(target.file),
            pack=opened.is_worth_packing(),
        )


def _size(ctx: Context, opened: Source, disk: Disk, record: Image | None) -> Size:
    def of_content(content_bytes: int) -> Size:
        return sizes.of_disk(
            disk,
            record,
            content_bytes=content_bytes,
            is_optical=opened.is_optical,
            default_mib=ctx.config.default_lv_size,
        )

    size = of_content(opened.content_bytes)
    is_claim = size.is_content and opened.content.is_compressed
    if is_claim or opened.may_exceed(size.mib * sizes.MIB, is_stated=not size.is_default):
        # The file's word alone must not decide: a damaged one may claim anything, a gzip says its
        # length only modulo 4 GiB.
        size = of_content(opened.measure(ctx.runner))
    return size


@contextmanager
def _naming(vm: VmId, disk: Disk, record: Image | None) -> Iterator[None]:
    """Say of wrong data for which disk it was, and which image it is of."""
    try:
        yield
    except DataError as error:
        of = "" if record is None else f", image {record.image_id} ('{record.name}')"
        error.message = f"VM {vm} disk {disk.disk_id}{of}: {error.message}"
        raise


def _copy_disk(ctx: Context, source: str, target: DiskPlace, vm: VmId) -> None:
    asked = subject.ask(ctx, vm)
    disk = asked.record.disk(target.disk)
    record = subject.image(ctx, disk.image_id)
    default = ctx.config.default_fstype
    filesystem = sizes.filesystem_of_image(disk, record, default)
    with _naming(vm, disk, record), image.opened(source, ctx.runner) as opened:
        size = _size(ctx, opened, disk, record)
        _log.info(
            "VM %s disk %s: %s of %s MiB goes into %s MiB (%s) on %s",
            vm,
            target.disk,
            opened.content,
            sizes.mib(opened.file_bytes),
            size.mib,
            size.rule,
            target.host,
        )
        ctx.node(target.host).upload(
            "disk-write",
            {
                "vm": vm,
                "disk": target.disk,
                "dir": target.directory,
                "name": asked.domain,
                "size_mib": size.mib,
                "content": opened.content.value,
                "fstype": filesystem if opened.content.is_tar else None,
                "replace": False,
            },
            opened.items(),
            pack=opened.is_worth_packing(),
        )
