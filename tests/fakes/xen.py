# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the model of Xen that is plugged into a modelled node: domains, their keepers, their life.

It behaves as xl 4.17 was seen to (tests/data/xl-4.17-*): a domain with ``preserve`` stays when its
guest has ended, its disks open; a reboot leaves a gap without a domain, its keeper alive; a name
that exists is refused. Time passes when the verb under test sleeps.
"""

import json
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

from cxm.config import NodeConfig
from cxm.names import State, Tags, VmId, domain_uuid, lv_name
from cxm.node.machine import Machine
from cxm.xen import cfgtext
from tests.fakes.machine import CLOUD, FakeNode, Outcome

HEAD: Final = (
    "Name                                        ID   Mem VCPUs\tState\tTime(s)"
    "   UUID                            Reason-Code\tSecurity Label\n"
)
_DOM0: Final = (
    "Domain-0                                     0   384     1     r-----      52.6 "
    "00000000-0000-0000-0000-000000000000        -                -\n"
)
_REASONS: Final = {
    "off": ("-", 0),
    "rebooting": ("r", 1),
    "crashed": ("c", 3),
    "suspended": ("s", 2),
}
_SHUTDOWN_S: Final = 3.0
_REBOOT_S: Final = 2.0  # of each of its three phases
_START: Final = 1_700_000_000.0


@dataclass(frozen=True, slots=True)
class FakeDomain:
    """A domain, or the gap between two of them."""

    domid: int
    name: str
    uuid: str
    memory_mib: int
    config: str
    volumes: tuple[str, ...]
    life: str = "running"  # running paused half asked off crashed suspended ...
    ran: bool = True
    keeper: int | None = None
    until: float = 0.0  # when the next thing happens to it
    memory: str = ""  # what its guest knows: lost by a cold start, kept by a restore


@dataclass(frozen=True, slots=True)
class XenState:
    """All that Xen keeps; never changed, always replaced."""

    domains: tuple[FakeDomain, ...] = ()
    next_domid: int = 1
    next_pid: int = 500
    boots: int = 1


def _error(*lines: str) -> Outcome:
    text = "".join(f"libxl: error: {line}\n" for line in lines)
    return Outcome(stderr=text + "libxl: error: libxl_domain.c:1064:x: Domain 9:failed\n", code=3)


class FakeXen:
    """Xen on a modelled node."""

    def __init__(self, node: FakeNode) -> None:
        self.node = node
        self.clock = 0.0
        self.listens = True  # guests acknowledge and obey requests
        self.free_mib = 2048
        self.save_fails = False
        for name in ("proc", "state", "sys/class/net/xenbr0", "kernels", "xendomains"):
            os.makedirs(node.path(name), exist_ok=True)
        for name in ("grub-i386-xen_pvh.bin", "grub-x86_64-xen.bin"):
            with open(node.path("kernels", name), "wb") as file:
                file.write(b"grub")
        self.boot_host()
        for command, handler in self._handlers().items():
            node.model(command, handler)

    def _handlers(self) -> dict[str, Callable[[tuple[str, ...], bytes], Outcome]]:
        return {
            "xl": self._xl,
            "ps": self._ps,
            "kill": self._kill,
            "systemd-run": lambda argv, data: self._xl(argv[argv.index("--") + 1 :], data),
        }

    # --- for tests ---------------------------------------------------------------------------

    @property
    def state(self) -> XenState:
        found: XenState = self.node.state.extra.get("xen", XenState())
        return found

    def _replace(self, **changes: Any) -> None:
        self.node.state.extra = {**self.node.state.extra, "xen": replace(self.state, **changes)}

    def machine(self, **changes: Any) -> Machine:
        """The node as a verb sees it."""
        plain = self.node.machine()
        config = NodeConfig(
            vg_name=plain.config.vg_name,
            clouds=plain.config.clouds,
            tmp_root=plain.config.tmp_root,
            cfg_dir=plain.config.cfg_dir,
            auto_dir=plain.config.auto_dir,
            kernel_dirs=(self.node.path("kernels"),),
        )
        made = replace(
            plain,
            config=config,
            state_dir=self.node.path("state"),
            sys_dir=self.node.path("sys"),
            xendomains_dir=self.node.path("xendomains"),
            boot_id_file=self.node.path("proc", "boot_id"),
            now=lambda: _START + self.clock,
            monotonic=lambda: self.clock,
            sleep=self.sleep,
        )
        return replace(made, **changes)

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.clock += seconds
        self._advance()

    def add_disk(self, vm: int, disk: int = 0, *, name: str = "") -> str:
        """A ready, inactive disk of a VM."""
        kind = str(disk)
        lv = lv_name("lv-one", VmId(vm), kind)
        tags = Tags(CLOUD, VmId(vm), kind, State.READY, name or f"user-vm{vm}.home.net")
        self.node.add_lv(lv, 4, tags=tags.encode(), content=b"disk")
        self.node.run(["lvchange", "-a", "n", f"{self.node.vg}/{lv}"])
        self.node.ran.clear()
        return lv

    def of_vm(self, vm: int) -> FakeDomain | None:
        """The VM's domain."""
        uuid = domain_uuid(CLOUD, VmId(vm))
        return next((each for each in self.state.domains if each.uuid == uuid), None)

    def guest(self, vm: int, does: str) -> None:
        """A guest does something by itself: off, crashed, rebooting, vanished or paused."""
        domain = self.of_vm(vm)
        assert domain is not None
        if does == "vanished":
            self._drop(domain)
        elif does == "rebooting":
            self._put(replace(domain, life="rebooting", until=self.clock + _REBOOT_S))
        else:
            keeper = domain.keeper if does == "paused" else None
            ran = domain.ran and does != "half"
            self._put(replace(domain, life=does, keeper=keeper, ran=ran))

    def lose_keeper(self, vm: int) -> None:
        """The process that keeps a domain is killed."""
        domain = self.of_vm(vm)
        assert domain is not None
        self._put(replace(domain, keeper=None))

    def boot_host(self) -> None:
        """The host goes down and comes up again: no domain is left."""
        for domain in self.state.domains:
            self._drop(domain)
        self._replace(boots=self.state.boots + 1)
        with open(self.node.path("proc", "boot_id"), "w", encoding="ascii") as file:
            file.write(f"boot-{self.state.boots}\n")

    # --- life --------------------------------------------------------------------------------

    def _put(self, domain: FakeDomain) -> None:
        others = tuple(each for each in self.state.domains if each.uuid != domain.uuid)
        self._replace(domains=(*others, domain))

    def _drop(self, domain: FakeDomain) -> None:
        others = tuple(each for each in self.state.domains if each.uuid != domain.uuid)
        self._replace(domains=others)
        self._close(domain)

    def _open(self, domain: FakeDomain) -> None:
        self.node.state.opened = self.node.state.opened | set(domain.volumes)

    def _close(self, domain: FakeDomain) -> None:
        self.node.state.opened = self.node.state.opened - set(domain.volumes)

    def _advance(self) -> None:
        for domain in self.state.domains:
            if self.clock < domain.until or domain.until == 0.0:
                continue
            later = self.clock + _REBOOT_S
            if domain.life == "asked":
                self._put(replace(domain, life="off", keeper=None, until=0.0))
            elif domain.life == "rebooting" and domain.keeper is not None:
                self._close(domain)
                self._put(replace(domain, life="gap", until=later))
            elif domain.life == "gap":
                domid = self.state.next_domid
                self._replace(next_domid=domid + 1)
                self._open(domain)
                self._put(
                    replace(domain, life="building", domid=domid, ran=False, until=later, memory="")
                )
            elif domain.life == "building":
                self._put(replace(domain, life="running", ran=True, until=0.0))

    # --- commands ----------------------------------------------------------------------------

    def _ps(self, argv: tuple[str, ...], _input: bytes) -> Outcome:
        assert argv == ("ps", "-e", "-ww", "-o", "pid=,ruid=,unit=,args=")
        rows = [
            "      1     0 init.scope /sbin/init\n",
            "    280     0 - /usr/lib/xen-4.17/bin/oxenstored --pid-file /run/x\n",
        ]
        rows += [
            f"{domain.keeper:7} 0 r1.scope /usr/lib/xen-4.17/bin/xl create -q {domain.config}\n"
            for domain in self.state.domains
            if domain.keeper is not None
        ]
        return Outcome("".join(rows))

    def _kill(self, argv: tuple[str, ...], _input: bytes) -> Outcome:
        assert argv[:2] == ("kill", "-KILL")
        for domain in self.state.domains:
            if str(domain.keeper) == argv[2]:
                if domain.life == "gap":
                    self._drop(domain)
                else:
                    self._put(replace(domain, keeper=None))
                return Outcome()
        return Outcome(stderr="kill: no such process", code=1)

    def _xl(self, argv: tuple[str, ...], _input: bytes) -> Outcome:
        handler = {
            "list": self._list,
            "create": self._create,
            "destroy": self._destroy,
            "shutdown": self._request,
            "reboot": self._request,
            "unpause": self._unpause,
            "save": self._save,
            "restore": self._restore,
        }[argv[1]]
        return handler(argv[1:])

    def _list(self, argv: tuple[str, ...]) -> Outcome:
        assert argv == ("list", "-v")
        rows = [_row(domain) for domain in self.state.domains if domain.life != "gap"]
        return Outcome(HEAD + _DOM0 + "".join(rows))

    def _named(self, domid: str) -> FakeDomain | None:
        found = (each for each in self.state.domains if each.life != "gap")
        return next((each for each in found if str(each.domid) == domid), None)

    def _device(self, path: str) -> str:
        """Where a device of a configuration is in the model's world."""
        return path

    def _make(self, config: str, **changes: Any) -> FakeDomain | Outcome:
        """Make a domain as the configuration says, or tell what xl says."""
        with open(config, encoding="utf-8") as file:
            parsed = cfgtext.parse(file.read(), config)
        name, uuid, memory = (parsed.get(key) for key in ("name", "uuid", "memory"))
        assert isinstance(memory, int)
        if any(each.name == name and each.life != "gap" for each in self.state.domains):
            text = f'libxl_domain.c:81:rename: Domain 5:Domain with name "{name}" already exists.'
            return _error(text, "libxl_create.c:1296:x: Domain 5:cannot make domain: -6")
        disks = parsed.get("disk")
        volumes = []
        for disk in disks if isinstance(disks, tuple) else ():
            device = self._device(disk.removeprefix("phy:").split(",")[0])
            if not os.path.exists(device):
                text = (
                    f"libxl_device.c:455:x: Disk vdev=xvda failed to stat: {device}: No such file"
                )
                return _error(text)
            volumes.append(os.path.basename(device))
        if memory > self.free_mib:
            text = (
                "xg_dom_boot.c:119: xc_dom_boot_mem_init: can't allocate low memory: Out of memory"
            )
            return Outcome(stderr=f"xc: error: panic: {text}\n", code=3)
        made = FakeDomain(
            domid=self.state.next_domid,
            name=str(name),
            uuid=str(uuid),
            memory_mib=memory,
            config=config,
            volumes=tuple(volumes),
            keeper=self.state.next_pid,
            **changes,
        )
        self._replace(next_domid=made.domid + 1, next_pid=self.state.next_pid + 1)
        self._put(made)
        self._open(made)
        return made

    def _create(self, argv: tuple[str, ...]) -> Outcome:
        assert argv[:2] == ("create", "-q")
        made = self._make(argv[2], memory=f"booted at {self.clock:g}")
        return made if isinstance(made, Outcome) else Outcome()

    def _destroy(self, argv: tuple[str, ...]) -> Outcome:
        domain = self._named(argv[1])
        if domain is None:
            return _error("libxl_domain.c:1183:x: Domain 1:Non-existant domain")
        if domain.life == "rebooting" and domain.keeper is not None:
            # Its keeper is about to make the next one, and does.
            self._close(domain)
            self._put(replace(domain, life="gap", until=self.clock + _REBOOT_S))
        else:
            self._drop(domain)
        return Outcome()

    def _request(self, argv: tuple[str, ...]) -> Outcome:
        assert argv[1] == "-F"
        domain = self._named(argv[2])
        if domain is None or domain.life != "running" or not self.listens:
            text = "libxl_domain.c:854:x: guest didn't acknowledge control request: -9"
            return Outcome(stderr=f"libxl: error: {text}\nshutdown failed (rc=-9)\n", code=1)
        asked = "asked" if argv[0] == "shutdown" else "rebooting"
        self._put(replace(domain, life=asked, until=self.clock + _SHUTDOWN_S))
        return Outcome()

    def _unpause(self, argv: tuple[str, ...]) -> Outcome:
        domain = self._named(argv[1])
        if domain is None:
            return _error("libxl_domain.c:1:x: Domain 1:Non-existant domain")
        self._put(replace(domain, life="running", ran=True))
        return Outcome()

    def _save(self, argv: tuple[str, ...]) -> Outcome:
        domain = self._named(argv[1])
        if domain is None or self.save_fails:
            return _error("libxl_dom_suspend.c:269:x: Domain 6:guest didn't acknowledge suspend")
        with open(argv[2], "r+b") as file:
            file.write(saved(domain.memory))
        self._drop(domain)
        return Outcome()

    def _restore(self, argv: tuple[str, ...]) -> Outcome:
        assert argv[:2] == ("restore", "-p")
        with open(argv[3], "rb") as file:
            data = file.read(1 << 16)
        memory = data[_BODY : _BODY + 64].rstrip(b"\0").decode()
        made = self._make(argv[2], life="paused", ran=False, memory=memory)
        return made if isinstance(made, Outcome) else Outcome()


