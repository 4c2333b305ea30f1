# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Which datastores a host names, and whose space it says they have."""

import os
from pathlib import Path

from cxm.one.im import datastores
from tests.fakes.observations import VG


def test_only_what_is_known_is_named(tmp_path: Path) -> None:
    """Ours has the volume group's space, another driver's its disk's; others are not named."""
    for name in ("100/7", "100/8", "101/70", "102", "0/7", "images/7"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "102/.monitor").write_text("ssh\n")
    found = {each.id: each for each in datastores.found(str(tmp_path), {7}, VG)}
    assert sorted(found) == [0, 100, 102]
    assert found[100] == datastores.Datastore(100, 100000, 40000, 60000)
    disk = os.statvfs(tmp_path)
    assert found[102].total_mib == disk.f_blocks * disk.f_frsize >> 20
    assert found[102].free_mib <= found[102].total_mib - found[102].used_mib


def test_no_place_for_datastores_is_no_error(tmp_path: Path) -> None:
    """A new host has none yet."""
    assert datastores.found(str(tmp_path / "none"), {7}, VG) == []
