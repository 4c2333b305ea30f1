# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Clone, deploy and delete on a real host, ended at every step and run again as OpenNebula does.

A VM lives one life after the other: placed, cloned, deployed, terminated, gone. In each life every
action is ended at one step of its own, one step further than in the life before, until none is
left; so each test finds out itself which steps there are. What a life looks like when its disk is
there, when it runs and when it is gone is compared with a life that nobody disturbed.
"""

# Requirements: 1.6 GiB of memory for solo1.

import difflib
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

import pytest

from cxm import names
from cxm.errors import CxmError
from cxm.names import VmId
from lab import installed, traces
from lab.guest_image import GuestImage
from lab.lab import Lab
from lab.oned import scenarios
from lab.oned.cloud import Network, VmView
from lab.oned.inlab import open_standin
from lab.oned.scenarios import Parts
from lab.oned.standin import StandIn
from lab.spec import BRIDGE
from tests.lab.kills import Kills, Point, Way, kill_driver

_HOST: Final = "solo1"
_ADDRESS: Final = "10.77.1.160"
_GATE: Final = "domain-start"  # its first call waits until the new disk has been looked at
# Verb of the helper -> the action of the driver that calls it.
_VERBS: Final = {
    "disk-write": "clone",
    "domain-start": "deploy",
    "domain-stop": "cancel",
    "disk-remove": "delete",
    "vm-remove": "delete",
}
_WAYS: Final = (Way.BEFORE, Way.BEGUN, Way.CUT, Way.DRIVER)
_LIFE_S: Final = 900.0
_GONE_S: Final = 60.0
_TRIES: Final = 3  # of one action after it was ended; the second and third count as a failure

_DISK: Final = """
lv=/dev/LVM_XEN/lv-one-{vm}-0
blkid -p -s TYPE -o value $lv
e2fsck -f -n $lv >/run/killing/fsck 2>&1 || cat /run/killing/fsck
mount -o ro $lv /mnt && tar -d -z -f /root/guest.tar.gz --numeric-owner -C /mnt 2>&1
find /mnt -mindepth 1 | wc -l; umount /mnt
"""
_NODE: Final = """
lvs --noheadings --units m -o lv_name,lv_size,lv_tags LVM_XEN
find /var/lib/one/datastores -mindepth 3 -printf '%P %y %u %m %l\\n' | sort
awk '$1 ~ /mapper|LVM_XEN|loop/ {{print "mount", $2}}' /proc/mounts
ls -A /var/tmp/cxm 2>/dev/null
find /etc/xen/vm /etc/xen/auto -mindepth 1 -printf '%p %y %m %l\\n' | sort
cat /etc/xen/vm/* 2>/dev/null
grep -h -E '"(life|name|released|falls)"' /var/lib/cxm/guests/* 2>/dev/null
xl list -v | awk 'NR > 1 && $2 != 0 {{print "domain", $1, $3, $4, $7, ($6 > 0)}}'
echo keepers $(pgrep -fc '[x]l create .*/etc/xen')
ls /sys/class/net | grep -c vif || true
"""
_LEFT: Final = """
ls -A /run/cxm/lock /var/tmp/cxm | grep -v -e : -e '^$' | sed 's/^/lock or mount: /'
ls /sys/class/net | grep vif
dmsetup ls | grep -v 'No devices' | grep one
pgrep -ax 'tar|gzip|zstd|mke2fs|lvcreate|lvremove|lvchange|mount|umount'
find /var/lib/cxm -newer /run/killing -name '*.new'
"""
_SCRUB: Final = """
rm -f /run/killing/*/*
xl list | awk 'NR > 1 && $2 {print $2}' | xargs -r -n1 xl destroy
sleep 5
umount /mnt /var/tmp/cxm/*
rmdir /var/tmp/cxm/*
lvremove -f -y LVM_XEN
rm -rf /var/lib/one/datastores/*/*/ /etc/xen/vm/* /etc/xen/auto/* /var/lib/cxm/guests/*
"""


@dataclass(slots=True)
class Life:
    """One VM from its creation to its end."""

    vm: int
    began: float = field(default_factory=time.monotonic)
    pictures: dict[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)  # of actions, as OpenNebula told them
    ended: dict[str, str] = field(default_factory=dict)  # verb -> the step where it was ended
    times: list[str] = field(default_factory=list)

    def note(self, what: str) -> None:
        """Remember when something happened."""
        self.times.append(f"{time.monotonic() - self.began:.1f} {what}")


class Stage:
    """Where lives are lived."""

    def __init__(self, lab: Lab, cloud: StandIn, parts: Parts) -> None:
        self.machine = lab.machine(_HOST)
        self.kills = Kills(self.machine)
        self._cloud_id = installed.cloud(lab.places)
        self._cloud = cloud
        self._parts = parts
        self._image = scenarios.register(cloud, parts, "killed")
        self._clean = traces.of_vms(self.machine)  # what there is without any VM

    def live(self, points: Mapping[str, Point]) -> Life:
        """A life in which actions are ended at these points; each is run again until it is done."""
        self.kills.plan(points, gate=_GATE)
        text = self._parts.vm_template("killed", self._image, context="")
        life = Life(self._cloud.create_vm(text))
        until = life.began + _LIFE_S
        while (view := self._cloud.vm(life.vm)).state != "DONE":
            if time.monotonic() > until or len(life.failures) > len(points) + _TRIES:
                log = self._cloud.vm_log(life.vm)
                raise CxmError(
                    f"VM {life.vm} stays {view.state}: {life.times} {life.failures}", hint=log
                )
            for name in self.kills.waiting(1):
                self._serve(life, name)
            if not life.times or not life.times[-1].endswith(view.state):
                life.note(view.state)
            self._go_on(life, view)
        self._cloud.settle()
        life.ended = self.kills.done()
        return life

    def _serve(self, life: Life, name: str) -> None:
        what, _, verb = name.partition("-")
        if what == "gate":
            life.pictures["cloned"] = self._picture(life.vm, _DISK + _NODE)
        else:
            assert kill_driver(_VERBS[verb]), f"no driver of {verb} is there"
        life.note(f"{name} done")
        self.kills.release(name)

    def _go_on(self, life: Life, view: VmView) -> None:
        """Do what an operator does in this state."""
        if view.state.endswith("_FAILURE"):
            life.failures.append(f"{view.state}: {view.error}")
            self._cloud.retry(life.vm)
        elif view.state in ("RUNNING", "POWEROFF", "UNKNOWN"):
            if "running" in life.pictures:
                life.failures.append(f"{view.state} after cancel: {view.error}")
            else:
                life.pictures["running"] = self._picture(life.vm, _NODE)
            self._cloud.terminate(life.vm, hard=True)

    def _picture(self, vm: int, script: str) -> str:
        """What a script shows on the node, the number of the VM taken out."""
        shown = self.machine.run(["sh", "-c", script.format(vm=vm)], timeout_s=300).stdout
        for word, instead in (
            (names.domain_uuid(self._cloud_id, VmId(vm)), "UUID"),
            (f"lv-one-{vm}-", "lv-one-N-"),
            (f"cxm.vm={vm},", "cxm.vm=N,"),
            (f"cxm.vm={vm}\n", "cxm.vm=N\n"),
            (f"#O VM_ID = {vm}\n", "#O VM_ID = N\n"),
            (f"/{vm}/", "/N/"),
        ):
            shown = shown.replace(word, instead)
        return shown

    def _left(self) -> list[str]:
        there = [line for line in traces.of_vms(self.machine) if line not in self._clean]
        more = self.machine.run(["sh", "-c", _LEFT], ok=range(256)).stdout.splitlines()
        return there + more + self._cloud.left_behind()

    def problems(self, life: Life, whole: Life | None = None) -> list[str]:
        """What is wrong with a life; ``whole`` is one that was not disturbed."""
        pictures = life.pictures if whole is None else whole.pictures
        found = [
            "\n".join([stage, *_difference(picture, life.pictures.get(stage, ""))])
            for stage, picture in pictures.items()
            if life.pictures.get(stage) != picture
        ]
        until = time.monotonic() + _GONE_S
        while (left := self._left()) and time.monotonic() < until:
            time.sleep(1.0)
        found += [f"left: {line}" for line in left]
        if len(life.failures) != len(life.ended):
            found.append(f"{len(life.ended)} actions were ended, {len(life.failures)} failed")
        return found

    def scrub(self) -> None:
        """After a life that went wrong: the node as it was, for the lives that follow."""
        self.machine.run(["sh", "-c", _SCRUB], ok=range(256))


@pytest.fixture
def stage(solo_session: Lab, guest: GuestImage) -> Iterator[Stage]:
    """The lab with cxm, an OpenNebula whose host takes VMs, and a life that was not disturbed."""
    installed.bring_up(solo_session)
    machine = solo_session.machine(_HOST)
    machine.push(guest.tgz, "/root/")
    with open_standin(solo_session, "7.4") as cloud:
        parts = Parts(_HOST, guest.tgz, Network("lan", BRIDGE, _ADDRESS, size=1), lv_size="96")
        scenarios.prepare(cloud, parts)
        Kills(machine).install()
        yield Stage(solo_session, cloud, parts)


def _difference(wanted: str, found: str) -> list[str]:
    lines = difflib.unified_diff(wanted.splitlines(), found.splitlines(), lineterm="", n=0)
    return list(lines)[2:]


def _check(life: Life) -> None:
    """What every life must look like."""
    cloned, running = life.pictures["cloned"].splitlines(), life.pictures["running"]
    assert cloned[0] == "ext4"
    assert cloned[1].isdecimal(), "the disk's files differ from the image's"
    assert "cxm.state=ready" in life.pictures["cloned"]
    assert running.count("\ndomain ") == 1
    assert "keepers 1" in running


def _tell(life: Life) -> None:
    """One line a life, for who waits."""
    seconds = time.monotonic() - life.began
    sys.stderr.write(
        f"VM {life.vm}: {seconds:.1f} s, {life.ended}, {life.failures}, {life.times}\n"
    )


def test_the_worst_moments(stage: Stage) -> None:
    """Killed amid the data, right after xl create, between destroy and lvremove: all is well."""
    life = stage.live(
        {
            "disk-write": Point(Way.AMID, "tar -x"),
            "domain-start": Point(Way.AFTER, "xl create"),
            "domain-stop": Point(Way.AFTER, "xl destroy"),
            "disk-remove": Point(Way.BEFORE, "lvremove"),
        }
    )
    _tell(life)
    _check(life)
    assert set(life.ended) == {"disk-write", "domain-start", "domain-stop", "disk-remove"}
    assert stage.problems(life) == []


@pytest.mark.extensive
def test_ended_at_every_step(stage: Stage) -> None:
    """Every command of every action: the second try ends as an undisturbed one, nothing is left.

    The ways of ending take turns. What lies between two commands is ended in tests/actions.
    """
    whole = stage.live({})
    _tell(whole)
    _check(whole)
    assert stage.problems(whole) == []
    verbs, step, problems = set(_VERBS), 0, []
    steps: dict[str, int] = {}
    while verbs:
        step += 1
        points = {
            verb: Point(_WAYS[(step + turn) % len(_WAYS)], step)
            for turn, verb in enumerate(_VERBS)
            if verb in verbs
        }
        try:
            life = stage.live(points)
        except CxmError as error:
            problems.append(f"step {step} {stage.kills.done()}: {error.sentence()}")
            stage.scrub()
            continue
        _tell(life)
        wrong = stage.problems(life, whole)
        if wrong:
            sys.stderr.write(f"step {step}: {wrong}\n")
            problems.append(f"step {step} {life.ended} {life.failures}: {wrong}")
            stage.scrub()
        verbs &= set(life.ended)
        steps |= dict.fromkeys(verbs, step)
    sys.stderr.write(f"{steps}\n")
    assert set(steps) == set(_VERBS)
    assert problems == []
