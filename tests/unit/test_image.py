# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Images are known by their content; what cxm does not take is refused, never taken for raw."""

import bz2
import gzip
import io
import json
import lzma
import os
import struct
import subprocess
import tarfile
import threading
import zipfile
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from cxm import content, image, wire
from cxm.content import Content
from cxm.errors import CxmError, DataError, NotFoundError, UnreachableError, UsageError
from cxm.run import System

MIB = 1 << 20


def tar_of(files: dict[str, bytes], **settings: int) -> bytes:
    """A tar archive."""
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w", **settings) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return output.getvalue()


def zstd(data: bytes, *options: str) -> bytes:
    """Data compressed by zstd."""
    return subprocess.run(
        ["zstd", "-q", "-c", *options], input=data, stdout=subprocess.PIPE, check=True
    ).stdout


def iso() -> bytes:
    """The beginning of a CD."""
    return bytes(32768) + b"\x01CD001\x01" + bytes(2041)


def v7_tar() -> bytes:
    """A tar archive of before POSIX: no mark, but a checksum."""
    header = bytearray(512)
    header[:5] = b"hello"
    header[100:108] = b"0000644\0"
    header[124:136] = b"00000000005\0"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + b"world".ljust(512, b"\0") + bytes(1024)


DISK = b"\xfa\xb8\x00\x10".ljust(510, b"\x90") + b"\x55\xaa" + os.urandom(4096 - 512)
TREE = tar_of({"etc/hostname": b"guest\n", "bin/sh": b"#!" * 700})


def recognise(path: Path) -> content.Found:
    """What a file holds."""
    with path.open("rb") as file:
        return content.recognise(file.fileno(), str(path), System())


