# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what tests of transfer actions start from and compare: images, volumes, stopped VMs."""

import gzip
import hashlib
import io
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

from cxm import sparse
from cxm.names import State, Tags, VmId
from tests.fakes.hosts import FRONTEND, Cloud, tree
from tests.fakes.machine import CLOUD, MIB, FakeNode
from tests.fakes.san import San

DATA = Path(__file__).parents[1] / "data" / "one"
NOISE = hashlib.shake_128(b"noise").digest(MIB)
MEMORY = hashlib.shake_128(b"memory").digest(MIB)
# A disk of 4 MiB, one extent of the model, with data, zeros and a tail of zeros.
DISK = NOISE[:500_000] + bytes(MIB) + NOISE + b"the end".ljust(512, b"\0")
DISK = DISK.ljust(4 * MIB, b"\0")


def tar_gz() -> bytes:
    """A root file system as tar.gz."""
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w:gz") as archive:
        for name, data in (("etc/hostname", b"guest\n"), ("srv/noise", NOISE)):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return output.getvalue()


def with_filesystem(kind: str, size_mib: int) -> bytes:
    """A raw image of a file system, as the model of a node recognises one."""
    return (bytes(1024) + f"FS:{kind}".encode().ljust(MIB, b"\0") + NOISE).ljust(
        size_mib * MIB, b"\0"
    )


def new_cloud(root: Path, version: str = "7.4") -> Cloud:
    """A frontend and two standalone hosts; oned knows VM 42 and its images."""
    root.mkdir()
    return _with_records(Cloud(root, "solo1", "solo2"), version)


def new_cluster(root: Path, version: str = "7.4") -> Cloud:
    """The same, but that the hosts are two nodes of a cluster, node1 and node2."""
    root.mkdir()
    return _with_records(Cloud(root, "node1", "node2", san=San(str(root / "san"))), version)


def _with_records(made: Cloud, version: str) -> Cloud:
    vm = (DATA / f"vm-{version}.xml").read_text()
    made.vms[42] = re.sub(r"SIZE><!\[CDATA\[(2048|29)\]", "SIZE><![CDATA[4]", vm)
    made.images[7] = (
        (DATA / f"image-{version}.xml")
        .read_text()
        .replace("2G", "4M")
        .replace("<SIZE>29<", "<SIZE>4<")
    )
    made.images[8] = made.images[7].replace("<ID>7<", "<ID>8<")
    image(made, "web").write_bytes(DISK)
    (made.front / "vms" / "42" / "context.sh").write_text("HOSTNAME='web-1'\n")
    return made


def image(cloud: Cloud, name: str) -> Path:
    """A file of the image datastore."""
    return cloud.front / "datastores" / "1" / name


def volume(
    cloud: Cloud,
    host: str,
    disk: str = "0",
    *,
    vm: int = 42,
    content: bytes = DISK,
    state: State = State.READY,
    name: str = "alice-web1.vm.home.net",
) -> str:
    """Put a volume of a VM on a host, with its link; returns its name."""
    node = cloud.hosts[host]
    lv = f"lv-one-{vm}-{disk}"
    tags = Tags(CLOUD, VmId(vm), disk, state, name).encode()
    node.add_lv(lv, len(content) // MIB, tags=tags, content=content)
    if disk != "checkpoint":
        directory = cloud.directory(host, vm)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"disk.{disk}").symlink_to(node.path("dev", node.vg, lv))
    return lv


def has(cloud: Cloud, content: bytes) -> list[str]:
    """Where a disk's content is complete: volumes that are ready, files of the frontend."""
    found = [
        f"{host}:{lv.name}"
        for host, node in cloud.hosts.items()
        for lv in node.state.lvs.values()
        if "cxm.state=ready" in lv.tags and node.content(lv.name)[: len(content)] == content
    ]
    roots = [cloud.front, *(Path(node.path("datastores")) for node in cloud.hosts.values())]
    return found + [
        str(path.relative_to(cloud.root))
        for root in roots
        for path in root.rglob("*")
        if path.is_file() and not path.is_symlink()
        if not sparse.is_part(path.name) and path.read_bytes() == content
    ]


