# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""cxm-setup cluster: fencing by SBD, and a system datastore that the cluster mounts."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from xml.etree.ElementTree import tostring

import pytest

from cxm.cluster import nodes
from cxm.cluster.pacemaker import Failure
from cxm.errors import CxmError, RefusedError, UsageError
from cxm.setup import cluster, clusterargs, clustercheck, jointoken, sbd, sharedfs
from cxm.setup.cluster import Options
from cxm.setup.install import Account
from tests.fakes.administration import Said, files_of
from tests.fakes.clusternode import DEVICE, SBD, SBD_HEADER, running_sbd
from tests.fakes.forming import GIVEN, Pair
from tests.fakes.machine import Outcome

DIRECTORY = "/var/lib/one/datastores/100"
BY_DISK = replace(GIVEN, fencing=(), sbd=SBD)
GFS2 = replace(GIVEN, datastore="gfs2,id=100")
NFS = replace(GIVEN, datastore="nfs:nas:/one,id=100")
VOLUME = sharedfs.VOLUME


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    """Two machines with everything that the packages have."""
    return Pair(tmp_path)


def _values(pair: Pair, resource: str) -> dict[str, str]:
    found = pair.pacemaker.cib.iterfind(f".//primitive[@id='{resource}']//nvpair")
    return {each.get("name", ""): each.get("value", "") for each in found}


def _mounted(pair: Pair) -> None:
    """Pacemaker has mounted it."""
    os.makedirs(pair.first.node.path(DIRECTORY.lstrip("/")), exist_ok=True)
    pair.pacemaker.started.update(["cxm-datastore-volume", "cxm-datastore-mount"])


# --- SBD ------------------------------------------------------------------------------------------


def test_sbd_fences_where_there_is_no_bmc(pair: Pair) -> None:
    """Its disk is made once, its daemon runs on every node, and only then it is a fence device."""
    pair.given = BY_DISK
    pair.form()
    assert pair.san.sbd == (15, 30)
    assert sorted(pair.san.slots) == ["node1", "node2"]
    for node in pair.nodes:
        assert "sbd.service" in node.enabled & node.active
        for line in ("SBD_DELAY_START", "SBD_PACEMAKER"):
            assert f'{line}="yes"\n' in node.text("etc/default/sbd")
        assert nodes.facts(pair.pacemaker.cib)[node.name].attributes[nodes.SBD] == SBD
    found = _values(pair, "fence-sbd")
    assert (found["devices"], found["pcmk_host_list"]) == (SBD, "node1 node2")
    assert found["pcmk_reboot_timeout"] == "46s"
    assert "Nothing to change" in pair.run(pair.first, BY_DISK)
    assert pair.san.sbd == (15, 30)


def test_times_follow_the_token() -> None:
    """A node must not be reset by its watchdog while the others still wait for its token."""
    assert sbd.times(5000) == sbd.Times(15, 30)
    assert sbd.times(9001) == sbd.Times(28, 56)


def test_slot_has_the_name_that_pacemaker_knows(pair: Pair) -> None:
    """A message to node1 must not lie in the slot of node1.example.org: such a node is refused."""
    membership, _told = cluster._first(pair.first.host(), BY_DISK)
    host = replace(pair.first.host(), hostname="node1.example.org")
    with pytest.raises(UsageError, match="none of the nodes"):
        clustercheck.own_name(host, membership.cluster)


def test_sbd_is_no_fence_device_before_it_runs_everywhere(pair: Pair) -> None:
    """Added to a cluster that runs: a message would kill nobody, and be taken for a death."""
    pair.form()
    pair.given = replace(GIVEN, sbd=SBD)
    token = pair.token()

    def first_starts() -> None:
        assert not _values(pair, "fence-sbd")
        pair.first.start_sbd()

    def second_starts() -> None:
        assert not _values(pair, "fence-sbd")
        pair.run(pair.second, Options(join=token), pair.second.start_sbd)

    started = pair.pacemaker.started
    said = pair.run(pair.first, pair.given, first_starts, second_starts)
    assert f"cxm-setup cluster --join {token}" in said
    assert "waiting for sbd, which starts with Corosync" in said
    assert "waiting for node2" in said
    assert _values(pair, "fence-sbd")
    assert "fence-sbd" in started


