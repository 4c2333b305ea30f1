# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the model of two machines that ``cxm-setup cluster`` makes a cluster of."""

from collections.abc import Callable
from pathlib import Path

from cxm.setup import cluster, jointoken
from cxm.setup.cluster import Options
from tests.fakes.administration import Said
from tests.fakes.clusternode import DEVICE, FakeClusterNode, FakePacemaker, San

GIVEN = Options(
    name="lab",
    nodes=["node1=10.0.0.1", "node2=10.0.0.2"],
    device=DEVICE,
    fencing=[f"node{n}=fence_ipmilan,ip=10.0.1.{n},username=u,password=secret{n}" for n in (1, 2)],
)
FENCES = {"fence-node1", "fence-node2"}


class Pair:
    """Two machines, the disk they share, and the cluster they become."""

    def __init__(self, top: Path) -> None:
        self.san = San()
        self.given = GIVEN
        self.pacemaker = FakePacemaker()
        self.nodes = [
            FakeClusterNode(str(top / f"node{n}"), f"node{n}", f"10.0.0.{n}", self.san)
            for n in (1, 2)
        ]
        self.first, self.second = self.nodes

    def run(self, node: FakeClusterNode, options: Options, *steps: Callable[[], None]) -> str:
        """One call; the steps happen while it waits."""
        said = Said()
        node.steps = list(steps)
        cluster.work(node.world(self.pacemaker, said), options)
        assert not node.steps
        return said.text

    def form(self, *later: Callable[[], None]) -> str:
        """The first node's call, the second's in the middle of it; ``later`` are its last steps."""
        come = self.pacemaker.come
        token: list[str] = []

        def joins() -> None:
            # What the first node has said so far is not known here: the token is packed again.
            token.append(self.token())
            self.run(self.second, Options(join=token[0]), lambda: come("node2"))

        def starts(*names: str) -> Callable[[], None]:
            return lambda: self.pacemaker.started.update(names)

        steps = (
            lambda: come("node1"),
            joins,
            starts("cxm-dlm", "cxm-lvmlockd"),
            lambda: None,  # LVM starts what is common to all groups
            starts("cxm-lockspace"),
            starts(*FENCES, "fence-sbd"),
            *later,
        )
        return self.run(self.first, self.given, *steps)

    def token(self) -> str:
        """What the first node's secrets make."""
        membership, _told = cluster._first(self.first.host(), self.given)
        return jointoken.pack(cluster._with_secrets(self.first.host(), membership))
