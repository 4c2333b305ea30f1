# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""A guest that Xen runs as HVM: a whole PC emulated by qemu in dom0, and its screen over VNC."""

# Requirements: the lab with solo1, cxm installed on it; this machine's way to Debian's packages.

from dataclasses import replace
from typing import Final

import pytest

from lab import extras, visit
from lab.guest_image import GuestImage
from lab.oned import scenarios
from tests.lab.sites import ADDRESS, Site

_KERNEL: Final = "/boot/lab-kernel-pc"
_INITRD: Final = "/boot/lab-initrd-pc"
# The guest's ramdisk with the drivers of an IDE CD drive, which are those of the node's own kernel.
_PACK: Final = f"""
set -e
here=$(mktemp -d)
gzip -dc {scenarios.INITRD} | (cd $here && cpio -i -d --quiet modules/order)
for module in ata_piix sr_mod; do modprobe -D $module; done | sed -n 's/^insmod //p' |
while read -r path; do name=$(basename $path); cp $path $here/modules/
grep -q -x $name $here/modules/order || echo $name >>$here/modules/order; done
(cd $here && find modules | cpio -o -H newc --quiet | gzip -1) | cat {scenarios.INITRD} - >{_INITRD}
rm -r $here
"""
_SCREEN: Final = 5907
_BOOTS_S: Final = 1200.0
_ASK: Final = (
    "import socket; s = socket.create_connection(('127.0.0.1', %d)); print(s.recv(3).decode())"
)


@pytest.mark.extensive
def test_a_guest_runs_as_hvm(site: Site, guest: GuestImage) -> None:
    """Refused by name without qemu; with it it runs, shows its screen, is saved and goes on."""
    cloud, host = site.cloud, site.host
    scenarios.directly(host, guest)
    host.push(guest.kernel, _KERNEL)  # qemu takes no vmlinux
    host.run(["sh", "-c", _PACK])
    boots = f'OS=[KERNEL="{_KERNEL}",INITRD="{_INITRD}",ROOT="xvda"'
    screen = f'GRAPHICS=[TYPE="vnc",LISTEN="127.0.0.1",PORT="{_SCREEN}"]'
    more = f'{boots},KERNEL_CMD="console=hvc0"]\n{screen}'
    parts = replace(site.parts, guest_type="hvm", memory_mib=160, more=more)
    image = scenarios.register(cloud, parts, "pc")
    text = parts.vm_template("pc", image, context=scenarios.context_of(cloud, "pc"))

    vm = cloud.create_vm(text)
    scenarios.await_failure(cloud, vm)
    assert "qemu-system-xen" in cloud.vm_log(vm)
    extras.install(host, "qemu-system-xen")
    cloud.retry(vm)
    cloud.wait(vm, "RUNNING")
    before = visit.await_status(site.lab, ADDRESS, timeout_s=_BOOTS_S)
    [name] = site.domains()
    assert '"type": "hvm"' in host.run(["xl", "list", "-l", name]).stdout
    assert "hdd:cdrom" in host.run(["cat", f"/etc/xen/vm/{name}"]).stdout  # where its context is
    assert host.run(["python3", "-c", _ASK % _SCREEN]).stdout == "RFB\n"
    cloud.wait_monitored(vm)

    cloud.suspend(vm)
    cloud.wait(vm, "SUSPENDED")
    assert site.domains() == []
    cloud.resume(vm)
    cloud.wait(vm, "RUNNING")
    after = site.answers()
    assert after.boot == before.boot
    assert after.count >= before.count

    cloud.terminate(vm)
    cloud.wait(vm, "DONE")
    cloud.delete_image(image)
    assert site.left() == []  # but qemu: the next test gets another site
