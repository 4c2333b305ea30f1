# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""cxm-setup cluster: machines become one cluster, and a second run changes nothing."""

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from xml.etree.ElementTree import tostring

import pytest

from cxm.cluster import basis, nodes
from cxm.errors import CxmError, RefusedError, UsageError
from cxm.setup import cluster, clustercheck, corosync, forming, jointoken, main
from cxm.setup.cluster import Options
from tests.fakes.administration import Said, files_of
from tests.fakes.clusternode import DEVICE, SBD_HEADER
from tests.fakes.forming import GIVEN, Pair

LOCKS = {"cxm-dlm", "cxm-lvmlockd", "cxm-lockspace"}


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    """Two machines with the packages installed, Corosync's example as Debian leaves it."""
    return Pair(tmp_path)


def test_two_machines_become_a_cluster(pair: Pair) -> None:
    """Everything that a node needs is there, the same on both."""
    said = pair.form()
    assert f"cxm-setup cluster --join {pair.token()}" in said
    assert "The cluster lab is formed" in said
    for path in ("etc/corosync/corosync.conf", "etc/corosync/authkey", "etc/cxm/peer_key"):
        assert pair.first.text(path) == pair.second.text(path) != ""
    for node in pair.nodes:
        assert "use_lvmlockd = 1" in node.text("etc/lvm/lvmlocal.conf")
        assert node.text("etc/lvm/lvmlocal.conf").startswith("local {\n}\n")
        assert "fence_all /usr/lib/cxm/cxm-dlm-fence\n" in node.text("etc/dlm/dlm.conf")
        assert 'PCMK_ipc_buffer="1048576"\n# more\n' in node.text("etc/default/pacemaker")
        assert f'NODE="{node.name}"\n' in node.text("etc/cxm/cluster")
        assert os.stat(node.node.path("etc/cxm/peer_key")).st_mode & 0o777 == 0o600
        assert re.fullmatch(
            r'command="/usr/lib/cxm/cxm-peer",restrict ssh-ed25519 \S+ cxm-setup:cluster=lab\n',
            node.text("root/.ssh/authorized_keys"),
        )
        assert node.masked == {"xendomains.service"}
        assert node.enabled == {
            "corosync.service",
            "pacemaker.service",
            "cxm-gather.timer",
            "cxm-nudge.path",
        }
        assert node.active >= node.enabled
        assert "cxm-tend.service" not in node.active
    assert pair.san.group == "LVM_XEN"
    facts = {
        each.get("name"): each.get("value")
        for each in pair.pacemaker.cib.iterfind("configuration/nodes/node[@uname='node2']//nvpair")
    }
    assert facts == {
        "cxm-address": "10.0.0.2",
        "cxm-hostkey": "ssh-ed25519 AAAAhost",
        "memory": "6000",  # neither dom0's nor Xen's own is in it
        "cpu": "400",
    }


def test_second_run_changes_nothing_and_says_so(pair: Pair) -> None:
    """On either node; no token is shown any more."""
    pair.form()
    before = [files_of(node.node.root) for node in pair.nodes]
    token = pair.token()
    first = pair.run(pair.first, GIVEN)
    second = pair.run(pair.second, Options(join=token))
    assert "Nothing to change: node1 is a node of lab." in first
    assert "Nothing to change: node2 is a node of lab." in second
    assert "--join" not in first
    assert [files_of(node.node.root) for node in pair.nodes] == before


def test_second_run_puts_a_nodes_memory_right(pair: Pair) -> None:
    """One from total memory, which Xen's own was in, is corrected; a few MiB are no change."""
    pair.form()
    pair.first.free_mib -= 10
    assert "Nothing to change: node1 is a node of lab." in pair.run(pair.first, GIVEN)
    pair.pacemaker.change(
        pair.first.host().runner,
        lambda cib: basis.edit_facts(cib, "node1", {}, {"memory": str(8192 - 1024)}),
        "",
    )
    assert "~ node node1: memory 7168 -> 5990" in pair.run(pair.first, replace(GIVEN, dry_run=True))
    assert "the cluster knows node1: 5990 MiB for guests, 4 CPUs" in pair.run(pair.first, GIVEN)
    assert nodes.facts(pair.pacemaker.cib)["node1"].number("memory") == 5990