@pytest.mark.parametrize(
    ("data", "expected", "known"),
    [
        (DISK, Content.RAW, len(DISK)),
        (bytes(MIB), Content.RAW, MIB),
        (gzip.compress(DISK), Content.GZIP, len(DISK)),
        (gzip.compress(bytes(5 * MIB)), Content.GZIP, 5 * MIB),
        (TREE, Content.TAR, len(TREE)),
        (tar_of({"x": b""}, format=tarfile.GNU_FORMAT), Content.TAR, 10240),
        (tar_of({"x": b""}, format=tarfile.PAX_FORMAT), Content.TAR, 10240),
        (v7_tar(), Content.TAR, 2048),
        (gzip.compress(TREE), Content.TAR_GZ, len(TREE)),
        (zstd(DISK), Content.ZSTD, 0),
        (zstd(TREE), Content.TAR_ZST, 0),
        (zstd(bytes(3 * MIB), f"--stream-size={3 * MIB}"), Content.ZSTD, 3 * MIB),
        (zstd(DISK, f"--stream-size={len(DISK)}"), Content.ZSTD, len(DISK)),
        (zstd(bytes(200), "--stream-size=200"), Content.ZSTD, 200),
        (zstd(bytes(300), "--stream-size=300"), Content.ZSTD, 300),
        (zstd(bytes(70000), "--stream-size=70000"), Content.ZSTD, 70000),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else str(value),
)
def test_content_is_recognised(tmp_path: Path, data: bytes, expected: Content, known: int) -> None:
    """Each kind is known by its content, under whatever name."""
    path = tmp_path / "disk.vmdk"
    path.write_bytes(data)
    assert recognise(path) == content.Found(expected, known)


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_cd_is_optical(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    """A CD's disk is as large as the CD."""
    path = tmp_path / "image"
    path.write_bytes(pack(iso()))
    found = recognise(path)
    assert found.is_optical
    assert found.content_bytes == len(iso())


def _zip() -> bytes:
    output = io.BytesIO()
    with zipfile.ZipFile(output, "w") as archive:
        archive.writestr("disk.img", b"x" * 1000)
    return output.getvalue()


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (lzma.compress(DISK), "xz-compressed"),
        (bz2.compress(DISK), "bzip2-compressed"),
        (bz2.compress(b""), "bzip2-compressed"),
        (lzma.compress(DISK, format=lzma.FORMAT_ALONE), "lzma-compressed"),
        (_zip(), "a zip archive"),
        (b"KDMV".ljust(1024, b"\0"), "vmdk"),
        (b"# Disk DescriptorFile\nversion=1\n".ljust(1024, b"\n"), "vmdk"),
        (
            b"<<< Oracle VM VirtualBox Disk Image >>>\n".ljust(64, b"\0") + b"\x7f\x10\xda\xbe",
            "vdi",
        ),
        (b"vhdxfile".ljust(1024, b"\0"), "vhdx"),
        (b"conectix".ljust(1024, b"\0"), "vhd"),
        (bytes(4096) + b"conectix".ljust(512, b"\0"), "vhd"),
        (b"\x7fELF".ljust(1024, b"\0"), "ELF"),
        (b"<!DOCTYPE html><title>404</title>".ljust(512), "web page"),
        (b'\n<?xml version="1.0"?>'.ljust(512), "XML"),
        (b"QFI\xfb\0\0\0\x01".ljust(512, b"\0"), "qcow1"),
        (b"7z\xbc\xaf\x27\x1c".ljust(512, b"\0"), "7-Zip"),
        (gzip.compress(lzma.compress(DISK)), "inside of its gzip, is xz-compressed"),
        (gzip.compress(gzip.compress(DISK)), "inside of its gzip, is another compressed"),
        (gzip.compress(b"QFI\xfb\0\0\0\x03".ljust(512, b"\0")), "inside of its gzip"),
        (zstd(bz2.compress(DISK)), "inside of its zstd, is bzip2-compressed"),
        (b"", "is empty"),
        (b"just a note, no disk\n", "no multiple of 512"),
        (DISK[:-100], "no multiple of 512"),
        (b"\x1f\x8b\x08\xff" + b"\xff" * 600, "damaged gzip"),
        (b"\x28\xb5\x2f\xfd" + b"\xff" * 600, "damaged zstd"),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else value,
)
def test_other_content_is_refused(tmp_path: Path, data: bytes, what: str) -> None:
    """One sentence names the file and what it is."""
    path = tmp_path / "image"
    path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        recognise(path)
    assert what in caught.value.message
    assert str(path) in caught.value.message


@pytest.mark.parametrize(
    ("make", "error", "what"),
    [
        (lambda path: path.mkdir(), UsageError, "is a directory"),
        (lambda path: None, NotFoundError, "does not exist"),
        (os.mkfifo, UsageError, "is no file"),
    ],
)
def test_what_is_no_file_is_refused(
    tmp_path: Path, make: Callable[[Path], object], error: type[CxmError], what: str
) -> None:
    """A directory is never dumped, and a pipe never waited for."""
    path = tmp_path / "image"
    make(path)
    with pytest.raises(error, match=what), image.opened(str(path), System()):
        pass


def test_raw_travels_without_holes(tmp_path: Path) -> None:
    """A raw image is one section with its zeros as lengths."""
    path = tmp_path / "image"
    with path.open("wb") as file:
        file.write(DISK)
        file.truncate(64 * MIB)
    with image.opened(str(path), System()) as source:
        head, *rest = source.items()
    assert head == wire.Section("disk", {})
    assert sum(len(item) for item in rest if isinstance(item, bytes)) <= 1 << 16
    assert source.content_bytes == 64 * MIB


def test_a_gzip_is_measured_unless_its_length_is_certain(tmp_path: Path) -> None:
    """A large one may hold 4 GiB more than it says, unless somebody has stated just that size."""
    path = tmp_path / "image.gz"
    path.write_bytes(gzip.compress(os.urandom(5 * MIB), 1))
    with image.opened(str(path), System()) as source:
        assert source.may_exceed(8 * MIB, is_stated=True)
        assert source.may_exceed(5 * MIB, is_stated=False)
        assert not source.may_exceed(5 * MIB, is_stated=True)
        assert not source.may_exceed((4 << 30) + 5 * MIB, is_stated=True)
        assert not source.may_exceed(6 << 30, is_stated=False)
    path.write_bytes(gzip.compress(os.urandom(MIB), 1))
    with image.opened(str(path), System()) as source:
        assert not source.may_exceed(MIB, is_stated=False)


def test_zstd_without_a_length_is_measured(tmp_path: Path) -> None:
    """What was compressed in a pipe does not say how much it holds."""
    path = tmp_path / "image.zst"
    path.write_bytes(zstd(bytes(MIB), "--no-content-size"))
    with image.opened(str(path), System()) as source:
        assert source.may_exceed(1 << 40, is_stated=True)


def test_the_length_of_an_archive_is_a_hint(tmp_path: Path) -> None:
    """No disk's size follows from it: a large archive is not read twice."""
    path = tmp_path / "image.tar.gz"
    path.write_bytes(gzip.compress(tar_of({"a": os.urandom(5 * MIB)}), 1))
    with image.opened(str(path), System()) as source:
        assert not source.may_exceed(MIB, is_stated=False)


def test_compressed_travels_as_it_is(tmp_path: Path) -> None:
    """What is compressed is not touched, nor compressed again."""
    path = tmp_path / "image"
    path.write_bytes(gzip.compress(TREE))
    with image.opened(str(path), System()) as source:
        _head, *rest = source.items()
        assert not source.is_worth_packing()
    assert b"".join(item for item in rest if isinstance(item, bytes)) == path.read_bytes()


@pytest.mark.parametrize(
    ("data", "expected"),
    [(b"text that repeats itself " * 100_000, True), (os.urandom(2 * MIB), False)],
    ids=["text", "random"],
)
def test_packing_is_decided_by_a_sample(tmp_path: Path, data: bytes, expected: bool) -> None:
    """What does not shrink is not compressed on its way."""
    path = tmp_path / "image"
    with path.open("wb") as file:
        file.seek(10 * MIB)
        file.write(data)
        file.truncate(20 * MIB)
    with image.opened(str(path), System()) as source:
        assert source.is_worth_packing() is expected


def test_an_empty_disk_is_not_packed(tmp_path: Path) -> None:
    """Holes travel as lengths; there is nothing to compress."""
    path = tmp_path / "image"
    with path.open("wb") as file:
        file.truncate(20 * MIB)
    with image.opened(str(path), System()) as source:
        assert not source.is_worth_packing()


@pytest.mark.parametrize("packed", [True, False])
def test_an_image_that_changes_while_it_is_read_is_noticed(tmp_path: Path, packed: bool) -> None:
    """The stream fails before its end, so no node completes a disk of mixed contents."""
    path = tmp_path / "image"
    data = os.urandom(4 * MIB)
    path.write_bytes(gzip.compress(data, 1) if packed else data)

    def read() -> None:
        with image.opened(str(path), System()) as source:
            items = source.items()
            next(items)
            next(items)
            with path.open("r+b") as file:
                file.write(b"\x1f\x8b\x08")
            os.utime(path, ns=(1, 1))
            list(items)

    with pytest.raises(DataError, match="changed while it was read"):
        read()


def test_an_image_that_is_cut_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    """A shorter file is not taken for a complete one."""
    path = tmp_path / "image"
    path.write_bytes(os.urandom(4 * MIB))

    def read() -> None:
        with image.opened(str(path), System()) as source:
            items = source.items()
            next(items)
            next(items)
            os.truncate(path, 2 * MIB)
            list(items)

    with pytest.raises(DataError, match="changed while it was read"):
        read()


def qcow2(path: Path, *options: str, size: str = "8M") -> Path:
    """A qcow2 image of the real tool."""
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", *options, str(path), size], check=True
    )
    return path


