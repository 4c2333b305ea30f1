# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what OpenNebula's XML of a VM, 3.x to 7.4, says of the guest. Pure.

It is the deployment file of ``TYPE="xml"``, the file ``vm.xml`` beside it (6.0+), and the input of
VMM actions (5.0+).
"""

import math
import os
import re
import xml.etree.ElementTree as ET
from typing import Final

from cxm.config import GuestType
from cxm.errors import DataError, UsageError
from cxm.xen import cfgtext, options
from cxm.xen.guest import Disk, GuestSpec, Nic, Vnc
from cxm.xen.options import Value
from cxm.xen.words import boot_order, bootloader, guest_type

# Xen's default weight, which stands for one CPU here (as CREDIT=256 does for oned's Xen driver).
_WEIGHT_PER_CPU: Final = 256
_FIRST_DISPLAY_PORT: Final = 5900
# What RAW may call itself to be meant for us.
_RAW_TYPES: Final = ("xen", "cxm", "vmm_cxm")
_FEATURES: Final = {"PAE": "pae", "ACPI": "acpi", "APIC": "apic", "LOCALTIME": "localtime"}


def xen_type(vm: ET.Element) -> GuestType | None:
    """The type of guest that the template asks for; raises UsageError for an unknown one."""
    # The user's own attributes have a place of their own since 4.0.
    wanted = (
        vm.findtext("USER_TEMPLATE/XEN_TYPE") or vm.findtext("TEMPLATE/XEN_TYPE") or ""
    ).strip()
    return guest_type(wanted) if wanted else None


def _text(element: ET.Element | None, name: str) -> str:
    return "" if element is None else (element.findtext(name) or "").strip()


def _is_yes(text: str) -> bool:
    return text.upper() in ("YES", "1", "TRUE")


def _number(what: str, text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise UsageError(f"{what} '{text}' is not a whole number")
    return int(text)


def _disks(template: ET.Element) -> tuple[Disk, ...]:
    found = []
    elements = template.findall("DISK")
    for element in elements:
        readonly = _is_yes(_text(element, "READONLY"))
        cdrom = _text(element, "TYPE").upper() == "CDROM"
        found.append(
            Disk(
                _text(element, "DISK_ID"),
                _text(element, "TARGET"),
                readonly=readonly or cdrom,
                cdrom=cdrom,
            )
        )
    context = template.find("CONTEXT")
    if context is not None and _text(context, "TARGET"):
        # 3.6 gives it no number of its own: it follows the others.
        number = _text(context, "DISK_ID") or str(len(elements))
        found.append(Disk(number, _text(context, "TARGET"), readonly=True, cdrom=True))
    return tuple(found)


def _nics(template: ET.Element) -> tuple[Nic, ...]:
    found = []
    for element in template.findall("NIC"):
        rate = _text(element, "OUTBOUND_AVG_BW")
        switch = (_text(element, "BRIDGE_TYPE") + _text(element, "VN_MAD")).lower()
        found.append(
            Nic(
                mac=_text(element, "MAC"),
                bridge=_text(element, "BRIDGE"),
                model=_text(element, "MODEL"),
                ip=_text(element, "IP"),
                rate_kib_s=_number("OUTBOUND_AVG_BW", rate) if rate else None,
                openvswitch="openvswitch" in switch or "ovswitch" in switch,
            )
        )
    return tuple(found)


def _vnc(template: ET.Element) -> Vnc | None:
    graphics = template.find("GRAPHICS")
    if graphics is None or _text(graphics, "TYPE").upper() != "VNC":
        return None
    port = _text(graphics, "PORT")
    display = _number("the VNC port", port) - _FIRST_DISPLAY_PORT if port else None
    return Vnc(
        listen=_text(graphics, "LISTEN"),
        display=display,
        password=_text(graphics, "PASSWD"),
        keymap=_text(graphics, "KEYMAP"),
    )


def _options(template: ET.Element) -> dict[str, Value]:
    found: dict[str, Value] = {}
    features = template.find("FEATURES")
    for name, key in _FEATURES.items():
        given = _text(features, name)
        if given:
            found[key] = int(_is_yes(given))
    for device in template.findall("INPUT"):
        if (_text(device, "TYPE"), _text(device, "BUS")) == ("tablet", "usb"):
            found |= {"usb": 1, "usbdevice": "tablet"}
    return found


def _raw(template: ET.Element) -> dict[str, Value]:
    texts = [
        raw.findtext("DATA") or ""
        for raw in template.findall("RAW")
        if _text(raw, "TYPE").lower() in _RAW_TYPES
    ]
    found: dict[str, Value] = {}
    for text in texts:
        for row in cfgtext.parse(text, "RAW").statements:
            # A template made for the Xen driver may say so here: XEN_TYPE comes first.
            wish = row.key == "type"
            found[row.key] = row.value if wish else options.check(row.key, row.value)
    return found


def _weight(template: ET.Element) -> int | None:
    text = _text(template, "CPU")
    if not re.fullmatch(r"[0-9]{1,4}(?:\.[0-9]+)?", text):
        return None
    return min(max(math.ceil(float(text) * _WEIGHT_PER_CPU), 1), 65535)


def _boot_file(system: ET.Element | None, name: str, directory: str) -> str:
    path = _text(system, name)
    if not path and _text(system, f"{name}_DS"):
        # From a FILE datastore: the prolog has put it into the VM's directory.
        path = os.path.join(directory, name.lower())
    return os.path.normpath(path) if path else ""


def read(vm: ET.Element, *, name: str, default_type: GuestType, directory: str) -> GuestSpec:
    """The guest that the VM's XML describes, under ``name``; raises UsageError."""
    template = vm.find("TEMPLATE")
    if template is None:
        raise DataError("the VM's XML holds no TEMPLATE")
    system = template.find("OS")
    kernel = _boot_file(system, "KERNEL", directory)
    root = _text(system, "ROOT")
    raw = _raw(template)
    raw_type = raw.pop("type", None)
    wanted = xen_type(vm) or (guest_type(str(raw_type)) if raw_type else default_type)
    return GuestSpec(
        name=name,
        memory_mib=_number("MEMORY", _text(template, "MEMORY")),
        vcpus=_number("VCPU", _text(template, "VCPU") or "1"),
        cpu_weight=_weight(template),
        guest_type=wanted,
        kernel=kernel,
        ramdisk=_boot_file(system, "INITRD", directory) if kernel else "",
        root=f"/dev/{root.removeprefix('/dev/')}" if root and kernel else "",
        cmdline=_text(system, "KERNEL_CMD") if kernel else "",
        bootloader=bootloader("" if kernel else _text(system, "BOOTLOADER")),
        boot=boot_order(_text(system, "BOOT")),
        disks=_disks(template),
        nics=_nics(template),
        vnc=_vnc(template),
        options=_options(template) | raw,
    )
