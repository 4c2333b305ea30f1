# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the action context: a VM's context files become a small CD, remade at each boot from 5.0 on.

All is done in a private directory that is always removed: the files may hold a token.
"""

import os
import shutil
import tempfile
from collections.abc import Sequence
from typing import Final

from cxm import fetch, image
from cxm.content import Content
from cxm.errors import CommandError, CxmError, NotFoundError, UsageError
from cxm.names import VmId
from cxm.one import args, sizes, subject
from cxm.one.action import Call, Context
from cxm.one.args import ContextFile
from cxm.run import Runner

# Whatever of them the frontend has; all take mkisofs's options.
_TOOLS: Final = (("genisoimage",), ("xorriso", "-as", "mkisofs"), ("mkisofs",))
_OPTIONS: Final = ("-quiet", "-V", "CONTEXT", "-J", "-joliet-long", "-R")
_NOT_INSTALLED: Final = 127
_TIMEOUT_S: Final = 300.0


def run(ctx: Context, call: Call) -> str:
    """Make the CD and write it into the disk, in place of the one before; nothing is printed."""
    request = args.context(call.argv)
    asked = subject.ask(ctx, request.vm)
    with tempfile.TemporaryDirectory(prefix="cxm-context-") as private:
        files, cd = os.path.join(private, "files"), os.path.join(private, "cd")
        os.mkdir(files)
        for file in request.files:
            _gather(file, files, request.vm)
        make_cd(ctx.runner, files, cd)
        with image.opened_as_is(cd) as opened:
            ctx.node(request.target.host).upload(
                "disk-write",
                {
                    "vm": request.vm,
                    "disk": request.target.disk,
                    "dir": request.target.directory,
                    "name": asked.domain,
                    "size_mib": sizes.mib(opened.file_bytes),
                    "content": Content.RAW.value,
                    "fstype": None,
                    "replace": True,
                },
                opened.items(),
                pack=opened.is_worth_packing(),
            )
    return ""


def _gather(file: ContextFile, files: str, vm: VmId) -> None:
    """Copy or fetch one file of the context under its name."""
    name = file.name or (fetch.name_of if fetch.is_address(file.source) else os.path.basename)(
        file.source
    )
    target = os.path.join(files, name)
    if not name or os.path.lexists(target):
        what = f"two files of its context are named '{name}'" if name else "a file has no name"
        raise UsageError(f"VM {vm}: {what}: {file.source}")
    if fetch.is_address(file.source):
        with open(target, "wb", buffering=0) as output:
            fetch.into(file.source, output.fileno())
        return
    try:
        if os.path.isdir(file.source):
            shutil.copytree(file.source, target, symlinks=True)
        else:
            shutil.copy(file.source, target)
    except FileNotFoundError as error:
        raise NotFoundError(
            f"VM {vm}: the context file {error.filename} does not exist on the frontend"
        ) from error
    except OSError as error:
        raise CxmError(
            f"VM {vm}: the context file {file.source} cannot be copied: {error}"
        ) from error


def make_cd(
    runner: Runner, files: str, cd: str, *, tools: Sequence[Sequence[str]] = _TOOLS
) -> None:
    """Make a CD named CONTEXT from a directory, with the first of the tools that is installed."""
    for tool in tools:
        try:
            runner.run([*tool, *_OPTIONS, "-o", cd, files], timeout_s=_TIMEOUT_S)
        except CommandError as error:
            if error.exit_code != _NOT_INSTALLED:
                raise
        else:
            return
    raise CxmError(
        f"the frontend has none of {', '.join(tool[0] for tool in tools)} to make the context's CD",
        hint="install genisoimage or xorriso",
    )
