# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the image of a small real guest: Debian's kernel and busybox, an init of our own.

It boots as PV and as PVH, by kernel and initrd given to Xen or through grub's Xen images from its
disk, answers pings and tells its boot id and a counter over HTTP (see ``lab/guest/``). The same
tree is offered as tar.gz, as a raw file system and as a gzip of that.
"""

import gzip
import hashlib
import io
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from cxm.run import System
from lab.image import NodeImage, locked, make_file_system, node_image
from lab.places import Places
from lab.progress import Progress

GUEST_FILES = os.path.join(os.path.dirname(__file__), "guest")
_RECIPE = "1"
_LABEL = "guest"
_MODULES = ("xen-blkfront", "xen-netfront", "ext4", "crc32c_generic", "isofs")
_DIRECTORIES = (
    *("bin", "boot", "boot/grub", "dev", "etc", "lib", "mnt", "proc", "root", "run", "sbin"),
    *("sys", "tmp", "var", "var/lib", "www"),
)
_GRUB = """set timeout=0
linux /boot/vmlinuz root=auto console=hvc0 quiet
initrd /boot/initrd.img
boot
"""
_RAW_MIB = 48


@dataclass(frozen=True, slots=True)
class GuestImage:
    """The files of one finished guest image."""

    key: str
    directory: str

    def path(self, name: str) -> str:
        return os.path.join(self.directory, name)

    @property
    def tgz(self) -> str:
        """The root file system as tar.gz."""
        return self.path("guest.tar.gz")

    @property
    def kernel(self) -> str:
        """Debian's kernel as it is packaged (xz inside); Xen takes it for PV and PVH."""
        return self.path("vmlinuz")

    @property
    def fast_kernel(self) -> str:
        """The same kernel packed with gzip: Xen unpacks it sooner."""
        return self.path("vmlinux.gz")

    @property
    def initrd(self) -> str:
        return self.path("initrd.img")

    def raw(self, kind: str = "ext4", size_mib: int = _RAW_MIB) -> str:
        """The same tree as a raw file system (ext3 or ext4) of this size, made when absent."""
        path = self.path(f"guest-{kind}-{size_mib}.img")
        with locked(self.path("lock")):
            if not os.path.exists(path):
                with tempfile.TemporaryDirectory(dir=self.directory) as work:
                    tree = os.path.join(work, "tree")
                    os.mkdir(tree)
                    System().run(["tar", "-x", "-f", self.tgz, "-C", tree])
                    make_file_system(tree, os.path.join(work, "raw"), size_mib, _LABEL, kind)
                    os.rename(os.path.join(work, "raw"), path)
        return path

    def raw_gz(self, kind: str = "ext4", size_mib: int = _RAW_MIB) -> str:
        """A gzip of :meth:`raw`."""
        raw = self.raw(kind, size_mib)
        path = raw + ".gz"
        if not os.path.exists(path):
            with open(raw, "rb") as source, _gzip(path + ".new") as target:
                shutil.copyfileobj(source, target, 1 << 20)
            os.rename(path + ".new", path)
        return path


@contextmanager
def _gzip(path: str, level: int = 6) -> Iterator[gzip.GzipFile]:
    """A gzip file that is the same for the same content."""
    with (
        open(path, "wb") as file,
        gzip.GzipFile("", mode="wb", compresslevel=level, fileobj=file, mtime=0) as packed,
    ):
        yield packed


def _guest_files() -> list[str]:
    return sorted(
        os.path.relpath(os.path.join(top, name), GUEST_FILES)
        for top, _, names in os.walk(GUEST_FILES)
        for name in names
    )


def guest_key(image: NodeImage) -> str:
    """The name of the guest image that today's inputs make."""
    digest = hashlib.sha256("\n".join((_RECIPE, image.key, _GRUB, *_MODULES)).encode())
    for name in _guest_files():
        with open(os.path.join(GUEST_FILES, name), "rb") as file:
            digest.update(name.encode() + b"\0" + file.read())
    return digest.hexdigest()[:16]


def ready(places: Places, progress: Progress) -> GuestImage:
    """The guest image that belongs to the nodes' image of today; both are built when absent."""
    return guest_image(places, node_image(places, progress), progress)


def guest_image(places: Places, image: NodeImage, progress: Progress) -> GuestImage:
    """The guest image of the same packages as the nodes' image, from the cache or built now."""
    key = guest_key(image)
    guest = GuestImage(key, places.cached("guests", key))
    with locked(places.cached("guests", "lock")):
        if not os.path.exists(guest.directory):
            with progress.step("building the guest's root file system"):
                _build(guest, image)
    return guest


