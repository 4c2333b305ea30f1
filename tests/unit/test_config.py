# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""A cxmrc is read as a shell would read it, or refused; every mistake is named with its place."""

import os
import random
import shutil
import stat
from dataclasses import fields
from pathlib import Path

import pytest

from cxm import config
from cxm.config import FrontendConfig, GuestType, Mode, NodeConfig, Owner
from cxm.errors import ConfigError, UsageError
from cxm.run import System

# In the shape of an original cxmrc: settings first, then the functions of its drivers.
ORIGINAL = """\
# my cloud's settings
DEBUG=0
VG_NAME=VGSAN          # on all nodes
LV_PREFIX='lv-one'
DEFAULT_LV_SIZE="20G"
MODE=GZIP
COMPRESS_LEVEL=6
DEFAULT_FSTYPE=ext4
VM_FQDN_TEMPLATE="%V.vm.example.org"
XPATH="/usr/bin/xpath"
SHUTDOWN_TIMEOUT=120

function log_it {
    logger -t cxm "$1"
}

lv_of() {
    echo "/dev/$VG_NAME/$1"
}
MODE=RAW
"""


def test_defaults_are_those_of_the_original() -> None:
    """Without a word in the file, a setting has the meaning that users of the original know."""
    settings, warnings = config.frontend("", "cxmrc")
    node, _ = config.node("# nothing\n", "cxmrc")
    assert warnings == []
    assert (settings.mode, settings.compress_level, settings.default_fstype) == (
        Mode.TGZ,
        1,
        "ext3",
    )
    assert (settings.default_lv_size, settings.block_size) == (8192, 1)
    assert settings.shutdown_timeout == 300
    assert settings.default_guest_type is GuestType.AUTO
    assert settings.vm_fqdn_template == "%U-%V.vm.home.net"
    assert (node.vg_name, node.lv_prefix) == ("LVM_XEN", "lv-one")
    assert (node.cfg_dir, node.auto_dir) == ("/etc/xen/vm", "/etc/xen/auto")


def test_original_is_read_up_to_its_code_with_a_warning() -> None:
    """The settings of an original cxmrc count, its functions are named and never run."""
    settings, warnings = config.frontend(ORIGINAL, "cxmrc")
    assert settings.default_lv_size == 20480
    assert settings.mode is Mode.GZIP  # an assignment below the code does not count
    assert settings.default_fstype == "ext4"
    assert any("cxmrc:13: the shell code" in each for each in warnings)
    assert any("VG_NAME is ignored here" in each for each in warnings)
    assert any("XPATH is obsolete" in each for each in warnings)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("VG_NAME=x\n", "cxmrc:1: VG_NAME belongs into the node's /etc/cxm/cxmrc"),
        ("\nBLOCKSIZE=1M\n", "cxmrc:2: unknown setting BLOCKSIZE; did you mean BLOCK_SIZE?"),
        ("mode=RAW\n", "unknown setting mode; did you mean MODE?"),
        ("MODE=FAST\n", "MODE: 'FAST' is none of RAW, GZIP, TGZ"),
        ("COMPRESS_LEVEL=10\n", "COMPRESS_LEVEL: '10' is not a number from 1 to 9"),
        ("DEFAULT_LV_SIZE=big\n", "'big' is not a size"),
        ("BLOCK_SIZE=1G\n", "'1G' is more than 64M"),
        ("DEFAULT_LV_SIZE=0\n", "'0' is no size for a disk"),
        ("DEBUG=perhaps\n", "'perhaps' is neither yes nor no"),
        ("DEFAULT_FSTYPE=ntfs\n", "'ntfs' is not a file system that cxm makes"),
        ("VM_FQDN_TEMPLATE=%U.example.org\n", "it needs at least %V or %I"),
        ("CLOUD_ID=x\n", "'x' is not a cloud id"),
        ("SHUTDOWN_TIMEOUT=$HOME\n", "cxmrc:1: not a setting of the form"),
        ("export MODE=RAW\n", "cxmrc:1: not a setting of the form"),
        ("MODE=RAW; reboot\n", "cxmrc:1: not a setting of the form"),
        ('MODE="RAW\n', "cxmrc:1: not a setting of the form"),
    ],
)
def test_mistake_is_an_error_with_its_place(text: str, message: str) -> None:
    """A wrong file, a misspelt key or a value that cannot be is said with file and line."""
    with pytest.raises(ConfigError) as failure:
        config.frontend(text, "cxmrc")
    assert message in failure.value.sentence()


def test_all_mistakes_are_reported_at_once() -> None:
    """Nobody mends a file one error at a time."""
    with pytest.raises(ConfigError) as failure:
        config.node("LV_PREFX=a\nMODE=RAW\nVG_NAME=-x\n", "/etc/cxm/cxmrc")
    said = failure.value.message
    assert "LV_PREFX; did you mean LV_PREFIX?" in said
    assert "MODE belongs into the frontend's remotes/cxmrc" in said
    assert "'-x' is not the name of a volume group" in said


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "a b", "x" * 128])
def test_volume_group_name_cannot_leave_its_place(name: str) -> None:
    """VG_NAME becomes a part of a path under /dev."""
    with pytest.raises(ConfigError):
        config.node(f'VG_NAME="{name}"\n', "cxmrc")


