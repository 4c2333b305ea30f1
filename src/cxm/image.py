# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns image files on the frontend: opened, made ready to send, and sent as wire items.

Raw images travel with their holes and zeros as lengths, compressed ones as they are; qcow2 is
converted into an unnamed file first.
"""

import os
import stat
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import IO, Final

from cxm import content, fetch, run, sparse, wire
from cxm.content import Content, Found
from cxm.errors import CommandError, CxmError, DataError, NotFoundError, UsageError

# Where an image that was fetched is kept while it is sent; /tmp is often a small memory disk.
_FETCH_DIR: Final = "/var/tmp"  # noqa: S108 - the files there have no name
_CHUNK: Final = 1 << 20
_GZIPPED: Final = (Content.GZIP, Content.TAR_GZ)
# How many bytes a byte of a deflate stream stands for at most.
_DEFLATE_MOST: Final = 1032
_GZIP_MODULUS: Final = 1 << 32
_CONVERT_TIMEOUT_S: Final = 6 * 3600.0


class Source:
    """An open image, ready to be sent."""

    def __init__(self, file: IO[bytes], shown: str, found: Found) -> None:
        self._fd = file.fileno()
        self._status = os.fstat(self._fd)
        self._shown = shown
        self.content = found.content
        self.content_bytes = found.content_bytes
        self.is_optical = found.is_optical

    @property
    def file_bytes(self) -> int:
        """The length of what is sent, holes included."""
        return self._status.st_size

    def may_exceed(self, size: int, *, is_stated: bool) -> bool:
        """Whether the content may be larger than ``size`` though it does not claim to be.

        A gzip tells its content's length modulo 4 GiB: that is all when so small a file cannot
        hold more, or when it is just the size that somebody has stated, as that of a disk which
        was saved back. Of an archive's length no disk's size follows, so it need not be exact.
        """
        if self.content is Content.ZSTD:
            return not self.content_bytes
        most = self.file_bytes * _DEFLATE_MOST
        if self.content is not Content.GZIP or most < _GZIP_MODULUS:
            return False
        return most > size and not (is_stated and size % _GZIP_MODULUS == self.content_bytes)

    def items(self, name: str = "disk") -> Iterator[wire.Item]:
        """The image as one section; raises DataError when it changes while it is read."""
        yield wire.Section(name, {})
        if self.content.is_compressed:
            yield from _plain(self._fd, self.file_bytes)
        else:
            yield from sparse.read(self._fd, self.file_bytes)
        # Before the section's end is sent: a node never completes a disk of mixed contents.
        now, then = os.fstat(self._fd), self._status
        if (now.st_size, now.st_mtime_ns) != (then.st_size, then.st_mtime_ns):
            raise DataError(
                f"{self._shown} changed while it was read",
                hint="run the action again when nothing writes the image",
            )

    def measure(self, runner: run.Runner) -> int:
        """The length of the content, found by decompressing all of it; raises DataError.

        What a compressed file says about its content is a claim, and a damaged one's is anything.
        """
        if not self.content.is_compressed:
            return self.file_bytes
        argv = ("gzip", "-dc") if self.content in _GZIPPED else ("zstd", "-q", "-d", "-c")
        try:
            with runner.produce(argv, chunks=_plain(self._fd, self.file_bytes)) as output:
                return sum(len(chunk) for chunk in output)
        except CommandError as error:
            raise DataError(f"{self._shown} is damaged: {run.tail(error.stderr)}") from error

    def is_worth_packing(self) -> bool:
        """Whether compression on the way would pay, by a sample of the data."""
        if self.content.is_compressed:
            return False
        before = after = 0
        for sample in _samples(self._fd, self.file_bytes):
            before += len(sample)
            after += len(zlib.compress(sample, 1))
        return after < before * 0.9


def _plain(fd: int, size: int) -> Iterator[bytes]:
    position = 0
    while position < size and (data := os.pread(fd, min(_CHUNK, size - position), position)):
        yield data
        position += len(data)


def _samples(fd: int, size: int, *, count: int = 8, length: int = 1 << 16) -> Iterator[bytes]:
    """Pieces of the data of a file, spread over it; never zeros, which do not travel."""
    end = 0
    for number in range(count):
        try:
            at = os.lseek(fd, max(end, size * number // count), os.SEEK_DATA)
        except OSError:  # no data behind this place
            return
        sample = os.pread(fd, length, at)
        end = at + len(sample)
        if sample.strip(b"\0"):
            yield sample


def _open_file(path: str, stack: ExitStack) -> IO[bytes]:
    """An existing regular file, open; raises a sentence for anything else."""
    try:
        # Without blocking: a pipe in place of an image must not hang the action.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise NotFoundError(f"the image {path} does not exist on the frontend") from None
    except OSError as error:
        raise CxmError(f"the image {path} cannot be read: {error.strerror}") from error
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        os.close(fd)
        what = "a directory" if stat.S_ISDIR(mode) else "no file"
        raise UsageError(f"the image {path} is {what}; cxm takes image files")
    return stack.enter_context(os.fdopen(fd, "rb"))


def _unnamed(directory: str) -> IO[bytes]:
    """A file without a name: it is gone with its last user, however that ends."""
    return tempfile.TemporaryFile(dir=directory)


def _open(source: str, stack: ExitStack) -> IO[bytes]:
    if not fetch.is_address(source):
        return _open_file(source, stack)
    file = stack.enter_context(_unnamed(_FETCH_DIR))
    fetch.into(source, file.fileno())
    return file


def _path_of(file: IO[bytes]) -> str:
    """A path by which a command that we start opens one of our files, even one without a name."""
    return f"/proc/{os.getpid()}/fd/{file.fileno()}"


def _convert(
    file: IO[bytes], source: str, length: int, runner: run.Runner, stack: ExitStack
) -> IO[bytes]:
    """A qcow2 image as raw, in an unnamed file beside it where there is room for such a file."""
    beside = _FETCH_DIR if fetch.is_address(source) else os.path.dirname(source)
    usable = os.access(beside, os.W_OK)
    raw = stack.enter_context(_unnamed(beside if usable else _FETCH_DIR))
    os.ftruncate(raw.fileno(), length)
    try:
        argv = ["qemu-img", "convert", "-n", "--target-is-zero", "-f", "qcow2", "-O", "raw"]
        runner.run(
            [*argv, _path_of(file), _path_of(raw)],
            timeout_s=_CONVERT_TIMEOUT_S,
        )
    except CommandError as error:
        raise CxmError(
            f"the qcow2 image {source} could not be converted: {error.message}",
            hint="the package qemu-utils on the frontend converts qcow2 images",
        ) from error
    return raw


@contextmanager
def opened(source: str, runner: run.Runner) -> Iterator[Source]:
    """An image by its path or web address, recognised; raises what is wrong with it."""
    with ExitStack() as stack:
        file = _open(source, stack)
        found = content.recognise(file.fileno(), source, runner)
        if found.is_qcow2:
            file = _convert(file, source, found.content_bytes, runner, stack)
        yield Source(file, source, found)


@contextmanager
def opened_as_is(source: str) -> Iterator[Source]:
    """Any regular file as raw content, whatever it holds."""
    with ExitStack() as stack:
        file = _open(source, stack)
        length = os.fstat(file.fileno()).st_size
        yield Source(file, source, Found(Content.RAW, length))
