# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""The lab does what its manual says: docs/lab.md."""

# Requirements: 1.6 GiB of memory for solo1, 3 GiB for the pair.

import json
import os
import re
import time
from collections.abc import Iterator

import pytest

from cxm.errors import CommandError, CxmError
from cxm.run import System
from lab import faults, frontend, lab, process, snapshot
from lab.guest_image import GuestImage
from lab.lab import Lab
from lab.machine import Machine, Power
from lab.places import places
from lab.spec import BMC_PASSWORD, BMC_USER, FRONTEND_ADDRESS, SAN_SERIAL, make_spec

_SAN = f"/dev/disk/by-id/virtio-{SAN_SERIAL}"
_ADDRESS = "10.77.1.110"
_SLOW_S = 480.0  # four times what it takes beside five other labs


def ipmi(asking: Machine, asked: Machine, *words: str) -> str:
    """Ask a BMC from a node; a word of the answer, or the error."""
    argv = ["ipmitool", "-I", "lanplus", "-H", asked.host.bmc_address, "-U", BMC_USER,
            "-P", BMC_PASSWORD, "-N", "2", "-R", "2", "chassis", "power", *words]  # fmt: skip
    answer = asking.run(argv, ok=(0, 1))
    return (answer.stdout or answer.stderr).strip()


def test_a_node_is_debian_on_xen_with_its_volume_group(solo: Machine) -> None:
    """A node runs systemd and udev on Xen, with no failed unit, and finds its name and its VG."""
    assert solo.run(["hostname"]).stdout.strip() == "solo1"
    assert solo.run(["systemctl", "is-system-running"]).stdout.strip() == "running"
    assert "hvm" in solo.run(["xl", "info", "virt_caps"]).stdout
    assert "LVM_XEN" in solo.run(["vgs", "-o", "vg_name", "--noheadings"]).stdout
    enabled = solo.run(["systemctl", "is-enabled", "corosync", "pacemaker"], ok=(0, 1)).stdout
    assert enabled.split() == ["disabled", "disabled"]
    assert solo.run(["id", "oneadmin"], ok=(0, 1)).code == 1


def test_a_node_has_no_way_out(solo: Machine) -> None:
    """No route leads out of the lab's networks."""
    assert solo.run(["ip", "route", "show", "default"]).stdout == ""


def test_the_frontends_place_knows_the_nodes(solo_lab: Lab) -> None:
    """Names resolve, host keys are known, and the other networks are out of reach."""
    host = solo_lab.spec.host("solo1")
    assert solo_lab.exec(["getent", "hosts", "solo1"]).stdout.split()[0] == host.address
    known = solo_lab.exec(["ssh-keygen", "-F", "solo1", "-f", "/etc/ssh/ssh_known_hosts"])
    assert "solo1" in known.stdout
    refused = solo_lab.exec(
        ["ssh", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes", "-F", "/dev/null",
         "nobody@solo1", "true"], ok=(255,))  # fmt: skip
    assert "Permission denied" in refused.stderr
    for address in (host.cluster_address, host.bmc_address):
        assert solo_lab.exec(["ping", "-c1", "-W1", address], ok=(1, 2)).code
    solo = solo_lab.machine("solo1")
    solo.forget_connection()
    with faults.frontend_away(solo_lab):
        assert solo_lab.exec(["ping", "-c1", "-W1", host.address], ok=(1, 2)).code
        assert solo.run(["ping", "-c1", "-W1", FRONTEND_ADDRESS], ok=(1, 2)).code
    assert solo_lab.exec(["ping", "-c1", "-W5", host.address]).code == 0


def test_env_is_enough_to_attach_from_outside(solo_lab: Lab) -> None:
    """A shell that evaluates the assignments reaches a node with nothing else known."""
    values = frontend.environment(solo_lab.places, solo_lab.frontend, solo_lab.spec)
    script = frontend.assignments(values) + (
        'test "$CXM_LAB_ADDRESS_solo1" = 10.77.1.21 || exit 9\n'
        'exec $CXM_LAB_EXEC ssh -F /dev/null -i "$CXM_LAB_SSH_KEY" -o BatchMode=yes '
        '"$CXM_LAB_SSH_USER@solo1" hostname\n'
    )
    assert System().run(["sh"], stdin=script.encode()).stdout.strip() == "solo1"


def test_a_restore_brings_memory_and_disks_back(solo_lab: Lab) -> None:
    """What was done since the snapshot is undone: a process, a file, an LV; the clock is right."""
    solo = solo_lab.machine("solo1")
    boot = solo.run(["cat", "/proc/sys/kernel/random/boot_id"]).stdout
    solo.run(["sh", "-c", "sleep 3000 >/dev/null 2>&1 & echo $! >/root/pid"])
    solo.run(["lvcreate", "-qq", "-y", "-L", "8M", "-n", "kept", "LVM_XEN"])
    made = solo_lab.snapshot("test-restore")
    try:
        solo.run(["sh", "-c", "kill $(cat /root/pid); rm /root/pid"])
        solo.run(["lvremove", "-qq", "-y", "LVM_XEN/kept"])
        began = time.monotonic()
        solo_lab.restore(made.name)
        assert time.monotonic() - began < 30
        assert solo.run(["sh", "-c", "kill -0 $(cat /root/pid)"]).code == 0
        assert solo.run(["lvs", "LVM_XEN/kept"]).code == 0
        assert solo.run(["cat", "/proc/sys/kernel/random/boot_id"]).stdout == boot
        assert abs(float(solo.run(["date", "+%s"]).stdout) - time.time()) < 10
    finally:
        snapshot.forget(solo_lab.places, made.name)


