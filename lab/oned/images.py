# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the stand-in's image datastore: files are copied as they are, as with NO_DECOMPRESS."""

import os
import secrets
import shutil

from cxm.errors import NotFoundError, UsageError
from lab.oned.model import Datastore, Image
from lab.oned.profiles import Profile
from lab.oned.templates import Template, single

_MIB = 1 << 20
_TYPES = {"OS": 0, "CDROM": 1, "DATABLOCK": 2}
_TAKEN = ("NAME", "TYPE", "PERSISTENT", "SIZE", "PATH", "SOURCE")


def make(number: int, template: Template, store: Datastore, base: str, profile: Profile) -> Image:
    """The image that a template describes; its file is not there yet."""
    path = single(template, "PATH")
    kind = single(template, "TYPE", "OS").upper()
    if kind not in _TYPES:
        raise UsageError(f"Incorrect TYPE in template: {kind}")
    if path and not os.path.isfile(path):
        raise NotFoundError(f"Cannot read the image file {path}")
    size = int(single(template, "SIZE", "0") or 0)
    if path:
        size = -(-os.path.getsize(path) // _MIB)
    rest = [row for row in template if row[0] not in _TAKEN]
    fstype = ""
    # Which attribute oned keeps outside of the template differs: protocol reference, section 7.
    if (not path and profile.version < (5, 0)) or (5, 8) <= profile.version < (5, 12):
        rest, fstype = [row for row in rest if row[0] != "FSTYPE"], single(rest, "FSTYPE")
    if not single(rest, "DEV_PREFIX") and not (kind == "CDROM" and profile.version >= (5, 0)):
        rest.append(("DEV_PREFIX", "sd" if profile.version >= (6, 0) else "hd"))
    return Image(
        id=number,
        name=single(template, "NAME", f"image-{number}"),
        type=_TYPES[kind],
        persistent=single(template, "PERSISTENT").upper() == "YES",
        path=path,
        source=f"{base}/{store.id}/{secrets.token_hex(16)}",
        size_mib=size,
        datastore=store.id,
        template=rest,
        fstype=fstype,
        format="raw" if profile.image_format else "",
    )


def fill(image: Image, target: str) -> None:
    """Put the image's file where its source says, which is ``target`` for us."""
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if image.path:
        shutil.copyfile(image.path, target)
        return
    with open(target, "wb") as file:
        file.truncate(image.size_mib * _MIB)
