# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the deployment file that oned writes for a VM_MAD of TYPE=xen, by version."""

import math

from cxm.errors import CxmError
from lab.oned.model import Vm
from lab.oned.profiles import Profile
from lab.oned.templates import Template, Vector, single, vectors

_BOOT = {"hd": "c", "fd": "a", "cdrom": "d", "network": "n"}
_FIRST_VNC_PORT = 5900


def xen(vm: Vm, profile: Profile, system_dir: str, defaults: Template) -> str:
    """The configuration of a domain; raises CxmError as oned refuses to write one.

    ``defaults`` are the attributes of the driver's file of defaults.
    """
    lines = [f"name = 'one-{vm.id}'"]
    credits_of_one = float(single(defaults, "CREDIT", "1"))
    cpu = float(single(vm.template, "CPU", "1"))
    lines.append(f"#O CPU_CREDITS = {math.ceil(cpu * credits_of_one)}")
    memory = single(vm.template, "MEMORY")
    if not memory:
        raise CxmError("No memory defined and no default provided.")
    lines.append(f"memory  = '{memory}'")
    if vcpu := single(vm.template, "VCPU"):
        lines.append(f"vcpus  = '{vcpu}'")
    lines += _boot(vm, profile, defaults)
    lines += ["disk = [", *_disks(vm, profile, system_dir, defaults), "]"]
    lines += ["vif = [", *(_vif(nic) for nic in vm.nics), "]"]
    lines += _graphics(vm, profile)
    lines += [
        raw.get("DATA", "")
        for raw in vectors(vm.template, "RAW")
        if raw.get("TYPE", "").upper() == "XEN"
    ]
    return "\n".join(lines) + "\n"


def _default(defaults: Template, vector: str, name: str) -> str:
    return next((row[name] for row in vectors(defaults, vector) if name in row), "")


def _boot(vm: Vm, profile: Profile, defaults: Template) -> list[str]:
    system = next(iter(vectors(vm.template, "OS")), {})
    if kernel := system.get("KERNEL"):
        lines = [f"kernel = '{kernel}'"]
        rows = (("ramdisk", "INITRD", ""), ("root", "ROOT", "/dev/"), ("extra", "KERNEL_CMD", ""))
        for key, name, before in rows:
            if value := system.get(name):
                lines.append(f"{key} = '{before}{value}'")
        return lines
    quote = "'" if profile.version >= (4, 8) else '"'
    if loader := system.get("BOOTLOADER") or _default(defaults, "OS", "BOOTLOADER"):
        return [f"bootloader = {quote}{loader}{quote}"]
    if profile.version < (4, 4):
        raise CxmError("No kernel or bootloader defined and no default provided.")
    lines = [f"builder = {quote}hvm{quote}"]
    if boot := system.get("BOOT"):
        order = "".join(_BOOT[part.strip()] for part in boot.split(","))
        lines.append(f"boot = {quote}{order}{quote}")
    return lines


def _disks(vm: Vm, profile: Profile, system_dir: str, defaults: Template) -> list[str]:
    rows = []
    usual = _default(defaults, "DISK", "DRIVER")
    for disk in vm.disks:
        driver = disk.get("DRIVER") or usual
        if driver and profile.version >= (4, 4) and not driver.endswith(":"):
            driver += ":"
        if not driver:
            driver = "phy:" if disk.get("TYPE") == "BLOCK" else "tap:aio:"
        mode = "r" if disk.get("READONLY") == "YES" else "w"
        cdrom = ":cdrom" if disk.get("TYPE") == "CDROM" and profile.version >= (4, 4) else ""
        path = f"{system_dir}/disk.{disk['DISK_ID']}"
        rows.append(f"    '{driver}{path},{disk['TARGET']}{cdrom},{mode}',")
    context = vm.context
    if context is not None:
        driver = context.get("DRIVER") or usual or "tap:aio:"
        path = f"{system_dir}/disk.{context['DISK_ID']}"
        rows.append(f"    '{driver}{path},{context['TARGET']},r',")
    return rows


def _vif(nic: Vector) -> str:
    names = ("MODEL", "MAC", "IP", "BRIDGE")
    text = ",".join(f"{name.lower()}={nic[name]}" for name in names if nic.get(name))
    return f"    '{'' if nic.get('MODEL') else ' '}{text}',"


def _graphics(vm: Vm, profile: Profile) -> list[str]:
    graphics = next(iter(vectors(vm.template, "GRAPHICS")), {})
    if graphics.get("TYPE", "").lower() != "vnc":
        return []
    text = "type=vnc"
    if listen := graphics.get("LISTEN"):
        text += f",vnclisten={listen}"
    if profile.version >= (4, 4):
        text += ",vncunused=0"
    if port := graphics.get("PORT"):
        text += f",vncdisplay={int(port) - _FIRST_VNC_PORT}"
    for key, name in (("vncpasswd", "PASSWD"), ("keymap", "KEYMAP")):
        if value := graphics.get(name):
            text += f",{key}={value}"
    return [f"vfb = ['{text}']"]
