# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""The texts for 5.12 to 7.4, read as monitord and oned read them."""

import base64

from cxm import __version__
from cxm.one.im import messages
from cxm.one.im.datastores import Datastore
from tests.fakes import template
from tests.fakes.observations import guest, observation


def test_system_host() -> None:
    """Capacity, versions, space and foreign domains."""
    seen = observation(guest(1), foreign=("wild one",))
    said = messages.system_host(seen, [Datastore(100, 10, 4, 6)], "7.4.0")
    read = template.parse(said)
    singles = template.singles(read)
    assert singles == {
        "HYPERVISOR": "xen",
        "HOSTNAME": "solo1",
        "ARCH": "x86_64",
        "MODELNAME": "Intel(R) Core(TM) i7, 2.80GHz",
        "CPUSPEED": "2800",
        "TOTALCPU": "800",
        "TOTALMEMORY": "8000000",
        "VERSION": "7.4.0",
        "XEN_VERSION": "4.17.5",
        "CXM_VERSION": __version__,
        "DS_LOCATION_TOTAL_MB": "100000",
        "DS_LOCATION_USED_MB": "40000",
        "DS_LOCATION_FREE_MB": "60000",
    }
    assert template.vectors(read, "DS") == [
        {"ID": "100", "USED_MB": "4", "TOTAL_MB": "10", "FREE_MB": "6"}
    ]
    assert template.vectors(read, "VM") == [
        {"ID": "-1", "DEPLOY_ID": "wild one", "VM_NAME": "wild one"}
    ]


def test_monitor_host() -> None:
    """The load, in the units of OpenNebula."""
    assert template.singles(template.parse(messages.monitor_host(observation()))) == {
        "HYPERVISOR": "xen",
        "USEDMEMORY": "1000000",
        "FREEMEMORY": "7000000",
        "USEDCPU": "35",
        "FREECPU": "765",
        "NETRX": "1111",
        "NETTX": "2222",
    }


def test_monitor_vm() -> None:
    """Each running guest's usage is a template of its own inside; others have none."""
    said = messages.monitor_vm([guest(1), guest(10), guest(2, "poweroff"), guest(3, "busy")])
    vms = template.vectors(template.parse(said), "VM")
    assert [vm["ID"] for vm in vms] == ["1", "10"]
    inner = template.parse(base64.b64decode(vms[0]["MONITOR"]).decode())
    assert template.singles(inner)["CPU"] == "12.5"
    assert template.singles(inner)["MEMORY"] == "524288"
    assert template.vectors(inner, "DISK_SIZE") == [{"ID": "0", "SIZE": "1024"}]


def test_no_running_guest_is_no_message() -> None:
    """Nobody is bothered with nothing."""
    assert messages.monitor_vm([guest(2, "failure")]) == ""
