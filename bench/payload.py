# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the larger image: the guest's files and many more, always the same."""

import gzip
import hashlib
import io
import os
import tarfile
from typing import Final

from lab.image import locked
from lab.places import Places

_FILES: Final = 1000
_NOISE: Final = 16 << 10  # of each file; what no packer makes smaller
_TEXT: Final = 32 << 10


def content(number: int) -> bytes:
    """A file's content: a third of it cannot be packed, the rest very well."""
    noise = hashlib.shake_128(f"file {number}".encode()).digest(_NOISE)
    words = f"this is line %d of file {number}\n"
    text = "".join(words % line for line in range(_TEXT // 24)).encode()[:_TEXT]
    return noise + text


def larger(places: Places, guest: str) -> str:
    """The path of a tar.gz with the files of ``guest`` and the further ones, from the cache."""
    with open(guest, "rb") as file:
        key = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    path = places.cached("bench", f"larger-{key}-{_FILES}.tar.gz")
    with locked(places.cached("bench", "lock")):
        if not os.path.exists(path):
            write(guest, f"{path}.new", files=_FILES)
            os.rename(f"{path}.new", path)
    return path


def write(guest: str, path: str, *, files: int) -> None:
    """Write the image with so many further files."""
    with (
        open(path, "wb") as file,
        gzip.GzipFile("", mode="wb", compresslevel=6, fileobj=file, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as archive,
        tarfile.open(guest) as small,
    ):
        for member in small:
            archive.addfile(member, small.extractfile(member) if member.isreg() else None)
        for number in range(files):
            data = content(number)
            member = tarfile.TarInfo(f"usr/share/bench/{number % 40}/{number}")
            member.size, member.mode = len(data), 0o644
            archive.addfile(member, io.BytesIO(data))
