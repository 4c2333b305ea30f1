# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""From a deployment file of oned to the configuration of a domain, as data and as whole files."""

from dataclasses import replace
from pathlib import Path

import pytest

from cxm.config import GuestType
from cxm.errors import CxmError, DataError, UsageError
from cxm.names import CloudId, DomainName, VmId, domain_uuid
from cxm.one import xml
from cxm.xen import cfgtext, domcfg, from_xen, from_xml
from cxm.xen.choice import Choice, Images, choose
from cxm.xen.guest import Bootloader, Disk, GuestSpec, Nic, Vnc
from cxm.xen.kernel import Kernel
from cxm.xen.words import boot_order, bootloader, guest_type

DATA = Path(__file__).parents[1] / "data"
CLOUD = CloudId("cloudone1")
VM = VmId(42)
IMAGES = Images("/usr/lib/grub-xen/grub-i386-xen_pvh.bin", "/usr/lib/grub-xen/grub-x86_64-xen.bin")
BOTH = Kernel(pvh=True, pv=True)


def read(name: str) -> GuestSpec:
    """The guest of a deployment file in tests/data/deployment."""
    text = (DATA / "deployment" / name).read_text(encoding="utf-8")
    store = "100" if name.endswith("xen") and name != "3.8.xen" else "0"
    directory = f"/var/lib/one/datastores/{store}/42"
    if name.endswith(".xml"):
        record = xml.vm_of(text)
        return from_xml.read(
            record.element, name="", default_type=GuestType.AUTO, directory=directory
        )
    return from_xen.read(text, vm=VM, directory=directory, default_type=GuestType.AUTO)


def render(spec: GuestSpec) -> str:
    """The configuration of a guest."""
    choice = choose(
        spec.guest_type,
        path=spec.kernel,
        kernel=BOTH if spec.kernel else None,
        bootloader=spec.bootloader,
        images=IMAGES,
    )
    return domcfg.render(
        spec.named(DomainName("user-web1.vm.home.net")),
        cloud=CLOUD,
        vm=VM,
        choice=choice,
        ramdisk=spec.ramdisk,
        devices={disk.disk: f"/dev/LVM_XEN/lv-one-42-{disk.disk}" for disk in spec.disks},
    )


@pytest.mark.parametrize("name", ["3.8.xen", "4.14.xen", "5.10.xen", "6.10.xen", "7.4.xml"])
def test_golden_configuration(name: str) -> None:
    """Each version's file becomes exactly the configuration that was reviewed."""
    expected = (DATA / "deployment" / f"{name}.cfg").read_text(encoding="utf-8")
    assert render(read(name)) == expected


def test_3_8_is_read_whole() -> None:
    """Every line of a file of 3.8 is understood, whatever stands before a disk's path."""
    assert read("3.8.xen") == GuestSpec(
        memory_mib=128,
        vcpus=2,
        cpu_weight=256,
        kernel="/boot/vmlinuz-guest",
        ramdisk="/boot/initrd-guest",
        root="/dev/xvda1",
        cmdline="ro console=hvc0",
        disks=(
            Disk("0", "hda"),
            Disk("1", "hde"),
            Disk("10", "hdk", readonly=True),
            Disk("11", "hdb", readonly=True),
        ),
        nics=(
            Nic(mac="02:00:0a:4d:01:64", bridge="xenbr0", ip="10.77.1.100"),
            Nic(mac="02:00:0a:4d:01:65", bridge="xenbr1", model="e1000"),
        ),
        vnc=Vnc("0.0.0.0", 42, "s3cret", "de"),
        options={"serial": "pty", "cpus": "1-3"},
    )


def test_builder_hvm_is_no_wish() -> None:
    """The line that oned writes for a VM without kernel and boot loader leaves the type open."""
    assert read("6.10.xen").guest_type is GuestType.AUTO
    assert read("4.14.xen").guest_type is GuestType.HVM