OTHER = "/dev/disk/by-id/virtio-SBD2"


def test_another_disk_is_no_fence_device_while_the_old_one_is_read(pair: Pair) -> None:
    """Whoever sent a message there would take for dead who never saw it."""
    pair.given = BY_DISK
    pair.form()
    for node in pair.nodes:
        node.write(OTHER, "")
    before = files_of(pair.first.node.root)
    with pytest.raises(RefusedError, match=rf"read {SBD}, so a message on {OTHER} would kill no"):
        pair.run(pair.first, replace(BY_DISK, sbd=OTHER))
    token = jointoken.unpack(pair.token())
    other = replace(token, cluster=replace(token.cluster, sbd=OTHER))
    pair.second.write(OTHER, SBD_HEADER)
    pair.second.node.model(
        "sbd", lambda argv, _in: pair.second._sbd((*argv[:2], SBD, argv[-1]), _in)
    )
    with pytest.raises(RefusedError, match="kill nobody"):
        pair.run(pair.second, Options(join=jointoken.pack(other)))
    assert files_of(pair.first.node.root) == before
    assert f'SBD_DEVICE="{SBD}"' in pair.second.text("etc/default/sbd")
    assert _values(pair, "fence-sbd")["devices"] == SBD


def test_another_disk_is_refused_where_pacemaker_does_not_run(pair: Pair) -> None:
    """Sbd would start with it, while the others send this node's death to the old one."""
    pair.given = BY_DISK
    pair.form()
    cib = tostring(pair.pacemaker.cib, encoding="unicode")
    pair.first.write("var/lib/pacemaker/cib/cib.xml", cib)
    pair.first.write(OTHER, "")
    pair.first.active -= {"pacemaker.service", "corosync.service", "sbd.service"}
    pair.pacemaker.answers = False
    before = files_of(pair.first.node.root)
    with pytest.raises(RefusedError, match=rf"read {SBD}, so a message on {OTHER} would kill no"):
        pair.run(pair.first, replace(BY_DISK, sbd=OTHER))
    assert files_of(pair.first.node.root) == before
    assert "sbd.service" not in pair.first.active


def test_disk_that_pacemaker_did_not_name_at_first_is_refused_before_it_is_told(pair: Pair) -> None:
    """It was not up yet when the command began, and what it had on the disk was old."""
    pair.given = BY_DISK
    pair.form()
    cib = tostring(pair.pacemaker.cib, encoding="unicode")
    pair.first.write("var/lib/pacemaker/cib/cib.xml", cib)
    (devices,) = pair.pacemaker.cib.iterfind(".//primitive[@id='fence-sbd']//*[@name='devices']")
    devices.set("value", OTHER)
    pair.pacemaker.answers = False
    before = tostring(pair.pacemaker.cib)

    def comes() -> None:
        pair.pacemaker.answers = True

    with pytest.raises(RefusedError, match=f"read {OTHER}, so a message on {SBD} would"):
        pair.run(pair.first, BY_DISK, comes)
    assert tostring(pair.pacemaker.cib) == before


def test_node_whose_sbd_reads_another_disk_does_not_say_that_it_has_this_one(pair: Pair) -> None:
    """It runs, with what its settings named when it started."""
    pair.given = BY_DISK
    pair.form()
    pair.first.write(OTHER, "")
    running_sbd(pair.first.node, OTHER)
    facts = nodes.facts(pair.pacemaker.cib)
    nodes.set_attribute(pair.pacemaker.cib, "node1", nodes.SBD, None)
    said = pair.run(pair.first, BY_DISK, lambda: running_sbd(pair.first.node, SBD))
    assert f"which starts with Corosync and does not read {SBD} before it starts again" in said
    assert nodes.facts(pair.pacemaker.cib) == facts


