# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns how a small file is written: whole or not at all, whoever reads it at that moment.

It goes where our own account alone writes. What comes as a stream, is large, or lies where another
account could plant a link, is written by who knows about that (:mod:`cxm.sparse`,
:mod:`cxm.node.directory`, :mod:`cxm.node.kernels`, :mod:`cxm.setup.files`).
"""

import os
from contextlib import suppress
from typing import Final

# Never what is there already: it may be a link, or have another mode.
_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


def write(
    path: str,
    content: str | bytes,
    *,
    mode: int = 0o666,
    owner: tuple[int, int] | None = None,
    directory_mode: int | None = None,
    fresh: str = "",
    sync: bool = False,
) -> None:
    """Replace a file in one step; a failure leaves what was there, and nothing beside it.

    The umask takes from ``mode``, as always. With ``directory_mode`` its directory is made where
    there is none. With ``sync`` even a power loss leaves the old file or the new one.

    ``fresh`` is where the file is until it is whole. By default that is a hidden name of this
    process: several may write at once. What a kill leaves under it nobody finds again, which is
    right in ``/run``; where files stay, a name is given that the next writer takes over.
    """
    data = content.encode() if isinstance(content, str) else content
    directory, name = os.path.split(path)
    fresh = fresh or os.path.join(directory, f".{name}.{os.getpid()}")
    if directory_mode is not None:
        os.makedirs(directory, mode=directory_mode, exist_ok=True)
    with suppress(FileNotFoundError):
        os.unlink(fresh)
    try:
        with open(os.open(fresh, _FLAGS, mode), "wb") as file:
            file.write(data)
            if owner is not None:
                os.fchown(file.fileno(), *owner)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(fresh, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(fresh)
        raise
