# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""What a host's client says when, on a clock of our own, and what it costs."""

import base64
import zlib
from dataclasses import dataclass, field
from xml.etree import ElementTree as ET

import pytest

from cxm.errors import CommandError, CxmError
from cxm.one.im.channel import Kind
from cxm.one.im.client import Client
from cxm.one.im.observation import Guest, Observation
from cxm.one.im.settings import Settings
from tests.fakes import template
from tests.fakes.observations import guest, observation

PERIODS = {
    Kind.BEACON_HOST: 30.0,
    Kind.SYSTEM_HOST: 600.0,
    Kind.MONITOR_HOST: 120.0,
    Kind.STATE_VM: 5.0,
    Kind.MONITOR_VM: 30.0,
}
SETTINGS = Settings("10.0.0.1", 4124, None, 3, "solo1", PERIODS, 180.0, "/nowhere")


@dataclass(frozen=True)
class Heard:
    """A message as monitord takes it."""

    at: float
    kind: str
    ok: bool
    stamp: int
    text: str


@dataclass
class World:
    """A clock, a node and a monitord, all of them obedient."""

    seen: Observation | CxmError
    clock: float = 1000.0
    epoch: int = 1_700_000_000
    reachable: bool = True
    observed: list[str] = field(default_factory=list)
    heard: list[Heard] = field(default_factory=list)

    def observe(self, detail: str) -> Observation:
        self.observed.append(detail)
        if isinstance(self.seen, CxmError):
            raise self.seen
        return self.seen

    def deliver(self, kind: Kind, line: bytes) -> None:
        if not self.reachable:
            raise OSError("no route to host")
        name, result, host, stamp, packed = line.decode().split()
        assert (name, host) == (kind, "3")
        text = zlib.decompress(base64.b64decode(packed)).decode()
        self.heard.append(Heard(self.clock, name, result == "SUCCESS", int(stamp), text))

    def now(self) -> float:
        return self.clock

    def stamp(self) -> int:
        return self.epoch

    def see(self, *guests: Guest) -> None:
        """From now on these guests are here."""
        self.seen = observation(*guests)

    def of(self, kind: str) -> list[Heard]:
        """The messages of a kind."""
        return [each for each in self.heard if each.kind == kind]

    def forget(self) -> None:
        """Begin to count anew."""
        self.observed.clear()
        self.heard.clear()


def started(world: World) -> Client:
    """A client after its greeting."""
    client = Client(SETTINGS, world, "7.4.0")
    client.greeting()
    world.forget()
    return client


def live(client: Client, world: World, seconds: float) -> None:
    """Let time pass; the client acts when it wants to."""
    end = world.clock + seconds
    while client.next_at() <= end:
        step = max(client.next_at(), world.clock)
        world.epoch += int(step - world.clock)
        world.clock = step
        client.round()
    world.epoch += int(end - world.clock)
    world.clock = end


def test_greeting_tells_everything() -> None:
    """What monitord wants to turn the host ON at once, from one observation."""
    world = World(observation(guest(1), guest(2, "poweroff")))
    root = ET.fromstring(Client(SETTINGS, world, "7.4.0").greeting())
    assert world.observed == ["all"]
    assert root.tag == "MONITOR_MESSAGES"
    assert root.findtext("TIMESTAMP") == str(world.epoch)
    texts = {child.tag: base64.b64decode(child.text or "").decode() for child in root[:-1]}
    assert list(texts) == ["SYSTEM_HOST", "MONITOR_HOST", "STATE_VM", "MONITOR_VM"]
    assert 'VERSION="7.4.0"' in texts["SYSTEM_HOST"]
    assert texts["STATE_VM"].startswith("SYNC_STATE=yes\nMISSING_STATE=UNKNOWN\n")


def test_greeting_fails_with_the_nodes_sentence() -> None:
    """The host goes to ERROR with the reason, and no client stays behind."""
    with pytest.raises(CommandError, match="xl"):
        Client(SETTINGS, World(CommandError("'xl list' failed")), "7.4.0").greeting()


def test_one_observation_serves_all_that_is_due() -> None:
    """Ten minutes: as many observations as looks at the VMs, each as small as it may be."""
    world = World(observation(guest(1)))
    client = started(world)
    live(client, world, 600)
    assert len(world.observed) == 120
    assert world.observed.count("all") == 1
    assert world.observed.count("host") == 4
    assert world.observed.count("usage") == 15
    counts = {kind: len(world.of(kind)) for kind in Kind}
    assert counts == {
        "BEACON_HOST": 20,
        "SYSTEM_HOST": 1,
        "MONITOR_HOST": 5,
        "STATE_VM": 3 + 1,  # each 180 s, and the first once more
        "MONITOR_VM": 20,
    }


