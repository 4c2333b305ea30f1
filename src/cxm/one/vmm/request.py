# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what oned says of a VM in a VMM action, 3.6 to 7.4: arguments, deployment file, XML.

The id of the VM and its host are always the last two arguments. Up to 4.0 an empty argument leaves
no trace, so nothing is counted from the front where an empty one may stand.
"""

import os
import re
from dataclasses import replace
from typing import Final

from cxm import names
from cxm.errors import CxmError, DataError, UsageError
from cxm.names import VmId
from cxm.node.client import Node
from cxm.one import frontend, xml
from cxm.one.action import Call, Context
from cxm.xen import from_xen, from_xml
from cxm.xen.guest import GuestSpec

_LEAST: Final = 2
_DEPLOYMENT: Final = re.compile(r"deployment\.([0-9]+)")
# Since 6.0 oned puts the VM's XML here, whatever the deployment file is.
_VM_XML: Final = "vm.xml"


def vm_of(call: Call) -> VmId:
    """The VM that an action is for."""
    if len(call.argv) < _LEAST:
        raise UsageError(f"{call.action} takes at least the id of a VM and a host: {call.argv}")
    return names.vm_id(call.argv[-2])


def on_frontend(ctx: Context, call: Call) -> bool:
    """Whether oned runs the action on the frontend (``-l``); its input is read away there.

    Not for an action that needs its input.
    """
    is_here = frontend.is_frontend(ctx.remotes)
    if is_here and ctx.version.gives_stdin:
        call.input.read()  # the VM's XML: a pipe that nobody reads may hold up oned's driver
    return is_here


def node_of(ctx: Context, call: Call) -> Node:
    """The VM's host: this machine, or by ssh from the frontend (:func:`on_frontend`)."""
    return ctx.node(call.argv[-1] if on_frontend(ctx, call) else None)


def directory_of(call: Call, vm: VmId) -> str:
    """The VM's directory: that of the file which is the action's first argument."""
    directory = os.path.normpath(os.path.dirname(call.argv[0]))
    if not directory.startswith("/") or os.path.basename(directory) != str(vm):
        raise UsageError(f"{call.action}: {call.argv[0]} is not in the directory of VM {vm}")
    return directory


def _text_of(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _from_xml(ctx: Context, text: str, vm: VmId, directory: str) -> GuestSpec:
    record = xml.vm_of(text)
    if record.vm != vm:
        raise UsageError(f"the XML is of VM {record.vm}")
    name = names.expand_fqdn(
        ctx.config.vm_fqdn_template, user=record.owner, name=record.name, vm=vm
    )
    return from_xml.read(
        record.element,
        name=name,
        default_type=ctx.config.default_guest_type,
        directory=directory,
    )


def _from_xen(ctx: Context, text: str, vm: VmId, directory: str) -> GuestSpec:
    """The guest of a Xen file: it has no name unless the VM's XML lies beside it."""
    spec = from_xen.read(
        text, vm=vm, directory=directory, default_type=ctx.config.default_guest_type
    )
    beside = _text_of(os.path.join(directory, _VM_XML))
    if beside is None:
        return spec
    record = xml.vm_of(beside)
    if record.vm != vm:
        raise UsageError(f"{directory}/{_VM_XML} is of VM {record.vm}")
    name = names.expand_fqdn(
        ctx.config.vm_fqdn_template, user=record.owner, name=record.name, vm=vm
    )
    wanted = from_xml.xen_type(record.element) or spec.guest_type
    return replace(spec, name=name, guest_type=wanted)


def guest_of(ctx: Context, text: str, vm: VmId, directory: str) -> GuestSpec:
    """The guest that a deployment file describes, or the XML that oned gives an action.

    Raises a failure whose sentence begins with the VM's number.
    """
    read = _from_xml if text.lstrip().startswith("<") else _from_xen
    try:
        return read(ctx, text, vm, directory)
    except CxmError as error:
        if not error.message.startswith(f"VM {vm}:"):
            error.message = f"VM {vm}: {error.message}"
        raise


def last_deployment(directory: str) -> str | None:
    """The newest deployment file in the VM's directory, None where there is none."""
    try:
        found = [match for match in map(_DEPLOYMENT.fullmatch, os.listdir(directory)) if match]
    except OSError:
        return None
    if not found:
        return None
    newest = max(found, key=lambda match: int(match[1]))
    return _text_of(os.path.join(directory, newest[0]))