def test_broken_off_it_goes_on_with_the_same_token(pair: Pair) -> None:
    """Ctrl-C while it waits: the nodes that have joined need nothing again."""

    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pair.run(pair.first, GIVEN, interrupted)
    token = pair.token()
    assert token in pair.form()
    assert pair.token() == token


def test_dry_run_changes_nothing_and_shows_no_secret(pair: Pair) -> None:
    """Files as diffs, services, what goes."""
    pair.first.write("var/lib/pacemaker/cib/cib.xml", "<cib/>")
    pair.first.active |= {"corosync.service", "pacemaker.service"}
    before = files_of(pair.first.node.root)
    said = pair.run(pair.first, replace(GIVEN, dry_run=True))
    assert files_of(pair.first.node.root) == before
    assert "+    cluster_name: lab" in said
    assert "systemctl mask xendomains.service" in said
    assert "  + properties: stonith-enabled true, " in said
    assert "  + primitive fence-node2: agent stonith:fence_ipmilan, pcmk_host_list node2, " in said
    assert "ip 10.0.1.2, username u, password ***, " in said
    assert "secret2" not in said
    assert "  + node node1: cxm-address 10.0.0.1, cxm-hostkey ssh-ed25519 AAAAhost, " in said
    assert (
        f"\nvgcreate --shared --setautoactivation n --metadatasize 16m LVM_XEN {DEVICE}\n" in said
    )
    assert "systemctl stop pacemaker.service" in said
    assert "write the secret" in said
    assert "PRIVATE KEY" not in said
    assert "xendomains.service" in pair.first.enabled


def _prove(pair: Pair) -> None:
    for name in ("node1", "node2"):
        nodes.set_attribute(pair.pacemaker.cib, name, nodes.FENCING, "1700000000")


def _other_bmc() -> Options:
    other = GIVEN.fencing[1].replace("10.0.1.2", "10.0.1.7").replace("secret2", "another2")
    return replace(GIVEN, fencing=[GIVEN.fencing[0], other])


def test_dry_run_on_a_formed_cluster_shows_what_differs(pair: Pair) -> None:
    """On either node nothing; another BMC, by which a node's proof goes, and no password."""
    pair.form()
    _prove(pair)
    for node, given in ((pair.first, GIVEN), (pair.second, Options(join=pair.token()))):
        assert pair.run(node, replace(given, dry_run=True)).endswith("Nothing to change.\n")
    before = tostring(pair.pacemaker.cib)
    said = pair.run(pair.first, replace(_other_bmc(), dry_run=True))
    assert said.split("This would be done:\n")[1].splitlines() == [
        "in Pacemaker's configuration:",
        "  ~ node node2: cxm-fencing is taken away",
        "  ~ primitive fence-node2: ip 10.0.1.2 -> 10.0.1.7, password *** -> another",
        forming.to_be_proven(["node2"]),
        "",
    ]
    assert tostring(pair.pacemaker.cib) == before


def test_other_device_has_to_be_proven_and_that_is_said(pair: Pair) -> None:
    """Once: the same command again changes nothing, the new proof neither."""
    pair.form()
    _prove(pair)
    said = pair.run(pair.first, _other_bmc())
    assert "The cluster lab is formed" in said
    assert "the fence devices of node2 change" in said
    assert "cxm fence --test node2" in said
    proven = {name for name, each in nodes.facts(pair.pacemaker.cib).items() if each.proven}
    assert proven == {"node1"}
    _prove(pair)
    assert "Nothing to change" in pair.run(pair.first, _other_bmc())
    assert nodes.facts(pair.pacemaker.cib)["node2"].proven


