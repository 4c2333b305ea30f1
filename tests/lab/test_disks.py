# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""The verbs about disks on a real host: real LVM, file systems and tools, by ssh and sudo.

What a model of them cannot prove: that the tools ask nothing and wipe what they should, that no old
byte shines through, and that a process that is killed leaves nothing which the next does not clear.
"""

# Requirements: 1.6 GiB of memory for solo1.

import gzip
import hashlib
import io
import tarfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from cxm.errors import CxmError, DataError, NotFoundError, RefusedError
from cxm.node.client import RemoteNode
from cxm.wire import Item, Section, Zeros
from lab import installed
from lab.lab import Lab
from lab.machine import Machine
from tests.lab.inplace import node_of

MIB = 1 << 20
NOISE = hashlib.shake_128(b"noise").digest(MIB)
DIRECTORY = "/var/lib/one/datastores/0/42"
SECRET = "what an old tenant wrote"

extensive = pytest.mark.extensive


@pytest.fixture
def node_lab(solo_session: Lab) -> Lab:
    """The lab with solo1, cxm installed."""
    installed.bring_up(solo_session)
    return solo_session


@pytest.fixture
def host(node_lab: Lab) -> Machine:
    """The host itself, as its root sees it."""
    return node_lab.machine("solo1")


@pytest.fixture
def node(node_lab: Lab) -> RemoteNode:
    """The host as the drivers see it."""
    return node_of(node_lab, "solo1")


_ENDED_S = 60.0  # for a helper that has replied; measured: 2 s on a busy machine
# The service that looks after guests, tend, comes and goes by itself.
_LEFT = f"""
lvs --noheadings -o lv_name LVM_XEN
grep LVM_XEN /proc/mounts
ls -A /var/tmp/cxm /run/cxm/lock 2>/dev/null | grep -v :
ls -A {DIRECTORY} 2>/dev/null
pgrep -l 'tar|gzip|zstd|mke2fs'
pgrep -fa '[c]xm-helper [a-z]+-'
true
"""


def shell(host: Machine, script: str) -> str:
    """What a script prints on the host."""
    return host.run(["sh", "-c", script], timeout_s=300).stdout


def write(node: RemoteNode, items: Iterable[Item], *, disk: int = 0, **changes: Any) -> Any:
    """disk-write with the arguments of an ordinary call."""
    args = {
        "vm": 42,
        "disk": disk,
        "dir": DIRECTORY,
        "name": "user-vm42.home.net",
        "size_mib": 64,
        "content": "raw",
        "fstype": None,
        "replace": False,
    }
    return node.upload("disk-write", args | changes, items, pack=True)


def read(node: RemoteNode, form: str, *, disk: int = 0) -> tuple[dict[str, Any], bytes]:
    """disk-read: what the data says about itself, and the data."""
    items: list[Item] = []
    args = {"vm": 42, "disk": disk, "as": form, "fstype": None, "level": 1}
    node.download("disk-read", args, items.extend, pack=True)
    head = items[0]
    assert isinstance(head, Section)
    parts = [bytes(item.length) if isinstance(item, Zeros) else item for item in items[1:]]
    return head.meta, b"".join(part for part in parts if isinstance(part, bytes))


def archive(*members: tarfile.TarInfo | tuple[str, bytes]) -> bytes:
    """A tar.gz of files of a stranger (owner 1234), and of other members."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", format=tarfile.PAX_FORMAT) as file:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                file.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size, info.uid, info.gid, info.mode = len(member[1]), 1234, 4321, 0o4755
            info.pax_headers = {
                "SCHILY.xattr.user.note": "kept",
                "SCHILY.acl.access": "user::rwx,user:77:r--,group::r-x,mask::r-x,other::r-x",
            }
            file.addfile(info, io.BytesIO(member[1]))
    return buffer.getvalue()


def device_node(name: str) -> tarfile.TarInfo:
    """/dev/null in an archive."""
    info = tarfile.TarInfo(name)
    info.type, info.devmajor, info.devminor = tarfile.CHRTYPE, 1, 3
    return info


def leftovers(host: Machine) -> str:
    """Everything that a verb has left on the host, once what is about to end has ended."""
    found = ""

    def none() -> bool:
        nonlocal found
        found = shell(host, _LEFT).strip()
        return found == ""

    with suppress(CxmError):
        host.wait_until(none, timeout_s=_ENDED_S)
    return found


@contextmanager
def old_tenant(host: Machine) -> Iterator[None]:
    """Fill the first GiB of the volume group with an old tenant's file system and secrets."""
    shell(
        host,
        "lvcreate -y -q -n old -L 1g LVM_XEN && "
        f"yes '{SECRET}' | head -c 1G > /dev/LVM_XEN/old; "
        "mke2fs -F -q -t ext4 -E nodiscard /dev/LVM_XEN/old && sync && lvremove -y -f LVM_XEN/old",
    )
    yield


