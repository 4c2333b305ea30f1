# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Disks and directories move between hosts and the frontend, and nothing is ever lost."""

import pytest

from cxm.errors import NotFoundError, RefusedError, UnreachableError
from tests.fakes.hosts import FRONTEND, Cloud, run
from tests.fakes.machine import MIB
from tests.fakes.transfers import (
    DISK,
    MEMORY,
    NOISE,
    between,
    everything,
    has,
    image,
    of_host,
    stopped_disk,
    volume,
)


def test_stop_and_resume_bring_everything_back(cloud: Cloud) -> None:
    """Disks, context, memory and files leave the host and come back the same."""
    for disk, content in (("0", DISK), ("1", NOISE * 4), ("11", NOISE[::-1] * 4)):
        volume(cloud, "solo1", disk, content=content)
    volume(cloud, "solo1", "checkpoint", content=MEMORY * 4)
    script = cloud.directory("solo1") / "vm.xml"
    script.write_text("<VM/>")
    script.chmod(0o640)
    before = everything(cloud)
    for source, target in (("solo1", FRONTEND), (FRONTEND, "solo1")):
        for disk in ("disk.0", "disk.1"):
            run(cloud, "mv", *between(source, target, disk)(cloud))
        run(cloud, "mv", *between(source, target)(cloud))
        if target == FRONTEND:
            assert not cloud.hosts["solo1"].state.lvs
            assert not cloud.directory("solo1").exists()
    assert everything(cloud) == before
    assert script.stat().st_mode & 0o777 == 0o640


def test_a_stopped_vm_takes_little_room(cloud: Cloud) -> None:
    """Zeros of a disk are holes on the frontend."""
    volume(cloud, "solo1", content=NOISE.ljust(64 * MIB, b"\0"))
    run(cloud, "mv", *between("solo1", FRONTEND, "disk.0")(cloud))
    kept = cloud.directory(FRONTEND) / "disk.0"
    assert kept.stat().st_size == 64 * MIB
    assert kept.stat().st_blocks * 512 < 2 * MIB


@pytest.mark.parametrize("disk", ["disk.0", ""])
def test_on_one_host_there_is_nothing_to_move(cloud: Cloud, disk: str) -> None:
    """A frontend that is the host itself, or a migration to where the VM is."""
    volume(cloud, "solo1")
    before = everything(cloud)
    run(cloud, "mv", *between("solo1", "solo1", disk)(cloud))
    assert everything(cloud) == before
    assert cloud.steps == []


def test_another_system_datastore_on_the_same_host_is_refused(cloud: Cloud) -> None:
    """One system datastore for each volume group."""
    source = cloud.place("solo1", "disk.0")
    with pytest.raises(RefusedError, match="on the same host solo1"):
        run(cloud, "mv", source, source.replace("/0/42", "/100/42"), "42", "1")


@pytest.mark.parametrize("disk", ["disk.0", ""])
def test_hosts_of_one_volume_group_copy_nothing(cloud: Cloud, disk: str) -> None:
    """The disk of the target is that of the source: a copy and a removal would destroy it."""
    volume(cloud, "solo1")
    cloud.hosts["solo2"].uuid = cloud.hosts["solo1"].uuid
    with pytest.raises(RefusedError, match="have the same volume group"):
        run(cloud, "mv", *between("solo1", "solo2", disk)(cloud))
    assert has(cloud, DISK) != []


def test_a_cold_move_of_a_disk_asks_two_questions(cloud: Cloud) -> None:
    """Each is an ssh connection: whether the target shares the disk, and who holds it."""
    volume(cloud, "solo1")
    run(cloud, "mv", *between("solo1", "solo2", "disk.0")(cloud))
    assert cloud.steps[:2] == [("solo2", "dir-adopt"), ("solo1", "vm-volumes")]
    assert sorted(cloud.steps[2:]) == [
        ("solo1", "disk-read"),
        ("solo1", "disk-remove"),
        ("solo2", "disk-write"),
    ]


def test_a_system_datastore_shared_with_the_frontend_is_refused(cloud: Cloud) -> None:
    """The frontend sees the host's link: a stop would write over it."""
    volume(cloud, "solo1")
    cloud.directory(FRONTEND).mkdir(parents=True)
    link = cloud.directory(FRONTEND) / "disk.0"
    link.symlink_to("/dev/LVM_XEN/lv-one-42-0")
    with pytest.raises(RefusedError) as caught:
        run(cloud, "mv", *between("solo1", FRONTEND, "disk.0")(cloud))
    assert str(link) in caught.value.message
    assert "must not share the system datastore" in caught.value.sentence()
    assert link.is_symlink()
    assert cloud.steps == []


