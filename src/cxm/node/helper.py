# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the root helper of a node: from a verb and its request to one function and one reply.

How a verb is added: a row in :data:`VERBS` names the module below ``cxm.node``, the function and
the arguments; an argument is a row in :data:`ARGUMENTS` (its parameter's name and its check). A
``?`` after the argument's name lets it be null. The function is called with a :class:`Call` and
the checked arguments by keyword, and returns the ``result`` of the reply (a dictionary for JSON)::

    def start(call: Call, *, vm: VmId, directory: str, guest: dict[str, Any]) -> dict[str, Any]:

Around it, this module

- refuses another API version, a cloud that this node does not serve, and arguments that are
  unknown, missing or of the wrong type; ``dir`` must end in the VM's id;
- takes the lock of the VM when the verb has an argument ``vm``;
- puts everything that any module of cxm logs with level INFO into the reply's ``log``: log each
  change of the world once, as one sentence, and nothing else at that level;
- hands an upload to the function as ``call.items`` (wire items; reading them to their end checks
  length and checksum), and takes a download from it by ``call.send(items)``;
- turns TERM, HUP and INT into an exception at the current line (:mod:`cxm.interrupt`): ``finally``
  and context managers undo, inside of ``interrupt.held_off()``. A broken pipe is an OSError;
- is the only place in a node's verbs that catches errors: raise classes of ``cxm.errors``.

A caller of a verb with ``stays=True`` that asks the helper to ``stay`` gets a reply to each request
line that follows, until it closes the input. Only verbs that change nothing may stay.

A verb with ``request=False`` (for services) reads nothing, writes no reply and takes no lock; it
says what it did in the log.
"""

import importlib
import logging
import os
import re
import select
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, BinaryIO, Final

from cxm import API_VERSION, __version__, config, interrupt, log, names, run, wire
from cxm.errors import (
    CommandError,
    CxmError,
    DataError,
    RefusedError,
    UsageError,
    system_error,
)
from cxm.interrupt import InterruptedBySignalError
from cxm.names import CloudId
from cxm.node.client import FAILURE_CODE
from cxm.node.machine import Caller, Machine

_log = logging.getLogger(__name__)

_PACK: Final = ("zstd", "-q", "-1", "-c")
_UNPACK: Final = ("zstd", "-q", "-d", "-c")
_NOT_FOUND: Final = 127
_MAX_SIZE_MIB: Final = 1 << 26  # 64 TiB


class Data(Enum):
    """Whether bulk data travels with a verb, and which way."""

    NONE = "none"
    UP = "up"
    DOWN = "down"


@dataclass(slots=True)
class Call:
    """One call of a verb."""

    machine: Machine
    cloud: CloudId
    block: int = 1 << 20  # bytes of one read or write of a disk
    items: Iterator[wire.Item] = field(default_factory=lambda: iter(()))
    send: Callable[[Iterable[wire.Item]], None] = lambda _items: None


# --- arguments ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Argument:
    """An argument of a request: the parameter that takes it, and its check."""

    parameter: str
    check: Callable[[Any], Any]


def _integer(low: int, high: int) -> Callable[[Any], int]:
    def check(value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise UsageError(f"{value!r} is not a whole number from {low} to {high}")
        return value

    return check


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise UsageError(f"{value!r} is neither true nor false")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise UsageError(f"{value!r} is not a text")
    return value


def _word(*words: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if value not in words:
            raise UsageError(f"{value!r} is none of {', '.join(words)}")
        return str(value)

    return check


def _directory(value: Any) -> str:
    text = _text(value)
    # normpath leaves two slashes at the front alone.
    if not re.match("/[^/]", text) or os.path.normpath(text) != text or "\0" in text:
        raise UsageError(f"{value!r} is not the absolute, normal path of a directory")
    return text


def _file_name(value: Any) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,200}", _text(value)):
        raise UsageError(f"{value!r} is not the plain name of a file")
    return str(value)


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UsageError(f"{value!r} is not a set of named values")
    return value


_block_mib: Final = _integer(1, config.MAX_BLOCK_MIB)

ARGUMENTS: Final[Mapping[str, Argument]] = {
    "vm": Argument("vm", lambda value: names.VmId(_integer(0, 0xFFFFFFFF)(value))),
    "disk": Argument("disk", lambda value: names.volume_kind(str(_integer(0, 9999)(value)))),
    "dir": Argument("directory", _directory),
    "name": Argument("name", lambda value: names.domain_name(_text(value))),
    "size_mib": Argument("size_mib", _integer(1, _MAX_SIZE_MIB)),
    "content": Argument("content", _word("raw", "gzip", "zstd", "tar", "tar.gz", "tar.zst")),
    "fstype": Argument("fstype", lambda value: config.filesystem(_text(value))),
    "replace": Argument("replace", _boolean),
    "format": Argument("made_as", _word("raw", "swap", *config.FILESYSTEMS)),
    "as": Argument("content", _word("raw", "gzip", "tar.gz")),
    "level": Argument("level", _integer(1, 9)),
    "file": Argument("file", _file_name),
    "guest": Argument("guest", _mapping),
    "how": Argument("how", _word("shutdown", "destroy")),
    "timeout_s": Argument("timeout_s", _integer(1, 86400)),
    "detail": Argument("detail", _word("state", "usage", "host", "all")),
}


@dataclass(frozen=True, slots=True)
class Verb:
    """A row of the verb table."""

    module: str  # below cxm.node; only the module of the asked verb is imported
    function: str
    args: str = ""
    data: Data = Data.NONE
    request: bool = True
    stays: bool = False
    lock: bool = True  # False: the verb waits long, and takes the VM's lock itself when it acts

    def arguments(self) -> dict[str, tuple[Argument, bool]]:
        """Name in the request -> the argument, and whether it may be null."""
        return {
            word.rstrip("?"): (ARGUMENTS[word.rstrip("?")], word.endswith("?"))
            for word in self.args.split()
        }


VERBS: Final[Mapping[str, Verb]] = {
    "disk-write": Verb(
        "disks", "write", "vm disk dir name size_mib? content fstype? replace", Data.UP
    ),
    "disk-blank": Verb("disks", "blank", "vm disk dir name size_mib format"),
    "disk-read": Verb("disks", "read", "vm disk as fstype? level?", Data.DOWN),
    "disk-remove": Verb("disks", "remove", "vm disk dir?"),
    "vm-remove": Verb("disks", "remove_vm", "vm dir"),
    "vm-volumes": Verb("disks", "volumes", "vm"),
    "vg-usage": Verb("disks", "usage"),
    "dir-read": Verb("directory", "read", "vm dir", Data.DOWN),
    "dir-write": Verb("directory", "write", "vm dir name", Data.UP),
    "file-write": Verb("directory", "write_file", "vm dir file", Data.UP),
    "domain-start": Verb("domains", "start", "vm dir guest"),
    "domain-stop": Verb("domains", "stop", "vm how timeout_s", lock=False),
    "domain-reboot": Verb("domains", "reboot", "vm"),
    "domain-reset": Verb("domains", "reset", "vm"),
    "domain-save": Verb("memory", "save", "vm"),
    "domain-restore": Verb("memory", "restore", "vm dir guest?"),
    "observe": Verb("observe", "observe", "detail", stays=True),
    "tend": Verb("tend", "tend", request=False),
}


def check_arguments(verb: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a request by parameter name; raises UsageError naming what is wrong."""
    rows = VERBS[verb].arguments()
    wrong = sorted(set(rows) ^ set(given))
    if wrong:
        what = "unknown" if wrong[0] in given else "missing"
        raise UsageError(f"{verb}: the argument '{wrong[0]}' is {what}")
    checked: dict[str, Any] = {}
    for name, (argument, may_be_null) in rows.items():
        value = given[name]
        try:
            checked[argument.parameter] = (
                None if value is None and may_be_null else argument.check(value)
            )
        except UsageError as error:
            raise UsageError(f"{verb}: {name}: {error.message}", hint=error.hint) from error
    directory, vm = checked.get("directory"), checked.get("vm")
    if directory is not None and os.path.basename(directory) != str(vm):
        raise UsageError(f"{verb}: dir: '{directory}' is not the directory of VM {vm}")
    return checked


def _check_request(request: Mapping[str, Any], machine: Machine) -> CloudId:
    if request.get("api") != API_VERSION:
        raise RefusedError(
            f"{machine.hostname} speaks version {API_VERSION} of cxm's protocol (cxm "
            f"{__version__}), the caller version {request.get('api')} "
            f"(cxm {request.get('version')})",
            hint="install the same version of cxm on the frontend and on all nodes",
        )
    cloud = names.cloud_id(str(request.get("cloud")))
    if cloud not in machine.config.clouds:
        raise RefusedError(
            f"{machine.hostname} does not serve the cloud '{cloud}'",
            hint=f"'cxm-setup node' adds it to CLOUDS in {config.NODE_FILE}",
        )
    return cloud


# --- serving ------------------------------------------------------------------------------------


class _Collector(logging.Handler):
    """Keeps the sentences that a verb logs about its changes, for the reply."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < logging.ERROR:
            self.lines.append(" ".join(record.getMessage().split()))


@contextmanager
def _collected() -> Iterator[list[str]]:
    root = logging.getLogger("cxm")
    collector = _Collector()
    level = root.level
    root.addHandler(collector)
    if root.getEffectiveLevel() > logging.INFO:
        root.setLevel(logging.INFO)
    try:
        yield collector.lines
    finally:
        root.removeHandler(collector)
        root.setLevel(level)


def _chunks(stdin: BinaryIO, silence_s: float) -> Iterator[bytes]:
    """The input as it comes; a sender that has died without a word must not hold the VM's lock."""
    while True:
        if not select.select([stdin], [], [], silence_s)[0]:
            raise DataError(
                f"nothing has come from the frontend for {silence_s:g} s in the middle of the data",
                hint="it or the connection to it has died; run the action again",
            )
        chunk = stdin.read(run.CHUNK)
        if not chunk:
            return
        yield chunk


@contextmanager
def _uploaded(stdin: BinaryIO, machine: Machine, *, pack: bool) -> Iterator[Iterator[wire.Item]]:
    """The items of an upload; when the verb has succeeded, its source has ended well too."""
    chunks = _chunks(stdin, machine.silence_s)
    try:
        with ExitStack() as stack:
            if pack:
                chunks = stack.enter_context(machine.runner.produce(_UNPACK, chunks=chunks))
            items = iter(wire.Decoder(wire.reader(chunks), expect_reply=False))
            yield items
            for _rest in items:
                pass
    except CommandError as error:
        if error.argv != _UNPACK or error.exit_code == _NOT_FOUND:
            raise
        raise DataError(
            "the data stream was cut or damaged on its way",
            hint="the connection or its other end died; run the action again",
        ) from error


class _Output:
    """The helper's output: a reply, or a download that ends with it."""

    def __init__(self, stdout: BinaryIO, runner: run.Runner) -> None:
        self._stdout = stdout
        self._runner = runner
        self.data = False
        self.pack = False
        self.stay = False

    def _write(self, chunks: Iterable[bytes]) -> None:
        for chunk in chunks:
            view = memoryview(chunk)
            while view:
                view = view[self._stdout.write(view) or len(view) :]
        self._stdout.flush()

    def send(self, items: Iterable[wire.Item]) -> None:
        """Send data; a failure of its source still leaves room for a reply behind it."""
        failures: list[Exception] = []

        def encoded() -> Iterator[bytes]:
            try:
                yield from wire.encode(items)
            except Exception as error:  # noqa: BLE001 - raised again below, in the verb's thread
                failures.append(error)

        self._send(encoded())
        if failures:
            raise failures[0]

    def _send(self, chunks: Iterable[bytes]) -> None:
        if not self.pack:
            self._write(chunks)
            return
        # Each part is a zstd frame of its own; a decoder takes them as one stream.
        with self._runner.produce(_PACK, chunks=chunks) as packed:
            self._write(packed)

    def reply(self, reply: dict[str, Any]) -> None:
        if self.data:
            self._send([wire.encode_reply(reply)])
        else:
            self._write([wire.encode_json(reply)])


def _perform(
    verb: str,
    stdin: BinaryIO,
    output: _Output,
    machine: Machine,
    *,
    refusal: CxmError | None,
    head: bytes,
) -> dict[str, Any]:
    row = VERBS.get(verb)
    if row is None:
        raise UsageError(f"'{verb}' is not a verb of cxm's helper")
    output.data = row.data is Data.DOWN
    call = Call(machine, CloudId(""), send=output.send)
    arguments: dict[str, Any] = {}
    with ExitStack() as stack:
        request = wire.read_line(stdin.read, head) if row.request else {}
        pack = output.pack = request.get("pack") is True
        output.stay = row.stays and request.get("stay") is True
        if refusal is not None:
            raise refusal
        if row.request:
            call.cloud = _check_request(request, machine)
            call.block = _block_mib(request.get("block_mib", 1)) << 20
            arguments = check_arguments(verb, _mapping(request.get("args")))
            if "vm" in arguments and row.lock:
                stack.enter_context(machine.vm_lock(call.cloud, arguments["vm"]))
            if row.data is Data.UP:
                call.items = stack.enter_context(_uploaded(stdin, machine, pack=pack))
        module = importlib.import_module(f"cxm.node.{row.module}")
        result: dict[str, Any] = getattr(module, row.function)(call, **arguments)
        return result


def _explain(error: BaseException, verb: str, hostname: str) -> CxmError:
    """A failure as the caller will read it: one sentence that names this node."""
    if isinstance(error, CxmError):
        if not error.message.startswith(f"{hostname}: "):
            error.message = f"{hostname}: {error.message}"
        return error
    if isinstance(error, InterruptedBySignalError):
        return CxmError(f"{hostname}: {verb} was ended by {error} and has undone what it did")
    if isinstance(error, OSError):
        return CxmError(f"{hostname}: {verb}: {system_error(error)}")
    _log.error("unexpected failure of %s", verb, exc_info=error)
    return CxmError(
        f"{hostname}: {verb} failed unexpectedly: {type(error).__name__}: {error}",
        hint="this is a defect of cxm; please report it with the node's log",
    )


def serve(
    verb: str,
    stdin: BinaryIO,
    stdout: BinaryIO,
    machine: Machine,
    *,
    refusal: CxmError | None = None,
) -> int:
    """Do one verb and write its reply; returns the helper's exit code.

    With a ``refusal``, nothing is done: it is what the reply says, in the form the caller asks for.
    """
    output = _Output(stdout, machine.runner)
    code = _answer(verb, stdin, output, machine, refusal=refusal)
    with suppress(InterruptedBySignalError):
        while output.stay and (head := stdin.read(1)):
            code = _answer(verb, stdin, output, machine, refusal=refusal, head=head)
    return code


def _answer(
    verb: str,
    stdin: BinaryIO,
    output: _Output,
    machine: Machine,
    *,
    refusal: CxmError | None,
    head: bytes = b"",
) -> int:
    """Do what one request asks for, ``head`` being its first bytes, and reply."""
    output.stay = False
    failure: CxmError | None = None
    result: dict[str, Any] = {}
    with _collected() as lines:
        try:
            result = _perform(verb, stdin, output, machine, refusal=refusal, head=head)
        except (Exception, InterruptedBySignalError) as error:  # noqa: BLE001 - the boundary
            failure = _explain(error, verb, machine.hostname)
    if failure is None:
        reply, code = wire.success(result, lines), 0
    else:
        _log.error("%s: %s", verb, failure.sentence())
        reply, code = wire.failure(failure, lines), FAILURE_CODE
    if verb in VERBS and not VERBS[verb].request:
        return code
    try:
        output.reply(reply)
    except OSError as error:
        _log.warning("%s: the caller has gone before the reply: %s", verb, error)
        output.stay = False
        return FAILURE_CODE
    return code


def _caller(environ: Mapping[str, str]) -> Caller:
    uid, gid = environ.get("SUDO_UID", ""), environ.get("SUDO_GID", "")
    if uid.isdecimal() and gid.isdecimal():
        return Caller(int(uid), int(gid))
    return Caller(os.geteuid(), os.getegid())


def _settings(text: str, verb: str) -> config.NodeConfig:
    """The node's settings; what is ignored of them is warned of by each verb about a VM."""
    settings, warnings = config.node(text, config.NODE_FILE)
    if verb in VERBS and "vm" in VERBS[verb].arguments():
        for warning in warnings:
            _log.warning("%s", warning)
    return settings


def main(argv: list[str]) -> int:
    """The helper's entry point: ``cxm-helper VERB``, the request on standard input."""
    hostname = os.uname().nodename
    if len(argv) != 1:
        sys.stderr.write("usage: cxm-helper VERB (called by cxm's drivers)\n")
        return UsageError.code
    os.umask(0o022)
    interrupt.install()
    log.to_syslog(ident="cxm-helper", debug=False)
    settings, refusal = config.NodeConfig(), None
    try:
        settings = _settings(config.read_trusted(config.NODE_FILE), argv[0])
    except CxmError as error:
        refusal = error
    machine = Machine(settings, run.System(), _caller(os.environ), hostname)
    # Unbuffered: the request's line must not take a byte of the data that follows it.
    stdin, stdout = open(0, "rb", buffering=0), open(1, "wb", buffering=0)
    return serve(argv[0], stdin, stdout, machine, refusal=refusal)