def test_dry_run_shows_what_becomes_of_the_disk(pair: Pair) -> None:
    """And makes nothing there."""
    said = pair.run(pair.first, replace(BY_DISK, dry_run=True))
    assert f"sbd -d {SBD} -1 15 -4 30 create\n" in said
    assert "systemctl enable sbd.service\n" in said
    assert f'+SBD_DEVICE="{SBD}"' in said
    assert pair.san.sbd is None


def _signature(pair: Pair) -> None:
    pair.san.sbd_signature = "ext4"


def _others(pair: Pair) -> None:
    pair.san.make_sbd(15, 30)
    pair.san.slots = ["node1", "web7"]


def _short(pair: Pair) -> None:
    pair.san.make_sbd(5, 10)


def _long(pair: Pair) -> None:
    pair.san.make_sbd(42, 85)


def _without_an_answer(pair: Pair) -> None:
    pair.san.make_sbd(15, 30)
    pair.first.sbd_fails = True


def _unreadable(pair: Pair) -> None:
    _no_disk(pair)
    os.mkdir(pair.first.node.path(SBD.lstrip("/")))


def _no_disk(pair: Pair) -> None:
    os.unlink(pair.first.node.path(SBD.lstrip("/")))


def _same_disk(pair: Pair) -> None:
    _no_disk(pair)
    os.symlink("virtio-SAN", pair.first.node.path(SBD.lstrip("/")))


def _no_watchdog(pair: Pair) -> None:
    os.unlink(pair.first.node.path("dev/watchdog"))


def _full(pair: Pair) -> None:
    pair.first.write(f"{DIRECTORY}/42/deployment.0", "")


@pytest.mark.parametrize(
    ("fault", "given", "said"),
    [
        (_signature, BY_DISK, "is in use: ext4"),
        (_others, BY_DISK, "is used by web7"),
        (_short, BY_DISK, "has watchdog 5 s, msgwait 10 s: the watchdog must be 15 s at least"),
        (_long, BY_DISK, "systemd ends it after 90 s"),
        (_without_an_answer, BY_DISK, f"-> can {SBD} be read?"),
        (_unreadable, BY_DISK, "Is a directory"),
        (_no_disk, BY_DISK, "is not there"),
        (_same_disk, BY_DISK, "is the disk of --device"),
        (_no_watchdog, BY_DISK, "modprobe xen_wdt"),
        (_full, GFS2, "is not empty"),
    ],
)
def test_failed_check_changes_nothing(
    pair: Pair, fault: Callable[[Pair], None], given: Options, said: str
) -> None:
    """Whatever is on a disk stays, and no file of a VM is hidden."""
    fault(pair)
    before, times, told = files_of(pair.first.node.root), pair.san.sbd, Said()
    with pytest.raises(RefusedError):
        cluster.work(pair.first.world(pair.pacemaker, told), given)
    assert said in told.text
    assert (files_of(pair.first.node.root), pair.san.sbd) == (before, times)


def test_disk_is_made_by_what_the_check_saw(pair: Pair) -> None:
    """A second look that fails would take a live disk for an empty one."""
    pair.given = BY_DISK
    pair.form()
    looks = []

    def once(argv: tuple[str, ...], stdin: bytes) -> Outcome:
        looks.append(argv[-1])
        pair.first.sbd_fails = looks.count("dump") > 1
        return pair.first._sbd(argv, stdin)

    pair.first.node.model("sbd", once)
    assert "Nothing to change" in pair.run(pair.first, BY_DISK)
    assert looks == ["dump", "list"]


def test_other_node_makes_no_disk(pair: Pair) -> None:
    """An empty one there is another disk than the first node's."""
    pair.given = BY_DISK
    told = Said()
    with pytest.raises(RefusedError, match="SBD disk"):
        cluster.work(pair.second.world(pair.pacemaker, told), Options(join=pair.token()))
    assert "is it the disk that the first node has?" in told.text
    assert pair.san.sbd is None


def test_watchdog_that_dies_with_the_kernel_is_a_warning(pair: Pair) -> None:
    """Its guests would go on writing."""
    pair.first.write("sys/class/watchdog/watchdog0/identity", "Software Watchdog\n")
    said = pair.run(pair.first, replace(BY_DISK, dry_run=True))
    assert "guests go on; Xen's does not" in said