@pytest.mark.parametrize(
    ("source", "target"), [("solo1", FRONTEND), (FRONTEND, "solo1"), ("solo1", "solo2")]
)
def test_a_disk_that_is_nowhere_is_told(cloud: Cloud, source: str, target: str) -> None:
    """Success would mean that the VM has its disk."""
    with pytest.raises(NotFoundError, match=r"disk 0"):
        run(cloud, "mv", *between(source, target, "disk.0")(cloud))


@pytest.mark.parametrize(
    ("source", "target"), [("solo1", FRONTEND), (FRONTEND, "solo1"), ("solo1", "solo2")]
)
def test_the_place_that_is_moved_from_is_the_truth(cloud: Cloud, source: str, target: str) -> None:
    """What an older move, given up half-way, left at the target is replaced."""
    image(cloud, "web").unlink()
    old = b"old".ljust(4 * MIB, b"\0")
    for place, content in ((source, DISK), (target, old)):
        if place == FRONTEND:
            stopped_disk(cloud)
            (cloud.directory(FRONTEND) / "disk.0").write_bytes(content)
        else:
            volume(cloud, place, content=content)
    run(cloud, "mv", *between(source, target, "disk.0")(cloud))
    if source == FRONTEND:
        assert len(has(cloud, DISK)) == 2  # the frontend keeps it until all of the VM has arrived
        run(cloud, "mv", *between(source, target)(cloud))
    assert len(has(cloud, DISK)) == 1
    assert not has(cloud, old)


def test_a_resume_that_fails_half_way_goes_on_elsewhere(cloud: Cloud) -> None:
    """Up to 4.12 oned is back in STOPPED then, and the next host may be another."""
    for disk, content in (("0", DISK), ("1", NOISE * 4)):
        volume(cloud, "solo1", disk, content=content)
    for disk in ("disk.0", "disk.1", ""):
        run(cloud, "mv", *between("solo1", FRONTEND, disk)(cloud))
    run(cloud, "mv", *between(FRONTEND, "solo1", "disk.0")(cloud))
    for disk in ("disk.0", "disk.1", ""):
        run(cloud, "mv", *between(FRONTEND, "solo2", disk)(cloud))
    assert "solo2:lv-one-42-0" in has(cloud, DISK)
    assert has(cloud, NOISE * 4) == ["solo2:lv-one-42-1"]
    assert not cloud.directory(FRONTEND).exists()


def test_a_disk_that_has_not_arrived_comes_with_the_directory(cloud: Cloud) -> None:
    """Whatever removed it meanwhile: the frontend's is the only one."""
    volume(cloud, "solo1", "0", content=DISK)
    for disk in ("disk.0", ""):
        run(cloud, "mv", *between("solo1", FRONTEND, disk)(cloud))
    run(cloud, "mv", *between(FRONTEND, "solo2")(cloud))
    assert "solo2:lv-one-42-0" in has(cloud, DISK)
    assert not cloud.directory(FRONTEND).exists()


def test_a_missing_volume_group_is_not_taken_for_a_finished_move(cloud: Cloud) -> None:
    """The frontend holds an old copy and the host's disks are out of sight: nothing is known."""
    stopped_disk(cloud)
    cloud.hosts["solo1"].has_vg = False
    with pytest.raises(NotFoundError, match="LVM_XEN"):
        run(cloud, "mv", *between("solo1", FRONTEND, "disk.0")(cloud))


def test_a_disk_in_use_is_not_moved(cloud: Cloud) -> None:
    """Its guest runs: the copy would be torn."""
    image(cloud, "web").unlink()
    lv = volume(cloud, "solo1")
    cloud.hosts["solo1"].state.opened.add(lv)
    for target in (FRONTEND, "solo2"):
        with pytest.raises(RefusedError, match="in use"):
            run(cloud, "mv", *between("solo1", target, "disk.0")(cloud))
    assert has(cloud, DISK) == [f"solo1:{lv}"]


def test_a_full_target_loses_nothing(cloud: Cloud) -> None:
    """The target's volume group is full: the source stays as it was."""
    volume(cloud, "solo1")
    cloud.hosts["solo2"].add_lv("other", 1024)
    before = of_host(cloud.hosts["solo1"])
    with pytest.raises(RefusedError, match="free"):
        run(cloud, "mv", *between("solo1", "solo2", "disk.0")(cloud))
    assert of_host(cloud.hosts["solo1"]) == before


def test_a_dead_source_is_told(cloud: Cloud) -> None:
    """A standalone host's disks are on it alone."""
    cloud.dead.add("solo2")
    with pytest.raises(UnreachableError, match="solo2 cannot be reached"):
        run(cloud, "mv", *between("solo2", "solo1", "disk.0")(cloud))