@pytest.mark.parametrize("version", ["3.8", "4.14", "5.10", "6.10", "7.4"])
def test_xml_of_every_version(version: str) -> None:
    """Disks 1 and 10 and the context disk are told apart in the XML of every version."""
    record = xml.vm_of((DATA / "one" / f"vm-{version}.xml").read_text(encoding="utf-8"))
    spec = from_xml.read(record.element, name="", default_type=GuestType.AUTO, directory="/d/42")
    assert [(disk.disk, disk.target, disk.readonly) for disk in spec.disks] == [
        ("0", "xvda", False),
        ("1", "xvdb", False),
        ("10", "xvdk", False),
        ("11", "xvdc", True),
    ]
    assert spec.bootloader is Bootloader.PYGRUB
    assert spec.memory_mib == 128


class TestXenFile:
    """What a file of oned's Xen driver may hold."""

    BASE = "memory = '64'\n"

    def parse(self, text: str) -> GuestSpec:
        return from_xen.read(
            self.BASE + text, vm=VM, directory="/ds/0/42", default_type=GuestType.AUTO
        )

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("disk = ['phy:/ds/0/421/disk.0,xvda,w']", r"not one of this VM's \(/ds/0/42/disk.N\)"),
            ("disk = ['phy:/ds/0/42/disk.0x,xvda,w']", "not one of this VM's"),
            ("disk = ['phy:/ds/0/42/disk.01,xvda,w']", "not one of this VM's"),
            ("disk = ['phy:/ds/0/42/../43/disk.0,xvda,w']", "not one of this VM's"),
            ("disk = ['phy:/dev/sda,xvda,w']", "not one of this VM's"),
            ("disk = ['phy:/ds/0/42/disk.0,xvda,w,script=/x']", "not one of this VM's"),
            ("disk = 'phy:/ds/0/42/disk.0,xvda,w'", "disk is not a list"),
            ("vif = ['mac=02:00:00:00:00:01,script=/tmp/x']", "'script=/tmp/x', which is not one"),
            ("vif = ['backend=other']", "'backend=other', which is not one"),
            ("vfb = ['type=sdl']", "is not VNC"),
            ("vfb = ['type=vnc,vncpasswd=a,b']", "'b', which is not one of its keys"),
            ("bootloader = '/bin/sh'", "the boot loader '/bin/sh' is not one that cxm runs"),
            ("device_model = '/tmp/x'", "device_model of xl.cfg cannot be given"),
            ("on_crash = 'destroy'", "on_crash of xl.cfg cannot be given"),
            ("uuid = 'x'", "uuid of xl.cfg cannot be given"),
            ("pci = ['01:00.0']", "pci of xl.cfg cannot be given"),
            ("builder = 'x'", "the builder 'x' is unknown"),
            ("type = 'kvm'", "'kvm' is not a type of guest"),
            ("vcpus = 'two'", "vcpus 'two' is not a number"),
            ("import os", "not a 'key = value' of xl.cfg: 'import os'"),
            ("vcpus = __import__('os').getpid()", "not a 'key = value'"),
            ("disk = [", "not a 'key = value'"),
            ("extra = 'a' 'b' + 'c'", "not a 'key = value'"),
        ],
    )
    def test_refuses(self, text: str, message: str) -> None:
        """What is not oned's or harmless is refused, with its line."""
        with pytest.raises(UsageError, match=message) as caught:
            self.parse(text)
        assert "the deployment file, line 2" in caught.value.message

    def test_needs_memory(self) -> None:
        """A file without memory is no guest."""
        with pytest.raises(UsageError, match="names no memory"):
            from_xen.read("vcpus = 1\n", vm=VM, directory="/d", default_type=GuestType.AUTO)

    def test_refuses_the_file_of_another_vm(self) -> None:
        """VM 4's file is never taken for VM 42's."""
        with pytest.raises(UsageError, match="is of VM 4, not of VM 42"):
            self.parse("name = 'one-4'\n")

    @pytest.mark.parametrize("driver", ["raw:", "phy:", "tap:aio:", "tap2:tapdisk:aio:", "", "raw"])
    def test_any_driver_may_stand_before_a_disk(self, driver: str) -> None:
        """The driver that oned believes in says nothing."""
        spec = self.parse(f"disk = ['{driver}/ds//0/42/disk.10,xvda,w',]\n")
        assert spec.disks == (Disk("10", "xvda"),)

    def test_raw_comes_last_and_wins(self) -> None:
        """The last of two statements holds, as for xl."""
        assert self.parse("extra = '1'\nextra = '3'  # RAW\n").cmdline == "3"

    @pytest.mark.parametrize(
        "raw",
        [
            "memory = 65536",
            "vcpus = 3",
            "kernel = '/boot/other'",
            "vif = ['bridge=br-admin,mac=02:00:00:00:00:01']",
            "disk = []",
        ],
    )
    def test_raw_replaces_nothing_that_opennebula_counts(self, raw: str) -> None:
        """Nor does a quote in the template that ends a value."""
        before = "vcpus = 1\nkernel = '/k'\nvif = []\ndisk = []\n"
        with pytest.raises(UsageError, match="it states what the template says already"):
            self.parse(before + raw)


