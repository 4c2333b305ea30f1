# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns ``make demo``: the main job on real Xen, told step by step, each step checked from outside.

First on a host of its own, then (``lab/demo_cluster.py``) on a cluster of two. What the demo takes
is said before, by tools/plan.

OpenNebula itself is played by its stand-in (``lab/oned``), which calls the real drivers as oned
does; everything that the drivers touch is real.
"""

import argparse
import os
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass

from cxm.errors import CxmError
from lab import demo_cluster, guest_image, installed, lab, traces, visit
from lab.lab import Lab
from lab.oned import scenarios
from lab.oned.cloud import Cloud, Network
from lab.oned.inlab import open_standin
from lab.places import places
from lab.progress import Progress
from lab.spec import BRIDGE, make_spec
from lab.story import Story
from lab.town import NODES

_NAME, _CLUSTER = "demo", "demo-cluster"
_HOST = "solo1"
_PVH, _PV = "10.77.1.150", "10.77.1.151"
_ROWS = "build/demo.json"


@dataclass(frozen=True, slots=True)
class Stage:
    """Where the demonstration plays."""

    lab: Lab
    cloud: Cloud
    story: Story


# What is done around the part that plays on the cluster, for example a watch from outside.
Around = Callable[[Lab], AbstractContextManager[None]]


def _alone(_pair: Lab) -> AbstractContextManager[None]:
    return nullcontext()


def main(argv: list[str] | None = None, *, around: Around = _alone) -> int:
    """Run the demo; exit code 0 only when every step really happened."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave the lab up at the end")
    options = parser.parse_args(argv)
    story = Story()
    try:
        _play(story, around, keep=options.keep)
    except CxmError as error:
        print(f"\ndemo: {error.sentence()}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ndemo: interrupted; everything it started is gone", file=sys.stderr)
        return 1
    finally:
        story.write(_ROWS)
        print(f"\n{story.table()}")
    return 0


def _play(story: Story, around: Around, *, keep: bool) -> None:
    for name in (_NAME, _CLUSTER):
        if lab.running(places(name)):
            lab.down(name)  # of an earlier demo that was kept
    progress = Progress()
    with story.step("Build a Debian node with Xen") as row:
        alone = lab.prepare(make_spec([_HOST]), name=_NAME, progress=progress)
        pair = lab.prepare(make_spec(NODES), name=_CLUSTER, progress=Progress(about="cluster: "))
        row.happened = f"a node image of Debian packages, QEMU with {alone.accelerator}"
    kept = False
    with ExitStack() as stack:
        for running in (alone, pair):
            stack.enter_context(_ended(running, lambda: kept))
        # A cluster waits much: for tokens, for machines that boot. So both parts play at once.
        cluster = story.beside(lambda aside: _on_a_cluster(aside, pair, around))
        _prepare(story, alone)
        with open_standin(alone, "7.4") as cloud:
            _main_job(Stage(alone, cloud, story))
        if not keep:
            alone.down()
        cluster.join()
        kept = keep
    if keep:
        _invite(alone, pair)


@contextmanager
def _ended(running: Lab, kept: Callable[[], bool]) -> Iterator[None]:
    """End a lab when the block ends, unless it shall be kept."""
    try:
        yield
    finally:
        if not kept():
            running.down()


def _on_a_cluster(story: Story, pair: Lab, around: Around) -> None:
    with demo_cluster.prepared(story, pair) as stage, around(pair):
        demo_cluster.play(story, stage)


def _prepare(story: Story, running: Lab) -> None:
    with story.step("Boot it and install cxm") as row:
        installed.bring_up(running)
        machine = running.machine(_HOST)
        version = machine.run(["sh", "-c", "xl info xen_version"]).stdout.strip()
        package = machine.run(["dpkg-query", "-W", "-f=${Version}", "cxm-node"]).stdout
        row.happened = f"{_HOST}: Xen {version}, package cxm-node {package}, set up by cxm-setup"


def _main_job(stage: Stage) -> None:
    story, cloud = stage.story, stage.cloud
    with story.step("Add the host and register the images") as row:
        images = _images(stage)
        row.happened = _describe_images(stage, images)
    with story.step("Deploy two VMs") as row:
        vms = _create_both(stage, images)
        views = [cloud.wait(vm, "RUNNING") for vm in vms]
        row.happened = "; ".join(f"VM {view.id} runs as {view.deploy_id}" for view in views)
    web, db = vms
    with story.step("See them answer over the network") as row:
        seen = [visit.await_status(stage.lab, address) for address in (_PVH, _PV)]
        _require(seen[0].kind == "PVH" and seen[1].kind == "PV", f"the guests are {seen}")
        row.happened = "; ".join(f"{one.kind} guest {one.name} counts {one.count}" for one in seen)
    with story.step("Watch them") as row:
        row.happened = _monitoring(cloud, vms)
    with story.step("Suspend and resume the first") as row:
        row.happened = _suspend_and_resume(stage, web)
    with story.step("Power off the second") as row:
        visit.fetch(stage.lab, _PV, "cgi-bin/note?saved-by-demo")
        row.happened = _power_off(stage, db)
    with story.step("Save its persistent disk back") as row:
        row.happened = _save_back(stage, db, images[1])
    with story.step("Delete both") as row:
        cloud.terminate(web)
        cloud.wait(web, "DONE")
        row.happened = "OpenNebula says DONE for both"
    with story.step("See that nothing is left") as row:
        left = traces.of_vms(stage.lab.machine(_HOST)) + cloud.left_behind()
        _require(not left, f"left behind: {', '.join(left)}")
        row.happened = "no domain, volume, mount, configuration, file or process of a VM"


