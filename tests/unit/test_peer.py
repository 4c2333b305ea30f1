# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""What a node says when another one did not answer it."""

from pathlib import Path

import pytest

from cxm.cluster.peer import Peer
from cxm.errors import CommandError, CxmError, UnreachableError
from cxm.names import VmId
from tests.fakes.machine import CLOUD, FakeNode

CASES = [
    (255, "ssh: connect to host 10.0.0.2: No route", "'ssh' failed with exit code 255",
     "the node node2 cannot be reached from node1: ssh: connect to host 10.0.0.2: No route"),
    (255, "", "'ssh' did not finish within 25 s and was ended",
     "the node node2 cannot be reached from node1: 'ssh' did not finish within 25 s and was ended"),
    (-15, "", "'ssh' did not finish within 25 s and was ended",
     "the node node2 did not answer node1: 'ssh' did not finish within 25 s and was ended"),
    (2, "no", "'ssh' failed with exit code 2: no",
     "the node node2 failed to answer node1: 'ssh' failed with exit code 2: no"),
]  # fmt: skip


class Ending(FakeNode):
    """A node whose every command fails in one way."""

    failure: CommandError

    def feed(self, *_args: object, **_more: object) -> None:  # type: ignore[override]
        raise self.failure


@pytest.mark.parametrize(("code", "stderr", "failed", "said"), CASES)
def test_failure_names_the_node(
    tmp_path: Path, code: int, stderr: str, failed: str, said: str
) -> None:
    """That 'ssh' did not finish says nothing to somebody who has a dozen nodes."""
    node = Ending(str(tmp_path))
    node.failure = CommandError(failed, argv=("ssh",), exit_code=code, stderr=stderr)
    with pytest.raises(CxmError) as caught:
        Peer(node.machine(), "node2", "10.0.0.2", "ssh-ed25519 A").ask("release", CLOUD, VmId(7))
    assert caught.value.message == said
    assert isinstance(caught.value, UnreachableError) == (code != 2)
