# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""The same facts are read from the XML of every version."""

from pathlib import Path

import pytest

from cxm.errors import CxmError, DataError, NotFoundError, UsageError
from cxm.one import sizes, xml

DATA = Path(__file__).parents[1] / "data" / "one"
VERSIONS = ["3.8", "4.14", "5.10", "6.10", "7.4"]


def read(name: str) -> str:
    """A file of the test's data."""
    return (DATA / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("version", VERSIONS)
def test_a_vm(version: str) -> None:
    """Names, states, hosts and disks."""
    vm = xml.vm_of(read(f"vm-{version}.xml"))
    assert (vm.vm, vm.name, vm.owner) == (42, "web-1", "alice")
    assert (vm.state, vm.lcm_state) == (3, 2)
    assert vm.hosts == ("solo1", "solo2")
    assert [disk.disk_id for disk in vm.disks] == [0, 1, 10]
    assert vm.disk(0).image_id == 7
    assert vm.disk(10).image_id == 8
    assert vm.disk(1).image_id is None
    assert not vm.disk(0).is_cdrom


@pytest.mark.parametrize("version", VERSIONS)
def test_a_vm_inside_of_a_drivers_input(version: str) -> None:
    """VMM actions get the VM inside of another element."""
    inside = read(f"vm-{version}.xml")
    text = (
        "<VMM_DRIVER_ACTION_DATA><HOST>solo1</HOST>"
        f"{inside}<DATASTORE><ID>0</ID></DATASTORE></VMM_DRIVER_ACTION_DATA>"
    )
    assert xml.vm_of(text) == xml.vm_of(inside)


@pytest.mark.parametrize("version", VERSIONS)
def test_an_image(version: str) -> None:
    """Size and file system are found wherever the version keeps them."""
    image = xml.image_of(read(f"image-{version}.xml"))
    disk = xml.vm_of(read(f"vm-{version}.xml")).disk(0)
    assert (image.image_id, image.name, image.is_cdrom) == (7, "web root", False)
    assert sizes.filesystem_of_image(disk, image, "xfs") == "ext4"
    size = sizes.of_disk(disk, image, content_bytes=0, is_optical=False, default_mib=8192)
    assert size.mib == 2048


def test_disk_1_is_not_disk_10() -> None:
    """A number is compared as a whole."""
    vm = xml.vm_of(read("vm-7.4.xml"))
    assert vm.disk(1)["TARGET"] == "xvdb"
    assert vm.disk(10)["TARGET"] == "xvdk"
    with pytest.raises(NotFoundError, match="VM 42 has no disk 2 in oned"):
        vm.disk(2)


def test_a_disk_that_is_there_twice_is_refused() -> None:
    """What is meant cannot be told."""
    disk = "<DISK><DISK_ID>0</DISK_ID></DISK>"
    vm = xml.vm_of(f"<VM><ID>4</ID><TEMPLATE>{disk}{disk}</TEMPLATE></VM>")
    with pytest.raises(NotFoundError, match="more than one disk 0"):
        vm.disk(0)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", DataError),
        ("<VM>", DataError),
        ("<HOST><ID>4</ID></HOST>", DataError),
        ("<VM></VM>", UsageError),
        ("<VM><ID>four</ID></VM>", UsageError),
        ("<VM><ID>4</ID><STATE>on</STATE></VM>", DataError),
        ('<!DOCTYPE VM [<!ENTITY a "b">]><VM><ID>4</ID></VM>', DataError),
        ('<!DOCTYPE VM SYSTEM "file:///etc/passwd"><VM><ID>4</ID></VM>', DataError),
    ],
)
def test_other_xml_is_refused(text: str, error: type[CxmError]) -> None:
    """Damaged XML, another element, and every document type."""
    with pytest.raises(error):
        xml.vm_of(text)


def test_entities_cannot_grow() -> None:
    """A few bytes must not become gigabytes."""
    declarations = "".join(
        f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' if n else '<!ENTITY a0 "ha">' for n in range(12)
    )
    with pytest.raises(DataError, match="document type"):
        xml.vm_of(f"<!DOCTYPE VM [{declarations}]><VM><ID>4</ID><NAME>&a11;</NAME></VM>")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<CLUSTERS><ID>0</ID><ID>100</ID></CLUSTERS>", {0, 100}),
        ("<CLUSTER_ID>100</CLUSTER_ID>", {100}),
        ("<CLUSTER_ID>-1</CLUSTER_ID>", set()),
        ("<CLUSTERS/>", set()),
        ("", set()),
    ],
)
def test_the_clusters_of_a_datastore(text: str, expected: set[int]) -> None:
    """Several from 5.0 on, one before."""
    datastore = xml.datastore_of(
        f"<DS_DRIVER_ACTION_DATA><DATASTORE><ID>101</ID><NAME>san</NAME>{text}"
        "<TEMPLATE><BRIDGE_LIST><![CDATA[node1  node2]]></BRIDGE_LIST></TEMPLATE></DATASTORE>"
        "</DS_DRIVER_ACTION_DATA>"
    )
    assert datastore == xml.Datastore(101, "san", frozenset(expected), ("node1", "node2"))


def test_hosts() -> None:
    """The hosts of a pool, none included."""
    host = (
        "<HOST><ID>3</ID><NAME>node1</NAME><STATE>2</STATE>"
        "<VM_MAD><![CDATA[vmm_cxm]]></VM_MAD><CLUSTER_ID>100</CLUSTER_ID></HOST>"
    )
    assert xml.hosts_of(f"<HOST_POOL>{host}</HOST_POOL>") == [
        xml.Host(3, "node1", 100, xml.HostState.MONITORED, "vmm_cxm")
    ]
    assert xml.hosts_of("<HOST_POOL/>") == []
