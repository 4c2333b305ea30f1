# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Transfer actions that are cut anywhere and run again end as if nothing had happened."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from cxm import sparse
from tests.fakes.hosts import FRONTEND, Cloud, Cut, Where, is_failure, run
from tests.fakes.transfers import (
    DISK,
    MEMORY,
    NOISE,
    between,
    clone_argv,
    everything,
    has,
    image,
    new_cloud,
    nothing,
    old_image,
    old_image_of_stopped,
    one_disk,
    saved_back_argv,
    stopped_disk,
    stopped_rest,
    tar_image,
    vm_with_rest,
)


@dataclass(frozen=True)
class Scenario:
    """An action, what it starts from, and contents that must exist at every moment."""

    prepare: Callable[[Cloud], None]
    argv: Callable[[Cloud], list[str]]
    precious: tuple[bytes, ...] = ()
    mode: str = "TGZ"

    def run(self, cloud: Cloud, action: str) -> str:
        """Run the action once."""
        return run(cloud, action, *self.argv(cloud), mode=self.mode)


SCENARIOS = {
    "clone": Scenario(nothing, clone_argv, (DISK,)),
    "clone tar": Scenario(tar_image, clone_argv),
    "ln": Scenario(nothing, clone_argv, (DISK,)),
    "clone kernel": Scenario(nothing, lambda cloud: clone_argv(cloud, "kernel")),
    "mkimage": Scenario(
        nothing, lambda cloud: ["8", "raw", cloud.place("solo1", "disk.1"), "42", "0"]
    ),
    "mkswap": Scenario(nothing, lambda cloud: ["8", cloud.place("solo1", "disk.1"), "42", "0"]),
    "context": Scenario(
        nothing,
        lambda cloud: [
            str(cloud.front / "vms" / "42" / "context.sh"),
            cloud.place("solo1", "disk.11"),
            "42",
            "0",
        ],
    ),
    "delete disk": Scenario(
        one_disk, lambda cloud: [cloud.place("solo1", "disk.0"), "42", "1"], (NOISE * 4,)
    ),
    "delete all": Scenario(one_disk, lambda cloud: [cloud.place("solo1"), "42", "0"]),
    "delete stopped": Scenario(
        stopped_disk, lambda cloud: [cloud.place(FRONTEND, "disk.0"), "42", "1"]
    ),
    "mv stop disk": Scenario(one_disk, between("solo1", FRONTEND, "disk.0"), (DISK, NOISE * 4)),
    "mv resume disk": Scenario(stopped_disk, between(FRONTEND, "solo1", "disk.0"), (DISK,)),
    "mv migrate disk": Scenario(one_disk, between("solo1", "solo2", "disk.0"), (DISK,)),
    "mv stop all": Scenario(
        vm_with_rest, between("solo1", FRONTEND), (NOISE * 4, MEMORY * 4, b"name = 'x'\n")
    ),
    "mv resume all": Scenario(stopped_rest, between(FRONTEND, "solo1"), (NOISE * 4, MEMORY * 4)),
    "mv migrate all": Scenario(vm_with_rest, between("solo1", "solo2"), (NOISE * 4, MEMORY * 4)),
    "mvds raw": Scenario(old_image, saved_back_argv, (DISK,), "RAW"),
    "mvds gzip": Scenario(old_image, saved_back_argv, (DISK,), "GZIP"),
    "mvds stopped": Scenario(
        old_image_of_stopped,
        lambda cloud: [cloud.place(FRONTEND, "disk.0"), str(image(cloud, "web")), "42", "1"],
        (DISK,),
        "TGZ",
    ),
}


def _check(cloud: Cloud, scenario: Scenario, *, killed: bool) -> None:
    """After a failure: nothing precious is lost, and nothing is left in the making."""
    for content in scenario.precious:
        assert has(cloud, content), "a content is lost"
    for node in cloud.hosts.values():
        assert not [lv.name for lv in node.state.lvs.values() if "cxm.state=filling" in lv.tags]
        assert not node.state.mounts
    if not killed:
        parts = [path for path in cloud.front.rglob("*") if sparse.is_part(path.name)]
        assert not parts
        assert not list((cloud.front / "tmp").iterdir())


_DEAR = ("mv migrate all", "mv resume all", "mv stop all")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.extensive] if name in _DEAR else [])
        for name in SCENARIOS
    ],
)
def test_cut_anywhere_and_run_again_ends_the_same(cloud_root: Path, name: str) -> None:
    """At every step, the connection or the process ends; afterwards once more, and all is well."""
    scenario, action = SCENARIOS[name], name.split(maxsplit=1)[0]
    good = new_cloud(cloud_root)
    scenario.prepare(good)
    assert scenario.run(good, action) == ""
    expected, steps = everything(good), len(good.steps)
    assert scenario.run(good, action) == ""
    assert everything(good) == expected
    shutil.rmtree(good.root)
    cuts = [
        Cut(step, where, kill) for step in range(steps) for where in Where for kill in (False, True)
    ]
    for cut in cuts:
        cloud = new_cloud(cloud_root)
        scenario.prepare(cloud)
        cloud.cut = cut
        try:
            scenario.run(cloud, action)
        except BaseException as error:
            if not is_failure(error):
                raise
            cloud.revive()
            _check(cloud, scenario, killed=cut.kill)
            scenario.run(cloud, action)
        assert everything(cloud) == expected, cut
        shutil.rmtree(cloud.root)
