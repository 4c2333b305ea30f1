# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Derived names are exact, reversible and refuse what Xen, LVM or a shell could misread."""

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxm import names
from cxm.errors import DataError, UsageError

CLOUD = names.cloud_id("c0ffee0042")
OTHER = names.cloud_id("c0ffee0043")
VM_IDS = st.integers(min_value=0, max_value=2**32 - 1).map(names.VmId)


@given(VM_IDS)
def test_uuid_leads_back_to_its_vm_and_to_no_other_cloud(vm: names.VmId) -> None:
    """A domain's UUID carries the VM's id; another cloud does not recognise it."""
    text = names.domain_uuid(CLOUD, vm)
    assert str(uuid.UUID(text)) == text
    assert uuid.UUID(text).version == 8
    assert names.vm_of_uuid(CLOUD, text) == vm
    assert names.vm_of_uuid(CLOUD, text.upper()) == vm
    assert names.vm_of_uuid(OTHER, text) is None


@pytest.mark.parametrize("text", ["", "-", "x" * 36, "00000000-0000-0000-0000-000000000000"])
def test_foreign_uuid_is_no_vm(text: str) -> None:
    """Domain-0 and anything that is not a UUID belong to no VM."""
    assert names.vm_of_uuid(CLOUD, text) is None


def test_volume_names_of_neighbouring_vms_and_disks_differ() -> None:
    """VM 1 disk 10 is neither VM 11 disk 0 nor VM 1 disk 1."""
    pairs = [(1, "10"), (11, "0"), (1, "1"), (10, "1"), (1, "checkpoint")]
    made = {names.lv_name("lv-one", names.VmId(vm), kind) for vm, kind in pairs}
    assert len(made) == len(pairs)
    assert "lv-one-1-10" in made


@pytest.mark.parametrize("kind", ["", "-1", "01", "1/2", "disk", "1 ", "99999"])
def test_volume_kind_refuses_what_is_no_disk(kind: str) -> None:
    """Only a plain number or 'checkpoint' names a volume."""
    with pytest.raises(UsageError):
        names.lv_name("lv-one", names.VmId(1), kind)


@pytest.mark.parametrize("text", ["", "-1", "042", "4 2", "4;reboot", "9" * 11, "4294967296"])
def test_vm_id_refuses_what_is_no_id(text: str) -> None:
    """A VM's id is its plain decimal text."""
    with pytest.raises(UsageError):
        names.vm_id(text)


@pytest.mark.parametrize(
    ("user", "name", "expected"),
    [
        ("alice", "web", "alice-web.vm.home.net"),
        ("a/b&c'd\"e$f;g", "w e'b;1", "abcdefg-web1.vm.home.net"),
        ("j.doe@corp", "web-1", "j.doecorp-web1.vm.home.net"),
        ("alice", "vm été", "alice-vmt.vm.home.net"),
    ],
)
def test_domain_name_keeps_what_is_safe(user: str, name: str, expected: str) -> None:
    """Characters that a shell, sed or Xen could misread vanish from a domain's name."""
    got = names.expand_fqdn("%U-%V.vm.home.net", user=user, name=name, vm=names.VmId(7))
    assert got == expected


@pytest.mark.parametrize(
    ("template", "user", "name"),
    [
        ("%U-%V.home", "", "web"),
        ("%U-%V.home", "alice", ""),
        ("%U-%V.home", "alice", "日本"),
        ("%U-%V.home", "-alice", "web"),
        ("-%V.home", "alice", "web"),
        ("%U-%V.home", "a" * 130, "web"),
    ],
)
def test_impossible_domain_name_is_one_sentence(template: str, user: str, name: str) -> None:
    """An empty part, a leading dash or too long a name is an error that names the VM."""
    with pytest.raises(UsageError, match="VM 7"):
        names.expand_fqdn(template, user=user, name=name, vm=names.VmId(7))


def test_percent_in_a_name_is_not_expanded_again() -> None:
    """What a user calls a VM is never read as a part of the template."""
    got = names.expand_fqdn("%U.%V", user="x%Iy", name="V%U", vm=names.VmId(7))
    assert got == "xIy.VU"


def test_tags_survive_lvm_and_foreign_tags() -> None:
    """Tags come back as written, whatever others have added."""
    tags = names.Tags(CLOUD, names.VmId(4), "0", names.State.READY, "alice-web.home")
    assert names.decode_tags(["backup", *tags.encode(), "x=y"]) == tags
    assert names.decode_tags(["backup"]) is None


@pytest.mark.parametrize(
    "extra",
    [["cxm.vm=5"], ["cxm.state=unheard"], ["cxm.cloud=UPPER123"], ["cxm.disk=x"]],
)
def test_contradicting_or_damaged_tags_are_an_error(extra: list[str]) -> None:
    """A volume whose tags cannot be trusted is not taken for anybody's."""
    good = names.Tags(CLOUD, names.VmId(4), "0", names.State.READY).encode()
    key = extra[0].split("=")[0]
    damaged = [tag for tag in good if not tag.startswith(key)] + extra
    if extra == ["cxm.vm=5"]:
        damaged = good + extra
    with pytest.raises(DataError):
        names.decode_tags(damaged)
    with pytest.raises(DataError):
        names.decode_tags(good[:1])
