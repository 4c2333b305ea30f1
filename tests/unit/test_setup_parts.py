# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Each version of OpenNebula gets what it needs, once, and keeps what its administrator chose."""

import pytest

from cxm.errors import ConfigError
from cxm.one.version import OneVersion
from cxm.setup import oneconf, parts
from cxm.setup.parts import Choices

V38, V44, V54, V510, V512, V74 = (
    OneVersion(3, 8), OneVersion(4, 4), OneVersion(5, 4), OneVersion(5, 10, 5),
    OneVersion(5, 12), OneVersion(7, 4),
)  # fmt: skip
ALL = (OneVersion(3, 6), V38, OneVersion(4, 2), V44, OneVersion(4, 14), V54, V510, V512, V74)

# In the shape of the configuration that OpenNebula's packages bring.
ONED = """\
DEFAULT_DEVICE_PREFIX = "sd"
VM_MAD = [
    NAME = "qemu", EXECUTABLE = "one_vmm_exec", ARGUMENTS = "-t 15 kvm", TYPE = "qemu" ]
TM_MAD = [
    EXECUTABLE = "one_tm",
    ARGUMENTS  = "-t 15 -d dummy,shared,ssh" ]
DATASTORE_MAD = [
    EXECUTABLE = "one_datastore",
    ARGUMENTS  = "-t 15 -d dummy,fs -s shared,ssh"
]
INHERIT_IMAGE_ATTR = "DISK_TYPE"
"""


def _oned(version: OneVersion, text: str = ONED, **choices: str | bool) -> tuple[str, list[str]]:
    return parts.apply(text, "oned.conf", parts.of_oned(version, Choices(**choices)))  # type: ignore[arg-type]  # a test's shorthand


def _vectors(text: str, name: str) -> dict[str | None, oneconf.Entry]:
    return {each.get("NAME"): each for each in oneconf.parse(text, "x") if each.name == name}


@pytest.mark.parametrize("version", ALL, ids=str)
def test_second_run_changes_nothing(version: OneVersion) -> None:
    """What is there is recognised."""
    once, changes = _oned(version)
    assert changes
    assert _oned(version, once) == (once, [])
    assert once.startswith(ONED.split("TM_MAD", maxsplit=1)[0])


@pytest.mark.parametrize("version", ALL, ids=str)
def test_drivers_are_announced(version: OneVersion) -> None:
    """Every version learns both transfer drivers and the VM driver."""
    text, _ = _oned(version)
    assert '"-t 15 -d dummy,shared,ssh,cxm,cxm_local"' in text
    driver = _vectors(text, "VM_MAD")["vmm_cxm"]
    assert driver.get("EXECUTABLE") == "one_vmm_exec"
    assert (driver.get("ARGUMENTS") or "").split()[-1] == "cxm"
    assert driver.get("TYPE") == ("xml" if version >= (5, 0) else "xen")
    assert (driver.get("DEFAULT") is None) == (version >= (5, 0))


@pytest.mark.parametrize(
    ("version", "arguments"),
    [
        (V38, "-r 0 -t 15 cxm"),
        (V44, "-r 3 -t 15 cxm-probes"),
        (V510, "-r 3 -t 15 -w 90 cxm-probes"),
    ],
    ids=str,
)
def test_monitoring_before_monitord_is_in_oned_conf(version: OneVersion, arguments: str) -> None:
    """Up to 5.10 oned starts the information driver itself."""
    text, _ = _oned(version)
    assert _vectors(text, "IM_MAD")["cxm"].get("ARGUMENTS") == arguments


def test_monitoring_since_monitord_is_in_its_file() -> None:
    """From 5.12 on oned.conf has only monitord as an information driver."""
    text, _ = _oned(V512)
    assert "cxm" not in _vectors(text, "IM_MAD")
    own, _ = parts.apply("", "monitord.conf", parts.of_monitord(V512))
    assert _vectors(own, "IM_MAD")["cxm"].get("THREADS") == "0"


