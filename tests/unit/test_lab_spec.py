# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""What a lab consists of, where its files are, what makes a node itself."""

import os
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from cxm.errors import UsageError
from lab import frontend, keys, personality
from lab.namespaces import Namespace
from lab.places import Places, places
from lab.spec import HOSTS, NETWORKS, LabSpec, make_spec


@pytest.fixture
def where(tmp_path: Path) -> Places:
    """Places below a temporary directory, with keys that need no ssh-keygen."""
    here = Places("unit", str(tmp_path / "cache"), str(tmp_path / "state"), str(tmp_path / "logs"))
    for name in (keys.ROOT_KEY, *(keys.host_key_name(host.name) for host in HOSTS)):
        path = here.cached("keys", name)
        Path(path).write_text(f"private {name}\n")
        Path(path + ".pub").write_text(f"ssh-ed25519 PUBLIC-{name} {name}\n")
    return here


def test_all_hosts_unless_some_are_named() -> None:
    """No name means the whole lab; names may come in any order, once or more."""
    assert [host.name for host in make_spec().hosts] == ["node1", "node2", "solo1"]
    assert [host.name for host in make_spec(["solo1", "node1", "solo1"]).hosts] == [
        "node1",
        "solo1",
    ]


def test_an_unknown_host_is_named_with_the_known_ones() -> None:
    """A misspelt host is a usage error that lists what there is."""
    with pytest.raises(UsageError) as caught:
        make_spec(["solo"])
    assert "'solo'" in caught.value.sentence()
    assert "node1 node2 solo1" in caught.value.sentence()


def test_memory_can_be_changed_by_host() -> None:
    """A size changes one host only, and the fingerprint of the lab."""
    plain, changed = make_spec(), make_spec(memory_mib={"solo1": 2048})
    assert changed.host("solo1").memory_mib == 2048
    assert changed.host("node1") == plain.host("node1")
    assert changed.fingerprint() != plain.fingerprint()


def test_every_address_and_every_device_name_is_its_own() -> None:
    """No two hosts share a MAC, an address or a tap, and tap names fit into the kernel's limit."""
    macs = [network.mac(host.number) for host in HOSTS for network in NETWORKS]
    taps = [host.tap(network) for host in HOSTS for network in NETWORKS]
    addresses = [a for h in HOSTS for a in (h.address, h.cluster_address, h.bmc_address)]
    for names in (macs, taps, addresses):
        assert len(set(names)) == len(names)
    assert max(map(len, taps)) <= 15


def test_a_spec_survives_json() -> None:
    """What is written to a snapshot's manifest is read back the same."""
    spec = make_spec(["solo1"])
    assert LabSpec.from_json(spec.to_json()) == spec


def test_places_follow_the_environment() -> None:
    """The cache, the state and the name can be chosen."""
    env = {"CXM_LAB_CACHE": "/c", "CXM_LAB_STATE": "/s", "CXM_LAB_NAME": "mine"}
    chosen = places(env=env)
    assert (chosen.cache, chosen.state, chosen.logs) == ("/c", "/s/mine", "/c/logs/mine")
    assert places("other", env).state == "/s/other"
    assert places(env={"XDG_CACHE_HOME": "/x"}).cache == "/x/cxm-lab"
    assert places(env={}).name == "default"


@pytest.mark.parametrize("name", ["", "-x", "a/b", "..", "A", "x" * 21, "x y", "x.y"])
def test_a_bad_name_of_a_lab_is_refused(name: str) -> None:
    """A name becomes part of paths: anything else than a-z, 0-9 and '-' is refused."""
    with pytest.raises(UsageError):
        places(name or "-", {})


def test_the_state_must_be_ours(tmp_path: Path) -> None:
    """A state directory that somebody else could have made is not used."""
    target = tmp_path / "elsewhere"
    target.mkdir()
    (tmp_path / "link").symlink_to(target)
    state = str(tmp_path / "link" / "name")
    with pytest.raises(Exception, match="not a directory of ours"):
        Places("name", "/c", state, "/l").make_state()


def test_a_personality_is_a_whole_number_of_sectors(where: Places, tmp_path: Path) -> None:
    """The disk that makes a node itself holds its name, addresses, keys, and no secret is open."""
    spec = make_spec()
    disk = str(tmp_path / "disk")
    personality.write_disk(disk, personality.files(where, spec, spec.host("node2")))
    assert os.stat(disk).st_size % 512 == 0
    with tarfile.open(disk) as archive:
        modes = {member.name: member.mode for member in archive}
        network = archive.extractfile("etc/systemd/network/30-xenbr0.network")
        assert network is not None
        assert b"Address=10.77.1.12/24" in network.read()
    assert modes["etc/ssh/ssh_host_ed25519_key"] == 0o600
    assert modes["root/.ssh"] == 0o700
    assert modes["etc/hostname"] == 0o644


def test_hosts_file_names_everyone_and_this_machine() -> None:
    """The frontend's place resolves the nodes, the frontend and this machine's own name."""
    text = personality.hosts_file(make_spec(), "builder")
    for line in ("10.77.1.21 solo1", "10.77.1.1 frontend", "10.77.2.11 node1-cluster"):
        assert line in text.splitlines()
    assert "127.0.1.1 builder" in text
    assert "127.0.1.1" not in personality.hosts_file(make_spec(), "solo1")


def test_env_lines_can_be_evaluated_whatever_the_values(where: Places) -> None:
    """Every value is quoted for a shell; every host has its addresses."""
    spec = make_spec(["solo1"])
    odd = replace(where, state=where.state + "/it's odd")
    values = frontend.environment(odd, Namespace(4711), spec)
    assert values["CXM_LAB_HOSTS"] == "solo1"
    assert values["CXM_LAB_ADDRESS_solo1"] == "10.77.1.21"
    assert values["CXM_LAB_EXEC"].startswith("nsenter --target=4711 ")
    lines = frontend.assignments(values)
    assert "export CXM_LAB_SSH_CONFIG='" in lines
    assert "'\"'\"'" in lines


def test_outside_of_the_user_namespace_it_is_entered_too() -> None:
    """Callers without root enter the user namespace first."""
    assert "--user" not in Namespace(1).prefix()
    assert Namespace(1, user=True).prefix()[2:4] == ["--user", "--preserve-credentials"]


def test_snapshots_notice_other_keys(where: Places) -> None:
    """The fingerprint of the keys changes with any key that a machine in a snapshot knows."""
    spec = make_spec()
    before = keys.fingerprint(where, spec)
    Path(where.cached("keys", keys.host_key_name("node1")) + ".pub").write_text("ssh-ed25519 X y\n")
    assert keys.fingerprint(where, spec) != before