class TestXml:
    """What OpenNebula's XML of a VM may hold."""

    def parse(self, template: str, more: str = "") -> GuestSpec:
        text = f"<VM><ID>42</ID><TEMPLATE><MEMORY>64</MEMORY>{template}</TEMPLATE>{more}</VM>"
        return from_xml.read(
            xml.vm_of(text).element, name="x", default_type=GuestType.HVM, directory="/ds/0/42"
        )

    def test_context_without_a_number(self) -> None:
        """In 3.6 the context disk follows the others."""
        disk = "<DISK><DISK_ID>0</DISK_ID><TARGET>hda</TARGET></DISK>"
        spec = self.parse(disk + "<CONTEXT><TARGET>hdb</TARGET></CONTEXT>")
        assert spec.disks[1] == Disk("1", "hdb", readonly=True, cdrom=True)

    @pytest.mark.parametrize(
        ("template", "more", "expected"),
        [
            ("", "", GuestType.HVM),
            ("<XEN_TYPE>pv</XEN_TYPE>", "", GuestType.PV),
            ("", "<USER_TEMPLATE><XEN_TYPE> PVH </XEN_TYPE></USER_TEMPLATE>", GuestType.PVH),
            ("<RAW><TYPE>xen</TYPE><DATA>type='pv'</DATA></RAW>", "", GuestType.PV),
        ],
    )
    def test_type_of_the_guest(self, template: str, more: str, expected: GuestType) -> None:
        """XEN_TYPE is found wherever that version keeps it; the default holds without it."""
        assert self.parse(template, more).guest_type is expected

    @pytest.mark.parametrize(
        ("template", "message"),
        [
            ("<XEN_TYPE>kvm</XEN_TYPE>", "'kvm' is not a type of guest"),
            ("<DISK><DISK_ID>0</DISK_ID><TARGET>vda</TARGET></DISK>", "'vda' is not one that Xen"),
            ("<DISK><DISK_ID>0</DISK_ID></DISK>", "disk 0: the target ''"),
            ("<RAW><TYPE>xen</TYPE><DATA>kernel='/x'</DATA></RAW>", "kernel of xl.cfg"),
            ("<RAW><TYPE>xen</TYPE><DATA>&lt;x/&gt;</DATA></RAW>", "RAW, line 1"),
            ("<VCPU>1.5</VCPU>", "VCPU '1.5' is not a whole number"),
            ("<OS><BOOT>floppy</BOOT></OS>", "'floppy' of OS/BOOT"),
            ("<GRAPHICS><TYPE>VNC</TYPE><PORT>80</PORT></GRAPHICS>", "VNC display -5820"),
        ],
    )
    def test_refuses(self, template: str, message: str) -> None:
        """A template that Xen cannot run is refused with a sentence."""
        with pytest.raises(UsageError, match=message):
            self.parse(template)

    def test_needs_a_template(self) -> None:
        """A VM without a template is no guest."""
        element = xml.vm_of("<VM><ID>42</ID></VM>").element
        with pytest.raises(DataError, match="no TEMPLATE"):
            from_xml.read(element, name="", default_type=GuestType.PV, directory="/d")

    @pytest.mark.parametrize(("cpu", "weight"), [("1", 256), ("0.1", 26), ("2.5", 640), ("", None)])
    def test_cpu_becomes_weight(self, cpu: str, weight: int | None) -> None:
        """One CPU is Xen's default weight."""
        assert self.parse(f"<CPU>{cpu}</CPU>").cpu_weight == weight