@pytest.mark.parametrize(
    "fstype", ["ext4", *(pytest.param(name, marks=extensive) for name in ("ext2", "ext3", "xfs"))]
)
def test_a_tar_image_becomes_a_file_system(host: Machine, node: RemoteNode, fstype: str) -> None:
    """Files, owners, modes, attributes, ACLs and device nodes arrive and come back."""
    size = 320 if fstype == "xfs" else 64
    image = archive(("etc/hostname", b"vm42\n"), device_node("dev/null"), ("bin/x", NOISE))
    items: list[Item] = [Section("disk.0", {}), image]
    made = write(node, items, content="tar.gz", fstype=fstype, size_mib=size)
    assert made == {"lv": "lv-one-42-0", "size_mib": size, "created": True}
    lv = "/dev/LVM_XEN/lv-one-42-0"
    assert shell(host, f"blkid -p -s TYPE -o value {lv}").strip() == fstype
    assert shell(host, f"readlink {DIRECTORY}/disk.0; stat -c %U {DIRECTORY}").split() == [
        lv,
        "oneadmin",
    ]
    meta, data = read(node, "tar.gz")
    assert (meta["content"], meta["fstype"]) == ("tar.gz", fstype)
    with tarfile.open(fileobj=io.BytesIO(data)) as file:
        found = {member.name: member for member in file}
        program = file.extractfile("./bin/x")
        assert program is not None
        assert program.read() == NOISE
    name = found["./etc/hostname"]
    assert (name.uid, name.gid, name.mode & 0o7777) == (1234, 4321, 0o4755)
    assert name.pax_headers["SCHILY.xattr.user.note"] == "kept"
    assert "user:77:r--" in name.pax_headers["SCHILY.acl.access"]
    null = found["./dev/null"]
    assert (null.type, null.devmajor, null.devminor) == (tarfile.CHRTYPE, 1, 3)
    node.call("disk-remove", {"vm": 42, "disk": 0, "dir": DIRECTORY})
    assert leftovers(host) == ""


def test_no_byte_of_an_old_tenant_is_readable(host: Machine, node: RemoteNode) -> None:
    """In every kind of disk, what was not written reads as zeros; old signatures ask nothing."""
    image = archive(("etc/hostname", b"vm42\n"))
    blank = {"vm": 42, "dir": DIRECTORY, "name": "user-vm42.home.net", "size_mib": 100}
    with old_tenant(host):
        write(node, [Section("d", {}), NOISE, Zeros(3 * MIB), NOISE[:777]], disk=0, size_mib=100)
        write(node, [Section("d", {}), image], disk=1, content="tar.gz", fstype="ext4")
        write(node, [Section("d", {}), image], disk=2, content="tar.gz", fstype="ext3")
        for disk, kind in ((3, "raw"), (4, "swap"), (5, "ext2")):
            node.call("disk-blank", {**blank, "disk": disk, "format": kind})
    found = shell(host, f"grep -c '{SECRET[4:12]}' /dev/LVM_XEN/lv-one-42-*; true").split()
    assert [line.partition(":")[2] for line in found] == ["0"] * 6
    _meta, data = read(node, "raw", disk=0)
    assert data == (NOISE + bytes(3 * MIB) + NOISE[:777]).ljust(100 * MIB, b"\0")
    _meta, data = read(node, "raw", disk=3)
    assert not any(data)