def test_dry_run_without_pacemaker_looks_at_what_it_had(pair: Pair) -> None:
    """Its services are stopped: they would be started, and nothing else is to be done."""
    pair.form()
    pair.first.write("var/lib/pacemaker/cib/cib.xml", tostring(pair.pacemaker.cib, "unicode"))
    pair.pacemaker.answers = False
    pair.first.active -= {"corosync.service", "pacemaker.service"}
    said = pair.run(pair.first, replace(GIVEN, dry_run=True))
    assert said.split("This would be done:\n")[1].splitlines() == [
        "systemctl enable --now corosync.service",
        "systemctl enable --now pacemaker.service",
        "",
    ]
    os.unlink(pair.first.node.path("var/lib/pacemaker/cib/cib.xml"))
    assert "+ primitive fence-node2" in pair.run(pair.first, replace(GIVEN, dry_run=True))


def test_example_cluster_of_the_packages_is_taken_down_first(pair: Pair) -> None:
    """Debian starts Corosync and Pacemaker with it: its node would become a third one."""
    pair.first.write("var/lib/pacemaker/cib/cib.xml", "<cib/>")
    pair.first.active |= {"corosync.service", "pacemaker.service"}
    pair.first.enabled |= {"corosync.service", "pacemaker.service"}
    said = pair.form()
    assert said.index("stopped: corosync.service") < said.index("removed: ")
    assert said.index("removed: ") < said.index("enable --now: corosync.service")
    assert {"corosync.service", "pacemaker.service"} <= pair.first.active


def _agent(pair: Pair) -> None:
    os.unlink(pair.first.node.path("usr/lib/ocf/resource.d/cxm/lockspace"))


def _fence_agent(pair: Pair) -> None:
    pair.first.xen.programs = set(clustercheck.NEEDED)


def _address(pair: Pair) -> None:
    pair.first.address = "10.9.9.9"


def _disk(pair: Pair) -> None:
    os.unlink(pair.first.node.path(DEVICE.lstrip("/")))


def _signature(pair: Pair) -> None:
    pair.san.signature = "ext4"


def _sbd(pair: Pair) -> None:
    pair.first.write(DEVICE, SBD_HEADER)


def _unreadable(pair: Pair) -> None:
    _disk(pair)
    os.mkdir(pair.first.node.path(DEVICE.lstrip("/")))


def _group(pair: Pair) -> None:
    pair.san.group = "other"


def _other(pair: Pair) -> None:
    text = "cluster_name: prod\nring0_addr: 10.0.0.9\n"
    pair.first.write("etc/corosync/corosync.conf", text)


def _resources(pair: Pair) -> None:
    pair.first.write("var/lib/pacemaker/cib/cib.xml", "<cib><primitive id='x'/></cib>")


def _marker(pair: Pair) -> None:
    pair.first.write("etc/cxm/cluster", 'CLUSTER="prod"\n')


def _login(pair: Pair) -> None:
    pair.first.xen.sshd += "permitrootlogin no\n"


def _bmc(pair: Pair) -> None:
    pair.san.broken["10.0.1.2"] = "Unable to connect/login to fencing device"


def _user(pair: Pair) -> None:
    pair.first.uid = 1000


@pytest.mark.parametrize(
    ("fault", "names"),
    [
        (_agent, "programs"),
        (_fence_agent, "programs"),
        (_address, "address"),
        (_disk, "shared disk"),
        (_signature, "shared disk"),
        (_sbd, "shared disk"),
        (_unreadable, "shared disk"),
        (_group, "shared disk"),
        (_other, "corosync"),
        (_resources, "corosync"),
        (_marker, "membership"),
        (_login, "sshd"),
        (_bmc, "fencing node2"),
        (_user, "root"),
    ],
)
def test_failed_check_changes_nothing(
    pair: Pair, fault: Callable[[Pair], None], names: str
) -> None:
    """The table says what is wrong and what to do."""
    fault(pair)
    before, said = files_of(pair.first.node.root), Said()
    with pytest.raises(RefusedError) as failure:
        cluster.work(pair.first.world(pair.pacemaker, said), GIVEN)
    assert failure.value.message.endswith(names)
    assert "FAILED" in said.text
    assert "->" in said.text
    assert files_of(pair.first.node.root) == before