def test_a_guest_lives_through_a_restore(guest_lab: Lab, guest: GuestImage) -> None:
    """A busy PVH guest answers from the frontend's place, and counts on after a restore."""
    solo = guest_lab.machine("solo1")
    start_guest(solo, guest, "pvh")
    before = await_status(guest_lab)
    fetch(guest_lab, "cgi-bin/burn")  # QEMU cannot load a processor that was inside of it
    made = guest_lab.snapshot("test-guest")
    try:
        solo.run(["xl", "destroy", "guest"])
        guest_lab.restore(made.name)
        after = await_status(guest_lab)
    finally:
        snapshot.forget(guest_lab.places, made.name)
    assert after["boot"] == before["boot"]
    assert after["kind"] == "PVH"
    assert int(after["count"]) >= int(before["count"])


@pytest.mark.extensive
@pytest.mark.parametrize("kind", ["pvh", "pv"])
def test_a_guest_ends_as_it_is_told(guest_lab: Lab, guest: GuestImage, kind: str) -> None:
    """Xen's shutdown, and the guest's own poweroff and crash, are what Xen then reports."""
    solo = guest_lab.machine("solo1")
    start_guest(solo, guest, kind)
    assert await_status(guest_lab)["kind"] == kind.upper()
    solo.run(["xl", "shutdown", "-w", "guest"])
    gone = ["sh", "-c", "! xl list guest"]
    solo.wait_until(gone, timeout_s=_SLOW_S)
    solo.run(["xl", "create", "-q", "/root/guest.cfg"], timeout_s=_SLOW_S)
    assert await_status(guest_lab)["boots"] == "2"
    fetch(guest_lab, "cgi-bin/crash")
    crashed = ["sh", "-c", "xl list guest | grep -q 'sc- '"]
    solo.wait_until(crashed, timeout_s=_SLOW_S)


def start_guest(solo: Machine, guest: GuestImage, kind: str) -> None:
    """Put the guest's tree on an LV and start it by the host's kernel and initrd."""
    config = f"""name="guest"
type="{kind}"
memory=112
kernel="/root/{os.path.basename(guest.fast_kernel)}"
ramdisk="/root/{os.path.basename(guest.initrd)}"
extra="root=/dev/xvda console=hvc0 quiet ip={_ADDRESS}:::255.255.255.0:guest:eth0:off"
disk=["phy:/dev/LVM_XEN/guest,xvda,w"]
vif=["bridge=xenbr0"]
on_crash="preserve"
"""
    solo.write("/root/guest.cfg", config)
    script = """set -e
lvcreate -qq -y -L 64M -n guest LVM_XEN
mkfs.ext4 -q /dev/LVM_XEN/guest
mount /dev/LVM_XEN/guest /mnt
tar -xzf /root/guest.tar.gz -C /mnt
umount /mnt
xl create -q /root/guest.cfg
"""
    solo.run(["sh", "-c", script], timeout_s=_SLOW_S)


def fetch(running: Lab, path: str) -> str:
    """A page of the guest, seen from the frontend's place."""
    code = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1]).read().decode())"
    page = f"http://{_ADDRESS}/{path}"
    return running.exec(["timeout", "9", "python3", "-c", code, page]).stdout


def await_status(running: Lab) -> dict[str, str]:
    """The guest's status page, as soon as it answers."""
    words: dict[str, str] = {}

    def answers() -> bool:
        try:
            text = fetch(running, "")
        except CommandError:
            return False
        words.update(dict(re.findall(r"(\w+)=(\S*)", text)))
        return "boot" in words

    process.wait_until(answers, timeout_s=_SLOW_S, what="waiting for the guest", pause_s=0.5)
    return words


def test_power_and_bmc_of_a_host(solo_lab: Lab) -> None:
    """The BMC tells and switches the power of its host, and lives on while the host is off."""
    solo = solo_lab.machine("solo1")
    assert ipmi(solo, solo, "status").endswith("is on")
    solo.power_off()
    assert solo.power() is Power.OFF
    assert solo_lab.bmc_alive("solo1")
    words = ["-I", "lanplus", "-H", solo.host.bmc_address, "-U", BMC_USER, "-P", BMC_PASSWORD]
    told = solo_lab.core.run(["ipmitool", *words, "chassis", "power", "on"])
    assert "Up/On" in told.stdout
    assert solo.power() is Power.RUNNING


