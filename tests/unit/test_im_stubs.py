# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""The probes' stubs lie where each OpenNebula looks for them, and each has its module."""

import os
from pathlib import Path

import pytest

from cxm.errors import UsageError
from cxm.one import action

REMOTES = Path(__file__).parents[2] / "remotes"
TREES = ("im-3.6", "im-4.4", "im-5.12")
# What the client of 5.12 to 7.4 opens, and dies of when it is not there.
OPENED = (
    "host/beacon",
    "host/monitor",
    "host/system",
    "vm/execution",
    "vm/monitor",
    "vm/snapshot",
    "vm/status",
)


def leaves(tree: str) -> dict[str, Path]:
    """Files and links of a tree, by their path in it."""
    top = REMOTES / tree
    return {
        str(path.relative_to(top)): path
        for path in top.rglob("*")
        if path.is_symlink() or path.is_file()
    }


def test_stubs_and_actions_are_the_same() -> None:
    """No stub without a module, no module without a stub."""
    stubs = {name for tree in TREES for name in leaves(tree) if not name.endswith(".keep")}
    assert stubs == set(action.ACTIONS["im"])
    for name in stubs:
        assert callable(action.load("im", name).run)


@pytest.mark.parametrize("tree", TREES)
def test_each_stub_is_a_link_that_fits_its_place(tree: str) -> None:
    """A tree is copied to ``im``, with its links: they must have the depth of their target."""
    for name, path in leaves(tree).items():
        if name.endswith(".keep"):
            continue
        target = os.path.normpath(os.path.join("/r/im", os.path.dirname(name), os.readlink(path)))
        assert target == "/r/cxm/action"
        assert action.split_path(f"/r/im/{name}") == ("/r", "im", name)


def test_every_directory_that_is_opened_exists() -> None:
    """Git keeps no empty directory; what keeps it must not run as a probe."""
    for directory in OPENED:
        (each,) = (REMOTES / "im-5.12/cxm-probes.d" / directory).iterdir()
        assert each.name == "probe" or not os.access(each, os.X_OK)


@pytest.mark.parametrize(
    "path", ["/r/im/cxm.d/other", "/r/im/probe", "/r/im/cxm-probes.d/vm/snapshot/probe", "/im/x"]
)
def test_other_paths_are_no_probes(path: str) -> None:
    """What lies elsewhere below ``im`` is not ours."""
    with pytest.raises(UsageError):
        action.split_path(path)