@pytest.mark.parametrize(
    ("given", "missing"),
    [(BY_DISK, "sbd"), (GFS2, "gfs2-utils"), (NFS, "nfs-common")],
)
def test_missing_package_is_named(pair: Pair, given: Options, missing: str) -> None:
    """Only what this cluster needs."""
    tools = {"sbd", "mkfs.gfs2", "mount.nfs"}
    pair.first.xen.programs = set(clustercheck.NEEDED) | {"fence_ipmilan", "fence_sbd"}
    told = Said()
    with pytest.raises(RefusedError):
        cluster.work(pair.first.world(pair.pacemaker, told), given)
    assert missing in told.text
    assert not [each for each in tools if f"missing: {each} " in told.text]


# --- the system datastore -------------------------------------------------------------------------


def test_gfs2_is_made_once_and_mounted_everywhere(pair: Pair) -> None:
    """On a volume that no listing takes for a VM's, which nobody has active before Pacemaker."""
    pair.given = GFS2
    pair.form(lambda: _mounted(pair))
    (made,) = pair.san.made
    assert made[made.index("-t") + 1] == "lab:cxm-system"
    assert made[made.index("-j") + 1] == "16", "a node that is added later needs one too"
    volume = pair.first.node.state.lvs[VOLUME]
    assert (volume.tags, volume.active, volume.autoactivation) == (
        ("cxm_system_datastore",),
        False,
        False,
    )
    mount = _values(pair, "cxm-datastore-mount")
    assert (mount["device"], mount["directory"]) == (f"/dev/LVM_XEN/{VOLUME}", DIRECTORY)
    assert "Nothing to change" in pair.run(pair.first, GFS2)
    assert len(pair.san.made) == 1


def test_dry_run_says_what_becomes_of_the_datastore(pair: Pair) -> None:
    """Volume, file system, mount, owner; nothing once they are there."""
    lines = [
        f"make the volume LVM_XEN/{VOLUME} of 4096 MiB",
        f"mkfs.gfs2 -O -p lock_dlm -t lab:cxm-system -j 16 -J 32 /dev/LVM_XEN/{VOLUME}",
        f"give {DIRECTORY} to oneadmin, once it is mounted",
    ]
    dry = replace(GFS2, dry_run=True)
    assert "\n".join(lines) in pair.run(pair.first, dry)
    pair.form()
    said = pair.run(pair.first, dry)
    assert "\n".join(lines) in said
    assert "vgcreate" not in said
    assert f"device /dev/LVM_XEN/{VOLUME}, directory {DIRECTORY}, fstype gfs2" in said
    pair.given = GFS2
    pair.run(pair.second, Options(join=pair.token()))
    pair.run(pair.first, GFS2, lambda: _mounted(pair))
    assert pair.run(pair.first, dry).endswith("Nothing to change.\n")
    with pytest.raises(RefusedError, match=r"on .* already"):
        pair.run(pair.first, replace(NFS, dry_run=True))


def test_file_system_that_was_broken_off_is_made_anew(pair: Pair) -> None:
    """The volume is there already, and nobody else has it."""
    pair.first.node.model("mkfs.gfs2", lambda _argv, _in: pytest.fail("killed"))
    pair.given = GFS2
    with pytest.raises(pytest.fail.Exception, match="killed"):
        pair.form(lambda: _mounted(pair))
    assert pair.first.node.state.lvs[VOLUME].tags == ("cxm_system_datastore_filling",)
    pair.first.node.model("mkfs.gfs2", pair.first._mkfs_gfs2)
    pair.run(pair.first, GFS2, lambda: _mounted(pair))
    assert pair.first.node.state.lvs[VOLUME].tags == ("cxm_system_datastore",)


def test_volume_of_somebody_else_is_not_touched(pair: Pair) -> None:
    """It only has the name."""
    pair.first.node.add_lv(VOLUME, 4)
    pair.given = GFS2
    with pytest.raises(RefusedError, match="was not made by cxm-setup"):
        pair.form()
    assert not pair.san.made