def meaning(data: bytes) -> object:
    """What an image holds, whatever the times in its archive."""
    if not data.startswith(b"\x1f\x8b"):
        return hashlib.md5(data).hexdigest()
    plain = gzip.decompress(data)
    if plain[257:262] != b"ustar":
        return hashlib.md5(plain).hexdigest()
    with tarfile.open(fileobj=io.BytesIO(plain)) as archive:
        return sorted((member.name, member.type, member.size) for member in archive)


def of_host(node: FakeNode) -> dict[str, object]:
    """All that a host holds."""
    volumes = {
        lv.name: (
            lv.size,
            lv.tags,
            None if lv.name.endswith("-11") else hashlib.md5(node.content(lv.name)).hexdigest(),
            tree(node.tree(lv.name)),
        )
        for lv in node.state.lvs.values()
    }
    assert not node.state.mounts
    assert tree(node.path("tmp")) in ({}, {"cxm": "directory"})
    return {"volumes": volumes, "files": tree(node.path("datastores"))}


def everything(cloud: Cloud) -> dict[str, object]:
    """All that the cloud holds, hosts and frontend."""
    images = {
        path.name: meaning(path.read_bytes())
        for path in (cloud.front / "datastores" / "1").iterdir()
        if path.is_file()
    }
    kept = tree(str(cloud.front / "datastores" / "0"))
    hosts = {name: of_host(node) for name, node in cloud.hosts.items()}
    return {"images": images, "kept": kept, "hosts": hosts}


def nothing(_cloud: Cloud) -> None:
    """Start from a cloud with an image and no volumes."""


def clone_argv(cloud: Cloud, disk: str = "disk.0", name: str = "web") -> list[str]:
    """The arguments of clone of an image to a disk of VM 42 on solo1."""
    return [f"{FRONTEND}:{image(cloud, name)}", cloud.place("solo1", disk), "42", "1"]


def tar_image(cloud: Cloud) -> None:
    """Make the image a tar.gz of files."""
    image(cloud, "web").write_bytes(tar_gz())


def one_disk(cloud: Cloud) -> None:
    """VM 42 has two disks on solo1."""
    volume(cloud, "solo1")
    volume(cloud, "solo1", "1", content=NOISE * 4)


def stopped_disk(cloud: Cloud) -> None:
    """The frontend keeps disk 0 of VM 42."""
    directory = cloud.directory(FRONTEND)
    directory.mkdir(parents=True)
    (directory / "disk.0").write_bytes(DISK)


def vm_with_rest(cloud: Cloud) -> None:
    """What is left when oned has moved the disks: files, the context and the saved memory."""
    volume(cloud, "solo1", "11", content=NOISE * 4)
    volume(cloud, "solo1", "checkpoint", content=MEMORY * 4)
    (cloud.directory("solo1") / "deployment.0").write_text("name = 'x'\n")


def stopped_rest(cloud: Cloud) -> None:
    """The frontend keeps the rest of VM 42: files, the context and the saved memory."""
    directory = cloud.directory(FRONTEND)
    directory.mkdir(parents=True)
    (directory / "volume.11").write_bytes(NOISE * 4)
    (directory / "checkpoint").write_bytes(MEMORY * 4)
    (directory / "deployment.0").write_text("name = 'x'\n")


def old_image(cloud: Cloud) -> None:
    """VM 42 has its persistent disk on solo1; the image has an old content."""
    image(cloud, "web").write_bytes(b"old content".ljust(512, b"."))
    volume(cloud, "solo1")


def saved_back_argv(cloud: Cloud) -> list[str]:
    """The arguments of mvds of that disk."""
    return [cloud.place("solo1", "disk.0"), str(image(cloud, "web")), "42", "1"]


def old_image_of_stopped(cloud: Cloud) -> None:
    """The same for a VM whose disk the frontend keeps."""
    image(cloud, "web").write_bytes(b"old content".ljust(512, b"."))
    stopped_disk(cloud)


def between(source: str, target: str, disk: str = "") -> Callable[[Cloud], list[str]]:
    """The arguments of mv between two machines, of a disk or of all that is left."""

    def argv(cloud: Cloud) -> list[str]:
        return [cloud.place(source, disk), cloud.place(target, disk), "42", "0"]

    return argv
