# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the root file system of the nodes: Debian packages, one image for all nodes.

It is made by mmdebstrap from this machine's own apt sources and settings, and cached under a key
that is the content of everything written here and in ``lab/node/``. What makes a node itself
(name, addresses, keys) is not in it: see personality.py.
"""

import fcntl
import gzip
import hashlib
import lzma
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from cxm.errors import CxmError
from cxm.run import System
from lab import aptconf, room
from lab.places import Places
from lab.progress import Progress

SUITE = "bookworm"
NODE_FILES = os.path.join(os.path.dirname(__file__), "node")
ROOT_GIB = 4
_RECIPE = "1"  # raise it when the steps below change what they make
_TMPFS = "/dev/shm"  # noqa: S108 - a directory of our own is made in it
_TMPFS_NEEDED_MIB = 3000
_BUILD_S = 1200.0

# What users' nodes have, what cxm depends on, the cluster stack (installed, not enabled).
PACKAGES = tuple(
    """
    systemd systemd-sysv udev dbus kmod iproute2 iputils-ping openssh-server sudo procps psmisc
    less python3 zstd gzip tar rsync file acl attr util-linux e2fsprogs xfsprogs lvm2 libxml2-utils
    linux-image-amd64 initramfs-tools busybox-static
    xen-hypervisor-4.17-amd64 xen-utils-4.17 xenstore-utils grub-xen-host bridge-utils ruby
    corosync pacemaker pacemaker-cli-utils crmsh resource-agents fence-agents python3-pexpect
    ipmitool sbd dlm-controld lvm2-lockd sanlock gfs2-utils
    """.split()  # noqa: SIM905 - names read better as text
)

# fence-agents depends on the SDKs of public clouds (150 MB); fence_ipmilan needs none of them.
STAND_IN = """Package: lab-no-cloud-sdks
Version: 1
Architecture: all
Maintainer: The cxm lab <root@localhost>
Provides: python3-boto3, python3-googleapi, python3-oauth2client, python3-suds
Description: stands for the cloud SDKs that no fence agent of the lab needs
"""

DISABLED = tuple(
    """
    corosync pacemaker sbd dlm lvmlockd lvmlocks sanlock wdmd logd ipmievd
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap
    fstrim.timer systemd-timesyncd rsync
    """.split()  # noqa: SIM905 - names read better as text
)
ENABLED = ("systemd-networkd", "lab-personality")

EXCLUDED = (
    "/usr/share/man/*",
    "/usr/share/doc/*",
    "/usr/share/locale/*",
    "/lib/modules/*/kernel/drivers/gpu/*",
    "/lib/modules/*/kernel/drivers/media/*",
    "/lib/modules/*/kernel/drivers/net/wireless/*",
    "/lib/modules/*/kernel/drivers/infiniband/*",
    "/lib/modules/*/kernel/sound/*",
)


@dataclass(frozen=True, slots=True)
class NodeImage:
    """A finished image: the disk and what QEMU boots it with."""

    key: str
    directory: str

    def path(self, name: str) -> str:
        return os.path.join(self.directory, name)

    @property
    def root(self) -> str:
        return self.path("root.img")

    @property
    def kit(self) -> str:
        """A directory with kernel, modules and busybox of the same packages, for guests."""
        return self.path("kit")


def _node_files() -> list[str]:
    return sorted(
        os.path.relpath(os.path.join(top, name), NODE_FILES)
        for top, _, names in os.walk(NODE_FILES)
        for name in names
    )


def image_key() -> str:
    """The name of the image that today's inputs make."""
    digest = hashlib.sha256()
    inputs = (_RECIPE, SUITE, *PACKAGES, STAND_IN, *DISABLED, *ENABLED, *EXCLUDED, str(ROOT_GIB))
    digest.update("\n".join(inputs).encode())
    for name in _node_files():
        with open(os.path.join(NODE_FILES, name), "rb") as file:
            digest.update(name.encode() + b"\0" + file.read())
    return digest.hexdigest()[:16]