def test_qcow2_is_converted_and_nothing_stays(tmp_path: Path) -> None:
    """A qcow2 image travels as the raw disk that it is."""
    raw = tmp_path / "raw"
    raw.write_bytes(DISK + bytes(3 * MIB) + DISK)
    path = tmp_path / "image"
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", str(raw), str(path)], check=True)
    with image.opened(str(path), System()) as source:
        assert source.content is Content.RAW
        assert source.content_bytes == source.file_bytes
        _head, *rest = source.items()
        assert sorted(entry.name for entry in tmp_path.iterdir()) == ["image", "raw"]
    whole = b"".join(bytes(i.length) if isinstance(i, wire.Zeros) else i for i in rest)  # type: ignore[misc]
    assert whole[: raw.stat().st_size] == raw.read_bytes()
    assert not whole[raw.stat().st_size :].strip(b"\0")


def test_qcow2_says_its_real_size(tmp_path: Path) -> None:
    """The disk is as large as the guest sees it, not as the file."""
    with image.opened(str(qcow2(tmp_path / "image", size="100M")), System()) as source:
        assert source.content_bytes == 100 * MIB


@pytest.mark.parametrize("what", ["backing", "data_file"])
def test_qcow2_that_reads_other_files_is_refused(tmp_path: Path, what: str) -> None:
    """An image must not make the frontend read a file of its author's choice."""
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(8 * MIB))
    options = {
        "backing": ["-b", str(secret), "-F", "raw"],
        "data_file": ["-o", f"data_file={tmp_path / 'data'}"],
    }[what]
    path = qcow2(tmp_path / "image", *options)
    with (
        pytest.raises(DataError, match="needs another file"),
        image.opened(str(path), System()),
    ):
        pass


