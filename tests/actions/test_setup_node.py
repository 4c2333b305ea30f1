# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""cxm-setup node checks everything first, changes what is missing, and nothing the second time."""

import os
from dataclasses import replace
from pathlib import Path
from xml.etree.ElementTree import fromstring

import pytest

from cxm import config
from cxm.cluster import nodes
from cxm.errors import CxmError, RefusedError, UsageError
from cxm.setup import node
from tests.fakes.administration import KEY, FakeXenHost, Said, files_of
from tests.fakes.machine import FakeNode, Outcome

GIVEN = node.Options(frontend="frontend", cloud="cloudone1", key=f"{KEY} oneadmin@frontend")


@pytest.fixture
def xen(node: FakeNode) -> FakeXenHost:
    """A Xen host on which the package has just been installed."""
    return FakeXenHost(node)


def test_node_is_set_up_and_only_once(xen: FakeXenHost) -> None:
    """Settings, key, directories, service; the second run finds nothing to do."""
    said = Said()
    node.run(xen.host(), GIVEN, said)
    settings, _ = config.node(xen.text("etc/cxm/cxmrc"), "cxmrc")
    assert settings.clouds == ("cloudone1",)
    assert settings.vg_name == "LVM_XEN"
    assert xen.text("home/.ssh/authorized_keys") == (
        f"restrict,pty {KEY} cxm-setup:frontend=frontend\n"
    )
    assert os.stat(xen.node.path("home/.ssh/authorized_keys")).st_mode & 0o777 == 0o600
    assert os.path.isdir(xen.node.path("etc/xen/vm"))
    assert xen.service
    before, again = files_of(xen.node.root), Said()
    node.run(xen.host(), GIVEN, again)
    assert "Nothing to change" in again.text
    assert files_of(xen.node.root) == before


def test_later_run_needs_no_key(xen: FakeXenHost) -> None:
    """An upgrade is checked with the frontend's name alone; settings can be changed with it."""
    node.run(xen.host(), GIVEN, Said())
    node.run(xen.host(), node.Options(frontend="frontend", settings=["LV_PREFIX=vm"]), Said())
    settings, _ = config.node(xen.text("etc/cxm/cxmrc"), "cxmrc")
    assert (settings.clouds, settings.lv_prefix) == (("cloudone1",), "vm")


def test_dry_run_shows_and_changes_nothing(xen: FakeXenHost) -> None:
    """The diff is what would be written."""
    before, said = files_of(xen.node.root), Said()
    node.run(xen.host(), replace(GIVEN, dry_run=True), said)
    assert '+CLOUDS="cloudone1"' in said.text
    assert f"+restrict,pty {KEY}" in said.text
    assert "systemctl enable --now cxm-tend.service" in said.text
    assert files_of(xen.node.root) == before
    assert not xen.service


@pytest.mark.parametrize(
    ("fault", "names"),
    [
        ("dom0", "Xen"),
        ("vg", "volume group LVM_XEN"),
        ("full", "volume group LVM_XEN"),
        ("sudo", "sudo"),
        ("sftp", "sshd"),
        ("zstd", "programs"),
        ("python", "python"),
        ("account", "oneadmin"),
        ("root", "root"),
    ],
)
def test_failed_check_changes_nothing(xen: FakeXenHost, fault: str, names: str) -> None:
    """The table says what is wrong and what to do; the exit is an error."""
    host = xen.host()
    if fault == "dom0":
        os.unlink(xen.node.path("proc/xen/capabilities"))
    elif fault == "vg":
        xen.node.has_vg = False
    elif fault == "full":
        xen.node.size = 0
    elif fault == "sudo":
        xen.sudo = False
    elif fault == "sftp":
        xen.sshd = xen.sshd.replace("subsystem", "#")
    elif fault == "zstd":
        xen.programs = {"xl", "lvm", "gzip", "tar", "rsync", "mkfs.ext3", "mkswap", "sudo"}
    elif fault == "python":
        host = replace(host, python=(3, 9))
    elif fault == "account":
        host = replace(host, account=lambda _name: None)
    else:
        host = replace(host, uid=1000)
    before, said = files_of(xen.node.root), Said()
    with pytest.raises(RefusedError) as failure:
        node.run(host, GIVEN, said)
    assert failure.value.message.endswith(names)
    assert "FAILED" in said.text
    assert "->" in said.text
    assert files_of(xen.node.root) == before