def test_transfer_configuration_is_as_a_version_knows_it() -> None:
    """TM_MAD_CONF exists since 4.4; images may go to local datastores since 5.6."""
    assert "TM_MAD_CONF" not in _oned(V38)[0]
    assert 'INHERIT_IMAGE_ATTR = "LV_SIZE"' not in _oned(V38)[0]
    old = _vectors(_oned(V44)[0], "TM_MAD_CONF")
    assert (old["cxm"].get("SHARED"), old["cxm_local"].get("SHARED")) == ("YES", "NO")
    assert old["cxm"].get("TM_MAD_SYSTEM") is None
    new = _vectors(_oned(V74)[0], "TM_MAD_CONF")["cxm"]
    assert new.get("TM_MAD_SYSTEM") == "cxm_local"
    assert new.get("CLONE_TARGET_CXM_LOCAL") == new.get("LN_TARGET_CXM_LOCAL") == "SYSTEM"
    text, _ = _oned(V74)
    assert text.count('INHERIT_IMAGE_ATTR = "LV_SIZE"') == 1


def test_shared_datastores_are_watched_since_5_0() -> None:
    """The list of system datastore drivers gets cxm, also where there was no list."""
    assert "-s shared,ssh,cxm" in _oned(V54)[0]
    assert '-s shared,ssh"' in _oned(V44)[0]
    without = ONED.replace(" -s shared,ssh", "")
    assert '"-t 15 -d dummy,fs -s cxm"' in _oned(V54, without)[0]


def test_list_that_is_not_there_stays_away() -> None:
    """Without -d one_tm takes every directory: a list would hide the others."""
    without = ONED.replace(" -d dummy,shared,ssh", "")
    assert 'ARGUMENTS  = "-t 15" ]' in _oned(V74, without)[0]


def test_administrators_choices_stay() -> None:
    """An entry of a former run, or of the original, keeps its threads and its own attributes."""
    mine = ONED + (
        'VM_MAD = [ name = "vmm_cxm", executable = "one_vmm_exec", '
        'arguments = "-t 40 cxm", type = "xen", COST = "3" ]\n'
    )
    text, changes = _oned(V74, mine)
    driver = _vectors(text, "VM_MAD")["vmm_cxm"]
    assert driver.get("ARGUMENTS") == "-t 40 -l migrate,shutdown,cancel,save,reboot,reset cxm"
    assert driver.get("COST") == "3"
    assert driver.get("TYPE") == "xml"
    assert "VM_MAD 'vmm_cxm': TYPE set" in changes


@pytest.mark.parametrize(
    ("version", "before", "after"),
    [
        (V38, "migrate,clean,pre", "migrate,clean,shutdown,cancel,save,reboot,reset,poll"),
        (V74, "pre,post,clean,migrate", "migrate,shutdown,cancel,save,reboot,reset"),
        (V74, "save=mine,deploy,clean", "save=mine,deploy,migrate,shutdown,cancel,reboot,reset"),
    ],
)
def test_network_steps_of_an_older_version_go(version: OneVersion, before: str, after: str) -> None:
    """An oned.conf that has come along with OpenNebula; other words of its owner's stay."""
    mine = ONED + (
        'VM_MAD = [ NAME = "vmm_cxm", EXECUTABLE = "one_vmm_exec", '
        f'ARGUMENTS = "-t 15 -l {before} -r 0 cxm", TYPE = "xml" ]\n'
    )
    text, _changes = _oned(version, mine)
    arguments = _vectors(text, "VM_MAD")["vmm_cxm"].get("ARGUMENTS")
    assert arguments == f"-t 15 -l {after} -r 0 cxm"
    assert _oned(version, text) == (text, [])