def _row(domain: FakeDomain) -> str:
    why, reason = _REASONS.get(domain.life, ("-", None))
    paused = domain.life in ("paused", "half", "building", "rebooting")
    ended = domain.life in _REASONS
    state = f"--{'p' if paused else '-'}{'s' if ended else '-'}{why}-"
    seconds = 12.3 if domain.ran else 0.0
    shown = "-" if reason is None else f"{reason:x}"
    return (
        f"{domain.name:<40} {domain.domid:5} {domain.memory_mib:5} {1:5}     {state}  "
        f"{seconds:8.1f} {domain.uuid} {shown:>8} {'-':>16}\n"
    )


_CONFIG: Final = json.dumps({"c_info": {"type": "pvh"}}).encode().ljust(60, b"\0")
_BODY: Final = 32 + 16 + 64 + 16 + 8 + 40 + 8


def saved(memory: str) -> bytes:
    """A save as xl writes it, of a guest whose memory holds this text."""
    own = struct.pack("=I", len(_CONFIG)) + _CONFIG
    head = b"Xen saved domain, xl format\n \0 \r" + struct.pack("=4I", 0x01020304, 3, 0, len(own))
    libxl = b"LibxlFmt" + struct.pack(">II", 2, 0) + struct.pack("=2I", 1, 0)
    libxc = b"\xff" * 8 + bytes(32)
    page = struct.pack("=2I", 1, 64) + memory.encode().ljust(64, b"\0")
    ends = struct.pack("=2I", 0, 0)
    return head + own + libxl + libxc + page + ends + ends
