# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the model of a node: a Runner whose LVM, file systems and mounts live in a temporary place.

Volumes are sparse files, filled with an old tenant's bytes when they are made; a file system is a
directory that stands beside its volume; ``tar``, ``gzip`` and ``zstd`` are the real programs. A
command that nobody models fails the test.

More commands are added by :meth:`FakeNode.model` (see ``tests/fakes/xen.py``): a handler takes the
argument list and the input, and returns an :class:`Outcome`.

Faults: every command that starts is a step, counted from 0. ``node.fault = Fault(3, How.FAIL)``
makes step 3 fail; TERM sends that signal; KILL and KILL_AFTER end the process there as SIGKILL
does, before or after the command's work: :class:`KilledError` goes through everything, and whatever
cleanup code did on its way is taken back by :meth:`FakeNode.revive`.
"""

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, BinaryIO, Final

from cxm.config import NodeConfig
from cxm.errors import CommandError
from cxm.names import CloudId
from cxm.node.machine import Caller, Machine
from cxm.run import Result, System
from tests.fakes import copies

MIB: Final = 1 << 20
EXTENT: Final = 4 * MIB
CLOUD: Final = CloudId("cloudone1")
OLD_TENANT: Final = b"old tenant's secret bytes!\n     "
_MAGIC_AT: Final = 1024
_DENSE_MIB: Final = 4  # at both ends of a volume
_PAGE: Final = 4096


class KilledError(BaseException):
    """The process under test got SIGKILL: nothing after this happens in its world."""


class How(Enum):
    """What goes wrong at a step."""

    FAIL = "fail"
    KILL = "kill"
    KILL_AFTER = "kill after"
    TERM = "term"


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong."""

    step: int
    how: How


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a modelled command ends."""

    stdout: str = ""
    stderr: str = ""
    code: int = 0


Handler = Callable[[tuple[str, ...], bytes], Outcome]


@dataclass(frozen=True, slots=True)
class Lv:
    """A volume of the model; its content is the file ``backing/NAME``."""

    name: str
    size: int
    tags: tuple[str, ...] = ()
    active: bool = False
    filesystem: str = ""  # the kind whose files are in ``trees/NAME``
    autoactivation: bool = True


@dataclass(slots=True)
class State:
    """All that survives a process; replaced as a whole by :meth:`FakeNode.revive`."""

    lvs: dict[str, Lv] = field(default_factory=dict)
    mounts: dict[str, str] = field(default_factory=dict)  # directory -> volume
    opened: set[str] = field(default_factory=set)  # volumes that a domain's backend has open
    extra: dict[str, Any] = field(default_factory=dict)  # of other models; replaced, never changed

    def copy(self) -> "State":
        return State(dict(self.lvs), dict(self.mounts), set(self.opened), dict(self.extra))


class FakeNode:
    """A node with one volume group; pass it as a Runner."""

    def __init__(self, root: str, *, vg: str = "LVM_XEN", size_mib: int = 1024) -> None:
        self.root = root
        self.vg = vg
        self.uuid = "Xh9PzT-0000-0000-0000-0000-0000-000001"
        self.size = size_mib * MIB
        self.shared = False
        self.has_vg = True
        self.state = State()
        self.ran: list[tuple[str, ...]] = []
        self.fault: Fault | None = None
        self.clock = 0.0
        self.later: Callable[[], None] = lambda: None  # happens while a verb waits
        self.is_busy = False  # the model is at work, not the code under test
        self._killed: State | None = None
        self._real = System()
        self._handlers: dict[str, Handler] = {
            "lvm": self._lvm,
            "lvcreate": self._lvcreate,
            "lvremove": self._lvremove,
            "lvchange": self._lvchange,
            "blkid": self._blkid,
            "mke2fs": self._mkfs,
            "mkfs.xfs": self._mkfs,
            "mkfs.btrfs": self._mkfs,
            "mkfs.vfat": self._mkfs,
            "mkswap": self._mkfs,
            "mount": self._mount,
            "umount": self._umount,
        }
        for name in ("dev", "backing", "trees", "tmp", "run", "state", "cfg", "auto", "datastores"):
            os.makedirs(self.path(name), exist_ok=True)
        os.makedirs(self.path("dev", vg))

    # --- for tests ---------------------------------------------------------------------------

    def path(self, *names: str) -> str:
        """A path inside of the model's world."""
        return os.path.join(self.root, *names)

    def model(self, command: str, handler: Handler) -> None:
        """Add a command."""
        self._handlers[command] = handler

    def machine(self, **changes: Any) -> Machine:
        """The machine that a verb under test works on."""
        config = NodeConfig(
            vg_name=self.vg,
            clouds=(CLOUD,),
            tmp_root=self.path("tmp"),
            cfg_dir=self.path("cfg"),
            auto_dir=self.path("auto"),
        )
        made = Machine(
            config=config,
            runner=self,
            caller=Caller(os.geteuid(), os.getegid()),
            hostname="node1",
            dev_dir=self.path("dev"),
            run_dir=self.path("run"),
            state_dir=self.path("state"),
            monotonic=lambda: self.clock,
            sleep=self.sleep,
        )
        return replace(made, **changes)

    def sleep(self, seconds: float) -> None:
        """Let time pass for a verb."""
        self.clock += seconds
        self.later()

    def add_lv(
        self, name: str, size_mib: int, *, tags: Sequence[str] = (), content: bytes | None = None
    ) -> Lv:
        """Put an active volume there, with an old tenant's bytes or with ``content``."""
        size = -(-size_mib * MIB // EXTENT) * EXTENT
        with open(self.path("backing", name), "wb") as file:
            if content is None:
                _write_old_tenant(file, size // MIB)
            else:
                file.write(content)
            file.truncate(size)
        lv = Lv(name, size, tuple(sorted(tags)))
        self._put(replace(lv, active=True))
        return self.state.lvs[name]

    def content(self, name: str) -> bytes:
        """The bytes of a volume."""
        with open(self.path("backing", name), "rb") as file:
            return file.read()

    def tree(self, name: str) -> str:
        """The directory that holds the files of a volume's file system."""
        return self.path("trees", name)

    def revive(self) -> None:
        """After a kill: the world as it was when the process died; the fault is over."""
        self.fault = None
        self.is_busy = False
        self.ran.clear()
        if self._killed is None:
            return
        self.state, self._killed = self._killed, None
        for name in os.listdir(self.root):
            if name != "killed":
                shutil.rmtree(self.path(name))
        for name in os.listdir(self.path("killed")):
            os.rename(self.path("killed", name), self.path(name))
        os.rmdir(self.path("killed"))

    # --- the Runner --------------------------------------------------------------------------

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes | None = None,
        timeout_s: float = 60.0,
        ok: Sequence[int] = (0,),
    ) -> Result:
        return self.feed(argv, () if stdin is None else (stdin,), timeout_s=timeout_s, ok=ok)

    def feed(
        self,
        argv: Sequence[str],
        chunks: Iterable[bytes],
        *,
        timeout_s: float | None = None,
        ok: Sequence[int] = (0,),
    ) -> Result:
        with self._step(argv):
            handler = self._handlers.get(argv[0])
            if handler is None and argv[0] in ("tar", "gzip", "zstd"):
                return self._real.feed(argv, chunks, timeout_s=timeout_s, ok=ok)
            if handler is None:
                raise AssertionError(f"nobody models the command {argv!r}")
            given = b"".join(chunks)
            with self._busy():
                outcome = handler(tuple(argv), given)
            if outcome.code not in ok:
                raise _failed(argv, outcome)
            return Result(tuple(argv), outcome.code, outcome.stdout, outcome.stderr, 0.0)

    @contextmanager
    def produce(
        self,
        argv: Sequence[str],
        *,
        chunks: Iterable[bytes] | None = None,
        timeout_s: float | None = None,
        ok: Sequence[int] = (0,),
    ) -> Iterator[Iterator[bytes]]:
        handler = self._handlers.get(argv[0])
        if handler is not None:
            with self._step(argv), self._busy():
                outcome = handler(tuple(argv), b"".join(chunks or ()))
            yield iter([outcome.stdout.encode("latin-1")])
            if outcome.code not in ok:
                raise _failed(argv, outcome)
            return
        if argv[0] not in ("tar", "gzip", "zstd"):
            raise AssertionError(f"nobody models the output of {argv!r}")
        with (
            self._step(argv),
            self._real.produce(argv, chunks=chunks, timeout_s=timeout_s, ok=ok) as output,
        ):
            yield output

    @contextmanager
    def _step(self, argv: Sequence[str]) -> Iterator[None]:
        if self._killed is not None:
            raise KilledError
        step = len(self.ran)
        self.ran.append(tuple(argv))
        how = self.fault.how if self.fault is not None and self.fault.step == step else None
        if how is How.KILL:
            self._kill()
        if how is How.TERM:
            signal.raise_signal(signal.SIGTERM)
        if how is How.FAIL:
            raise _failed(argv, Outcome(stderr="this step was told to fail", code=5))
        yield
        if how is How.KILL_AFTER:
            self._kill()

    def file_step(self, words: tuple[str, ...]) -> None:
        """A step of the code under test that is no command (:mod:`tests.fakes.filesteps`)."""
        if self._killed is None:
            with self._step(words):
                pass

    @contextmanager
    def _busy(self) -> Iterator[None]:
        self.is_busy = True
        try:
            yield
        finally:
            self.is_busy = False

    def _kill(self) -> None:
        self._killed = self.state.copy()
        self.is_busy = True
        names = [self.path(name) for name in os.listdir(self.root)]
        os.mkdir(self.path("killed"))
        copies.copy(names, self.path("killed"))
        raise KilledError

    # --- LVM ---------------------------------------------------------------------------------

    def _put(self, lv: Lv) -> None:
        self.state.lvs[lv.name] = lv
        node = self.path("dev", self.vg, lv.name)
        if lv.active and not os.path.lexists(node):
            os.symlink(os.path.join("..", "..", "backing", lv.name), node)
        if not lv.active and os.path.lexists(node):
            os.unlink(node)

    def free(self) -> int:
        """Free bytes of the group."""
        return self.size - sum(lv.size for lv in self.state.lvs.values())

    def in_use(self, name: str) -> bool:
        """Whether a volume is open: mounted, or used by a domain."""
        return name in self.state.opened or name in self.state.mounts.values()

    def _missing(self, vg: str) -> Outcome | None:
        if self.has_vg and vg == self.vg:
            return None
        text = f'  Volume group "{vg}" not found\n  Cannot process volume group {vg}\n'
        return Outcome(stderr=text, code=5)

    def _lvm(self, argv: tuple[str, ...], _input: bytes) -> Outcome:
        assert argv[1:7] == ("fullreport", "--reportformat", "json", "--units", "b", "--nosuffix")
        if missing := self._missing(argv[-1]):
            return replace(missing, stdout='{"report": [{"vg": []}]}')
        group = {
            "vg_name": self.vg,
            "vg_uuid": self.uuid,
            "vg_size": str(self.size),
            "vg_free": str(self.free()),
            "vg_extent_size": str(EXTENT),
            "vg_shared": "shared" if self.shared else "",
        }
        volumes = [
            {
                "lv_name": lv.name,
                "lv_size": str(lv.size),
                "lv_tags": ",".join(lv.tags),
                "lv_active": "active" if lv.active else "",
                "lv_device_open": "open" if self.in_use(lv.name) else "",
            }
            for lv in self.state.lvs.values()
        ]
        fields = dict(zip(argv, argv[2:], strict=False))  # "--configreport" "vg" "-o" "fields"
        asked = [fields["vg"], fields["lv"]]
        rows = [
            [{key: row[key] for key in names.split(",")} for row in table]
            for names, table in zip(asked, ([group], volumes), strict=True)
        ]
        return Outcome(json.dumps({"report": [{"vg": rows[0], "pv": [], "lv": rows[1]}]}))

    def _lvcreate(self, argv: tuple[str, ...], _input: bytes) -> Outcome:
        words = list(argv[1:])
        given: dict[str, list[str]] = {}
        while words[0].startswith("-"):
            key = words.pop(0)
            value = "" if key == "-y" else words.pop(0)
            given.setdefault(key, []).append(value)
        (vg,) = words
        known = {"-y", "-W", "-Z", "--type", "-L", "--setautoactivation", "--addtag", "-n"}
        assert set(given) <= known, given
        assert {"-y", "-W", "-Z"} <= set(given), "old signatures would cause a question"
        if missing := self._missing(vg):
            return missing
        (name,), (size,) = given["-n"], given["-L"]
        size_mib = int(size.removesuffix("m"))
        need = -(-size_mib * MIB // EXTENT) * EXTENT
        if name in self.state.lvs:
            text = f'  Logical Volume "{name}" already exists in volume group "{vg}"\n'
            return Outcome(stderr=text, code=5)
        if need > self.free():
            text = (
                f'  Volume group "{vg}" has insufficient free space '
                f"({self.free() // EXTENT} extents): {need // EXTENT} required.\n"
            )
            return Outcome(stderr=text, code=5)
        lv = self.add_lv(name, size_mib, tags=given.get("--addtag", ()))
        self._put(replace(lv, autoactivation=given.get("--setautoactivation") != ["n"]))
        with open(self.path("backing", name), "r+b") as file:
            file.write(bytes(4096))  # -Z y
        return Outcome()

    def _named(self, word: str) -> tuple[Lv | None, Outcome]:
        vg, _slash, name = word.partition("/")
        if missing := self._missing(vg):
            return None, missing
        if name not in self.state.lvs:
            return None, Outcome(stderr=f'  Failed to find logical volume "{word}"\n', code=5)
        return self.state.lvs[name], Outcome()

    def _lvremove(self, argv: tuple[str, ...], _input: bytes) -> Outcome:
        assert argv[1:3] == ("-f", "-y")
        worst = Outcome()
        for word in argv[3:]:
            lv, outcome = self._named(word)
            if lv is not None and self.in_use(lv.name):
                outcome = Outcome(stderr=f"  Logical volume {word} in use.\n", code=5)
            if lv is None or outcome.code:
                worst = outcome
                continue
            self._put(replace(lv, active=False))
            del self.state.lvs[lv.name]
            os.unlink(self.path("backing", lv.name))
            if lv.filesystem:
                shutil.rmtree(self.tree(lv.name))
        return worst

    def _lvchange(self, argv: tuple[str, ...], _input: bytes) -> Outcome:
        lv, outcome = self._named(argv[-1])
        if lv is None:
            return outcome
        tags = set(lv.tags)
        for key, value in zip(argv[1:-1:2], argv[2:-1:2], strict=True):
            if key == "--addtag":
                tags.add(value)
            elif key == "--deltag":
                tags.discard(value)
            elif key == "-a" and value in ("y", "ey"):
                lv = replace(lv, active=True)
            elif key == "-a" and value == "n":
                if self.in_use(lv.name):
                    return Outcome(stderr=f"  Logical volume {argv[-1]} in use.\n", code=5)
                lv = replace(lv, active=False)
            else:
                raise AssertionError(f"nobody models {argv!r}")
        self._put(replace(lv, tags=tuple(sorted(tags))))
        return Outcome()

    # --- file systems ------------------------------------------------------------------------

    def _lv_of(self, device: str) -> Lv:
        lv = self.state.lvs[os.path.basename(device)]
        assert device == self.path("dev", self.vg, lv.name)
        assert lv.active, f"{device} is not there"
        return lv

    def _marker(self, name: str) -> str:
        with open(self.path("backing", name), "rb") as file:
            file.seek(_MAGIC_AT)
            mark = file.read(16)
        return mark[3:].strip(b"\0").decode() if mark.startswith(b"FS:") else ""

    def _blkid(self, argv: tuple[str, ...], _input: bytes) -> Outcome:
        assert argv[1:4] == ("-p", "-o", "export")
        kind = self._marker(self._lv_of(argv[4]).name)
        if not kind:
            return Outcome(code=2)
        usage = "other" if kind == "swap" else "filesystem"
        return Outcome(f"DEVNAME={argv[4]}\nUSAGE={usage}\nTYPE={kind}\n")

    def _mkfs(self, argv: tuple[str, ...], _input: bytes) -> Outcome:
        kind = argv[argv.index("-t") + 1] if "-t" in argv else argv[0].removeprefix("mkfs.")
        kind = {"mkswap": "swap"}.get(kind, kind)
        force = {"swap": "-f", "xfs": "-f", "btrfs": "-f", "vfat": "-I"}.get(kind, "-F")
        assert force in argv, "an old signature would cause a question"
        lv = self._lv_of(argv[-1])
        assert not self.content(lv.name).strip(b"\0"), "made on a device that is not all zeros"
        with open(self.path("backing", lv.name), "r+b") as file:
            file.seek(_MAGIC_AT)
            file.write(f"FS:{kind}".encode())
        os.makedirs(self.tree(lv.name), exist_ok=True)
        self._put(replace(lv, filesystem=kind))
        return Outcome()

    def _mount(self, argv: tuple[str, ...], _input: bytes) -> Outcome:
        keys = dict(zip(argv[1:-2:2], argv[2:-2:2], strict=True))
        assert {"nosuid", "nodev", "noexec"} <= set(keys["-o"].split(","))
        device, directory = argv[-2:]
        lv = self._lv_of(device)
        if self._marker(lv.name) != keys["-t"] or self.in_use(lv.name):
            text = "mount: wrong fs type, bad option, bad superblock, or already mounted.\n"
            return Outcome(stderr=text, code=32)
        # A link to the tree stands for the mount: it can be entered, and rmdir refuses it.
        os.rmdir(directory)
        os.symlink(self.tree(lv.name), directory)
        self.state.mounts[directory] = lv.name
        return Outcome()

    def _umount(self, argv: tuple[str, ...], _input: bytes) -> Outcome:
        if argv[1] not in self.state.mounts:
            return Outcome(stderr=f"umount: {argv[1]}: not mounted.\n", code=32)
        del self.state.mounts[argv[1]]
        os.unlink(argv[1])
        os.mkdir(argv[1], 0o700)
        return Outcome()


def _write_old_tenant(file: BinaryIO, mib: int) -> None:
    """An old tenant's bytes: everywhere, but in the midst of a large volume only here and there.

    A test that makes a hundred volumes for a guest's memory would write gigabytes else.
    """
    whole = OLD_TENANT * (MIB // len(OLD_TENANT))
    for number in range(mib):
        at_an_end = number < _DENSE_MIB or number >= mib - _DENSE_MIB
        if at_an_end or number % _DENSE_MIB == 0:
            file.seek(number * MIB)
            file.write(whole if at_an_end else whole[:_PAGE])


def _failed(argv: Sequence[str], outcome: Outcome) -> CommandError:
    message = f"'{' '.join(argv[:3])}' failed with exit code {outcome.code}"
    if outcome.stderr:
        message += f": {' '.join(outcome.stderr.split())}"
    return CommandError(message, argv=tuple(argv), exit_code=outcome.code, stderr=outcome.stderr)