def test_name_of_another_driver_is_not_taken_by_accident() -> None:
    """A stock driver is replaced only when that is asked for, and then whole."""
    with pytest.raises(ConfigError, match="named 'qemu' for other drivers"):
        _oned(V74, vm_mad="qemu")
    text, changes = _oned(V74, vm_mad="qemu", take_over=True)
    assert _vectors(text, "VM_MAD").keys() == {"qemu"}
    assert _vectors(text, "VM_MAD")["qemu"].get("TYPE") == "xml"
    assert "VM_MAD 'qemu' taken over from other drivers" in changes
    assert _oned(V74, text, vm_mad="qemu") == (text, [])
    assert parts.vm_mad(text, "oned.conf") == "qemu"


def test_the_name_that_the_driver_has() -> None:
    """Once it has a name, that need not be given again; it is not looked for among others'."""
    assert parts.vm_mad(ONED, "oned.conf") == "vmm_cxm"
    assert parts.vm_mad(_oned(V74)[0], "oned.conf") == "vmm_cxm"
    other, _changes = _oned(V74, vm_mad="xen")
    assert parts.vm_mad(other, "oned.conf") == "xen"
    assert parts.vm_mad(_oned(V74, other)[0], "oned.conf") == "vmm_cxm"


def test_device_prefix_is_changed_only_for_a_cloud_of_xen() -> None:
    """A default for all images would harm KVM hosts."""
    assert 'DEFAULT_DEVICE_PREFIX = "sd"' in _oned(V74)[0]
    assert 'DEFAULT_DEVICE_PREFIX = "xvd"' in _oned(V74, xen_only=True)[0]
    bare = ONED.replace('DEFAULT_DEVICE_PREFIX = "sd"\n', "")
    assert 'DEFAULT_DEVICE_PREFIX = "xvd"' in _oned(V74, bare, xen_only=True)[0]


def test_configuration_without_the_stock_driver_is_an_error() -> None:
    """There is nothing that the list could go into."""
    with pytest.raises(ConfigError, match="has no TM_MAD with EXECUTABLE"):
        _oned(V74, 'TM_MAD = [ EXECUTABLE = "my_tm" ]\n')


def test_slow_monitoring_is_named_where_oned_has_to_ask() -> None:
    """Before monitord the state of a VM is as old as the interval."""
    text = "HOST_MONITORING_INTERVAL = 600\nMONITORING_INTERVAL=60\n"
    assert parts.slow_monitoring(text, "x", V38) == ["HOST_MONITORING_INTERVAL = 600"]
    assert parts.slow_monitoring(text, "x", V74) == []


@pytest.mark.parametrize(
    ("version", "words"),
    [
        (OneVersion(3, 6), ",poll,pre,post,clean"),
        (OneVersion(3, 8), ",poll,clean"),
        (OneVersion(4, 2), ",poll"),
        (OneVersion(4, 4), ""),
        (V74, ""),
    ],
)
def test_no_dead_host_is_needed(version: OneVersion, words: str) -> None:
    """What oned would run on a host that is dead runs on the frontend."""
    text, _changes = _oned(version, ONED)
    arguments = _vectors(text, "VM_MAD")["vmm_cxm"].get("ARGUMENTS") or ""
    assert arguments.endswith(f" -l migrate,shutdown,cancel,save,reboot,reset{words} cxm")
    assert _oned(version, text)[0] == text


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("-t 15 -l deploy cxm", "-t 15 -l deploy,migrate cxm"),
        ("-t 15 -l migrate=migrate_local cxm", "-t 15 -l migrate=migrate_local cxm"),
        ("cxm", "-l migrate cxm"),
        ("-t 15 --local deploy,save cxm", "-t 15 --local deploy,save,migrate cxm"),
        ("--local=deploy cxm", "--local=deploy,migrate cxm"),
    ],
)
def test_an_administrators_local_actions_stay(old: str, new: str) -> None:
    """Ours are added to them."""
    assert parts.LocalActions("x", ["migrate"])._extended(old) == new