@pytest.mark.parametrize("path", ["tmp", "/a/../b", "/a b", "/", "//"])
def test_directory_is_absolute_and_plain(path: str) -> None:
    """Root works below TMP_ROOT and CFG_DIR."""
    with pytest.raises(ConfigError):
        config.node(f'CFG_DIR="{path}"\n', "cxmrc")


@pytest.mark.parametrize(
    ("text", "mib"),
    [
        ("8G", 8192),
        ("512m", 512),
        ("10240", 10240),
        ("1.5g", 1536),
        ("1", 1),
        ("1500k", 2),
        ("2GiB", 2048),
    ],
)
def test_size_is_in_lvms_units(text: str, mib: int) -> None:
    """Sizes are as LVM writes them; without a unit they are MiB; fractions are rounded up."""
    assert config.size_mib(text) == mib


@pytest.mark.parametrize("text", ["", "G", "-1", "1 GB of", "1e9", "0", "0x10"])
def test_what_is_no_size_is_refused(text: str) -> None:
    """Nothing is guessed into a size."""
    with pytest.raises(UsageError):
        config.size_mib(text)


@pytest.mark.parametrize("cls", [FrontendConfig, NodeConfig])
def test_sample_gives_the_defaults_and_what_was_given(cls: type) -> None:
    """The commented sample means the defaults, and setting a key in it works."""
    reader = config.frontend if cls is FrontendConfig else config.node
    sample = config.sample(cls, {})
    assert reader(sample, "sample") == (cls(), [])
    for row in fields(cls):
        assert f"\n#{row.name.upper()}=" in sample
    default = fields(cls)[1]
    value = default.metadata["default"]
    assert f'\n{default.name.upper()}="{value}"\n' in config.sample(
        cls, {default.name.upper(): value}
    )


def test_each_key_has_one_owner() -> None:
    """A key belongs to one file only."""
    keys = config.known_keys()
    assert len(keys) == len(set(keys))
    assert {config.owner_of(key) for key in keys} == {Owner.FRONTEND, Owner.NODE}
    assert config.owner_of("NO_SUCH") is None


def test_node_settings_that_others_can_write_are_not_trusted(tmp_path: Path) -> None:
    """Root reads only what nobody but root can change."""
    path = tmp_path / "cxmrc"
    path.write_text("VG_NAME=vg0\n")
    path.chmod(0o666)
    with pytest.raises(ConfigError, match="not trusted"):
        config.read_trusted(str(path))
    if os.geteuid() == 0:
        path.chmod(stat.S_IRUSR | stat.S_IWUSR)
        assert config.read_trusted(str(path)) == "VG_NAME=vg0\n"


def test_missing_file_is_one_sentence(tmp_path: Path) -> None:
    """Who has not run cxm-setup is told to."""
    with pytest.raises(ConfigError, match="cannot be read") as failure:
        config.read(str(tmp_path / "cxmrc"))
    assert failure.value.hint == "cxm-setup writes this file"


# --- the same grammar as a shell ------------------------------------------------------------------

_PIECES = [
    *"abzAZ09_%+,./:@=-",
    *"\"\"''##  \t",
    *"$`\\;&|<>(){}[]*?!~^\r\v\f\x1c\x85",
    "é",
    "\u2028",
    "=",
    "MODE=",
    "VG_NAME=",
    "export ",
    " # note",
]


def _text(rng: random.Random) -> str:
    value = "".join(rng.choice(_PIECES) for _ in range(rng.randrange(6)))
    plain = "".join(rng.choice("abz09_%+,./:@=-") for _ in range(rng.randrange(6)))
    body = rng.choice([value, plain, f'"{value}"', f"'{value}'", f'"{plain}"', f"'{plain}'"])
    after = rng.choice(["", "", " ", "\t# note", " #", "#", value])
    before = rng.choice(["", "", "", " ", "\t", "#", f"# {value}"])
    return f"{before}KEY={body}{after}\n{rng.choice(['', 'OTHER=x', value])}"


@pytest.mark.parametrize("shell", [name for name in ("sh", "bash") if shutil.which(name)])
def test_shell_reads_the_same_values(shell: str, tmp_path: Path) -> None:
    """What we accept, a shell accepts with the same values: a cxmrc may be sourced by others."""
    rng = random.Random(20261123)
    expected: list[tuple[str, str, str]] = []
    while len(expected) < 400:
        text = _text(rng)
        try:
            values = config.parse(text, "cxmrc").values
        except ConfigError:
            continue
        found = {key: assignment.value for key, assignment in values.items()}
        (tmp_path / str(len(expected))).write_bytes(text.encode())
        expected.append((text, found.get("KEY", "unset"), found.get("OTHER", "unset")))
    script = (
        'cd "$1"; n=0; while [ -e "$n" ]; do ( KEY=unset OTHER=unset; . "./$n"; '
        'printf \'%s\\0%s\\0\' "$KEY" "$OTHER" ); n=$((n+1)); done'
    )
    said = System().run([shell, "-c", script, shell, str(tmp_path)])
    read = said.stdout.split("\0")[:-1]
    assert list(zip(read[::2], read[1::2], strict=True)) == [each[1:] for each in expected]
    assert said.stderr == ""
