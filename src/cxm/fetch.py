# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what comes from a web server: images and context files given by their address."""

import os
import re
from collections.abc import Iterator
from typing import Final

from cxm.errors import DataError, UnreachableError

_TIMEOUT_S: Final = 60.0
_CHUNK: Final = 1 << 20
_SCHEMES: Final = ("http://", "https://")


def is_address(text: str) -> bool:
    """Whether a source is fetched from a web server, not read from a file."""
    return text.lower().startswith(_SCHEMES)


def name_of(url: str) -> str:
    """The file name that an address ends with; empty where it has none."""
    _scheme, _slashes, rest = url.partition("://")
    _host, _slash, path = re.split("[?#]", rest, maxsplit=1)[0].partition("/")
    name = path.rpartition("/")[2]
    return "" if name in (".", "..") else name


def _chunks(url: str) -> Iterator[bytes]:
    # The web's modules take longer to import than most actions take: only who fetches pays.
    import http.client  # noqa: PLC0415
    import urllib.request  # noqa: PLC0415

    length = 0
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as response:  # noqa: S310 - checked
            promised = response.headers.get("Content-Length", "")
            while chunk := response.read(_CHUNK):
                length += len(chunk)
                yield chunk
    except http.client.HTTPException as error:
        raise DataError(f"{url} answered with something broken: {error!r}") from error
    except OSError as error:
        raise UnreachableError(f"{url} cannot be fetched: {error}") from error
    if promised.isdecimal() and int(promised) != length:
        raise DataError(f"{url} was cut after {length} of {promised} bytes")


def into(url: str, fd: int) -> None:
    """Write what an address holds into an open file.

    Raises UnreachableError when it cannot be had, DataError when it comes incomplete.
    """
    if not is_address(url):
        raise DataError(f"'{url}' is no address of a web server")
    for chunk in _chunks(url):
        view = memoryview(chunk)
        while view:
            view = view[os.write(fd, view) :]