def test_a_hung_host_is_silent_until_it_goes_on(solo_lab: Lab) -> None:
    """A hung host answers nobody, keeps its power, and goes on where it stood."""
    solo = solo_lab.machine("solo1")
    solo.hang()
    assert solo.power() is Power.HUNG
    assert solo_lab.exec(["ping", "-c1", "-W1", "solo1"], ok=(1, 2)).code
    solo.resume()
    solo.wait_until(["true"])


def test_the_pair_shares_a_disk_and_loses_it(pair_lab: Lab) -> None:
    """What one node writes to the SAN the other reads; a node cut off gets errors until healed."""
    first, second = pair_lab.machine("node1"), pair_lab.machine("node2")
    write = ["dd", f"of={_SAN}", "bs=4k", "count=1", "oflag=direct", "conv=sync"]
    read = ["dd", f"if={_SAN}", "bs=4k", "count=1", "iflag=direct"]
    first.run(write, stdin=b"written by node1")
    assert second.run(read).stdout.startswith("written by node1")
    faults.cut(pair_lab, "node1", "san")
    assert "Input/output error" in first.run(read, ok=(1,)).stderr
    assert second.run(read).code == 0
    faults.heal(pair_lab, "node1")
    assert first.run(read).stdout.startswith("written by node1")


def test_the_pairs_networks_are_apart_and_can_be_cut(pair_lab: Lab) -> None:
    """Cutting the cluster network leaves ssh alone; cutting both does not; healing repairs."""
    first, second = pair_lab.machine("node1"), pair_lab.machine("node2")
    ping = ["ping", "-c1", "-W2", second.host.cluster_address]
    assert first.run(ping).code == 0
    faults.cut(pair_lab, "node2", "cluster")
    assert first.run(ping, ok=(1, 2)).code
    assert second.run(["true"]).code == 0
    faults.cut(pair_lab, "node2", "net")
    assert pair_lab.exec(["ping", "-c1", "-W2", "node2"], ok=(1, 2)).code
    faults.heal(pair_lab, "node2")
    assert first.run(ping).code == 0


@pytest.mark.extensive
def test_fencing_through_the_bmc_and_its_faults(pair_lab: Lab) -> None:
    """A node switches the other off and on; slow, cut and powerless BMCs behave as such."""
    first, second = pair_lab.machine("node1"), pair_lab.machine("node2")
    faults.slow_bmc(pair_lab, "node2", 20)
    assert "Down/Off" in ipmi(first, second, "off")
    assert ipmi(first, second, "status").endswith("is on")
    second.wait_until(lambda: second.power() is Power.OFF, timeout_s=80)
    faults.heal(pair_lab, "node2")
    assert ipmi(first, second, "status").endswith("is off")
    faults.link_bmc(pair_lab, "node2", linked=True)
    assert "Unable to establish" in ipmi(first, second, "status")
    faults.link_bmc(pair_lab, "node2", linked=False)
    faults.cut(pair_lab, "node2", "bmc")
    assert "Unable to establish" in ipmi(first, second, "status")
    assert ipmi(first, first, "status").endswith("is on")
    faults.heal(pair_lab, "node2")
    assert "Up/On" in ipmi(first, second, "on")
    assert second.power() is Power.RUNNING


@pytest.fixture
def other_name() -> Iterator[str]:
    """The name of a further lab, ended after the test."""
    name = "test-other"
    yield name
    lab.down(name)


@pytest.mark.extensive
def test_two_labs_run_side_by_side_and_leave_nothing(solo_lab: Lab, other_name: str) -> None:
    """A second lab of the same hosts disturbs nobody, and after its end nothing of it is left."""
    other = lab.up(make_spec(["solo1"]), name=other_name)
    other.machine("solo1").run(["touch", "/root/other"])
    assert solo_lab.machine("solo1").run(["ls", "/root"]).stdout == ""
    where, lab_id, pids = other.places, other.lab_id, [other.core.pid, other.frontend.pid]
    with pytest.raises(CxmError, match="is up already"):
        lab.up(make_spec(["solo1"]), name=other_name)
    other.down()
    assert process.find(lab_id) == []
    assert not any(process.alive(pid) for pid in pids)
    assert not os.path.exists(where.state)
    with open("/proc/self/mounts", encoding="utf-8") as file:
        assert where.state not in file.read()
    assert solo_lab.machine("solo1").run(["true"]).code == 0


def test_status_is_a_table_and_json(solo_lab: Lab) -> None:
    """The command shows the running lab to people and to programs."""
    name = solo_lab.places.name
    command = [os.path.join(".venv", "bin", "cxm-lab"), "--name", name, "status"]
    faults.cut(solo_lab, "solo1", "bmc")
    table = System().run(command).stdout
    assert "● running" in table
    assert "BMC cut" in table
    facts = json.loads(System().run([*command, "--json"]).stdout)
    assert facts["hosts"][0]["power"] == "running"
    assert places(name).state == facts["state"]