@contextmanager
def locked(path: str) -> Iterator[None]:
    """Hold a file's lock: one builds, others wait and find the result."""
    with open(path, "w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def node_image(places: Places, progress: Progress) -> NodeImage:
    """The nodes' image, from the cache or built now."""
    key = image_key()
    image = NodeImage(key, places.cached("images", key))
    if os.path.exists(image.path("complete")):
        return image
    log = places.log("image")
    with locked(places.cached("images", "lock")):
        if not os.path.exists(image.path("complete")):
            name = "building the nodes' image from Debian packages"
            with progress.step(name, log, usual="60 s", look=lambda: _stage(log)):
                _build(image, log)
    return image


def _stage(log: str) -> str:
    """What mmdebstrap is doing, by the last of its own headings in its log."""
    try:
        with open(log, encoding="utf-8", errors="replace") as file:
            headings = [line[3:].strip() for line in file if line.startswith("I: ")]
    except OSError:
        return ""
    return headings[-1].rstrip(".")[:80] if headings else ""


@contextmanager
def _workplace(near: str) -> Iterator[str]:
    """A temporary directory, in memory when there is room: fsync costs nothing there."""
    roomy = room.is_memory(_TMPFS) and room.disk_mib(_TMPFS) > _TMPFS_NEEDED_MIB
    where = _TMPFS if roomy and room.memory_mib() > 2 * _TMPFS_NEEDED_MIB else near
    path = tempfile.mkdtemp(prefix="cxm-lab-", dir=where)
    os.chmod(path, 0o755)  # noqa: S103 - apt's own user must enter
    try:
        yield path
    finally:
        System().run(["rm", "-rf", "--one-file-system", path], timeout_s=300)


def _build(image: NodeImage, log: str) -> None:
    parent = os.path.dirname(image.directory)
    with _workplace(parent) as work:
        stand_in = _make_stand_in(work)
        root = os.path.join(work, "root")
        temporary = os.path.join(work, "tmp")
        os.makedirs(temporary, mode=0o1777)
        System().run(
            ["env", f"TMPDIR={temporary}", *_mmdebstrap(root, stand_in, work, log)],
            timeout_s=_BUILD_S,
        )
        _configure(root)
        result = tempfile.mkdtemp(prefix="new-", dir=parent)
        try:
            _extract_boot_files(root, result)
            _extract_kit(root, result)
            make_file_system(root, os.path.join(result, "root.img"), ROOT_GIB << 10, "labroot")
        except BaseException:
            shutil.rmtree(result, ignore_errors=True)
            raise
    os.chmod(result, 0o755)  # noqa: S103 - nothing in it is secret
    shutil.rmtree(image.directory, ignore_errors=True)
    os.rename(result, image.directory)
    with open(image.path("complete"), "w", encoding="utf-8"):
        pass


def _make_stand_in(work: str) -> str:
    tree = os.path.join(work, "stand-in")
    os.makedirs(os.path.join(tree, "DEBIAN"))
    with open(os.path.join(tree, "DEBIAN", "control"), "w", encoding="utf-8") as file:
        file.write(STAND_IN)
    package = os.path.join(work, "stand-in.deb")
    System().run(["dpkg-deb", "--build", "--root-owner-group", tree, package])
    return package


def _mmdebstrap(root: str, stand_in: str, work: str, log: str) -> list[str]:
    sources = aptconf.write_sources(work, SUITE)
    options = [*aptconf.machine_settings(), 'Apt::Install-Recommends "false"']
    dpkg = ["force-unsafe-io", *(f"path-exclude={pattern}" for pattern in EXCLUDED)]
    return [
        "mmdebstrap",
        "--mode=root",
        "--variant=minbase",
        "--format=directory",
        f"--logfile={log}",
        f"--include={','.join(PACKAGES)}",
        *(f"--aptopt={option}" for option in options),
        *(f"--dpkgopt={option}" for option in dpkg),
        f"--setup-hook=copy-in {NODE_FILES}/etc {NODE_FILES}/usr /",
        f"--essential-hook=copy-in {stand_in} /",
        '--essential-hook=chroot "$1" dpkg --install /stand-in.deb',
        '--essential-hook=rm "$1/stand-in.deb"',
        SUITE,
        root,
        sources,
    ]


def _configure(root: str) -> None:
    """Turn the unpacked packages into the root of a node."""
    system = System()
    system.run(["systemctl", f"--root={root}", "disable", *DISABLED], timeout_s=120)
    system.run(["systemctl", f"--root={root}", "enable", *ENABLED], timeout_s=120)
    for name in ("etc/apt/apt.conf.d/99mmdebstrap", "etc/resolv.conf", "etc/hostname"):
        path = os.path.join(root, name)
        if os.path.lexists(path):
            os.unlink(path)
    ssh = os.path.join(root, "etc/ssh")
    for name in os.listdir(ssh):
        if name.startswith("ssh_host_"):
            os.unlink(os.path.join(ssh, name))
    with open(os.path.join(root, "etc/machine-id"), "w", encoding="utf-8"):
        pass  # empty: each node gets its own from its kernel's command line


def _only(directory: str, prefix: str) -> str:
    names = [name for name in os.listdir(directory) if name.startswith(prefix)]
    if len(names) != 1:
        raise CxmError(f"expected one {prefix}* in the new root's {directory}, found {names}")
    return os.path.join(directory, names[0])


def _extract_boot_files(root: str, result: str) -> None:
    """Lay the hypervisor, the kernel and its initrd beside the disk, unpacked for QEMU."""
    boot = os.path.join(root, "boot")
    xen = os.path.join(result, "xen")
    with gzip.open(_only(boot, "xen-4.17-amd64.gz")) as packed, open(xen, "wb") as file:
        shutil.copyfileobj(packed, file)
    vmlinuz = _only(boot, "vmlinuz-")
    shutil.copyfile(vmlinuz, os.path.join(result, "vmlinuz"))
    shutil.copyfile(_only(boot, "initrd.img-"), os.path.join(result, "initrd"))
    with open(vmlinuz, "rb") as file:
        kernel = unpack_kernel(file.read())
    with open(os.path.join(result, "vmlinux"), "wb") as file:
        file.write(kernel)


def unpack_kernel(bz_image: bytes) -> bytes:
    """The ELF kernel inside a bzImage (Debian's are packed with xz)."""
    at = bz_image.find(b"\xfd7zXZ\x00")
    if at < 0:
        raise CxmError("the kernel is not packed with xz; the lab cannot unpack it")
    kernel = lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(bz_image[at:])
    if not kernel.startswith(b"\x7fELF"):
        raise CxmError("what is packed in the kernel file is no ELF program")
    return kernel


def _extract_kit(root: str, result: str) -> None:
    """Keep what guests are made of: busybox, the kernel's release and its modules for guests."""
    kit = os.path.join(result, "kit")
    os.makedirs(kit)
    shutil.copyfile(os.path.join(root, "usr/bin/busybox"), os.path.join(kit, "busybox"))
    modules = _only(os.path.join(root, "usr/lib/modules"), "")
    for name in ("modules.dep", "modules.builtin"):
        shutil.copyfile(os.path.join(modules, name), os.path.join(kit, name))
    with open(os.path.join(kit, "release"), "w", encoding="utf-8") as file:
        file.write(os.path.basename(modules))
    for part in ("fs/ext4", "fs/jbd2", "fs/isofs", "fs/mbcache.ko", "fs/udf", "fs/nls",
                 "drivers/block/xen-blkfront.ko", "drivers/net/xen-netfront.ko",
                 "drivers/cdrom", "lib", "crypto", "arch/x86/crypto"):  # fmt: skip
        source = os.path.join(modules, "kernel", part)
        target = os.path.join(kit, "kernel", part)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if os.path.isdir(source):
            shutil.copytree(source, target)
        elif os.path.exists(source):
            shutil.copyfile(source, target)


def make_file_system(root: str, path: str, size_mib: int, label: str, kind: str = "ext4") -> None:
    """Make a sparse file with a file system that holds a copy of ``root``; needs no privilege."""
    with open(path, "wb") as file:
        file.truncate(size_mib << 20)
    System().run(
        ["mke2fs", "-q", "-F", "-t", kind, "-L", label, "-m", "0",
         "-E", "lazy_itable_init=1,root_owner=0:0", "-d", root, path],
        timeout_s=300,
    )  # fmt: skip