def test_warnings_do_not_stop(xen: FakeXenHost) -> None:
    """What works, but should be known: rights that are no longer needed, an unset clock."""
    xen.everything, xen.synchronised = True, False
    said = Said()
    node.run(xen.host(), GIVEN, said)
    assert "oneadmin may do everything as root" in said.text
    assert "not synchronised" in said.text
    assert xen.service


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (node.Options(frontend="frontend", key=KEY), "no cloud is given"),
        (node.Options(frontend="frontend", cloud="cloudone1"), "no key is given"),
        (replace(GIVEN, key="ssh-ed25519 nonsense"), "is not an ssh public key"),
        (replace(GIVEN, key_file="/no/such"), "both given"),
        (replace(GIVEN, frontend="a b"), "is not the name or address of a host"),
        (replace(GIVEN, cloud="x"), "is not a cloud id"),
        (replace(GIVEN, settings=["MODE=RAW"]), "is not a setting of the node's"),
    ],
)
def test_wrong_arguments_are_one_sentence(
    xen: FakeXenHost, options: node.Options, message: str
) -> None:
    """Nothing is changed for a line that was copied badly."""
    before = files_of(xen.node.root)
    with pytest.raises(UsageError, match=message):
        node.run(xen.host(), options, Said())
    assert files_of(xen.node.root) == before


def test_helper_that_does_not_answer_is_said(xen: FakeXenHost) -> None:
    """The way of the drivers is tried at the end: oneadmin, sudo, helper."""
    xen.helper_answers = False
    with pytest.raises(
        CxmError, match=r"the helper does not answer oneadmin: .*a password is required"
    ):
        node.run(xen.host(), GIVEN, Said())


def test_what_is_ignored_of_a_hosts_cxmrc_is_said(xen: FakeXenHost) -> None:
    """An original cxmrc that was carried over holds code, and settings of the frontend."""
    path = Path(xen.node.path("etc/cxm/cxmrc"))
    path.parent.mkdir(parents=True)
    path.write_text("XPATH=/bin/x\nCLOUDS=cloudone1\n")
    said = Said()
    node.run(xen.host(), GIVEN, said)
    assert "warning: /etc/cxm/cxmrc:1: XPATH is obsolete" in said.text


def test_network_drivers_find_what_they_load(xen: FakeXenHost) -> None:
    """OpenNebula 7's drivers load a file that only its packages have."""
    xen.ruby_paths = False
    node.run(xen.host(), GIVEN, Said())
    assert "cxm-setup" in xen.text("usr/local/lib/site_ruby/load_opennebula_paths.rb")


class _Cib:
    """Pacemaker on a node of a cluster of two; what crm_diff is given as new is its patch."""

    def __init__(self, xen: FakeXenHost) -> None:
        nodes = "".join(f'<node id="{n}" uname="node{n}"/>' for n in (1, 2))
        self.text = f'<cib epoch="1"><configuration><nodes>{nodes}</nodes></configuration></cib>'
        Path(xen.node.path("etc/cxm")).mkdir(parents=True, exist_ok=True)
        Path(xen.node.path("etc/cxm/cluster")).touch()
        xen.node.model("crm_node", lambda _argv, _in: Outcome("node1\n"))
        xen.node.model("cibadmin", self._cibadmin)
        xen.node.model("crm_diff", lambda argv, _in: Outcome(Path(argv[-1]).read_text(), code=1))

    def _cibadmin(self, argv: tuple[str, ...], data: bytes) -> Outcome:
        if argv[1] == "--query":
            return Outcome(self.text)
        self.text = data.decode()
        return Outcome()

    def host_of(self, name: str) -> str:
        """What OpenNebula calls a node."""
        return nodes.host_of(fromstring(self.text), name)


def test_node_of_a_cluster_tells_its_name_in_opennebula(xen: FakeXenHost) -> None:
    """Its own, until it is told another; once told it stays, and nothing else is changed."""
    cib = _Cib(xen)
    node.run(xen.host(), GIVEN, Said())
    assert 'name="cxm-host" value="node1"' in cib.text
    said = Said()
    node.run(xen.host(), replace(GIVEN, host="xen1.lan"), said)
    assert "OpenNebula calls node1 'xen1.lan'" in said.text
    again = Said()
    node.run(xen.host(), GIVEN, again)
    assert "Nothing to change" in again.text
    assert cib.host_of("node1") == "xen1.lan"
    assert not xen.service


def test_name_of_another_node_is_refused(xen: FakeXenHost) -> None:
    """OpenNebula's orders would reach the wrong one; a standalone host has no such name."""
    with pytest.raises(UsageError, match="--host is for a node of a cluster"):
        node.run(xen.host(), replace(GIVEN, host="xen1"), Said())
    _Cib(xen)
    before = files_of(xen.node.root)
    with pytest.raises(RefusedError, match="cannot call this node 'node2': that is the node node2"):
        node.run(xen.host(), replace(GIVEN, host="node2"), Said())
    assert files_of(xen.node.root) == before
