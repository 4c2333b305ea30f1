# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what an action asks oned about the VM that it works for."""

from dataclasses import dataclass

from cxm import names
from cxm.names import DomainName, VmId
from cxm.one import xml
from cxm.one.action import Context


@dataclass(frozen=True, slots=True)
class Subject:
    """A VM by oned's record, and the name of its domain."""

    record: xml.Vm
    domain: DomainName


def image(ctx: Context, image_id: int | None) -> xml.Image | None:
    """Ask oned for an image; None for a disk that is made of none that oned knows."""
    return None if image_id is None else xml.image_of(ctx.oned().image_info(image_id))


def ask(ctx: Context, vm: VmId) -> Subject:
    """Ask oned for a VM; raises UsageError when VM_FQDN_TEMPLATE gives it no possible name."""
    record = xml.vm_of(ctx.oned().vm_info(vm))
    domain = names.expand_fqdn(
        ctx.config.vm_fqdn_template, user=record.owner, name=record.name, vm=vm
    )
    return Subject(record, domain)
