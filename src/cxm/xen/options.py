# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns which options of xl.cfg a template may give by RAW, and why not the others. Pure.

root reads the resulting file, and xl.cfg can name programs to run, host files to read or write and
host devices to hand over. So this is a list of what is harmless, with a check for every value, not
a list of what is known to be dangerous (docs/design/0005-guest-configuration.md).
"""

import re
from collections.abc import Callable, Mapping
from typing import Final

from cxm.errors import UsageError

Value = int | str | tuple[str, ...]
_Check = Callable[[Value], Value]


def _number(low: int, high: int) -> _Check:
    def check(value: Value) -> Value:
        text = str(value)
        if isinstance(value, tuple) or not re.fullmatch(r"-?[0-9]{1,9}", text):
            raise UsageError(f"{value!r} is not a number")
        if not low <= int(text) <= high:
            raise UsageError(f"{value!r} is not from {low} to {high}")
        return int(text)

    return check


def _word(*words: str) -> _Check:
    def check(value: Value) -> Value:
        if str(value) not in words:
            raise UsageError(f"{value!r} is none of {', '.join(words)}")
        return str(value)

    return check


def _text(pattern: str) -> _Check:
    form = re.compile(pattern)

    def check(value: Value) -> Value:
        if isinstance(value, tuple) or not form.fullmatch(str(value)):
            raise UsageError(f"{value!r} is not of the form {pattern}")
        return str(value)

    return check


def _text_or_list(pattern: str) -> _Check:
    form = _text(pattern)

    def check(value: Value) -> Value:
        if isinstance(value, tuple):
            return tuple(str(form(part)) for part in value)
        return form(value)

    return check


_flag: Final = _number(0, 1)
_cpus: Final = _text_or_list(r"[0-9a-z,:^-]{1,200}")

ALLOWED: Final[Mapping[str, _Check]] = {
    # CPUs
    "cpus": _cpus,
    "cpus_soft": _cpus,
    "maxvcpus": _number(1, 512),
    "cap": _number(0, 51200),
    "cpuid": _text_or_list(r"[A-Za-z0-9=,:x_-]{1,400}"),
    "nestedhvm": _flag,
    # firmware and platform
    "acpi": _flag,
    "acpi_s3": _flag,
    "acpi_s4": _flag,
    "apic": _flag,
    "pae": _flag,
    "nx": _flag,
    "hap": _flag,
    "hpet": _flag,
    "viridian": _text_or_list(r"[a-z0-9_!]{1,40}"),
    "xen_platform_pci": _flag,
    "firmware": _word("bios", "uefi", "seabios", "rombios", "ovmf"),
    "bios": _word("seabios", "rombios", "ovmf"),
    "hdtype": _word("ide", "ahci"),
    "shadow_memory": _number(0, 65536),
    "mmio_hole": _number(256, 3840),
    "max_grant_frames": _number(1, 1024),
    "max_maptrack_frames": _number(1, 8192),
    "max_event_channels": _number(64, 131072),
    "pvshim": _flag,
    # time
    "localtime": _flag,
    "rtc_timeoffset": _number(-86400, 86400),
    "tsc_mode": _word("default", "always_emulate", "native"),
    "timer_mode": _word(
        "delay_for_missed_ticks",
        "no_delay_for_missed_ticks",
        "no_missed_ticks_pending",
        "one_missed_tick_pending",
    ),
    "vpt_align": _flag,
    # console, screen and input
    "serial": _word("pty", "none"),
    "keymap": _text(r"[a-z]{2}(?:-[a-z]{2})?"),
    "vga": _word("stdvga", "cirrus", "none"),
    "stdvga": _flag,
    "videoram": _number(4, 256),
    "nographic": _flag,
    "usb": _flag,
    "usbdevice": _word("tablet", "mouse", "keyboard"),
    "spice": _flag,
    "spicehost": _text(r"[0-9a-zA-Z.-]{1,64}|[0-9a-fA-F.:]{2,45}"),
    "spiceport": _number(1, 65535),
    # After a comma qemu would take what follows for options of its own, and it is root.
    "spicepasswd": _text(r"[^\x00-\x1f\x7f,]{0,64}"),
    "spicedisable_ticketing": _flag,
    "spiceagent_mouse": _flag,
    "spicevdagent": _flag,
    "soundhw": _text(r"[a-z0-9]{1,20}"),
    # moving
    "nomigrate": _flag,
}

_PROGRAM: Final = "it names a program or a file that root would use"
_DEVICE: Final = "it hands a device or a part of the host to the guest"
REFUSED: Final[Mapping[str, str]] = {
    "name": "VM_FQDN_TEMPLATE makes the domain's name",
    "type": "use XEN_TYPE",
    "cpu_weight": "use CPU",
    "uuid": "it is the identity by which cxm knows the VM",
    "memory": "use MEMORY",
    "maxmem": "OpenNebula counts MEMORY only",
    "vcpus": "use VCPU",
    "kernel": "use OS/KERNEL",
    "ramdisk": "use OS/INITRD",
    "root": "use OS/ROOT",
    "extra": "use OS/KERNEL_CMD",
    "cmdline": "use OS/KERNEL_CMD",
    "boot": "use OS/BOOT",
    "builder": "use XEN_TYPE",
    "disk": "use DISK",
    "vif": "use NIC",
    "vfb": "use GRAPHICS",
    "vnc": "use GRAPHICS",
    "on_poweroff": "cxm keeps what a guest leaves, to see how it ended",
    "on_crash": "cxm keeps what a guest leaves, to see how it ended",
    "on_reboot": "use the guest's own settings",
    "on_watchdog": "cxm keeps what a guest leaves, to see how it ended",
    "on_soft_reset": "cxm keeps what a guest leaves, to see how it ended",
    "bootloader": f"{_PROGRAM}; use OS/BOOTLOADER",
    "bootloader_args": _PROGRAM,
    "device_model": _PROGRAM,
    "device_model_override": _PROGRAM,
    "device_model_args": _PROGRAM,
    "device_model_args_hvm": _PROGRAM,
    "device_model_args_pv": _PROGRAM,
    "device_model_version": _PROGRAM,
    "device_model_user": _PROGRAM,
    "stubdomain_kernel": _PROGRAM,
    "stubdomain_ramdisk": _PROGRAM,
    "bios_path_override": _PROGRAM,
    "acpi_firmware": _PROGRAM,
    "smbios_firmware": _PROGRAM,
    "pvshim_path": _PROGRAM,
    "device_tree": _PROGRAM,
    "colo_checkpoint_host": _PROGRAM,
    "channel": _PROGRAM,
    "p9": _DEVICE,
    "pci": _DEVICE,
    "gfx_passthru": _DEVICE,
    "dtdev": _DEVICE,
    "irqs": _DEVICE,
    "ioports": _DEVICE,
    "iomem": _DEVICE,
    "usbctrl": _DEVICE,
    "usbdev": _DEVICE,
    "vtpm": _DEVICE,
    "vdispl": _DEVICE,
    "vsnd": _DEVICE,
    "vkb": _DEVICE,
    "virtio": _DEVICE,
    "driver_domain": _DEVICE,
    "seclabel": "it changes what Xen lets the guest do",
    "device_model_stubdomain_seclabel": "it changes what Xen lets the guest do",
    "pool": "CPU pools belong to the host's administrator",
}


def check(key: str, value: Value) -> Value:
    """The checked value of an option; raises UsageError for one that RAW may not give."""
    if key in ALLOWED:
        try:
            return ALLOWED[key](value)
        except UsageError as error:
            raise UsageError(f"the option {key}: {error.message}") from error
    why = REFUSED.get(key, "it is not among the options known to be harmless")
    raise UsageError(
        f"the option {key} of xl.cfg cannot be given: {why}",
        hint="the guide lists the options that RAW takes",
    )
