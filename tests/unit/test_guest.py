# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""What a description of a guest takes and what it refuses."""

import json
from typing import Any

import pytest

from cxm.config import GuestType
from cxm.errors import UsageError
from cxm.xen import options
from cxm.xen.guest import Bootloader, Disk, GuestSpec, Nic, Vnc, from_json

FULL = GuestSpec(
    name="user-vm.home.net",
    memory_mib=512,
    vcpus=2,
    cpu_weight=128,
    guest_type=GuestType.PV,
    kernel="/boot/vmlinuz",
    ramdisk="/boot/initrd.img",
    root="/dev/xvda1",
    cmdline="quiet init='/bin/sh -c \"x\"'",
    bootloader=Bootloader.PYGRUB,
    boot="cd",
    disks=(Disk("0", "xvda"), Disk("10", "hdc", readonly=True, cdrom=True)),
    nics=(Nic(mac="02:00:00:00:00:01", bridge="xenbr0", ip="10.0.0.1", rate_kib_s=100), Nic()),
    vnc=Vnc(listen="0.0.0.0", display=7, password="s3cret", keymap="de"),
    options={"cpus": "0-3", "acpi": 1, "cpuid": ("host,tm=0", "x")},
)


def test_a_guest_crosses_the_wire_unchanged() -> None:
    """What one side writes as JSON, the other reads as the same guest."""
    assert from_json(json.loads(json.dumps(FULL.to_json()))) == FULL
    small = GuestSpec(memory_mib=64)
    assert from_json(json.loads(json.dumps(small.to_json()))) == small


def test_a_password_is_not_shown() -> None:
    """A log of the guest does not tell its VNC password."""
    assert "s3cret" not in repr(FULL)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"memory_mib": 0}, "memory"),
        ({"memory_mib": "512"}, "wrong type"),
        ({"memory_mib": True}, "wrong type"),
        ({"vcpus": 0}, "CPUs"),
        ({"cpu_weight": 0}, "weight"),
        ({"guest_type": "kvm"}, "'kvm' is none of"),
        ({"bootloader": "/bin/sh"}, "'/bin/sh' is none of"),
        ({"kernel": "vmlinuz"}, "the kernel"),
        ({"kernel": "/boot/a\nb"}, "the kernel"),
        ({"kernel": ""}, "ramdisk without a kernel"),
        ({"cmdline": "a\nb"}, "command line"),
        ({"root": "a b"}, "root device"),
        ({"boot": "x"}, "boot order"),
        ({"name": "-x"}, "cannot name a domain"),
        ({"name": "a/b"}, "cannot name a domain"),
        ({"surprise": 1}, "'surprise' of guestspec is unknown"),
        ({"disks": [{"disk": "0", "target": "xvda"}]}, "'cdrom' of disk is missing"),
        ({"options": {"bootloader": "/bin/sh"}}, "bootloader of xl.cfg cannot be given"),
        ({"options": {"acpi": None}}, "wrong type"),
    ],
)
def test_refuses(changes: dict[str, Any], message: str) -> None:
    """A value that Xen could misread is refused with a sentence."""
    with pytest.raises(UsageError, match=message):
        from_json(FULL.to_json() | changes)


@pytest.mark.parametrize("target", ["vda", "xvda,w", "sda'", "", "xvd", "../x", "xvda100"])
def test_refuses_targets(target: str) -> None:
    """KVM's names and anything that is no disk are refused, with what to do."""
    with pytest.raises(UsageError, match="target") as caught:
        Disk("0", target)
    assert "DEV_PREFIX" in caught.value.sentence()


@pytest.mark.parametrize("disk", ["checkpoint", "01", "-1", "a", "10000"])
def test_refuses_disk_numbers(disk: str) -> None:
    """A disk is a number; the checkpoint is no disk of a guest."""
    with pytest.raises(UsageError):
        Disk(disk, "xvda")


@pytest.mark.parametrize(
    "make",
    [
        lambda: Nic(mac="02:00:00:00:00"),
        lambda: Nic(bridge="br0,script=/tmp/x"),
        lambda: Nic(bridge="a-name-that-is-too-long"),
        lambda: Nic(model="e1000,script=x"),
        lambda: Nic(ip="10.0.0.1,x"),
        lambda: Nic(rate_kib_s=0),
        lambda: Vnc(password="a,vncunused=1"),
        lambda: Vnc(listen="1.2.3.4,x"),
        lambda: Vnc(listen="unix:one.db"),
        lambda: Vnc(display=-1),
        lambda: Vnc(keymap="../x"),
        lambda: GuestSpec(memory_mib=1, disks=(Disk("0", "xvda"), Disk("1", "xvda"))),
        lambda: GuestSpec(memory_mib=1, disks=(Disk("0", "xvda"), Disk("0", "xvdb"))),
        lambda: GuestSpec(
            memory_mib=1, nics=(Nic(mac="02:00:00:00:00:aA"), Nic(mac="02:00:00:00:00:AA"))
        ),
    ],
)
def test_refuses_what_xl_would_split(make: Any) -> None:
    """Nothing can add a key of its own to what xl reads as a list of keys, or be there twice."""
    with pytest.raises(UsageError):
        make()


class TestOptions:
    """The options of xl.cfg that RAW may give."""

    @pytest.mark.parametrize("key", sorted(options.REFUSED))
    def test_what_is_refused_says_why(self, key: str) -> None:
        """Each well-known dangerous or useless option is refused with its reason."""
        assert key not in options.ALLOWED
        with pytest.raises(UsageError, match=f"the option {key} of xl.cfg cannot be given: "):
            options.check(key, "x")

    def test_the_unknown_is_refused(self) -> None:
        """The list says what is allowed, not what is forbidden."""
        with pytest.raises(UsageError, match="not among the options known to be harmless"):
            options.check("brand_new_option", "1")

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("serial", "file:/etc/passwd"),
            ("serial", "pipe:/tmp/x"),
            ("usbdevice", "host:04b4:1"),
            ("firmware", "/tmp/evil.bin"),
            ("cpus", "0'\non_crash = 'x"),
            ("viridian", ("all", "a b")),
            ("spicepasswd", "a\nb"),
            ("spicepasswd", "x,addr=/etc/passwd,unix=on"),
            ("spicehost", "unix:x"),
            ("acpi", "2"),
            ("acpi", ("1",)),
            ("cap", "x"),
        ],
    )
    def test_values_are_checked_too(self, key: str, value: options.Value) -> None:
        """An allowed option takes only values that name no file, device or program."""
        with pytest.raises(UsageError, match=f"the option {key}: "):
            options.check(key, value)

    @pytest.mark.parametrize(
        ("key", "value", "kept"),
        [
            ("acpi", "1", 1),
            ("cpus", "2-5,^3", "2-5,^3"),
            ("cpus", ("0", "1"), ("0", "1")),
            ("serial", "pty", "pty"),
            ("rtc_timeoffset", "-3600", -3600),
            ("tsc_mode", "native", "native"),
        ],
    )
    def test_harmless_ones_pass(self, key: str, value: options.Value, kept: options.Value) -> None:
        """Numbers become numbers, words and lists stay."""
        assert options.check(key, value) == kept