@extensive
@pytest.mark.parametrize(
    ("content", "items", "says"),
    [
        ("gzip", [gzip.compress(NOISE)[: MIB // 2]], "the image is damaged: gzip"),
        ("raw", [NOISE, Zeros(64 * MIB)], "larger than the 64 MiB"),
        ("tar.gz", [archive(("../evil", b"x"))], "outside of its root directory"),
        ("tar.gz", [archive(*((f"f{n}", NOISE) for n in range(80)))], "do not fit into the disk"),
        ("tar", [NOISE], "not a tar archive"),
    ],
    ids=["cut", "too large", "climbs out", "too many files", "no tar"],
)
def test_a_bad_image_leaves_nothing(
    host: Machine, node: RemoteNode, content: str, items: list[Item], says: str
) -> None:
    """One clear sentence that names the host; no volume, mount, link or process."""
    with pytest.raises(DataError, match=f"solo1: .*{says}"):
        write(node, [Section("disk.0", {}), *items], content=content, fstype="ext4")
    assert leftovers(host) == ""


@extensive
def test_a_disk_in_use_stays(host: Machine, node: RemoteNode) -> None:
    """What somebody has open is neither read nor removed, and is marked as wanted no more."""
    write(node, [Section("disk.0", {}), archive(("a", b"a"))], content="tar.gz", fstype="ext4")
    with pytest.raises(NotFoundError, match="VM 42 has no disk 1"):
        read(node, "raw", disk=1)
    shell(host, "mount /dev/LVM_XEN/lv-one-42-0 /mnt")
    with pytest.raises(RefusedError, match="in use"):
        read(node, "raw")
    with pytest.raises(RefusedError, match="in use"):
        node.call("disk-remove", {"vm": 42, "disk": 0, "dir": DIRECTORY})
    assert "cxm.state=delete-requested" in shell(host, "lvs -o lv_tags --noheadings LVM_XEN")
    shell(host, "umount /mnt")
    removed = node.call("vm-remove", {"vm": 42, "dir": DIRECTORY})
    assert removed == {"removed": ["lv-one-42-0", DIRECTORY]}
    assert leftovers(host) == ""


@extensive  # make test kills one amid its data in a VM's whole life (test_killed.py)
@pytest.mark.parametrize("sign", ["TERM", "KILL"])
def test_a_killed_helper_is_repaired_by_the_next(
    host: Machine, node: RemoteNode, sign: str
) -> None:
    """In the middle of unpacking: TERM undoes all at once, KILL is cleared by the next call."""
    image = archive(*((f"f{number}", NOISE) for number in range(24)))
    is_unpacking, may_go_on = threading.Event(), threading.Event()

    def halting() -> Iterator[Item]:
        yield Section("disk.0", {})
        yield image[: len(image) // 2]
        is_unpacking.set()
        may_go_on.wait(120)
        yield image[len(image) // 2 :]

    def kill() -> None:
        is_unpacking.wait(120)
        host.wait_until(["pgrep", "-x", "tar"], timeout_s=120)
        time.sleep(1)
        shell(host, f"pkill -{sign} -f '^/usr/bin/python3 .*/cxm-helper disk-write'")
        may_go_on.set()

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(CxmError, match="solo1"):
        write(node, halting(), content="tar.gz", fstype="ext4")
    killer.join()
    host.wait_until(["sh", "-c", "! pgrep -x tar"], timeout_s=60)
    if sign == "TERM":
        assert leftovers(host) == ""
    made = write(node, [Section("disk.0", {}), image], content="tar.gz", fstype="ext4")
    assert made["created"] is True
    node.call("vm-remove", {"vm": 42, "dir": DIRECTORY})
    assert leftovers(host) == ""


@extensive
def test_what_oneadmin_plants_gains_nothing(host: Machine, node: RemoteNode) -> None:
    """Links and pipes in the VM's directory are not followed; root's files are not readable."""
    shell(
        host,
        f"runuser -u oneadmin -- sh -c 'mkdir -p {DIRECTORY} && cd {DIRECTORY} && echo x > vm.xml "
        "&& ln -s /etc/shadow deployment.0 && mkfifo pipe && ln -s /etc/passwd vm.xml.new "
        "&& ln -s /etc/passwd kernel'",
    )
    before = shell(host, "md5sum /etc/passwd")
    items: list[Item] = []
    node.download("dir-read", {"vm": 42, "dir": DIRECTORY}, items.extend, pack=False)
    assert items == [Section("vm.xml", {"mode": 0o644}), b"x\n"]
    node.upload(
        "file-write",
        {"vm": 42, "dir": DIRECTORY, "file": "kernel"},
        [Section("kernel", {}), b"k"],
        pack=False,
    )
    assert shell(host, "md5sum /etc/passwd") == before
    assert shell(host, f"stat -c %U:%F {DIRECTORY}/kernel").strip() == "oneadmin:regular file"
    with pytest.raises(CxmError, match=r"solo1: .*/etc/42 belongs to others"):
        node.call(
            "disk-blank",
            {
                "vm": 42,
                "disk": 0,
                "dir": "/etc/42",
                "name": "user-vm42.home.net",
                "size_mib": 8,
                "format": "raw",
            },
        )
    assert shell(host, "ls -d /etc/42 2>&1; lvs --noheadings LVM_XEN").count("\n") == 1


@extensive
def test_a_checkpoint_travels(host: Machine, node: RemoteNode) -> None:
    """Files and saved memory of a stopped VM go to a host and come back as they were."""
    sent: list[Item] = [
        Section("deployment.0", {"mode": 0o600}),
        b"name = 'x'\n",
        Section("checkpoint", {"kind": "volume", "size_mib": 64}),
        NOISE,
        Zeros(63 * MIB),
    ]
    args = {"vm": 42, "dir": DIRECTORY}
    node.upload("dir-write", {**args, "name": "user-vm42.home.net"}, sent, pack=True)
    back: list[Item] = []
    node.download("dir-read", args, back.extend, pack=True)
    assert back == sent
    rows = node.call("vm-volumes", {"vm": 42})["volumes"]
    assert [(row["disk"], row["state"]) for row in rows] == [("checkpoint", "ready")]
    node.call("vm-remove", args)
    assert leftovers(host) == ""
