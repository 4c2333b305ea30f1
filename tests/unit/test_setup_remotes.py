# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""The drivers come into the remotes directory as links, and nothing of others is lost."""

import os
from pathlib import Path

import pytest

from cxm.errors import NotFoundError
from cxm.one.version import OneVersion
from cxm.setup import remotes

TREE = str(Path(__file__).parents[2] / "remotes")
V38, V510, V512, V74 = (
    OneVersion(3, 8), OneVersion(5, 10, 5), OneVersion(5, 12), OneVersion(7, 4)
)  # fmt: skip


def _put(root: Path, version: OneVersion, tree: str = TREE) -> remotes.Plan:
    todo = remotes.plan(tree, str(root), version)
    remotes.apply(todo, str(root), str(root.parent / "replaced"))
    return todo


def _all(root: Path) -> set[str]:
    return {os.path.relpath(path, root) for path in root.rglob("*") if not path.is_dir()}


@pytest.mark.parametrize("version", [V38, V510, V512, V74], ids=str)
def test_drivers_are_put_in_place_once(version: OneVersion, tmp_path: Path) -> None:
    """Every stub is a link that leads to the one file, executable; the second run has no work."""
    root = tmp_path / "remotes"
    root.mkdir()
    _put(root, version)
    stub = (root / "cxm/action").resolve()
    assert os.access(stub, os.X_OK)
    for name in ("tm/cxm/clone", "tm/cxm_local/mv", "vmm/cxm/deploy"):
        assert (root / name).is_symlink()
        assert (root / name).resolve() == stub
    assert remotes.plan(TREE, str(root), version).is_empty
    assert not (tmp_path / "replaced").exists()


def test_probes_are_those_of_the_version(tmp_path: Path) -> None:
    """An upgrade of OpenNebula removes the probes of the old one, and nothing of its own."""
    root = tmp_path / "remotes"
    (root / "im/kvm.d").mkdir(parents=True)
    (root / "im/kvm.d/probe").write_text("not ours")
    seen = {}
    for version in (V38, V510, V512, V38):
        _put(root, version)
        seen[version] = {name for name in _all(root) if name.startswith("im/cxm")}
        assert (root / "im/kvm.d/probe").read_text() == "not ours"
    assert seen[V38] == {"im/cxm.d/probe"}
    assert seen[V510] == {"im/cxm-probes.d/probe"}
    assert "im/cxm-probes.d/host/beacon/probe" in seen[V512]
    assert not (root / "im/cxm-probes.d").exists()


def test_original_drivers_are_moved_out_of_the_tree(tmp_path: Path) -> None:
    """They have the same names; OpenNebula would go on copying them to every host."""
    root = tmp_path / "remotes"
    for name in ("tm/cxm/clone", "tm/cxm/cxm_common.sh", "vmm/cxm/deploy", "tm/ssh/clone"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"#!/bin/bash\n# {name}\n")
    todo = _put(root, V74)
    assert set(todo.move) == {"tm/cxm/clone", "tm/cxm/cxm_common.sh", "vmm/cxm/deploy"}
    kept = tmp_path / "replaced"
    assert (kept / "tm/cxm/cxm_common.sh").read_text() == "#!/bin/bash\n# tm/cxm/cxm_common.sh\n"
    assert not (root / "tm/cxm/cxm_common.sh").exists()
    assert (root / "tm/cxm/clone").is_symlink()
    assert (root / "tm/ssh/clone").read_text() == "#!/bin/bash\n# tm/ssh/clone\n"


def test_stubs_of_a_former_version_go(tmp_path: Path) -> None:
    """A stub for an action that is no more would end in an obscure error."""
    root = tmp_path / "remotes"
    root.mkdir()
    _put(root, V74)
    (root / "tm/cxm/old_action").symlink_to("../../cxm/action")
    (root / "cxm/action").write_text("#!/bin/sh\n# The cxm for OpenNebula authors, long ago\n")
    todo = _put(root, V74)
    assert set(todo.remove) >= {"tm/cxm/old_action"}
    assert todo.move == ()
    assert not (root / "tm/cxm/old_action").is_symlink()
    assert (root / "cxm/action").read_bytes() == Path(TREE, "cxm/action").read_bytes()
    assert remotes.plan(TREE, str(root), V74).is_empty


def test_missing_package_is_one_sentence(tmp_path: Path) -> None:
    """Who has only cxm-common is told what to install."""
    with pytest.raises(NotFoundError) as failure:
        remotes.plan(str(tmp_path), str(tmp_path), V74)
    assert failure.value.hint == "install the package cxm-frontend"