class TestWords:
    """Words of templates."""

    def test_boot_loaders(self) -> None:
        """Pygrub under any path, or the guest's own grub; nothing else is run by root."""
        assert bootloader("/usr/lib/xen-4.17/bin/pygrub") is Bootloader.PYGRUB
        assert bootloader("grub") is Bootloader.NONE
        with pytest.raises(UsageError):
            bootloader("/tmp/grub")

    def test_boot_order(self) -> None:
        """Old and new words mean the same devices."""
        assert boot_order("hd,cdrom,network") == "cdn"
        assert boot_order("disk0,disk1,nic0") == "cn"
        assert boot_order("") == ""

    def test_types(self) -> None:
        """Types are written as the template likes."""
        assert guest_type("PVH") is GuestType.PVH


CONTEXT = Disk("9", "sda", readonly=True, cdrom=True)


def _listed(text: str, key: str) -> tuple[str, ...]:
    found = cfgtext.parse(text, "x").get(key)
    assert isinstance(found, tuple)
    return found


class TestConfiguration:
    """The stored configuration."""

    def test_what_is_written_is_read_back(self) -> None:
        """Name, UUID, memory and volumes come out as they went in."""
        stored = domcfg.read(render(read("3.8.xen")), "x")
        assert stored == domcfg.Stored(
            DomainName("user-web1.vm.home.net"),
            domain_uuid(CLOUD, VM),
            128,
            ("lv-one-42-0", "lv-one-42-1", "lv-one-42-10", "lv-one-42-11"),
        )

    @pytest.mark.parametrize("text", ["", "name = 'x'\n", "garbage", "name = 'x'\nuuid = 'y'\n"])
    def test_others_are_recognised(self, text: str) -> None:
        """A file that cxm did not write is not taken for one."""
        with pytest.raises(DataError, match="not a configuration of cxm"):
            domcfg.read(text, "/etc/xen/vm/x")

    def test_a_command_line_cannot_escape(self) -> None:
        """Quotes and backslashes stay inside of their value."""
        cmdline = "a'b\"c\\d\\'e ; on_crash='x' é #f"
        spec = GuestSpec(memory_mib=64, kernel="/k", cmdline=cmdline, guest_type=GuestType.PV)
        parsed = cfgtext.parse(render(spec), "x")
        assert parsed.get("extra") == cmdline
        assert parsed.get("on_crash") == "preserve"

    @pytest.mark.parametrize(
        ("targets", "names"),
        [
            (("xvda1", "xvda2", "hda"), ["xvda1,w", "xvda2,w", "xvde,r"]),
            (("xvda1", "xvdb", "hdb"), ["xvda1,w", "xvdb,w", "xvde,r"]),
        ],
    )
    def test_names_of_parts(self, targets: tuple[str, ...], names: list[str]) -> None:
        """A context that oned calls as the disk of which others are parts gets another name."""
        first, second, context = targets
        disks = (Disk("0", first), Disk("1", second), replace(CONTEXT, target=context))
        text = render(GuestSpec(memory_mib=64, disks=disks))
        assert [disk.partition(",")[2] for disk in _listed(text, "disk")] == names

    def test_a_disk_and_a_part_of_it(self) -> None:
        """Linux would have one of them only."""
        with pytest.raises(UsageError, match="disks 0 and 1 are both xvda1"):
            render(GuestSpec(memory_mib=64, disks=(Disk("0", "hda"), Disk("1", "xvda1"))))

    def test_line_breaks_of_unicode_stay_inside(self) -> None:
        """What is written can be read back."""
        spec = GuestSpec(memory_mib=64, kernel="/k", cmdline="a\u0085b\u2028c\u2029d")
        text = render(replace(spec, guest_type=GuestType.PV))
        assert domcfg.read(text, "x").memory_mib == 64
        assert cfgtext.parse(text, "x").get("extra") == "a\u0085b\u2028c\u2029d"

    def test_two_names_of_one_disk(self) -> None:
        """A guest sees hda as xvda: both at once are refused."""
        disks = (Disk("0", "xvda"), Disk("1", "hda"))
        with pytest.raises(UsageError, match="disks 0 and 1 are both xvda"):
            render(GuestSpec(memory_mib=64, disks=disks))

    @pytest.mark.parametrize(
        ("disks", "names"),
        [
            # Linux has one name for both, and its drivers refuse the second.
            ((Disk("0", "xvda"), CONTEXT), ["xvda,w", "hdd:cdrom,r"]),
            ((Disk("0", "hda"), CONTEXT), ["hda,w", "hdd:cdrom,r"]),
            ((Disk("0", "xvda"), replace(CONTEXT, target="hdb")), ["xvda,w", "hdb:cdrom,r"]),
            # Neither IDE nor AHCI has disks that cannot be written, says libxl.
            ((Disk("0", "xvda"), Disk("9", "sda", readonly=True)), ["xvda,w", "xvdg,r"]),
            ((Disk("0", "hda"), Disk("9", "hdb", readonly=True)), ["hda,w", "xvdg,r"]),
            ((Disk("0", "hda"), Disk("9", "sdb", readonly=True)), ["hda,w", "sdb,r"]),
        ],
    )
    def test_a_pc_has_its_context_in_a_cd_drive(
        self, disks: tuple[Disk, ...], names: list[str]
    ) -> None:
        """Whatever oned calls it; a disk that is no CD and cannot be written is a disk."""
        text = render(GuestSpec(memory_mib=64, disks=disks, guest_type=GuestType.HVM))
        found = [disk.partition(",")[2] for disk in _listed(text, "disk")]
        assert found == names

    def test_a_pc_with_two_names_of_one_disk(self) -> None:
        """Both by IDE, or both the same to Linux."""
        for target in ("hda", "sda"):
            disks = (Disk("0", "xvda"), Disk("1", target))
            with pytest.raises(UsageError, match=f"disks 0 and 1 are both {target}"):
                render(GuestSpec(memory_mib=64, disks=disks, guest_type=GuestType.HVM))

    def test_a_pc_without_room_for_a_cd(self) -> None:
        """Four disks that qemu emulates leave none."""
        disks = tuple(Disk(str(n), f"xvd{letter}") for n, letter in enumerate("abcd"))
        spec = GuestSpec(memory_mib=64, disks=(*disks, CONTEXT), guest_type=GuestType.HVM)
        with pytest.raises(UsageError, match="CDs as hda to hdd only, and all four are taken"):
            render(spec)

    def test_a_fifth_ide_disk(self) -> None:
        """A real IDE bus has four disks."""
        spec = GuestSpec(memory_mib=64, disks=(Disk("4", "hde"),), guest_type=GuestType.HVM)
        with pytest.raises(UsageError, match="an HVM guest has no hde"):
            render(spec)

    def test_quoting_refuses_control_characters(self) -> None:
        """A line break would begin a statement of its own."""
        with pytest.raises(UsageError):
            cfgtext.quote("a\nb")