def test_nfs_has_no_volume(pair: Pair) -> None:
    """Nothing of it is the cluster's but the mount."""
    pair.given = NFS
    pair.form(lambda: _mounted(pair))
    assert _values(pair, "cxm-datastore-mount")["device"] == "nas:/one"
    assert not _values(pair, "cxm-datastore-volume")
    assert not pair.first.node.state.lvs


def test_mount_that_fails_is_said_and_tried_again(pair: Pair) -> None:
    """Pacemaker gives up after some times: the same command once more is a new try."""

    def fails() -> None:
        reason = "access denied by server"
        failure = Failure("cxm-datastore-mount", "start", "node2", reason, "now")
        pair.pacemaker.failures.append(failure)

    pair.given = NFS
    with pytest.raises(CxmError, match=r"cannot be mounted on node2.*access denied"):
        pair.form(fails)
    said = pair.run(pair.first, NFS, lambda: _mounted(pair))
    assert pair.pacemaker.cleaned == ["cxm-datastore-mount"]
    assert "node1 is a node of lab" in said


def test_other_datastore_is_refused(pair: Pair) -> None:
    """It would be mounted over the files of VMs."""
    pair.given = NFS
    pair.form(lambda: _mounted(pair))
    with pytest.raises(RefusedError, match=r"is nas:/one on .* already"):
        pair.run(pair.first, GFS2)


def test_token_carries_it(pair: Pair) -> None:
    """The other node checks what it will need."""
    pair.given = replace(GFS2, sbd=SBD)
    found = jointoken.unpack(pair.token()).cluster
    assert (found.sbd, found.datastore, found.directory) == (SBD, "gfs2", DIRECTORY)
    assert "fence_sbd" in found.agents


def test_file_system_is_given_to_oneadmin(pair: Pair) -> None:
    """A server that does not let root do that is said."""
    path = Path(pair.first.node.path("srv/ds"))
    path.mkdir(parents=True)
    other = Account("oneadmin", 9869, 9869, "/")
    host = replace(pair.first.host(), account=lambda _name: other)
    if os.geteuid() == 0:
        assert sharedfs.own(host, "/srv/ds")
        assert path.stat().st_uid == 9869
        assert not sharedfs.own(host, "/srv/ds")
    else:
        with pytest.raises(CxmError, match="cannot be given to oneadmin"):
            sharedfs.own(host, "/srv/ds")


@pytest.mark.parametrize(
    "word",
    [
        "gfs2",
        "gfs2,id=x",
        "gfs2,id=1,directory=/srv/ds",
        "gfs2,id=1,size=10",
        "gfs2,id=1,colour=red",
        "gfs2,directory=/srv/../ds",
        "gfs2,directory=/srv",
        "nfs:nas,id=1",
        "nfs:nas:/one,id=1,size=4096",
        "nfs:-x nas:/one,id=1",
        "ext4,id=1",
        "none,id=1",
    ],
)
def test_wrong_datastore_is_one_sentence(word: str) -> None:
    """Nothing is guessed."""
    with pytest.raises(UsageError):
        sharedfs.parse(word)


@pytest.mark.parametrize(
    ("disk", "token_ms", "message"),
    [
        ("/dev/sdb", 5000, "may name another disk"),
        (DEVICE, 5000, "are the same disk"),
        (SBD, 12000, "too long for SBD"),
    ],
)
def test_wrong_sbd_is_one_sentence(disk: str, token_ms: int, message: str) -> None:
    """As for the rest of the command."""
    with pytest.raises(UsageError, match=message):
        clusterargs.cluster(
            "lab", GIVEN.nodes, device=DEVICE, vg="x", token_ms=token_ms, fencing=[], sbd=disk
        )


@pytest.mark.parametrize("more", [{"sbd": SBD}, {"datastore": "gfs2,id=1"}])
def test_token_says_everything(pair: Pair, more: dict[str, str]) -> None:
    """Two places to say one thing would not agree."""
    with pytest.raises(UsageError, match="no other option"):
        pair.run(pair.second, replace(Options(join="x"), **more))  # type: ignore[arg-type]  # short