def test_other_settings_of_a_formed_cluster_are_refused(pair: Pair) -> None:
    """A node with another token than the rest would be lost, or would lose them."""
    pair.form()
    with pytest.raises(RefusedError, match="corosync"):
        pair.run(pair.first, replace(GIVEN, token_ms=9000))


def test_little_memory_of_dom0_is_a_warning(pair: Pair) -> None:
    """The lab's own is little."""
    pair.first.dom0_mib = 512
    said = pair.form()
    assert "512 MiB\n" in said
    assert "dom0_mem=1024M" in said


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": None}, "--name and --device are needed"),
        ({"name": "a b"}, "is not the name of a cluster"),
        ({"nodes": ["node1=10.0.0.1"]}, "1 nodes were given"),
        ({"nodes": ["node1=10.0.0.1", "node2"]}, "NAME=ADDRESS"),
        ({"nodes": ["node1=10.0.0.1", "node2=there"]}, "is not an IP address"),
        ({"nodes": ["node1=10.0.0.1", "node2=10.0.0.1"]}, "given twice"),
        ({"nodes": ["a=10.0.0.1", "b=10.0.0.2"], "fencing": [
            "a=fence_x,b=c", "b=fence_x,b=c"]}, "node1, is none of the nodes a, b"),
        ({"device": "/dev/sdb"}, "may name another disk"),
        ({"device": "/dev/disk/by-id/../../sda"}, "may name another disk"),
        ({"vg": "-x"}, "volume group"),
        ({"token_ms": 10}, "between"),
        ({"fencing": GIVEN.fencing[:1]}, "nothing can cut node2 off"),
        ({"fencing": [*GIVEN.fencing, "node3=fence_x,a=b"]}, "which is no --node"),
        ({"fencing": ["node1=rm,a=b"]}, "NODE=AGENT"),
        ({"fencing": ["node1=fence_x,password=a,b"]}, "KEY=VALUE"),
        ({"fencing": ["node1=fence_x,password=@/no/such"]}, "does not exist"),
        ({"join": "x"}, "no other option"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_one_sentence(
    pair: Pair, changes: dict[str, object], message: str
) -> None:
    """Nothing is changed."""
    before = files_of(pair.first.node.root)
    with pytest.raises(UsageError, match=message) as failure:
        pair.run(pair.first, replace(GIVEN, **changes))  # type: ignore[arg-type]  # a test's shorthand
    assert "password" not in failure.value.message
    assert files_of(pair.first.node.root) == before


@pytest.mark.parametrize("token", ["", "cxm1-", "cxm1-AAAA", "nonsense", "cxm2-eJwDAAAAAAE="])
def test_token_that_was_not_copied_whole_is_said(pair: Pair, token: str) -> None:
    """Its last part is a check sum."""
    with pytest.raises(UsageError, match="not a join token"):
        pair.run(pair.second, Options(join=token))
    whole = pair.token()
    with pytest.raises(UsageError, match="not a join token"):
        pair.run(pair.second, Options(join=whole[: len(whole) // 2]))


def test_token_may_be_wrapped_and_tells_nobody(pair: Pair) -> None:
    """A terminal breaks long lines; an error that shows it would keep it in a log."""
    token = pair.token()
    half = len(token) // 2
    found = jointoken.unpack(f"{token[:half]}\n  {token[half:]}\n")
    assert found.cluster.name == "lab"
    assert found.authkey not in repr(found)
    assert "secret1" not in repr(GIVEN)
    assert "secret1" not in str(found.cluster)


def test_password_may_come_from_a_file(pair: Pair, tmp_path: Path) -> None:
    """One with a comma, or that nobody shall see in the list of processes."""
    (tmp_path / "bmc").write_text("a,b=c\n")
    word = f"node1=fence_ipmilan,ip=1,password=@{tmp_path}/bmc"
    given = replace(GIVEN, fencing=[word, GIVEN.fencing[1]])
    _membership, told = cluster._first(pair.first.host(), given)
    assert told.basis.fencing[0].parameters["password"] == "a,b=c"


def test_original_configuration_is_taken_over(pair: Pair, tmp_path: Path) -> None:
    """What is not said otherwise; every node that it allowed has to be named."""
    path = tmp_path / "cxm.conf"
    path.write_text("CLUSTER_NAME='old'\nTIMER=4\nALLOWED_NODES=['node1','node2']\nQUIET=True\n")
    given = replace(GIVEN, name=None, original=str(path), dry_run=True)
    said = pair.run(pair.first, given)
    assert "cluster_name: old" in said
    assert "token: 8000" in said
    assert "QUIET does not count any more" in said
    path.write_text("ALLOWED_NODES=['node1','node3']\n")
    with pytest.raises(UsageError, match="allows node3, which no --node names"):
        pair.run(pair.first, given)


def test_new_key_of_the_peers_shuts_the_old_one_out(pair: Pair) -> None:
    """Its file removed, the same command makes another; each other node gets it by its token."""
    pair.form()
    old = pair.first.text("etc/cxm/peer_key"), pair.second.text("root/.ssh/authorized_keys")
    os.unlink(pair.first.node.path("etc/cxm/peer_key"))
    pair.first.unreachable = "Permission denied"

    def joins() -> None:
        pair.run(pair.second, Options(join=pair.token()))
        pair.first.unreachable = ""

    said = pair.run(pair.first, GIVEN, joins)
    assert f"cxm-setup cluster --join {pair.token()}" in said
    for node in pair.nodes:
        new = node.text("etc/cxm/peer_key"), node.text("root/.ssh/authorized_keys")
        assert new[0] == pair.first.text("etc/cxm/peer_key") != old[0]
        assert new[1].count("cxm-setup:cluster=lab") == 1
        assert new[1] != old[1]
    assert "Nothing to change" in pair.run(pair.first, GIVEN)


def test_group_that_is_not_shared_is_refused(pair: Pair) -> None:
    """Each node would write to it as if it were alone."""
    pair.san.group, pair.san.lock_type = "LVM_XEN", ""
    with pytest.raises(RefusedError, match="not shared by DLM"):
        pair.form()


def test_dead_service_ends_the_waiting(pair: Pair) -> None:
    """Nothing would ever come."""

    def dies() -> None:
        pair.pacemaker.answers = False
        pair.first.active.discard("corosync.service")

    with pytest.raises(CxmError, match="corosync does not run on this node") as failure:
        pair.run(pair.first, GIVEN, dies)
    assert "journalctl -u corosync" in (failure.value.hint or "")


def test_three_nodes_have_a_majority(pair: Pair) -> None:
    """What is for pairs is not said."""
    three = [*GIVEN.nodes, "node3=10.0.0.3"]
    given = replace(GIVEN, nodes=three, fencing=[*GIVEN.fencing, "node3=fence_ipmilan,ip=1"])
    membership, _told = cluster._first(pair.first.host(), given)
    assert "two_node" not in corosync.conf(membership.cluster)
    pairs, _told = cluster._first(pair.first.host(), GIVEN)
    assert "two_node: 1" in corosync.conf(pairs.cluster)


def test_command_line_reaches_it(capsys: pytest.CaptureFixture[str]) -> None:
    """One sentence and the exit code of wrong arguments."""
    assert main.main(["cluster", "--name", "lab", "--node", "a=10.0.0.1"]) == UsageError.code
    assert "cxm-setup: --name and --device are needed" in capsys.readouterr().err
    assert main.main(["cluster", "--join", "nonsense"]) == UsageError.code
    assert "not a join token" in capsys.readouterr().err
