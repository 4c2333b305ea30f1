# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what tests of the disk verbs share: images, ordinary calls, and a picture of a node."""

import hashlib
import io
import os
import tarfile
from pathlib import Path
from typing import Any

from cxm.names import CloudId, State, Tags, VmId, domain_uuid
from cxm.node import guests
from cxm.run import System
from cxm.wire import Item, Section, Zeros
from tests.fakes.call import Answer, ask
from tests.fakes.machine import CLOUD, MIB, OLD_TENANT, FakeNode, Outcome

NOISE = hashlib.shake_128(b"noise").digest(MIB)


def new_node(path: Path) -> FakeNode:
    """A node that also answers ``xl list -v`` from ``state.extra['domains']``."""
    made = FakeNode(str(path))

    def xl(argv: tuple[str, ...], _input: bytes) -> Outcome:
        assert argv == ("xl", "list", "-v")
        head = "Name ID Mem VCPUs State Time(s) UUID Reason-Code Security Label\n"
        rows = [
            f"{name} {number} 128 1 -b---- 1.0 {uuid} - -\n"
            for number, (name, uuid) in enumerate(made.state.extra.get("domains", ()), start=1)
        ]
        return Outcome(head + "".join(rows))

    made.model("xl", xl)
    return made


def section(*parts: bytes | Zeros, name: str = "disk.0", **meta: Any) -> list[Item]:
    """An upload of one section."""
    return [Section(name, meta), *parts]


def tar(*members: tarfile.TarInfo | tuple[str, bytes]) -> bytes:
    """An archive of files, given by name and content, and of other members."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size, info.uid, info.gid = len(member[1]), os.geteuid(), os.getegid()
            archive.addfile(info, io.BytesIO(member[1]))
    return buffer.getvalue()


def special(name: str, kind: bytes, *, target: str = "", device: tuple[int, int] = (0, 0)) -> Any:
    """A member of an archive that is no plain file."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    info.devmajor, info.devminor = device
    info.uid, info.gid = os.geteuid(), os.getegid()
    return info


def zstd(data: bytes) -> bytes:
    """Compressed by the real program."""
    with System().produce(["zstd", "-q", "-c"], chunks=[data]) as output:
        return b"".join(output)


FILES = tar(("etc/hostname", b"vm42\n"), ("bin/sh", b"#!" + NOISE[:5000]))


def directory(node: FakeNode, vm: int) -> str:
    """The VM's directory on the node."""
    return node.path("datastores", "0", str(vm))


def write(
    node: FakeNode, data: list[Item], *, vm: int = 42, disk: int = 0, **changes: Any
) -> Answer:
    """disk-write with the arguments of an ordinary call."""
    args: dict[str, Any] = {
        "vm": vm,
        "disk": disk,
        "dir": directory(node, vm),
        "name": f"user-vm{vm}.home.net",
        "size_mib": 8,
        "content": "raw",
        "fstype": None,
        "replace": False,
    }
    return ask(node.machine(), "disk-write", data, **(args | changes))


def blank(node: FakeNode, *, vm: int = 42, disk: int = 1, made_as: str = "raw") -> Answer:
    """disk-blank with the arguments of an ordinary call."""
    return ask(
        node.machine(),
        "disk-blank",
        vm=vm,
        disk=disk,
        dir=directory(node, vm),
        name=f"user-vm{vm}.home.net",
        size_mib=8,
        format=made_as,
    )


def tags_of(vm: int, kind: str, state: State, cloud: CloudId = CLOUD) -> list[str]:
    """The tags of a volume."""
    return Tags(cloud, VmId(vm), kind, state, f"user-vm{vm}.home.net").encode()


def picture(node: FakeNode) -> dict[str, Any]:
    """All that a node holds, to compare."""
    volumes = {
        lv.name: (
            lv.size,
            lv.tags,
            lv.active,
            lv.filesystem,
            hashlib.sha256(node.content(lv.name)).hexdigest(),
            files(node.tree(lv.name)) if lv.filesystem else {},
        )
        for lv in node.state.lvs.values()
    }
    return {
        "volumes": volumes,
        "mounts": node.state.mounts,
        "tmp": files(node.path("tmp")),
        "dirs": files(node.path("datastores")),
        "dev": sorted(os.listdir(node.path("dev", node.vg))),
    }


def files(root: str) -> dict[str, str]:
    """Every path below ``root`` but the directory that the mounts are made in."""
    found = {}
    for base, directories, names in os.walk(root):
        for name in [*directories, *names]:
            path = os.path.join(base, name)
            key = os.path.relpath(path, root)
            if os.path.islink(path):
                # Where the node is, is no part of its state.
                found[key] = os.path.basename(os.readlink(path))
            elif os.path.isdir(path):
                found[key] = "directory"
            elif os.path.isfile(path):
                found[key] = Path(path).read_bytes().hex()[:64]
            else:
                found[key] = "special"
    return {path: what for path, what in found.items() if path != "cxm"}


def assert_no_old_bytes(node: FakeNode) -> None:
    """No volume of ours holds a byte of the old tenant."""
    for lv in node.state.lvs.values():
        if lv.tags:
            assert OLD_TENANT not in node.content(lv.name), lv.name
            assert OLD_TENANT[:4] not in node.content(lv.name), lv.name


def deployed(node: FakeNode, vm: int) -> None:
    """The VM has been started on this node."""
    guests.write(
        node.machine(),
        guests.Guest(CLOUD, VmId(vm), f"user-vm{vm}.home.net", guests.Life.RUNNING, "started", 0.0),
    )


def content_of(answer: Answer) -> bytes:
    """A download's bytes."""
    parts = [
        bytes(item.length) if isinstance(item, Zeros) else item
        for item in answer.items
        if not isinstance(item, Section)
    ]
    return b"".join(parts)


def read(
    node: FakeNode, form: str, *, vm: int = 42, disk: int = 0, fstype: str | None = None
) -> tuple[Section, Answer]:
    """disk-read; the head of the data and the answer."""
    answer = ask(node.machine(), "disk-read", vm=vm, disk=disk, as_=form, fstype=fstype, level=None)
    head = answer.items[0]
    assert isinstance(head, Section)
    return head, answer


def uuid_of(vm: int) -> str:
    """The UUID of a VM's domain."""
    return domain_uuid(CLOUD, VmId(vm))
