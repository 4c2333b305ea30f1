# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns copies of a model's files, as ``cp -a --sparse=always`` makes them, without its process."""

import os
import shutil
from collections.abc import Sequence
from typing import Final

_CHUNK: Final = 1 << 20


def _copy_file(source: str, target: str) -> str:
    """A file's data without its holes, and its times and mode."""
    with open(source, "rb", buffering=0) as old, open(target, "wb", buffering=0) as new:
        size = os.fstat(old.fileno()).st_size
        at = 0
        while at < size:
            try:
                at = os.lseek(old.fileno(), at, os.SEEK_DATA)
            except OSError:  # nothing but a hole is left
                break
            end = os.lseek(old.fileno(), at, os.SEEK_HOLE)
            while at < end:
                data = os.pread(old.fileno(), min(_CHUNK, end - at), at)
                if data.strip(b"\0"):
                    os.pwrite(new.fileno(), data, at)
                at += len(data)
        new.truncate(size)
    shutil.copystat(source, target)
    return target


def tree(source: str, target: str) -> None:
    """Copy a directory to a place that is not there yet; links stay links."""
    shutil.copytree(source, target, symlinks=True, copy_function=_copy_file)


def copy(sources: Sequence[str], directory: str) -> None:
    """Copy files and whole directories into a directory; links stay links."""
    for source in sources:
        target = os.path.join(directory, os.path.basename(source))
        if os.path.isdir(source) and not os.path.islink(source):
            tree(source, target)
        elif os.path.islink(source):
            os.symlink(os.readlink(source), target)
        else:
            _copy_file(source, target)