def _require(condition: bool, otherwise: str) -> None:  # noqa: FBT001 - reads as a sentence
    if not condition:
        raise CxmError(otherwise)


def _images(stage: Stage) -> tuple[int, int]:
    guest = guest_image.ready(stage.lab.places, stage.lab.progress)
    cloud = stage.cloud
    cloud.add_host(_HOST)
    cloud.create_network(Network("lab", BRIDGE, _PVH))
    common = 'TYPE="OS" DEV_PREFIX="xvd" LV_SIZE="256M" FSTYPE="ext4"'
    images = (
        cloud.register_image(guest.tgz, f'NAME="web" {common}'),
        cloud.register_image(guest.tgz, f'NAME="db" PERSISTENT="YES" {common}'),
    )
    for one in images:
        cloud.wait_image(one)
    cloud.wait_host(_HOST)
    return images


def _describe_images(stage: Stage, images: tuple[int, int]) -> str:
    path = stage.cloud.image_source(images[0])
    with tarfile.open(path) as archive:
        files = archive.getmembers()
    size = sum(member.size for member in files)
    return (
        f"{_HOST} is monitored; a root file system of {len(files)} files, {size / 1e6:.0f} MB, "
        f"as tar.gz of {os.path.getsize(path) / 1e6:.0f} MB"
    )


def _create_both(stage: Stage, images: tuple[int, int]) -> list[int]:
    """A PVH guest whose kernel is the host's, and a PV guest that grub boots from its own disk."""
    guest = guest_image.ready(stage.lab.places, stage.lab.progress)
    direct = scenarios.directly(stage.lab.machine(_HOST), guest)
    return [
        stage.cloud.create_vm(
            f'NAME="{name}" CPU="0.5" VCPU="1" MEMORY="{memory_mib}" {how} '
            f'DISK=[IMAGE_ID="{image_id}"] NIC=[NETWORK="lab",IP="{address}"] '
            f'CONTEXT=[NETWORK="YES",SET_HOSTNAME="{name}"]'
        )
        for name, image_id, address, memory_mib, how in (
            ("web", images[0], _PVH, 104, direct),
            ("db", images[1], _PV, 176, 'XEN_TYPE="pv"'),
        )
    ]


def _monitoring(cloud: Cloud, vms: list[int]) -> str:
    views = [cloud.wait_monitored(vm) for vm in vms]
    parts = []
    for view in views:
        seen = view.monitoring
        parts.append(
            f"VM {view.id}: CPU {float(seen['CPU']):.0f} %, {int(seen['MEMORY']) >> 10} MiB, "
            f"{int(seen['NETRX'])} bytes in, {int(seen['NETTX'])} out"
        )
    return "; ".join(parts)


def _suspend_and_resume(stage: Stage, vm: int) -> str:
    before = visit.status(stage.lab, _PVH)
    stage.cloud.suspend(vm)
    stage.cloud.wait(vm, "SUSPENDED")
    domains = [
        line for line in traces.of_vms(stage.lab.machine(_HOST)) if line.startswith("domain:")
    ]
    _require(len(domains) == 1, f"a suspended VM has left only the other domain, not {domains}")
    stage.cloud.resume(vm)
    stage.cloud.wait(vm, "RUNNING")
    after = _same_guest(stage, before)
    return f"memory kept in a volume; same boot, the counter went on from {before.count} to {after}"


def _power_off(stage: Stage, vm: int) -> str:
    stage.cloud.poweroff(vm)
    stage.cloud.wait(vm, "POWEROFF")
    machine = stage.lab.machine(_HOST)
    domains = [line for line in traces.of_vms(machine) if line.startswith("domain:")]
    _require(len(domains) == 1, f"a VM that is off has left only the other domain, not {domains}")
    return "the guest has shut itself down; its disk stays on the host"


def _same_guest(stage: Stage, before: visit.Status) -> int:
    after = visit.await_status(stage.lab, _PVH, lambda now: now.count > before.count)
    _require(after.boot == before.boot, "the guest was booted again instead of going on")
    return after.count


def _save_back(stage: Stage, vm: int, image_id: int) -> str:
    stage.cloud.terminate(vm)
    stage.cloud.wait(vm, "DONE")
    stage.cloud.wait_image(image_id)
    path = stage.cloud.image_source(image_id)
    with tarfile.open(path) as archive:
        found = [
            extracted.read()
            for member in archive
            if member.name.removeprefix("./") == "var/lib/note"
            and (extracted := archive.extractfile(member)) is not None
        ]
    _require(found == [b"saved-by-demo"], f"the image holds {found} instead of the guest's note")
    return (
        f"what the guest wrote is in the image again (tar.gz, {os.path.getsize(path) / 1e6:.0f} MB)"
    )


def _invite(alone: Lab, pair: Lab) -> None:
    first, second = pair.machines
    print(
        f"""
Both labs are still up. Some things to try:
  .venv/bin/cxm-lab --name {_NAME} ssh {alone.machine(_HOST).name}
      look around on the Xen host (xl info, xl list, lvs)
  .venv/bin/cxm-lab --name {_CLUSTER} ssh {second}
      look at the cluster (cxm infos, cxm top, cxm timeline, cxm check)
  .venv/bin/cxm-lab --name {_CLUSTER} power off {second}
      pull the plug of the node under the VM, and watch 'cxm top' on {first}
  eval "$(.venv/bin/cxm-lab --name {_CLUSTER} env)"
      attach your own OpenNebula to it (docs/lab.md)
and when you are done:
  .venv/bin/cxm-lab --name {_NAME} down; .venv/bin/cxm-lab --name {_CLUSTER} down"""
    )


if __name__ == "__main__":
    sys.exit(main())