KERNEL_CASES = [
    (GuestType.AUTO, BOTH, "pvh", "PVH, since its kernel has the entry for it"),
    (GuestType.AUTO, Kernel(pvh=False, pv=True), "pv", "PV, since its kernel has no entry for PVH"),
    (GuestType.AUTO, Kernel(pvh=False, pv=False), "hvm", "HVM, since its kernel has an entry for"),
    (GuestType.PV, BOTH, "pv", "PV, as asked for"),
    (GuestType.PVH, None, "pvh", "PVH, as asked for"),
    (GuestType.HVM, None, "hvm", "HVM, as asked for"),
]


class TestChoice:
    """How a guest runs."""

    @pytest.mark.parametrize(("wanted", "kernel", "type_", "reason"), KERNEL_CASES)
    def test_with_a_kernel(
        self, wanted: GuestType, kernel: Kernel | None, type_: str, reason: str
    ) -> None:
        """The kernel says what it can; what was asked for comes first."""
        found = choose(
            wanted, path="/boot/k", kernel=kernel, bootloader=Bootloader.NONE, images=IMAGES
        )
        assert found.guest_type == type_
        assert found.kernel == "/boot/k"
        assert found.reason.startswith(reason)

    @pytest.mark.parametrize(
        ("wanted", "loader", "type_", "kernel"),
        [
            (GuestType.AUTO, Bootloader.NONE, "pvh", IMAGES.pvh),
            (GuestType.PVH, Bootloader.NONE, "pvh", IMAGES.pvh),
            (GuestType.PV, Bootloader.NONE, "pv", IMAGES.pv),
            (GuestType.HVM, Bootloader.NONE, "hvm", ""),
            (GuestType.AUTO, Bootloader.PYGRUB, "pv", ""),
            (GuestType.PVH, Bootloader.PYGRUB, "pvh", ""),
            (GuestType.PV, Bootloader.PYGRUB, "pv", ""),
        ],
    )
    def test_from_its_disk(
        self, wanted: GuestType, loader: Bootloader, type_: str, kernel: str
    ) -> None:
        """Without a kernel, grub boots the disk inside of the guest, or pygrub on the host."""
        found = choose(wanted, path="", kernel=None, bootloader=loader, images=IMAGES)
        assert (found.guest_type, found.kernel) == (type_, kernel)

    @pytest.mark.parametrize(
        ("wanted", "path", "kernel", "message"),
        [
            (GuestType.PVH, "/k", Kernel(pvh=False, pv=True), "/k cannot run as PVH"),
            (GuestType.PV, "/k", Kernel(pvh=True, pv=False), "/k cannot run as PV"),
            (GuestType.AUTO, "/k", None, "cannot tell how Xen would run the kernel /k"),
            (GuestType.AUTO, "", None, "grub-i386-xen_pvh.bin is missing"),
            (GuestType.PV, "", None, "grub-x86_64-xen.bin is missing"),
        ],
    )
    def test_what_cannot_run(
        self, wanted: GuestType, path: str, kernel: Kernel | None, message: str
    ) -> None:
        """A guest that cannot run as asked for is refused before anything is made."""
        with pytest.raises(CxmError, match=message) as caught:
            choose(
                wanted,
                path=path,
                kernel=kernel,
                bootloader=Bootloader.NONE,
                images=Images(None, None),
            )
        assert caught.value.hint

    def test_the_choice_is_remembered(self) -> None:
        """The configuration tells why the guest runs as it does."""
        assert "# guest type: PVH, since it brings no kernel; grub boots its disk\n" in render(
            GuestSpec(memory_mib=64)
        )
        assert isinstance(
            choose(GuestType.HVM, path="", kernel=None, bootloader=Bootloader.NONE, images=IMAGES),
            Choice,
        )
