# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""How the lab finds an OpenNebula of this machine, and what it changes in a copy of its files."""

from pathlib import Path

import pytest

from cxm.errors import NotFoundError
from lab.oned import attached
from lab.oned.attached import Installed


def install(top: Path, version: str = "7.4.0") -> str:
    """The little of a self-contained OpenNebula that is looked at."""
    for name in ("bin", "etc", "var/remotes"):
        (top / name).mkdir(parents=True)
    (top / "bin" / "oned").touch(mode=0o755)
    (top / "etc" / "oned.conf").touch()
    (top / "var" / "remotes" / "VERSION").write_text(f"{version}\n")
    return str(top)


def test_there_is_none(tmp_path: Path) -> None:
    """The stand-in is used then."""
    assert attached.find({"PATH": str(tmp_path)}) is None


def test_a_self_contained_one(tmp_path: Path) -> None:
    """ONE_LOCATION names it; everything of it is below."""
    location = install(tmp_path / "one")
    found = attached.find({"ONE_LOCATION": location, "PATH": ""})
    assert found == Installed(location)
    assert (found.etc, found.var) == (f"{location}/etc", f"{location}/var")
    assert str(attached.version_of(found)) == "7.4.0"


def test_one_on_the_path(tmp_path: Path) -> None:
    """A system-wide one."""
    location = install(tmp_path / "one")
    found = attached.find({"PATH": f"{location}/bin"})
    assert found == Installed("")
    assert (found.etc, found.var) == ("/etc/one", "/var/lib/one")


def test_a_location_without_oned(tmp_path: Path) -> None:
    """A wrong ONE_LOCATION is said, not passed over."""
    with pytest.raises(NotFoundError, match="there is no program"):
        attached.find({"ONE_LOCATION": str(tmp_path), "PATH": ""})


def test_settings_of_the_copy(tmp_path: Path) -> None:
    """A value or vector that is there is replaced, however it is written; a new one is added."""
    path = tmp_path / "oned.conf"
    path.write_text('# The database\nDb = [ backend = "mysql",\n  passwd = "x" ]\nPORT = 2633\n')
    attached.edit(str(path), {"DB": '[ BACKEND = "sqlite" ]', "HOSTNAME": '"frontend"'})
    text = path.read_text()
    assert "mysql" not in text
    assert 'DB = [ BACKEND = "sqlite" ]\n' in text
    assert 'HOSTNAME = "frontend"\n' in text
    assert "PORT = 2633\n" in text