def test_a_change_is_heard_within_a_period() -> None:
    """The guest goes off; five seconds later monitord knows."""
    world = World(observation(guest(1), guest(2)))
    client = started(world)
    live(client, world, 52)
    world.see(guest(1), guest(2, "poweroff"))
    world.forget()
    live(client, world, 5)
    (heard,) = world.of("STATE_VM")
    assert template.vectors(template.parse(heard.text), "VM") == [
        {"ID": "2", "DEPLOY_ID": "one-2", "STATE": "POWEROFF"}
    ]


def test_space_is_told_when_vms_come_and_go() -> None:
    """The scheduler must not count on room that a new disk has taken."""
    world = World(observation(guest(1)))
    client = started(world)
    live(client, world, 52)
    world.see(guest(1), guest(2))
    world.forget()
    live(client, world, 4)
    assert len(world.of("SYSTEM_HOST")) == 1


def test_disk_sizes_stay_known_between_looks_at_the_disks() -> None:
    """They are read seldom and said always."""
    world = World(observation(guest(1)))
    client = started(world)
    world.seen = observation(guest(1, disks={}))
    live(client, world, 30)
    (heard,) = world.of("MONITOR_VM")
    inner = template.vectors(template.parse(heard.text), "VM")[0]["MONITOR"]
    assert "DISK_SIZE=[ID=0,SIZE=1024]" in base64.b64decode(inner).decode()


def test_one_bad_look_is_no_failure_of_the_host() -> None:
    """Two failures pass unmentioned; what was due is made up for."""
    world = World(observation(guest(1)))
    client = started(world)
    live(client, world, 25)
    good, world.seen = world.seen, CommandError("'xl list' did not finish")
    live(client, world, 10)
    world.seen = good
    live(client, world, 5)
    assert all(heard.ok for heard in world.heard)
    assert [heard.at for heard in world.of("MONITOR_VM")] == [1040.0]


def test_a_node_that_cannot_be_observed_is_an_error_and_comes_back() -> None:
    """The third failure and each beacon after it say why; the end of it is said at once."""
    world = World(observation(guest(1)))
    client = started(world)
    good, world.seen = world.seen, CommandError("'xl list' failed", hint="is xenstored there?")
    live(client, world, 60)
    failures = [heard for heard in world.heard if not heard.ok]
    assert {heard.kind for heard in failures} == {"BEACON_HOST"}
    assert [heard.at for heard in failures] == [1015.0, 1030.0, 1060.0]
    assert failures[0].text == "'xl list' failed (is xenstored there?)"
    assert not [heard for heard in world.heard if heard.ok]
    world.seen = good
    world.forget()
    live(client, world, 5)
    assert len(world.of("SYSTEM_HOST")) == 1
    (heard,) = world.of("STATE_VM")
    assert heard.text.startswith("SYNC_STATE=yes")
    live(client, world, 30)
    assert world.of("BEACON_HOST")[-1].ok


def test_a_dead_frontend_misses_no_change() -> None:
    """What happened in between is said when monitord answers again."""
    world = World(observation(guest(1)))
    client = started(world)
    live(client, world, 50)
    world.reachable = False
    world.see(guest(1, "poweroff"))
    live(client, world, 50)
    world.forget()
    world.reachable = True
    live(client, world, 5)
    (heard,) = world.of("STATE_VM")
    assert "POWEROFF" in heard.text


def test_a_clock_set_back_silences_nobody() -> None:
    """Monitord drops what seems older than what it has: our stamps never go back."""
    world = World(observation(guest(1)))
    client = started(world)
    live(client, world, 60)
    world.epoch -= 3600
    live(client, world, 60)
    stamps = [heard.stamp for heard in world.heard]
    assert stamps == sorted(stamps)


def test_a_machine_that_slept_says_each_thing_once() -> None:
    """After a long stop there is one round, not one for each that was missed."""
    world = World(observation(guest(1)))
    client = started(world)
    world.clock += 3601
    client.round()
    assert world.observed == ["all"]
    assert len(world.heard) == 5
    assert client.next_at() > world.clock