def _build(guest: GuestImage, image: NodeImage) -> None:
    new = tempfile.mkdtemp(prefix="new-", dir=os.path.dirname(guest.directory))
    try:
        shutil.copyfile(image.path("vmlinuz"), os.path.join(new, "vmlinuz"))
        fast = os.path.join(new, "vmlinux.gz")
        with open(image.path("vmlinux"), "rb") as kernel, _gzip(fast, level=1) as packed:
            shutil.copyfileobj(kernel, packed, 1 << 20)
        initrd = _cpio(_ramdisk_members(image))
        with _gzip(os.path.join(new, "initrd.img"), level=9) as file:
            file.write(initrd)
        _write_tree(image, new)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    os.chmod(new, 0o755)  # noqa: S103 - nothing in it is secret
    os.rename(new, guest.directory)


def module_order(modules_dep: str, wanted: Iterable[str]) -> list[str]:
    """Paths of modules in an order in which each finds what it needs loaded."""
    needs: dict[str, list[str]] = {}
    for line in modules_dep.splitlines():
        path, _, rest = line.partition(":")
        needs[path] = rest.split()
    by_name = {os.path.basename(path).removesuffix(".ko"): path for path in needs}
    order: list[str] = []

    def add(path: str) -> None:
        for needed in reversed(needs[path]):
            add(needed)
        if path not in order:
            order.append(path)

    for name in wanted:
        add(by_name[name])
    return order


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


@dataclass(frozen=True, slots=True)
class _Member:
    """A file of the initial RAM disk."""

    name: str
    mode: int
    data: bytes = b""


def _ramdisk_members(image: NodeImage) -> list[_Member]:
    kit = image.kit
    order = module_order(_read(os.path.join(kit, "modules.dep")).decode(), _MODULES)
    folders = ("bin", "dev", "modules", "proc", "root", "sys")
    members = [_Member(name, 0o40755) for name in folders]
    members.append(_Member("init", 0o100755, _read(os.path.join(GUEST_FILES, "init-ramdisk"))))
    members.append(_Member("bin/busybox", 0o100755, _read(os.path.join(kit, "busybox"))))
    for path in order:
        name = f"modules/{os.path.basename(path)}"
        members.append(_Member(name, 0o100644, _read(os.path.join(kit, path))))
    listed = "".join(f"{os.path.basename(path)}\n" for path in order)
    members.append(_Member("modules/order", 0o100644, listed.encode()))
    return members


def _cpio(members: Iterable[_Member]) -> bytes:
    """An archive as the kernel wants it for its initial RAM disk (cpio, format newc)."""
    out = io.BytesIO()
    ending = _Member("TRAILER!!!", 0)
    for number, member in enumerate((*members, ending), start=1):
        name = member.name.encode() + b"\0"
        fields = (number, member.mode, 0, 0, 1, 0, len(member.data), 0, 0, 0, 0, len(name), 0)
        out.write(b"070701" + b"".join(b"%08X" % field for field in fields) + name)
        out.write(b"\0" * (-out.tell() % 4))
        out.write(member.data)
        out.write(b"\0" * (-out.tell() % 4))
    return out.getvalue()


def _write_tree(image: NodeImage, new: str) -> None:
    with (
        _gzip(os.path.join(new, "guest.tar.gz"), level=9) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as archive,
    ):
        for name in _DIRECTORIES:
            _add(archive, name, tarfile.DIRTYPE, 0o755)
        _add_files(archive, image, new)


def _add_files(archive: tarfile.TarFile, image: NodeImage, new: str) -> None:
    busybox = os.path.join(image.kit, "busybox")
    _add(archive, "bin/busybox", tarfile.REGTYPE, 0o755, _read(busybox))
    os.chmod(busybox, 0o755)  # noqa: S103 - a program
    own = {"poweroff", "reboot"}
    for applet in System().run([busybox, "--list-full"]).stdout.split():
        where = "sbin" if "sbin/" in applet else "bin"
        name = os.path.basename(applet)
        if name not in own | {"busybox"}:
            _add(archive, f"{where}/{name}", tarfile.SYMTYPE, 0o777, link="/bin/busybox")
    _add(archive, "sbin/reboot", tarfile.SYMTYPE, 0o777, link="poweroff")
    for name in _guest_files():
        if name != "init-ramdisk":
            path = os.path.join(GUEST_FILES, name)
            mode = os.stat(path).st_mode & 0o777
            _add(archive, name, tarfile.REGTYPE, mode, _read(path))
    text = {
        "etc/passwd": "root::0:0:root:/root:/bin/sh\n",
        "etc/group": "root:x:0:\n",
        "boot/grub/grub.cfg": _GRUB,
    }
    for name, content in text.items():
        _add(archive, name, tarfile.REGTYPE, 0o644, content.encode())
    for name in ("vmlinuz", "initrd.img"):
        _add(archive, f"boot/{name}", tarfile.REGTYPE, 0o644, _read(os.path.join(new, name)))


def _add(
    archive: tarfile.TarFile,
    name: str,
    kind: bytes,
    mode: int,
    data: bytes = b"",
    *,
    link: str = "",
) -> None:
    member = tarfile.TarInfo(name)
    member.type, member.mode, member.size, member.linkname = kind, mode, len(data), link
    archive.addfile(member, io.BytesIO(data))