def test_a_damaged_qcow2_is_one_sentence(tmp_path: Path) -> None:
    """The tool's complaint is told, and nothing stays."""
    path = tmp_path / "image"
    header = bytearray(b"QFI\xfb" + struct.pack(">IQIIQ", 3, 0, 0, 16, MIB)).ljust(512, b"\0")
    path.write_bytes(bytes(header))
    with pytest.raises(CxmError) as caught, image.opened(str(path), System()):
        pass
    assert "could not be converted" in caught.value.message
    assert [entry.name for entry in tmp_path.iterdir()] == ["image"]


def test_a_file_as_it_is_is_not_recognised(tmp_path: Path) -> None:
    """A stopped VM's disk and a kernel are sent whatever they hold."""
    path = tmp_path / "kernel"
    path.write_bytes(b"\x7fELF and 3 bytes")
    with image.opened_as_is(str(path)) as source:
        assert source.content is Content.RAW
        assert list(source.items("kernel")) == [wire.Section("kernel", {}), path.read_bytes()]


class _Web(BaseHTTPRequestHandler):
    """A web server with an image, a lie about its length, and nothing else."""

    def do_GET(self) -> None:
        if self.path == "/missing":
            self.send_error(404)
            return
        self.send_response(200)
        promised = len(DISK) + (1000 if self.path == "/cut" else 0)
        self.send_header("Content-Length", str(promised))
        self.end_headers()
        self.wfile.write(DISK)

    def log_message(self, *_args: object) -> None:
        """Say nothing."""


@pytest.fixture
def web() -> object:
    """The address of the web server."""
    server = HTTPServer(("127.0.0.1", 0), _Web)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_image_can_come_from_a_web_server(web: str) -> None:
    """3.x gives SOURCE as an address."""
    with image.opened(f"{web}/image", System()) as source:
        assert source.content is Content.RAW
        _head, *rest = source.items()
    assert rest == [DISK]


@pytest.mark.parametrize(
    ("path", "error", "what"),
    [
        ("/missing", UnreachableError, "cannot be fetched: HTTP Error 404"),
        ("/cut", DataError, f"was cut after {len(DISK)} of"),
    ],
)
def test_a_failed_fetch_is_one_sentence(
    web: str, path: str, error: type[CxmError], what: str
) -> None:
    """What the web server did wrong is told."""
    with pytest.raises(error, match=what), image.opened(f"{web}{path}", System()):
        pass


def test_qemu_reads_our_numbers_as_we_do(tmp_path: Path) -> None:
    """The virtual size that we read from a header is the tool's own."""
    path = qcow2(tmp_path / "image", size="1234567K")
    said = subprocess.run(
        ["qemu-img", "info", "--output=json", str(path)], stdout=subprocess.PIPE, check=True
    ).stdout
    assert recognise(path).content_bytes == json.loads(said)["virtual-size"]
