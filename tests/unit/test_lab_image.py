# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""How images are made: apt's sources of this machine, the kernel, a guest's modules."""

import lzma
from pathlib import Path

import pytest

from cxm.errors import ConfigError, CxmError
from lab import aptconf, image
from lab.guest_image import module_order

_STANZAS = """\
# a comment
Types: deb deb-src
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: https://deb.example/node
Suites: nodistro
Components: main

Types: deb
Enabled: no
URIs: http://mirror.example/debian
Suites: bookworm
Components: main

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main
"""


def test_only_this_suite_of_debian_is_taken_from_sources() -> None:
    """Other vendors' entries, disabled ones and other suites are left out."""
    taken = aptconf.deb822_entries(_STANZAS, "bookworm")
    assert len(taken) == 2
    assert "bookworm-updates" in taken[0]
    assert "debian-security" in taken[1]


def test_one_line_entries_become_stanzas(tmp_path: Path) -> None:
    """A sources.list is understood, with its options."""
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list").write_text(
        "# deb http://mirror.example/debian bookworm main\n"
        "deb [arch=amd64 signed-by=/k.gpg] http://mirror.example/debian bookworm main contrib # x\n"
        "deb http://mirror.example/debian trixie main\n"
        "deb-src http://mirror.example/debian bookworm main\n"
    )
    path = aptconf.write_sources(str(tmp_path), "bookworm", etc=str(tmp_path))
    assert Path(path).read_text().splitlines() == [
        "Types: deb",
        "URIs: http://mirror.example/debian",
        "Suites: bookworm",
        "Components: main contrib",
        "Architectures: amd64",
        "Signed-By: /k.gpg",
    ]


def test_a_machine_without_the_suite_is_told_what_to_add(tmp_path: Path) -> None:
    """No entry for the suite is a configuration error with what to do."""
    (tmp_path / "sources.list.d").mkdir()
    with pytest.raises(ConfigError, match="no sources of Debian's suite bookworm"):
        aptconf.write_sources(str(tmp_path), "bookworm", etc=str(tmp_path))


def test_a_kernel_is_unpacked() -> None:
    """The ELF program is found behind the boot sector; what follows it does not matter."""
    elf = b"\x7fELF" + b"kernel" * 100
    packed = lzma.compress(elf, format=lzma.FORMAT_XZ, check=lzma.CHECK_CRC32)
    assert image.unpack_kernel(b"MZ" + b"\0" * 500 + packed + b"trailer") == elf


@pytest.mark.parametrize(
    "data", [b"no xz at all", b"x" + lzma.compress(b"no ELF", format=lzma.FORMAT_XZ)]
)
def test_a_kernel_of_another_kind_is_refused(data: bytes) -> None:
    """A kernel packed otherwise is an error, not a wrong file."""
    with pytest.raises(CxmError):
        image.unpack_kernel(data)


def test_modules_come_after_what_they_need() -> None:
    """Each module once, behind everything that it depends on."""
    dep = "a/ext4.ko: a/jbd2.ko a/mbcache.ko a/crc16.ko\na/jbd2.ko: a/crc16.ko\na/mbcache.ko:\n"
    dep += "a/crc16.ko:\na/net.ko:\n"
    order = module_order(dep, ["net", "ext4"])
    assert sorted(order) == ["a/crc16.ko", "a/ext4.ko", "a/jbd2.ko", "a/mbcache.ko", "a/net.ko"]
    assert order.index("a/crc16.ko") < order.index("a/jbd2.ko") < order.index("a/ext4.ko")


def test_the_key_of_an_image_is_stable() -> None:
    """The same inputs give the same key."""
    assert image.image_key() == image.image_key()
