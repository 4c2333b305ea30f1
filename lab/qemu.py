# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the command line of a node's QEMU: the hardware of a node, Xen's and dom0's arguments.

The values were found by trial under emulation: ``-cpu max`` and EPYC crash dom0 early, a model
with AVX corrupts ssh; Nehalem with SVM and NPT added runs PV and PVH guests. Without
``norandmaps`` QEMU translates each program anew at every start: a fork and exec took 59 ms instead
of 19, booting 93 s instead of 65 (two processors: 45 s).
"""

from dataclasses import dataclass

from cxm.run import System
from lab import accel
from lab.image import NodeImage
from lab.personality import machine_id
from lab.places import Places
from lab.spec import DATA_SERIAL, NETWORKS, SAN_SERIAL, HostSpec

_TCG = ("-accel", "tcg,thread=multi,tb-size=512")
_TCG_CPU = ("-cpu", "Nehalem,+svm,+npt,vendor=AuthenticAMD")
_KVM = ("-accel", "kvm")
_KVM_CPU = ("-cpu", "host")
_MACHINE = ("-machine", "pc", "-nodefaults", "-display", "none", "-no-user-config")
_XEN = (
    "console=com1 com1=115200 sched=credit "
    "spec-ctrl=no xpti=0 pv-l1tf=0 iommu=0 cpuidle=0 tsc=unstable"
)
_DOM0 = (
    "console=hvc0 root=LABEL=labroot rw quiet mitigations=off audit=0 random.trust_cpu=on "
    "fsck.mode=skip norandmaps"
)
SAN_NODE = "san"  # the name of the SAN disk inside QEMU
SAN_FILE = "san-file"
SAN_BROKEN = "san-broken"
_FIRST_CARD_SLOT = 0x10


@dataclass(frozen=True, slots=True)
class Files:
    """The files of one machine, all in its part of the lab's state."""

    places: Places
    host: str

    def _of(self, name: str) -> str:
        return self.places.of(self.host, name)

    @property
    def root(self) -> str:
        return self._of("root.qcow2")

    @property
    def data(self) -> str:
        return self._of("data.img")

    @property
    def personality(self) -> str:
        return self._of("personality.tar")

    @property
    def control(self) -> str:
        return self._of("qmp.sock")

    @property
    def bmc_control(self) -> str:
        return self._of("bmc-qmp.sock")

    @property
    def console(self) -> str:
        return self._of("console.sock")

    @property
    def off(self) -> str:
        """Exists while the machine's power is off."""
        return self._of("off")

    @property
    def san(self) -> str:
        return self.places.of("san.img")

    @property
    def console_log(self) -> str:
        return self.places.log(f"{self.host}-console")

    @property
    def log(self) -> str:
        return self.places.log(f"{self.host}-qemu")


def version() -> str:
    """QEMU's version: snapshots are used only by the one that wrote them."""
    words = System().run(["qemu-system-x86_64", "--version"]).stdout.split()
    return words[3] if len(words) > 3 else "unknown"  # noqa: PLR2004 - "QEMU emulator version X"


def _quoted(text: str) -> str:
    return text.replace(",", ",,")


def xen_arguments(image: NodeImage, host: HostSpec) -> list[str]:
    """Hypervisor, kernel and initrd, given to QEMU directly: no boot loader."""
    xen = f"{_XEN} dom0_max_vcpus={host.cpus} dom0_mem={host.dom0_mib}M,max:{host.dom0_mib}M"
    dom0 = f"{_DOM0} systemd.hostname={host.name} systemd.machine_id={machine_id(host)}"
    vmlinux, initrd = _quoted(image.path("vmlinux")), _quoted(image.path("initrd"))
    return [
        *_MACHINE,
        "-smp", str(host.cpus),
        "-m", str(host.memory_mib),
        "-kernel", image.path("xen"),
        "-append", xen,
        "-initrd", f"{vmlinux} {_quoted(dom0)},{initrd}",
    ]  # fmt: skip


def _control_arguments(files: Files) -> list[str]:
    log = f"logfile={files.console_log},logappend=on"
    return [
        "-chardev", f"socket,id=control,path={files.control},server=on,wait=off",
        "-mon", "chardev=control,mode=control",
        "-chardev", f"socket,id=bmc,path={files.bmc_control},server=on,wait=off",
        "-mon", "chardev=bmc,mode=control",
        "-chardev", f"socket,id=console,path={files.console},{log},server=on,wait=off",
        "-serial", "chardev:console",
    ]  # fmt: skip


def _disk_arguments(files: Files, host: HostSpec) -> list[str]:
    """The root, the personality, the local data disk and the SAN; nothing is ever flushed."""
    words = [
        "-drive", f"file={files.root},if=none,id=root,format=qcow2,cache=unsafe,discard=unmap",
        "-device", "virtio-blk-pci,drive=root,addr=4,serial=root",
        "-drive", f"file={files.personality},if=none,id=personality,format=raw,readonly=on",
        "-device", "virtio-blk-pci,drive=personality,addr=5,serial=personality",
    ]  # fmt: skip
    if host.data_gib:
        words += _raw_disk("data", "data-file", files.data)
        words += ["-device", f"virtio-blk-pci,drive=data,addr=6,serial={DATA_SERIAL}"]
    if host.san:
        words += _raw_disk(SAN_NODE, SAN_FILE, files.san)
        device = f"virtio-blk-pci,drive={SAN_NODE},addr=7,share-rw=on"
        words += ["-device", f"{device},serial={SAN_SERIAL}"]
    return words


def _raw_disk(name: str, file_name: str, path: str) -> list[str]:
    common = "discard=unmap,cache.direct=off,cache.no-flush=on"
    file_node = f"driver=file,node-name={file_name},filename={_quoted(path)},locking=off"
    disk_node = f"driver=raw,node-name={name},file={file_name},detect-zeroes=unmap"
    return ["-blockdev", f"{file_node},{common}", "-blockdev", f"{disk_node},{common}"]


def _card_arguments(host: HostSpec) -> list[str]:
    words = []
    for network in NETWORKS:
        tap = f"tap,id={network.name},ifname={host.tap(network)},script=no,downscript=no"
        place = f"addr={_FIRST_CARD_SLOT + network.number:#x},romfile="
        card = f"virtio-net-pci,netdev={network.name},mac={network.mac(host.number)},{place}"
        words += ["-netdev", tap, "-device", card]
    return words


def arguments(
    image: NodeImage, files: Files, host: HostSpec, accelerator: str, *, incoming: bool
) -> list[str]:
    """The whole command: a machine that stands still until it is told to go."""
    kvm = accelerator == accel.KVM
    words = ["qemu-system-x86_64", "-name", host.name]
    words += [*(_KVM if kvm else _TCG), *(_KVM_CPU if kvm else _TCG_CPU)]
    words += xen_arguments(image, host)
    words += _control_arguments(files)
    words += _disk_arguments(files, host)
    words += _card_arguments(host)
    words += ["-no-shutdown", "-S"]
    if incoming:
        words += ["-incoming", "defer"]
    return words
