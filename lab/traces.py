# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns what a VM may leave behind on a node, and how to see that nothing of it is there."""

from lab.machine import Machine

# One command a kind of trace; each prints one line a trace and nothing on a clean node.
_LOOKS = {
    "domain": "xl list | awk 'NR > 1 && $1 != \"Domain-0\" {print $1}'",
    "volume": "lvs --noheadings -o vg_name,lv_name | awk '{print $1 \"/\" $2}'",
    "mount": 'awk \'$1 ~ "^/dev/" && $2 != "/" {print $2}\' /proc/mounts',
    "configuration": "find /etc/xen/vm /etc/xen/auto -mindepth 1 2>/dev/null",
    "file": 'find "$DATASTORES" -mindepth 2 2>/dev/null',
    "record": "find /var/lib/cxm/guests -type f 2>/dev/null",
    # OpenNebula's copy of the drivers and the empty TMP_ROOT are no VM's.
    "temporary file": "find /tmp /var/tmp -path /var/tmp/one -prune -o "
    "-path '*cxm*' ! -path /var/tmp/cxm -print 2>/dev/null",
    "process": "pgrep -fa '[c]xm-helper (disk|domain|dir|file|vm)|[x]l (restore|save)' || true",
}


def of_vms(machine: Machine, datastores: str = "/var/lib/one/datastores") -> list[str]:
    """Every trace of a VM on the node, one line each; empty on a clean node."""
    script = "\n".join(f"({look}) | sed 's|^|{kind}: |'" for kind, look in _LOOKS.items())
    given = f"DATASTORES={datastores}"
    return machine.run(["env", given, "sh", "-c", script]).stdout.splitlines()
