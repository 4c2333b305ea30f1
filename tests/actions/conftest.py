# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Fixtures for tests of verbs."""

from pathlib import Path

import pytest

from tests.fakes.machine import FakeNode


@pytest.fixture
def node(tmp_path: Path) -> FakeNode:
    """A node with an empty volume group of 1 GiB, full of an old tenant's bytes."""
    return FakeNode(str(tmp_path / "node1"))
