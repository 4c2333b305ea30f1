# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""Owns the root helper of a node: from a verb and its request to one function and one reply.

The verbs are in :mod:`cxm.node.verbs`. Around a verb's function, this module

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
"""

import importlib
import logging
import os
import select
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import Any, BinaryIO, Final

from cxm import API_VERSION, __version__, config, interrupt, log, names, run, wire
from cxm.errors import CommandError, CxmError, DataError, RefusedError, UsageError, explained
from cxm.interrupt import InterruptedBySignalError
from cxm.names import CloudId
from cxm.node.client import FAILURE_CODE
from cxm.node.machine import Caller, Machine, settings, this_machine
from cxm.node.verbs import VERBS, Call, Data, Verb, block_mib, check_arguments

_log = logging.getLogger(__name__)

_PACK: Final = ("zstd", "-q", "-1", "-c")
_UNPACK: Final = ("zstd", "-q", "-d", "-c")
_NOT_FOUND: Final = 127


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
            call.block = block_mib(request.get("block_mib", 1)) << 20
            arguments = check_arguments(verb, request.get("args"))
            if "vm" in arguments and row.lock and not (row.cluster and machine.in_cluster):
                stack.enter_context(machine.vm_lock(call.cloud, arguments["vm"]))
            if row.data is Data.UP:
                call.items = stack.enter_context(_uploaded(stdin, machine, pack=pack))
        result: dict[str, Any] = _function(row, machine)(call, **arguments)
        return result


def _function(row: Verb, machine: Machine) -> Callable[..., dict[str, Any]]:
    """What a verb does on this node: in a cluster, orders about a VM are the cluster's business."""
    if row.cluster and machine.in_cluster:
        below, name = row.cluster.split(".")
        module = f"cxm.cluster.{below}"
    else:
        module, name = f"cxm.node.{row.module}", row.function
    function: Callable[..., dict[str, Any]] = getattr(importlib.import_module(module), name)
    return function


def _explain(error: BaseException, verb: str, hostname: str) -> CxmError:
    """A failure as the caller will read it: one sentence that names this node."""
    if isinstance(error, CxmError):
        if not error.message.startswith(f"{hostname}: "):
            error.message = f"{hostname}: {error.message}"
        return error
    if isinstance(error, InterruptedBySignalError):
        return CxmError(f"{hostname}: {verb} was ended by {error} and has undone what it did")
    return explained(error, f"{hostname}: {verb}", _log)


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
        # Who only asked how much is free has changed nothing, and asks again.
        changes = "vm" in VERBS[verb].arguments() if verb in VERBS else False
        level = logging.WARNING if changes else logging.DEBUG
        _log.log(level, "%s: the caller has gone before the reply: %s", verb, error)
        output.stay = False
        return FAILURE_CODE
    return code


def _caller(environ: Mapping[str, str]) -> Caller:
    uid, gid = environ.get("SUDO_UID", ""), environ.get("SUDO_GID", "")
    if uid.isdecimal() and gid.isdecimal():
        return Caller(int(uid), int(gid))
    return Caller(os.geteuid(), os.getegid())


def _warned(read: tuple[config.NodeConfig, list[str]], verb: str) -> config.NodeConfig:
    """The node's settings; what is ignored of them is warned of by each verb about a VM."""
    found, warnings = read
    if verb in VERBS and "vm" in VERBS[verb].arguments():
        for warning in warnings:
            _log.warning("%s", warning)
    return found


def main(argv: list[str]) -> int:
    """The helper's entry point: ``cxm-helper VERB``, the request on standard input."""
    if len(argv) != 1:
        sys.stderr.write("usage: cxm-helper VERB (called by cxm's drivers)\n")
        return UsageError.code
    os.umask(0o022)
    interrupt.install()
    log.to_syslog(ident="cxm-helper", debug=False)
    machine, refusal = this_machine(_caller(os.environ)), None
    try:
        machine = replace(machine, config=_warned(settings(), argv[0]))
    except CxmError as error:
        refusal = error
    # Unbuffered: the request's line must not take a byte of the data that follows it.
    stdin, stdout = open(0, "rb", buffering=0), open(1, "wb", buffering=0)
    return serve(argv[0], stdin, stdout, machine, refusal=refusal)
